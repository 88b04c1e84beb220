"""The watchdog over a real supervisord and a real Kafka: what is killed, stopped, hung or given up."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from services.kafka import KafkaBroker
from services.process import ZonerdProcess, wait_until
from services.scrape import Scraped, health, port_of, scrape
from zonerd import supervise
from zonerd.supervise.remote import Process, Remote

Answered = TypeVar("Answered")

PROCESSES = ("producer", "consumer", "aggregator")
WORDS = """
[kafka]
bootstrap_servers = "{broker}"
topic = "watched"
[redis]
enabled = false
[producer]
source = "simulate"
[http]
port = {{ watchdog = 0, producer = 0, aggregator = 0, consumer = 0 }}
[watchdog]
stall_s = 2
"""


class Manager:
    """A systemd that listens at a socket, and remembers what it is told."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(place))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            self.told.append(self._socket.recv(65536).decode())


class Pipeline:
    """One `zonerd up`, seen from outside."""

    def __init__(self, up: ZonerdProcess, folder: Path, config_file: Path) -> None:
        self.up = up
        self.folder = folder
        self._command = [sys.executable, "-m", "zonerd", "-c", str(config_file), "ctl"]

    def process(self, name: str) -> Process:
        with Remote(self.folder / "run" / "supervisor.sock") as supervisord:
            return next(process for process in supervisord.processes() if process.name == name)

    def pid(self, name: str) -> int:
        """Give the pid of a process that runs now; 0: it does not."""
        process = self.process(name)
        return process.pid if process.state == "RUNNING" else 0

    def wait_until_running(self, *names: str) -> None:
        wait_until(lambda: all(self.pid(name) for name in names), 60, self.up.story)

    def wait_for_another(self, name: str, pid: int) -> None:
        wait_until(lambda: self.pid(name) not in (0, pid), 60, self.story)

    def ctl(self, *words: str) -> str:
        return subprocess.run([*self._command, *words], capture_output=True, text=True, timeout=60).stdout

    def metrics(self) -> Scraped:
        return self._asked(scrape)

    def readiness(self) -> dict[str, Any]:
        return self._asked(health)

    def _asked(self, ask: Callable[[int], Answered]) -> Answered:
        """Ask the watchdog, which may have been started just now: its predecessor's port is told until then."""

        def look() -> list[Answered]:
            with suppress(OSError):
                return [ask(port_of(self.folder / "run", "watchdog"))]
            return []

        return wait_until(look, 60, self.story)[0]

    def exits(self, name: str, *, expected: bool) -> float:
        return self.metrics().value("zonerd_process_exits_total", name=name, expected=str(expected).lower())

    def restarts(self, name: str, reason: str) -> float:
        return self.metrics().value("zonerd_watchdog_restarts_total", name=name, reason=reason)

    def state(self, name: str) -> str:
        """Give the one state whose series is 1."""
        found = self.metrics().series("zonerd_process_state", name=name)
        assert len(found) == 8
        states = [dict(labels)["state"] for labels, value in found.items() if value]
        assert len(states) <= 1
        return states[0] if states else ""

    def lines(self, event: str, **fields: object) -> list[dict[str, Any]]:
        text = (self.folder / "log" / "watchdog.log").read_text(encoding="utf-8")
        said = [json.loads(line) for line in text.splitlines()]
        return [line for line in said if line["event"] == event and fields.items() <= line.items()]

    def story(self) -> str:
        return self.up.story() + (self.folder / "log" / "watchdog.log").read_text(encoding="utf-8")[-4000:]


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Manager:
    return Manager(tmp_path_factory.mktemp("m") / "notify")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, kafka: KafkaBroker, manager: Manager) -> Iterator[Pipeline]:
    """One pipeline for all tests here, each of which leaves all its processes running."""
    folder = tmp_path_factory.mktemp("w")
    config_file = folder / "zonerd.toml"
    config_file.write_text('[store]\ndata_dir = "."\n' + WORDS.format(broker=kafka.bootstrap), encoding="utf-8")
    up = ZonerdProcess(config_file, folder, "up", environment={"NOTIFY_SOCKET": str(manager.place)})
    pipeline = Pipeline(up, folder, config_file)
    try:
        wait_until((folder / "run" / "supervisor.sock").exists, 30, up.story)
        pipeline.wait_until_running("watchdog", *PROCESSES)
        wait_until(lambda: pipeline.readiness()["ready"], 60, pipeline.story)
        yield pipeline
        up.terminate(deadline_s=40)
        assert manager.told.count("STOPPING=1") == 1
    finally:
        up.kill()


