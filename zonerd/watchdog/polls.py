"""What each process answers over HTTP, asked again and again in threads that cannot hold up the watchdog."""

import socket
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Final, NamedTuple, Self

import msgspec

from zonerd import inquiry
from zonerd.config import Config
from zonerd.errors import ServiceUnavailable
from zonerd.inquiry import Liveness, Readiness

ANSWER_WITHIN_S: Final = 2.0
MAX_ANSWER_BYTES: Final = 65_536
EVERY_S: Final = 2.0


class Answer(NamedTuple):
    """What asking a process once gave; `pid` 0: it did not answer in its own name.

    `silent` where nobody answered at the port that the process has told; `reason`: why it is not ready.
    """

    process: str
    pid: int = 0
    last_pass_age_s: float = 0.0
    reason: str | None = None
    silent: bool = False


class Polls:
    """Asks each of these processes while its `with` lasts, one thread a process."""

    def __init__(self, config: Config, processes: tuple[str, ...]) -> None:
        self._config = config
        self._every_s = min(EVERY_S, config.watchdog.stall_s / 4)
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._ended = Event()
        self._threads = [Thread(target=self._go_on, args=(name,), name=name, daemon=True) for name in processes]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # a thread that waits for an answer ends with the process

    def answers(self) -> Iterator[Answer]:
        """Give what was answered since the last time."""
        while True:
            try:
                yield self._answers.get_nowait()
            except Empty:
                return

    def ask(self, process: str) -> Answer:
        """Ask a process once; never raises for what is answered."""
        try:
            address = inquiry.address_of(self._config, process)
            where = (address.host, address.port)
            alive = msgspec.json.decode(_get(*where, "/healthz"), type=Liveness)
            ready = msgspec.json.decode(_get(*where, "/readyz"), type=Readiness)
        except ServiceUnavailable as error:
            return Answer(process, reason=error.reason)
        except OSError:
            return Answer(process, reason=f"no answer at {address}", silent=True)
        except (ValueError, RecursionError):
            return Answer(process, reason=f"another program answers at {address}")
        if not alive.process == ready.process == process:
            return Answer(process, reason=f"zonerd's {alive.process} answers at {address}, pid {alive.pid}")
        reasons = (f"{check}: {reason}" for check, reason in ready.reasons.items())
        return Answer(process, alive.pid, alive.last_pass_age_s, next(reasons, None))

    def _go_on(self, process: str) -> None:
        while not self._ended.wait(self._every_s):
            self._answers.put(self.ask(process))


def _get(host: str, port: int, path: str) -> bytes:
    """Give the body of an answer, within ANSWER_WITHIN_S however it trickles; raises OSError and ValueError."""
    deadline = time.monotonic() + ANSWER_WITHIN_S
    answer = b""
    with socket.create_connection((host, port), ANSWER_WITHIN_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        while len(answer) < MAX_ANSWER_BYTES:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            part = connection.recv(MAX_ANSWER_BYTES)
            if not part:
                break
            answer += part
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator or not head.startswith(b"HTTP/"):
        raise ValueError(path)
    return body
