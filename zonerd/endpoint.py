"""The HTTP side of a process: /metrics, /healthz and /readyz, from a thread of its own that cannot hold up the work."""

import json
import os
import platform
import socket
import socketserver
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event, Lock, Thread
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self, cast

from zonerd import __version__, metrics, ports
from zonerd.config import Config
from zonerd.health import Health, Report

CHECK: Final = "http"
"""The check of readiness that fails while the port is taken."""

RETRY_S: Final = 1.0
REQUEST_WITHIN_S: Final = 5.0
"""A connection that has not been answered by then is cut off."""
MAX_CONNECTIONS: Final = 64
"""Past it the oldest one is cut off: who asks and listens is answered within milliseconds."""
PACE_S: Final = 0.02
"""At most 50 connections a second: any number of scrapers leaves the work its share of the interpreter."""

LOOK_EVERY_S: Final = 0.1
"""How often it is seen whether it shall end."""

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Listening(NamedTuple):
    """Who answers, where, and when its loop counts as stuck; port 0 is any."""

    process: str
    role: metrics.Role
    host: str
    port: int
    run_dir: Path
    stall_s: float

    @classmethod
    def of(cls, config: Config, process: str) -> Self:
        """Give what the configuration says of one of its processes."""
        role = cast("metrics.Role", process.partition("-")[0])
        where = (config.http.host, config.port_of(process), config.run_dir)
        return cls(process, role, *where, config.watchdog.stall_s)


class Answer(NamedTuple):
    """An answer of ours: status, kind and body."""

    status: HTTPStatus
    content_type: str
    body: bytes


class Endpoint:
    """Answers as long as its `with` lasts; a taken port is tried again each second, not ready meanwhile.

    `report` gives the state that /healthz and /readyz show. The port stands in ports.json (null while it is taken).
    """

    def __init__(
        self,
        listening: Listening,
        health: Health,
        report: Callable[[], Report] | None = None,
        libraries: Mapping[str, str] = NOTHING,
    ) -> None:
        self._listening = listening
        self._health = health
        self._report = report or health.report
        self._server: _Server | None = None
        self._told_none = False
        self._ended = Event()
        self._thread = Thread(target=self._serve, name="http", daemon=True)
        metrics.BUILD_INFO.labels(
            __version__, libraries.get("sqlite", ""), libraries.get("librdkafka", ""), platform.python_version()
        ).set(1)
        health.add(CHECK)

    def __enter__(self) -> Self:
        self._server = self._bind()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._server is not None:
            self._server.ended = True
        self._thread.join()

    def answer(self, path: str) -> Answer:
        """Give the answer to a GET of this path."""
        if path == "/metrics":
            return Answer(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", metrics.exposition(self._role))
        if path == "/healthz":
            report = self._report()
            alive = report.last_pass_age_s < self._listening.stall_s
            return self._as_json(alive, {"ok": alive, "last_pass_age_s": round(report.last_pass_age_s, 3)})
        if path == "/readyz":
            report = self._report()
            checks = {check: {"ok": not reason, "reason": reason} for check, reason in report.reasons.items()}
            return self._as_json(report.ready, {"ready": report.ready, "checks": checks})
        status = HTTPStatus.OK if path == "/" else HTTPStatus.NOT_FOUND
        return Answer(status, "text/plain; charset=utf-8", b"/metrics\n/healthz\n/readyz\n")

    @property
    def _role(self) -> metrics.Role:
        return self._listening.role

    def _as_json(self, good: bool, fields: Mapping[str, object]) -> Answer:
        whole = {"schema": 1, "process": self._listening.process, "pid": os.getpid(), **fields}
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status, "application/json", json.dumps(whole).encode() + b"\n")

    def _serve(self) -> None:
        while not self._ended.is_set():
            if self._server is None:
                if not self._ended.wait(RETRY_S):
                    self._server = self._bind()
            else:
                with self._server as server:
                    server.serve_until_ended()

    def _bind(self) -> "_Server | None":
        host, wanted = self._listening.host, self._listening.port
        try:
            server = _Server(host, wanted, self.answer)
        except OSError as error:
            self._tell(None)
            self._health.fail(CHECK, f"{host} port {wanted}: {error.strerror}; tried again each second")
            return None
        self._tell(server.server_address[1])
        self._health.hold(CHECK)
        return server

    def _tell(self, port: int | None) -> None:
        if port is None and self._told_none:
            return
        self._told_none = port is None
        with suppress(OSError):  # on a full disk the port is as configured, all the same
            ports.note(self._listening.run_dir, self._listening.process, port)


class _Server(socketserver.ThreadingTCPServer):
    """One thread a connection, a bounded number of connections, each for a bounded time."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, answer: Callable[[str], Answer]) -> None:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        self.answer = answer
        self.ended = False
        self._guard = Lock()
        self._open: dict[Any, float] = {}
        super().__init__(address, _Handler)  # type: ignore[arg-type] # the stubs know IPv4's kind only

    def serve_until_ended(self) -> None:
        """Answer until `ended`; what fails with one connection ends that connection."""
        self.timeout = LOOK_EVERY_S
        while not self.ended:
            self.handle_request()
            self._cut_off_late()
            time.sleep(PACE_S)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's words
        with self._guard:
            self._open[request] = time.monotonic()
            oldest = next(iter(self._open)) if len(self._open) > MAX_CONNECTIONS else None
        if oldest is not None:
            self._cut_off(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - socketserver's words
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's words
        """Nothing: who asked is gone, or sent what is no request."""

    def _cut_off_late(self) -> None:
        with self._guard:
            late = [one for one, since in self._open.items() if time.monotonic() - since > REQUEST_WITHIN_S]
        for request in late:
            self._cut_off(request)

    def _cut_off(self, request: Any) -> None:  # noqa: ANN401 - socketserver's words
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)  # its thread wakes and ends
        with self._guard:
            self._open.pop(request, None)


class _Handler(BaseHTTPRequestHandler):
    """One request, answered and closed."""

    server: _Server
    server_version = "zonerd"
    sys_version = ""
    timeout = REQUEST_WITHIN_S

    def do_GET(self) -> None:
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        self._send(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's word
        """Nothing: a scrape is no event."""

    def _send(self, *, with_body: bool) -> None:
        answer = self.server.answer(self.path.partition("?")[0])
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)
