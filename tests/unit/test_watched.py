"""The watchdog's judgement of one process, what it asks and hears, and what it tells systemd."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from structlog.testing import CapturingLogger

from zonerd import metrics, ports, watchdog
from zonerd.config import Config, Store
from zonerd.config import Watchdog as Limits
from zonerd.endpoint import Endpoint, Listening
from zonerd.health import Health
from zonerd.supervise import RESTARTING
from zonerd.supervise.listener import Event, Listener, SupervisordGone
from zonerd.supervise.remote import Remote
from zonerd.watchdog import Watchdog, polls
from zonerd.watchdog.polls import Answer, Polls
from zonerd.watchdog.systemd import Systemd
from zonerd.watchdog.watched import STEADY_S, Watched

STALL_S = 60.0
PID = 42


@pytest.fixture
def running() -> Watched:
    one = Watched("consumer", STALL_S, 60.0)
    one.enter("RUNNING", PID, 0.0)
    return one


@pytest.fixture
def log() -> CapturingLogger:
    return CapturingLogger()


def answers(one: Watched, *given: tuple[float, Answer]) -> bool:
    for now, answer in given:
        one.hear(answer, now)
    return one.hangs()


def own(age_s: float) -> Answer:
    return Answer("consumer", PID, age_s)


SILENT = Answer("consumer", reason="no answer", silent=True)


def test_a_loop_without_a_pass_for_so_long_hangs_once_a_second_answer_confirms_it(running: Watched):
    assert not answers(running, (70, own(59.9)), (72, own(61.9)))
    assert answers(running, (74, own(63.9)))


def test_one_old_answer_of_a_machine_that_slept_is_no_hang(running: Watched):
    assert not answers(running, (70, own(65)), (72, own(0.1)), (150, own(61)))


def test_silence_counts_from_the_last_pass_that_it_told(running: Watched):
    assert not answers(running, (10, own(1)), (68, SILENT))
    assert answers(running, (69, SILENT), (71, SILENT))


def test_silence_from_the_first_on_counts_from_the_start(running: Watched):
    assert not answers(running, (58, SILENT), (60, SILENT))
    assert answers(running, (62, SILENT))


@pytest.mark.parametrize(
    "answer", [Answer("consumer", reason="its port is taken"), Answer("consumer", PID + 1, 1000.0)], ids=str
)
def test_no_port_or_the_answer_of_another_pid_is_no_evidence(running: Watched, answer: Answer):
    assert not answers(running, *((float(now), answer) for now in range(0, 1000, 2)))


def test_what_does_not_run_cannot_hang(running: Watched):
    running.enter("STOPPED", 0, 1.0)
    assert not answers(running, (100, SILENT), (102, SILENT), (104, SILENT))
    assert running.last_pass_age_s(104) == 0


def test_a_new_process_is_not_blamed_for_its_predecessor(running: Watched):
    assert answers(running, (61, SILENT), (63, SILENT))
    running.enter("RUNNING", PID + 1, 64.0)
    assert not answers(running, (66, SILENT), (68, SILENT))


def test_who_is_forgiven_is_counted_from_then_on(running: Watched):
    running.hear(SILENT, 61)
    running.forgive(62)
    assert not answers(running, (63, SILENT), (65, SILENT))


def test_what_was_sent_sigabrt_is_not_sent_it_again_and_killed_in_time(running: Watched):
    running.kill_at = 65.0
    assert not answers(running, (70, SILENT), (72, SILENT))
    assert not running.must_be_killed(64.9)
    assert running.must_be_killed(65.0)
    running.enter("EXITED", 0, 65.1)
    assert not running.must_be_killed(66)


def test_what_is_given_up_is_retried_ever_later_to_ten_minutes():
    one = Watched("consumer", STALL_S, 60.0)
    now, waits = 0.0, []
    for _ in range(6):
        one.enter("FATAL", 0, now)
        assert one.retry_at is not None
        waits.append(one.retry_at - now)
        assert not one.is_retried(one.retry_at - 0.1)
        assert one.is_retried(one.retry_at)
        now = one.retry_at
        one.enter("STARTING", 0, now)
    assert waits == [60, 120, 240, 480, 600, 600]


@pytest.mark.parametrize(("ran_s", "wait_s"), [(STEADY_S - 1, 120), (STEADY_S, 60)])
def test_who_has_run_steadily_is_retried_soon_again(ran_s: float, wait_s: float):
    one = Watched("consumer", STALL_S, 60.0)
    one.enter("FATAL", 0, 0.0)
    one.enter("RUNNING", PID, 100.0)
    one.enter("BACKOFF", 0, 100.0 + ran_s)
    one.enter("FATAL", 0, 1000.0)
    assert one.retry_at == 1000.0 + wait_s


def test_who_refused_its_configuration_is_never_retried_nor_anybody_where_the_interval_is_0():
    refused, never = Watched("consumer", STALL_S, 60.0), Watched("consumer", STALL_S, 0.0)
    refused.exit_code = 78
    for one in (refused, never):
        one.enter("FATAL", 0, 0.0)
        assert not one.is_retried(1e9)


def test_what_the_operator_stopped_is_never_started():
    one = Watched("consumer", STALL_S, 60.0)
    one.enter("FATAL", 0, 0.0)
    one.enter("STOPPED", 0, 1.0)
    assert not one.is_retried(1e9)


# what is asked


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(store=Store(data_dir=str(tmp_path), run_dir=str(tmp_path)), watchdog=Limits(stall_s=60))


def test_a_process_is_asked_at_the_port_that_it_told(config: Config, log: CapturingLogger):
    health = Health(log, ("kafka",))
    health.fail("kafka", "refused")
    with Endpoint(Listening.of(config, "consumer")._replace(port=0), health):
        answer = Polls(config, ("consumer",)).ask("consumer")
    assert (answer.pid, answer.silent, answer.reason) == (os.getpid(), False, "kafka: refused")
    assert 0 <= answer.last_pass_age_s < 10


def test_the_answer_of_another_process_of_ours_is_not_its_own(config: Config, log: CapturingLogger):
    with Endpoint(Listening.of(config, "producer")._replace(port=0), Health(log, ())):
        ports.note(config.run_dir, "consumer", ports.noted(config.run_dir)["producer"])
        answer = Polls(config, ("consumer",)).ask("consumer")
    assert (answer.pid, answer.silent) == (0, False)
    assert "producer" in str(answer.reason)


def test_a_port_that_is_taken_is_no_silence(config: Config):
    ports.note(config.run_dir, "consumer", None)
    answer = Polls(config, ("consumer",)).ask("consumer")
    assert (answer.pid, answer.silent) == (0, False)


@pytest.fixture
def stranger(config: Config) -> Iterator[Callable[[bytes | None], None]]:
    """Let a stranger answer this at the consumer's port; None: take the connection and say nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def serve(words: bytes) -> None:
        while True:
            try:
                connection, _ = server.accept()
                connection.recv(1024)
                connection.sendall(words)
                connection.close()
            except OSError:
                if server.fileno() < 0:
                    return

    def start(words: bytes | None) -> None:
        ports.note(config.run_dir, "consumer", server.getsockname()[1])
        if words is not None:
            held.append(threading.Thread(target=serve, args=(words,), daemon=True))
            held[0].start()

    yield start
    server.shutdown(socket.SHUT_RDWR)
    server.close()


