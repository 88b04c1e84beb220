"""Asking a process over HTTP: where it is found, and whom it is not mistaken for."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from zonerd import config, inquiry, ports
from zonerd.errors import ServiceUnavailable
from zonerd.inquiry import Address, Liveness, Readiness

HOST = "127.0.0.1"
READY = '{"process": "consumer", "pid": 7, "ready": false, "checks": {"kafka": {"ok": false, "reason": "gone"}}}'

Answering = Callable[[bytes], Address]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Let somebody at a port answer every request with these bytes: `answering(b"…")` gives where."""
    with ExitStack() as open_:

        def answer(said: bytes) -> Address:
            server = open_.enter_context(socket.create_server((HOST, 0)))

            def serve() -> None:
                while True:
                    try:
                        with server.accept()[0] as one:
                            one.recv(4096)
                            one.sendall(said)
                    except OSError:
                        return

            threading.Thread(target=serve, daemon=True).start()
            open_.callback(server.shutdown, socket.SHUT_RDWR)
            return Address("consumer", HOST, server.getsockname()[1])

        yield answer


def http(body: bytes | str, status: str = "200 OK") -> bytes:
    whole = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(whole)}\r\n\r\n".encode() + whole


def load(run_dir: Path, *overrides: str) -> config.Config:
    return config.load(None, {}, [f"store.run_dir={run_dir}", f"store.data_dir={run_dir}", *overrides]).config


def test_a_report_of_a_process_that_is_not_ready_is_read_like_any_other(answering: Answering):
    said = inquiry.report(answering(http(READY, "503 Service Unavailable")), "/readyz", Readiness, 5)
    assert (said.pid, said.ready, said.reasons) == (7, False, {"kafka": "gone"})


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        http("<html>"),
        http("{}"),
        http(READY.replace("7", '"seven"')),
        http("[" * 100_000),
        http(b"\xff\xfe"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n{}",
    ],
)
def test_whatever_else_answers_there_is_not_taken_for_zonerd(answering: Answering, said: bytes):
    with pytest.raises(ServiceUnavailable, match=r"not zonerd|not HTTP|no answer"):
        inquiry.report(answering(said), "/readyz", Readiness, 5)


def test_another_process_of_zonerds_is_not_taken_for_the_one_that_is_asked(answering: Answering):
    other = http('{"process": "producer", "pid": 8, "ok": true, "last_pass_age_s": 0.1}')
    with pytest.raises(ServiceUnavailable, match=r"answers zonerd's producer, pid 8"):
        inquiry.report(answering(other), "/healthz", Liveness, 5)


def test_who_accepts_and_says_nothing_is_not_waited_for():
    with socket.create_server((HOST, 0)) as silent:
        address = Address("consumer", HOST, silent.getsockname()[1])
        with pytest.raises(ServiceUnavailable, match=r"no answer at 127\.0\.0\.1:[0-9]+ in 0\.2 s"):
            inquiry.ask(address, "/healthz", 0.2)


def test_where_nobody_listens_the_refusal_is_named():
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ServiceUnavailable, match=r"no answer at 127\.0\.0\.1:[0-9]+ \(connection refused\)"):
        inquiry.ask(Address("consumer", HOST, port), "/healthz", 5)


def test_a_process_is_found_at_the_port_that_it_has_told_else_at_the_configured_one(tmp_path: Path):
    assert str(inquiry.address_of(load(tmp_path), "consumer")) == "127.0.0.1:19310"
    ports.note(tmp_path, "consumer", 4711)
    assert inquiry.address_of(load(tmp_path), "consumer").port == 4711


def test_a_port_that_is_taken_or_not_told_yet_is_named(tmp_path: Path):
    ports.note(tmp_path, "consumer", None)
    with pytest.raises(ServiceUnavailable, match="19310 is taken by another program"):
        inquiry.address_of(load(tmp_path), "consumer")
    with pytest.raises(ServiceUnavailable, match=r"not told its port in .*ports\.json"):
        inquiry.address_of(load(tmp_path, "http.port.producer=0"), "producer")
    (tmp_path / ports.NAME).write_text('{"producer": "rm -rf", "aggregator": 700000}', encoding="utf-8")
    for process in ("producer", "aggregator"):
        with pytest.raises(ServiceUnavailable, match="not told its port"):
            inquiry.address_of(load(tmp_path), process)


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1:19310"), ("::", "[::1]:19310")])
def test_who_listens_everywhere_is_asked_on_this_machine(tmp_path: Path, host: str, shown: str):
    assert str(inquiry.address_of(load(tmp_path, f"http.host={host}"), "consumer")) == shown
