"""A running supervisord, asked over its socket."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from xml.parsers.expat import ExpatError
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import Faults, SupervisorTransport

from zonerd.errors import ServiceUnavailable

STATES: Final = ("STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING", "EXITED", "FATAL", "UNKNOWN")


class Process(NamedTuple):
    """A process as supervisord sees it; times are epoch seconds, 0: never; `pid` 0: none now."""

    group: str
    name: str
    state: str
    pid: int
    started_s: float
    stopped_s: float
    exit_code: int
    """Of its last end; -1 and below where a signal ended it."""
    spawn_error: str

    @property
    def full_name(self) -> str:
        """What supervisorctl calls it."""
        return self.name if self.name == self.group else f"{self.group}:{self.name}"


class Remote:
    """Questions and orders to the supervisord that listens at a socket; each raises ServiceUnavailable."""

    def __init__(self, place: Path) -> None:
        transport = SupervisorTransport(None, None, serverurl=f"unix://{place}")
        self._place = place
        self._server = ServerProxy("http://127.0.0.1", transport=transport)

    def processes(self) -> list[Process]:
        """Give all its processes, ours and others."""
        with self._asked():
            return [
                _process(cast("dict[str, Any]", info))
                for info in cast("Any", self._server.supervisor.getAllProcessInfo())
            ]

    def start(self, process: Process) -> None:
        """Start a process without waiting for it; one that runs already is left alone."""
        with self._asked(Faults.ALREADY_STARTED):
            self._server.supervisor.startProcess(f"{process.group}:{process.name}", False)

    def signal(self, process: Process, name: str) -> None:
        """Send a process a signal (`KILL`); one that has ended meanwhile is left alone."""
        with self._asked(Faults.NOT_RUNNING):
            self._server.supervisor.signalProcess(f"{process.group}:{process.name}", name)

    @contextmanager
    def _asked(self, *harmless: int) -> Iterator[None]:
        try:
            yield
        except Fault as fault:
            if fault.faultCode not in harmless:
                raise ServiceUnavailable("supervisord", fault.faultString) from None
        except (TimeoutError, OSError, http.client.HTTPException, ExpatError) as error:
            raise ServiceUnavailable("supervisord", f"{self._place}: {error}") from None


def _process(info: dict[str, Any]) -> Process:
    return Process(
        group=info["group"],
        name=info["name"],
        state=info["statename"],
        pid=info["pid"],
        started_s=float(info["start"]),
        stopped_s=float(info["stop"]),
        exit_code=info["exitstatus"],
        spawn_error=info["spawnerr"],
    )