HEAD = b"HTTP/1.0 200 OK\r\n\r\n"
GARBAGE = [
    b"",
    b"SSH-2.0-OpenSSH\r\n",
    HEAD,
    HEAD + b"<html>",
    HEAD + b"[" * 60_000,
    HEAD + b"\xff\xfe",
    HEAD + json.dumps({"process": "consumer", "pid": "x", "ok": True, "last_pass_age_s": 0}).encode(),
    HEAD + b'{"process": "consumer", "pid": 1, "ok": true, "last_pass_age_s": NaN}',
    b"x" * 200_000,
]


@pytest.mark.parametrize("words", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_neither_an_answer_nor_silence(
    config: Config, stranger: Callable[[bytes | None], None], words: bytes
):
    stranger(words)
    answer = Polls(config, ("consumer",)).ask("consumer")
    assert (answer.pid, answer.silent) == (0, False)


def test_a_connection_that_is_taken_and_not_answered_is_silence(
    config: Config, stranger: Callable[[bytes | None], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(polls, "ANSWER_WITHIN_S", 0.1)
    stranger(None)
    assert Polls(config, ("consumer",)).ask("consumer").silent


# what supervisord says


class Supervisord:
    """The other end of a listener's two streams."""

    def __init__(self, stack: ExitStack) -> None:
        theirs, ours = os.pipe()
        said, answers = os.pipe()
        self.events = stack.enter_context(os.fdopen(ours, "w", encoding="utf-8"))
        self._said = stack.enter_context(os.fdopen(said, "rb", buffering=0))
        stdin = stack.enter_context(os.fdopen(theirs, encoding="utf-8"))
        stdout = stack.enter_context(os.fdopen(answers, "w", encoding="utf-8"))
        self.listener = Listener(stdin, stdout)

    def send(self, name: str, payload: str) -> None:
        head = f"ver:3.0 server:zonerd serial:1 pool:watchdog poolserial:1 eventname:{name} len:{len(payload)}\n"
        self.events.write(head + payload)
        self.events.flush()

    def heard(self) -> bytes:
        return self._said.read(4096)


@pytest.fixture
def supervisord() -> Iterator[Supervisord]:
    with ExitStack() as stack:
        yield Supervisord(stack)


def test_each_event_is_asked_for_and_acknowledged_once(supervisord: Supervisord):
    assert supervisord.listener.next(0) is None
    assert supervisord.listener.next(0) is None
    assert supervisord.heard() == b"READY\n"
    told = "processname:consumer groupname:consumer from_state:RUNNING expected:0 pid:9"
    supervisord.send("PROCESS_STATE_EXITED", told)
    event = supervisord.listener.next(0)
    assert event is not None
    assert (event.state, event.fields["processname"], event.fields["pid"]) == ("EXITED", "consumer", "9")
    assert supervisord.heard() == b"RESULT 2\nOK"


def test_somebodys_remote_communication_is_no_reason_to_end(supervisord: Supervisord):
    supervisord.send("REMOTE_COMMUNICATION", "type:with many words\nand: data\n")
    event = supervisord.listener.next(0)
    assert event is not None
    assert event.fields == {}


def test_a_stream_that_ends_says_that_supervisord_is_gone(supervisord: Supervisord):
    supervisord.events.write("ver:3.0 half a li")
    supervisord.events.close()
    with pytest.raises(SupervisordGone):
        supervisord.listener.next(1)


# what is made of it


@pytest.fixture
def lonely(config: Config, log: CapturingLogger) -> Watchdog:
    """A watchdog whose supervisord answers no question."""
    nobody = Remote(config.run_dir / "supervisor.sock")
    return Watchdog(config, log, Health(log, (watchdog.CHECK,)), nobody, Systemd(log, listens=False))


def _state(name: str, state: str, before: str, group: str = "", **more: object) -> Event:
    fields = {"processname": name, "groupname": group or name, "from_state": before}
    return Event(f"PROCESS_STATE_{state}", fields | {key: str(value) for key, value in more.items()}, "")


def _exits(name: str, expected: str) -> float:
    return metrics.PROCESS_EXITS.labels(name, name, expected)._value.get()


def test_programs_of_others_in_a_shared_supervisord_are_not_looked_at(lonely: Watchdog, log: CapturingLogger):
    lonely.hear(_state("nginx", "FATAL", "BACKOFF"))
    lonely.hear(_state("consumer", "FATAL", "BACKOFF", group="somebody"))
    assert not [call for call in log.calls if call.args == ("process_state",)]
    assert "nginx" not in lonely.report().reasons


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (_state("consumer", "EXITED", "RUNNING", expected=0, pid=9), "false"),
        (_state("consumer", "EXITED", "RUNNING", expected=1, pid=9), "true"),
        (_state("consumer", "STOPPED", "STOPPING", pid=9), "true"),
        (_state("consumer", "BACKOFF", "STARTING", tries=1), "false"),
    ],
    ids=["exited", "exited as expected", "stopped", "ended too soon"],
)
def test_each_end_is_counted_once(lonely: Watchdog, event: Event, expected: str):
    before = {name: _exits("consumer", name) for name in ("true", "false")}
    lonely.hear(event)
    assert {name: _exits("consumer", name) - before[name] for name in before} == {
        expected: 1,
        {"true": "false", "false": "true"}[expected]: 0,
    }


def test_without_an_answer_of_supervisord_it_goes_on_and_says_so(lonely: Watchdog):
    lonely.act()
    lonely.hear(_state("consumer", "RUNNING", "STARTING", pid=PID))
    for _ in range(3):
        lonely.note(Answer("consumer", PID, 1000.0))
    lonely.act()
    report = lonely.report()
    assert "supervisor.sock" in str(report.reasons[watchdog.CHECK])
    assert report.reasons["producer"] == "not in supervisord"
    assert report.last_pass_age_s >= 0


def test_its_report_tells_its_own_pass_and_why_each_process_is_not_ready(lonely: Watchdog):
    for name in ("consumer", "producer"):
        lonely.hear(_state(name, "RUNNING", "STARTING", pid=PID))
    lonely.note(Answer("consumer", PID, 30.0, "kafka: refused"))
    lonely.note(Answer("producer", PID, 1.0))
    lonely.hear(_state("aggregator", "FATAL", "BACKOFF"))
    report = lonely.report()
    assert report.reasons["consumer"] == "kafka: refused"
    assert report.reasons["producer"] is None
    assert report.reasons["aggregator"] == "FATAL"
    assert report.last_pass_age_s < 30


# what systemd is told


@pytest.fixture
def manager(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    place = tmp_path_factory.mktemp("s") / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(place))
        listening.bind(str(place))
        yield listening


def test_ready_is_told_once_and_a_status_when_it_changes_in_plain_letters(manager: socket.socket, log: CapturingLogger):
    with Systemd(log, listens=True) as systemd:
        for words in ("2 of 4", "2 of 4", "consumer: gëht\nnicht"):
            systemd.status(words)
            systemd.ready()
        systemd.alive()
    told = [manager.recv(1000).decode() for _ in range(4)]
    assert told == ["STATUS=2 of 4", "READY=1", "STATUS=consumer: g?ht?nicht", "WATCHDOG=1"]


def test_ready_is_told_once_all_processes_run_or_were_given_up_and_not_before(
    manager: socket.socket, config: Config, log: CapturingLogger
):
    nobody = Remote(config.run_dir / "supervisor.sock")
    with Systemd(log, listens=True) as systemd:
        one = Watchdog(config, log, Health(log, (watchdog.CHECK,)), nobody, systemd)
        for name in ("watchdog", "consumer", "producer"):
            one.hear(_state(name, "RUNNING", "STARTING", pid=PID))
        one.hear(_state("aggregator", "BACKOFF", "STARTING"))
        one.act()
        assert manager.recv(1000).startswith(b"STATUS=3 of 4 processes run, ")
        one.hear(_state("aggregator", "FATAL", "BACKOFF"))
        one.act()
        assert manager.recv(1000) == b"READY=1"
        one.hear(Event("TICK_5", {"when": "5"}, ""))
        one.hear(Event("REMOTE_COMMUNICATION", {"type": RESTARTING}, ""))
        one.hear(Event("SUPERVISOR_STATE_CHANGE_STOPPING", {}, ""))
        told = [manager.recv(1000).split(b"=")[0] for _ in range(2)]
    assert told == [b"STATUS", b"WATCHDOG"]
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1000)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sdnotify leaves its socket open
def test_a_systemd_that_takes_nothing_is_named_once_and_told_again(
    manager: socket.socket, log: CapturingLogger, tmp_path: Path
):
    place = Path(os.environ["NOTIFY_SOCKET"])
    hidden = place.rename(place.with_name("hidden"))
    with Systemd(log, listens=True) as systemd:
        systemd.ready()
        systemd.ready()
        assert [call.args for call in log.calls] == [("systemd_notify_failed",)]
        hidden.rename(place)
        systemd.ready()
    assert manager.recv(1000) == b"READY=1"


def test_without_a_systemd_nothing_is_said(log: CapturingLogger):
    systemd = Systemd(log, listens=False)
    systemd.ready()
    systemd.status("x")
    systemd.alive()
    systemd.stopping()
    assert not log.calls
