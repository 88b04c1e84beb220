"""The HTTP side of a process: what it answers, to whom it does not listen for long, and how it waits for its port."""

import http.client
import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import CapturingLogger

from services.process import wait_until
from zonerd import endpoint, metrics, ports
from zonerd.endpoint import CHECK, MAX_CONNECTIONS, Endpoint, Listening
from zonerd.health import Health

HOST = "127.0.0.1"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> CapturingLogger:
    return CapturingLogger()


@pytest.fixture
def health(log: CapturingLogger, clock: Clock) -> Health:
    return Health(log, ("kafka",), clock)


@pytest.fixture
def port(health: Health, tmp_path: Path) -> Iterator[int]:
    with Endpoint(_listening(tmp_path), health):
        port = ports.noted(tmp_path)["consumer"]
        assert port
        yield port


def _listening(run_dir: Path, port: int = 0, host: str = HOST) -> Listening:
    return Listening("consumer", "consumer", host, port, run_dir, stall_s=60)


def _ask(port: int, path: str, method: str = "GET", host: str = HOST) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_metrics_are_prometheus_text_of_this_process_alone(port: int) -> None:
    status, body = _ask(port, "/metrics?x=1")
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert status == 200
    assert {"zonerd_build_info", "zonerd_ready", "zonerd_consumer_lag_records", "process_cpu_seconds"} <= names
    assert not any(name.startswith(("zonerd_producer", "zonerd_aggregator", "zonerd_watchdog")) for name in names)


def test_healthz_turns_503_once_no_pass_has_ended_for_stall_s(port: int, health: Health, clock: Clock) -> None:
    clock.now = 59.0
    status, body = _ask(port, "/healthz")
    told = json.loads(body)
    assert (status, told["ok"], told["last_pass_age_s"], told["pid"]) == (200, True, 59.0, os.getpid())
    clock.now = 60.0
    assert _ask(port, "/healthz")[0] == 503
    health.beat()
    assert _ask(port, "/healthz")[0] == 200


def test_readyz_names_the_check_that_fails_and_why(port: int, health: Health) -> None:
    health.fail("kafka", "refused")
    status, body = _ask(port, "/readyz")
    assert (status, json.loads(body)["checks"]) == (
        503,
        {"kafka": {"ok": False, "reason": "refused"}, "http": {"ok": True, "reason": None}},
    )
    health.hold("kafka")
    status, body = _ask(port, "/readyz")
    assert (status, json.loads(body)["ready"]) == (200, True)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 200), ("GET", "/nope", 404), ("POST", "/", 501)])
def test_other_requests_are_answered_too(port: int, method: str, path: str, status: int) -> None:
    assert _ask(port, path, method)[0] == status


def test_head_answers_without_a_body(port: int) -> None:
    assert _ask(port, "/metrics", "HEAD") == (200, b"")


def test_it_listens_on_ipv6_too(health: Health, tmp_path: Path) -> None:
    with Endpoint(_listening(tmp_path, host="::1"), health):
        port = ports.noted(tmp_path)["consumer"]
        assert port is not None
        assert _ask(port, "/healthz", host="::1")[0] == 200


def test_a_taken_port_is_not_ready_and_is_taken_as_soon_as_it_is_free(
    health: Health, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "RETRY_S", 0.02)
    with socket.create_server((HOST, 0)) as other, ExitStack() as stack:
        port = other.getsockname()[1]
        stack.enter_context(Endpoint(_listening(tmp_path, port), health))
        assert "Address already in use" in health.reasons[CHECK]
        assert ports.noted(tmp_path) == {"consumer": None}
        other.close()
        wait_until(lambda: CHECK not in health.reasons, 10)
        assert _ask(port, "/healthz")[0] == 200
        assert ports.noted(tmp_path) == {"consumer": port}


def test_a_host_that_is_not_ours_is_a_failed_check_and_no_crash(health: Health, tmp_path: Path) -> None:
    with Endpoint(_listening(tmp_path, host="192.0.2.1"), health):
        assert "192.0.2.1" in health.reasons[CHECK]


def test_who_never_finishes_a_request_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "REQUEST_WITHIN_S", 0.1)
    with socket.create_connection((HOST, port)) as slow:
        slow.settimeout(10)
        slow.sendall(b"GET /met")
        assert slow.recv(1) == b""


def test_a_crowd_of_silent_connections_does_not_keep_a_scraper_out(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(2 * MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection((HOST, port)))
        assert _ask(port, "/healthz")[0] == 200


def test_many_scrapers_at_once_are_all_answered(port: int) -> None:
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(_ask(port, "/metrics")[0])) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 50


def test_500_mutated_requests_do_no_harm(
    port: int, seed: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(endpoint, "PACE_S", 0)
    chance = random.Random(seed)
    good = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nContent-Length: 0\r\n\r\n"
    for _ in range(500):
        with socket.create_connection((HOST, port)) as mutant, suppress(OSError):
            mutant.settimeout(10)
            mutant.sendall(_mutated(good, chance))
            mutant.shutdown(socket.SHUT_WR)
            while mutant.recv(65536):
                pass
    assert _ask(port, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def _mutated(request: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(6)
    place = chance.randrange(len(request))
    if kind == 0:
        return request[:place]
    if kind == 1:
        return request[:place] + bytes([chance.randrange(256)]) + request[place + 1 :]
    if kind == 2:
        return request[:place] + chance.randbytes(chance.randrange(1, 3000)) + request[place:]
    if kind == 3:
        return b"GET /" + b"x" * chance.choice((1000, 70_000, 1_000_000)) + b" HTTP/1.1\r\n\r\n"
    if kind == 4:
        return b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * chance.choice((99, 101, 10_000)) + b"\r\n"
    return chance.choice(
        (b"", b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 50)
    )


def test_an_exposition_is_written_four_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_AGE_S", 3600)
    assert metrics.exposition("watchdog") is metrics.exposition("watchdog")


def test_many_equal_observations_count_as_one_by_one() -> None:
    before = _end_to_end("stored")
    metrics.END_TO_END.observe("stored", 0.2, 3)
    metrics.END_TO_END.observe("stored", 9999)
    after = _end_to_end("stored")
    assert {le: after[le] - before[le] for le in ("0.1", "0.25", "7200.0", "+Inf", "sum")} == {
        "0.1": 0, "0.25": 3, "7200.0": 3, "+Inf": 4, "sum": pytest.approx(9999.6),
    }  # fmt: skip


def _end_to_end(stage: str) -> dict[str, float]:
    samples = [s for family in metrics.families("consumer") for s in family.samples if s.labels.get("stage") == stage]
    samples = [sample for sample in samples if sample.name.startswith("zonerd_end_to_end_seconds")]
    return {sample.labels.get("le", sample.name.rpartition("_")[2]): sample.value for sample in samples}