@pytest.mark.parametrize("name", PROCESSES)
def test_a_killed_process_is_counted_said_and_running_again(pipeline: Pipeline, name: str):
    before, pid, started = pipeline.exits(name, expected=False), pipeline.pid(name), pipeline.process(name).started_s
    os.kill(pid, signal.SIGKILL)
    pipeline.wait_for_another(name, pid)
    wait_until(lambda: pipeline.state(name) == "RUNNING", 10, pipeline.story)
    assert pipeline.exits(name, expected=False) == before + 1
    assert pipeline.metrics().value("zonerd_process_start_time_seconds", name=name) > started
    (line,) = pipeline.lines("process_state", name=name, state="EXITED", process_pid=pid)
    assert line["level"] == "warning"


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_that_the_operator_stops_stays_stopped_and_is_not_ready(pipeline: Pipeline, name: str):
    before = pipeline.exits(name, expected=True)
    assert pipeline.ctl("stop", name) == f"{name}: stopped\n"
    wait_until(lambda: pipeline.state(name) == "STOPPED", 10, pipeline.story)
    assert pipeline.exits(name, expected=True) == before + 1
    readiness = pipeline.readiness()
    assert readiness["checks"][name] == {"ok": False, "reason": "STOPPED"}
    assert not readiness["ready"]
    tick = pipeline.metrics().value("zonerd_watchdog_last_tick_timestamp_seconds")
    wait_until(lambda: pipeline.metrics().value("zonerd_watchdog_last_tick_timestamp_seconds") > tick, 15)
    assert pipeline.process(name).state == "STOPPED"
    assert pipeline.lines("process_state", name=name, state="STOPPED")
    assert pipeline.ctl("start", name) == f"{name}: started\n"
    wait_until(lambda: pipeline.readiness()["ready"], 30, pipeline.story)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_that_hangs_is_ended_and_running_again(pipeline: Pipeline, name: str):
    wait_until(lambda: pipeline.readiness()["ready"], 30, pipeline.story)
    before, pid = pipeline.restarts(name, "stalled"), pipeline.pid(name)
    os.kill(pid, signal.SIGSTOP)
    pipeline.wait_for_another(name, pid)
    assert pipeline.restarts(name, "stalled") == before + 1
    (line,) = pipeline.lines("process_restarted", name=name, process_pid=pid)
    assert line["reason"] == "stalled"
    assert "no answer at" in line["detail"]
    wait_until(lambda: pipeline.readiness()["ready"], 30, pipeline.story)


def test_a_killed_watchdog_comes_back_and_counts_its_own_end(pipeline: Pipeline):
    pid, others = pipeline.pid("watchdog"), [pipeline.pid(name) for name in PROCESSES]
    os.kill(pid, signal.SIGKILL)
    pipeline.wait_for_another("watchdog", pid)
    wait_until(lambda: pipeline.exits("watchdog", expected=False) == 1, 20, pipeline.story)
    wait_until(lambda: pipeline.state("watchdog") == "RUNNING", 10, pipeline.story)
    assert [pipeline.pid(name) for name in PROCESSES] == others


def test_its_log_is_read_with_tail(pipeline: Pipeline):
    assert '"process": "watchdog"' in pipeline.ctl("tail", "watchdog", "stderr")


def test_systemd_hears_that_all_runs_how_it_goes_and_that_supervisord_lives(pipeline: Pipeline, manager: Manager):
    assert pipeline.up.running
    wait_until(lambda: "WATCHDOG=1" in manager.told, 15, lambda: str(manager.told))
    assert "READY=1" in manager.told
    wait_until(lambda: _last_status(manager) == "STATUS=4 of 4 processes run, all ready", 15, lambda: str(manager.told))
    assert "STOPPING=1" not in manager.told


def test_a_restart_upon_sighup_is_no_stop_to_systemd(pipeline: Pipeline, manager: Manager):
    pid, ready = pipeline.pid("watchdog"), manager.told.count("READY=1")
    pipeline.up.signal(signal.SIGHUP)
    wait_until(lambda: manager.told.count("READY=1") > ready, 60, pipeline.story)
    pipeline.wait_for_another("watchdog", pid)
    assert "STOPPING=1" not in manager.told
    assert "STATUS=restarting all processes" in manager.told
    wait_until(lambda: pipeline.readiness()["ready"], 30, pipeline.story)


def _last_status(manager: Manager) -> str:
    return next(words for words in reversed(manager.told) if words.startswith("STATUS="))


