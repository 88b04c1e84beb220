"""supervisord's event listener protocol: one event at a time over stdin, answered on stdout."""

import select
from typing import Final, NamedTuple, TextIO

from supervisor.childutils import eventdata, get_headers, listener

TICK: Final = "TICK_5"
STOPPING: Final = "SUPERVISOR_STATE_CHANGE_STOPPING"
REMOTE: Final = "REMOTE_COMMUNICATION"
PROCESS: Final = "PROCESS_STATE_"
"""What the name of an event begins with that tells a process's new state."""


class SupervisordGone(Exception):
    """Nobody sends events any more."""


class Event(NamedTuple):
    """What supervisord says: the name of the event, its fields, and what stands behind them."""

    name: str
    fields: dict[str, str]
    data: str

    @property
    def state(self) -> str:
        """The state that a process entered; empty where the event is about something else."""
        return self.name.removeprefix(PROCESS) if self.name.startswith(PROCESS) else ""


class Listener:
    """Hears supervisord's events; nothing else may read or write these two streams."""

    def __init__(self, stdin: TextIO, stdout: TextIO) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._asked = False

    def next(self, within_s: float) -> Event | None:
        """Give the next event, or None where there is none within so long; raises SupervisordGone.

        It is acknowledged at once: what is made of it is our affair, and must not hold up supervisord's queue.
        """
        try:
            if not self._asked:
                listener.ready(self._stdout)
                self._asked = True
            if not select.select([self._stdin], [], [], within_s)[0]:
                return None
            event = self._read()
            listener.ok(self._stdout)
        except OSError as error:
            raise SupervisordGone from error
        self._asked = False
        return event

    def _read(self) -> Event:
        line = self._stdin.readline()
        if not line.endswith("\n"):
            raise SupervisordGone
        headers = get_headers(line)
        payload = self._stdin.read(int(headers["len"]))
        try:
            fields, data = eventdata(payload if "\n" in payload else payload + "\n")
        except ValueError:  # somebody's remote communication, of a type with spaces
            fields, data = {}, payload
        return Event(headers["eventname"], fields, data)
