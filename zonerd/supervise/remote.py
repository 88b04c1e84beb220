"""A running supervisord, asked over its socket."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, cast
from xml.parsers.expat import ExpatError
from xmlrpc.client import Error, Fault, ServerProxy, Transport

from supervisor.xmlrpc import Faults

from zonerd.errors import ServiceUnavailable

STATES: Final = ("STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING", "EXITED", "FATAL", "UNKNOWN")

ANSWER_WITHIN_S: Final = 5.0


class Process(NamedTuple):
    """A process as supervisord sees it; times are epoch seconds, 0: never; `pid` 0: none now."""

    group: str
    name: str
    state: str
    pid: int
    started_s: float
    stopped_s: float
    exit_code: int
    """Of its last end; -1 where a signal ended it."""
    spawn_error: str

    @property
    def full_name(self) -> str:
        """What supervisorctl calls it."""
        return self.name if self.name == self.group else f"{self.group}:{self.name}"


class Remote:
    """Questions and orders to the supervisord that listens at a socket; each raises ServiceUnavailable.

    Its every step of an answer is waited for at most `answer_within_s`: one that was stopped accepts and says nothing.
    """

    def __init__(self, place: Path, answer_within_s: float = ANSWER_WITHIN_S) -> None:
        self._place = place
        self._transport = _Transport(place, answer_within_s)
        self._server = ServerProxy("http://localhost", transport=self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

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
        except (OSError, http.client.HTTPException, ExpatError, Error) as error:
            raise ServiceUnavailable("supervisord", f"{self._place}: {_words(error)}") from None


class _Transport(Transport):
    """XML-RPC over a Unix socket."""

    def __init__(self, place: Path, answer_within_s: float) -> None:
        super().__init__()
        self._place = place
        self._answer_within_s = answer_within_s

    def make_connection(self, host: Any) -> http.client.HTTPConnection:  # noqa: ANN401 - xmlrpc's words
        if self._connection[1] is None:
            self._connection = host, _Connection(self._place, self._answer_within_s)
        return cast("http.client.HTTPConnection", self._connection[1])


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, place: Path, answer_within_s: float) -> None:
        super().__init__("localhost", timeout=answer_within_s)
        self._place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._place))


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


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
