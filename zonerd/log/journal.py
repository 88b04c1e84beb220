"""journald's own protocol: a line as a sentence for people, and each of its fields to ask by."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import structlog
from logging_journald import JournaldTransport

from zonerd import metrics
from zonerd.log.events import EVENTS
from zonerd.log.outlets import PATIENCE_S, Rest

SOCKET: Final = Path("/run/systemd/journal/socket")

MAX_PARTITIONS: Final = 256
"""journald takes no entry of more than 1024 fields."""

_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_NOT_SHOWN: Final = frozenset({"ts", "level", "event", "process", "pid", "reason", "exception"})


class Journal:
    """Sends lines to journald; one that it does not take is dropped and counted, and an outage is said once.

    `alone`: what it takes is not to be written elsewhere too.
    """

    def __init__(self, socket: Path = SOCKET, *, alone: bool = False) -> None:
        self.alone = alone
        self._rest = Rest()
        self._transport = JournaldTransport(socket, connected=False)
        self._transport.socket.settimeout(PATIENCE_S)
        self._fails = False
        self._dropped = 0

    def take(self, line: Mapping[str, object]) -> bool:
        """Send a line, and tell whether journald took it; never raises."""
        trouble = self._send(line)
        failed, self._fails = self._fails, bool(trouble)
        log = structlog.get_logger(process=line["process"], pid=line["pid"])
        if trouble:
            metrics.LOG_LINES_DROPPED.inc()
            self._dropped += 1
            if not failed:
                log.warning("journal_unavailable", reason=trouble)
        elif failed:
            dropped, self._dropped = self._dropped, 0
            log.info("journal_available", dropped=dropped)
        return not trouble

    def _send(self, line: Mapping[str, object]) -> str:
        if self._rest.lasts:
            return "journald hangs"
        try:
            self._transport.send(entry(line))
        except TimeoutError:
            self._rest.begin()
            return f"journald took no line for {PATIENCE_S:g} s"
        except OSError as error:
            return f"journald: {error.strerror or type(error).__name__}"
        self._rest.forget()
        return ""


def opened(mode: Literal["auto", "on", "off"], unit: Mapping[str, str], stdout: int) -> Journal | None:
    """Give the way to journald, if lines are to go there; with `auto` they do in a unit, where journald listens.

    `unit` is what systemd told of it in the environment. Where stdout is the journal too, lines go there natively only.
    """
    if mode == "off" or (mode == "auto" and not (unit and SOCKET.exists())):
        return None
    status = os.fstat(stdout)
    return Journal(alone=unit.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}")


def entry(line: Mapping[str, object]) -> list[tuple[str, object]]:
    """Give a line as journald's fields: ours in capitals behind ZONERD_, and those that its own tools know.

    A line about several partitions is found by each of them: ZONERD_PARTITION, as often as needed.
    """
    partitions = line.get("partitions")
    fields = {name: value for name, value in line.items() if name not in ("ts", "level") and value is not None}
    return [
        ("PRIORITY", _PRIORITIES[str(line["level"])]),
        ("SYSLOG_IDENTIFIER", f"zonerd-{line['process']}"),
        ("MESSAGE", sentence(line)),
        *((f"ZONERD_{name.upper()}", _as_text(value)) for name, value in fields.items()),
        *(("ZONERD_PARTITION", one) for one in (partitions if isinstance(partitions, list) else ())[:MAX_PARTITIONS]),
    ]


def sentence(line: Mapping[str, object]) -> str:
    """Give a line as a sentence: what the event means, the reason, and its main fields, or all where none is."""
    name = str(line["event"])
    help_, main, _ = EVENTS.get(name, (name, (), False))
    reason = f": {line['reason']}" if line.get("reason") else ""
    fields = [
        f"{name}={_as_text(line[name])}"
        for name in main or line
        if name not in _NOT_SHOWN and line.get(name) is not None
    ]
    return f"{help_}{reason} ({', '.join(fields)})" if fields else f"{help_}{reason}"


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