HANGS = """
import faulthandler, sys, time
from pathlib import Path
from structlog.testing import CapturingLogger
from zonerd import config
from zonerd.endpoint import Endpoint, Listening
from zonerd.health import Health
faulthandler.enable()
settings = config.load(Path(sys.argv[1]), {}, []).config
with Endpoint(Listening.of(settings, "producer"), Health(CapturingLogger(), ())):
    def hang_here():
        time.sleep(600)
    hang_here()
"""
"""A producer whose loop hangs while its HTTP thread answers."""

MUTE = """
import sys, time
from pathlib import Path
from zonerd import ports
ports.note(Path(sys.argv[1]), "consumer", None)
time.sleep(600)
"""
"""A consumer whose port somebody else has."""


@pytest.fixture
def rigged(
    config_file: Callable[..., Path], data_dir: Path, zonerd: Callable[..., ZonerdProcess]
) -> Callable[[dict[str, str]], tuple[Pipeline, ZonerdProcess]]:
    """Start `up` where some programs have another command."""

    def start(commands: dict[str, str]) -> tuple[Pipeline, ZonerdProcess]:
        written = config_file(
            {"watchdog.stall_s": 2, "watchdog.retry_fatal_s": 1, "kafka.bootstrap_servers": "127.0.0.1:1"}
        )
        conf = supervise.render_supervisord(str(data_dir / "run"))
        for name, command in commands.items():
            conf += f"[program:{name}]\ncommand = {command}\nstartretries = 0\n"
        (written.parent / "supervisord.conf").write_text(conf, encoding="utf-8")
        up = zonerd(written, "up")
        wait_until((data_dir / "run" / "supervisor.sock").exists, 30, up.story)
        return Pipeline(up, data_dir, written), up

    return start


def test_a_loop_that_hangs_writes_where_it_hangs_before_it_is_ended(
    rigged: Callable[[dict[str, str]], tuple[Pipeline, ZonerdProcess]], tmp_path: Path
):
    (tmp_path / "hangs.py").write_text(HANGS, encoding="utf-8")
    (tmp_path / "mute.py").write_text(MUTE, encoding="utf-8")
    pipeline, up = rigged(
        {
            "producer": f"{sys.executable} {tmp_path}/hangs.py {tmp_path}/zonerd.toml",
            "consumer": f"{sys.executable} {tmp_path}/mute.py {tmp_path}/data/run",
        }
    )
    pipeline.wait_until_running("producer", "consumer", "watchdog")
    producer, mute = pipeline.pid("producer"), pipeline.pid("consumer")
    pipeline.wait_for_another("producer", producer)
    wrote = (pipeline.folder / "log" / "producer.stderr.log").read_text(encoding="utf-8")
    assert "Fatal Python error: Aborted" in wrote
    assert "in hang_here" in wrote
    (line, *_) = pipeline.lines("process_restarted", name="producer")
    assert re.fullmatch(r"no pass of its loop for \d+\.\d s", line["detail"])
    assert pipeline.pid("consumer") == mute  # as silent for as long, but without a port
    assert "is taken" in pipeline.readiness()["checks"]["consumer"]["reason"]
    up.terminate(deadline_s=40)


def test_what_was_given_up_is_started_again_unless_it_had_refused_its_configuration(
    rigged: Callable[[dict[str, str]], tuple[Pipeline, ZonerdProcess]],
):
    pipeline, up = rigged({"aggregator": "sh -c 'exit 1'", "consumer": "sh -c 'exit 78'"})
    wait_until(lambda: pipeline.restarts("aggregator", "fatal") >= 2, 60, pipeline.story)
    assert len(pipeline.lines("process_restarted", name="aggregator", reason="fatal")) >= 2
    wait_until(lambda: pipeline.exits("aggregator", expected=False) >= 2, 30, pipeline.story)  # told once it is RUNNING
    assert pipeline.restarts("consumer", "fatal") == 0
    assert pipeline.process("consumer").exit_code == 78
    assert pipeline.process("consumer").state == "FATAL"
    assert "exit status 78" in pipeline.ctl("status", "consumer")
    assert pipeline.readiness()["checks"]["consumer"] == {"ok": False, "reason": "FATAL"}
    up.terminate(deadline_s=40)


def test_by_hand_it_says_what_runs_it(config_file: Callable[..., Path]):
    command = [sys.executable, "-m", "zonerd", "-c", str(config_file()), "watchdog"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "zonerd up" in done.stderr
    assert done.stdout == ""
