"""`zonerd status` and `zonerd health` beside a real supervisord and a real Kafka: what is wrong is named, in time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from services.fixtures import ConfigFile, StartZonerd
from services.kafka import KafkaBroker
from services.process import ZonerdProcess, wait_until
from services.valkey import ValkeyServer
from zonerd import errors

PROCESSES = ["watchdog", "aggregator", "consumer", "producer"]
ANSWER_WITHIN_S = 3.0
PYTHON_STARTS_WITHIN_S = 3.0
"""On a machine that does much else."""
SETTLED_WITHIN_S = 60.0


class Said(NamedTuple):
    """What a verb said, and how it ended."""

    exit_code: int
    out: str
    err: str
    took_s: float

    @property
    def object(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Operator:
    """Who types zonerd's verbs."""

    def __init__(self, config_file: Path) -> None:
        self._line = [sys.executable, "-m", "zonerd", "-c", str(config_file)]

    def say(self, *words: str) -> Said:
        began = time.monotonic()
        done = subprocess.run([*self._line, *words], capture_output=True, text=True, timeout=60, check=False)
        return Said(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def status(self) -> dict[str, Any]:
        return self.say("status", "--json").object

    def process(self, name: str) -> dict[str, Any]:
        return next(one for one in self.status()["processes"] if one["name"] == name)

    def wait_for(self, code: int) -> Said:
        """Wait until `status` ends with this code."""
        said: list[Said] = []

        def ends_so() -> bool:
            said.append(self.say("status"))
            return said[-1].exit_code == code

        wait_until(ends_so, SETTLED_WITHIN_S, lambda: f"status ends with {code}\n{said[-1]}")
        return said[-1]


@pytest.fixture
def file(config_file: ConfigFile, kafka: KafkaBroker, valkey: ValkeyServer, topic: str) -> Path:
    return config_file(
        {
            "kafka.bootstrap_servers": kafka.bootstrap_servers,
            "kafka.topic": topic,
            "redis.url": valkey.url,
            "producer.source": "simulate",
            "producer.simulate.rate_per_s": 50.0,
        }
    )


@pytest.fixture
def operator(file: Path) -> Operator:
    return Operator(file)


@pytest.fixture
def up(zonerd: StartZonerd, file: Path, operator: Operator) -> Iterator[ZonerdProcess]:
    running = zonerd(file, "up")
    operator.wait_for(errors.DONE)
    yield running
    running.terminate(deadline_s=40)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_while_all_is_well_each_process_is_ready_with_its_figures_and_the_exit_code_is_0(
    up: ZonerdProcess, operator: Operator, data_dir: Path
):
    said = operator.say("status")
    assert said.exit_code == errors.DONE, said
    rows = dict(line.split(maxsplit=1) for line in said.out.splitlines()[1:5])
    assert list(rows) == PROCESSES
    assert all(re.match(r"RUNNING +\d+ +\d+ (s|min) +yes", row) for row in rows.values()), said.out
    assert "summary: current" in said.out
    assert "!" not in said.out

    told = operator.status()
    assert (told["schema"], told["ok"], told["supervisord"]) == (1, True, {"ok": True, "reason": None})
    assert told["disk"]["data_dir"] == str(data_dir)
    assert told["disk"]["free_bytes"] > told["disk"]["min_free_bytes"] == 268_435_456
    assert told["summary_age_s"] < 30
    by_name = {one["name"]: one for one in told["processes"]}
    for name, one in by_name.items():
        assert (one["state"], one["ready"], one["reasons"]) == ("RUNNING", True, {}), name
        assert Path(f"/proc/{one['pid']}").exists()
        assert one["uptime_s"] > 0
    assert by_name["consumer"]["dead_letters"] == 0
    assert by_name["consumer"]["lag_records"] < 1000
    assert by_name["aggregator"]["lag_records"] < 1000
    assert by_name["watchdog"]["events_per_s"] is None


def test_events_per_second_are_those_that_the_producer_makes(up: ZonerdProcess, operator: Operator):
    """50 a second are made; within the looks of a busy machine a third more or less may be seen."""

    def as_made() -> bool:
        rates = {one["name"]: one["events_per_s"] for one in operator.status()["processes"]}
        return all(33 <= rates[name] <= 67 for name in ("producer", "consumer", "aggregator"))

    wait_until(as_made, SETTLED_WITHIN_S, "all three see about 50 events/s")


def test_health_says_in_a_line_whether_one_process_or_all_are_ready(up: ZonerdProcess, operator: Operator):
    wait_until(lambda: operator.say("health").exit_code == 0, SETTLED_WITHIN_S, "the watchdog sums up that all is well")
    assert operator.say("health").out == "watchdog: ready\n"
    assert operator.say("health", "consumer").out == "consumer: ready\n"
    assert re.fullmatch(
        r"producer: alive, its last pass ended \d+\.\d s ago\n", operator.say("health", "producer", "--live").out
    )
    ready = operator.say("health", "consumer", "--json").object
    assert (ready["schema"], ready["process"], ready["ok"], ready["answered"]) == (1, "consumer", True, True)
    assert ready["checks"]["kafka"] == {"ok": True, "reason": None}
    alive = operator.say("health", "consumer", "--live", "--json").object
    assert alive["pid"] == ready["pid"]
    assert alive["last_pass_age_s"] < 60
    unknown = operator.say("health", "consumr")
    assert unknown.exit_code == errors.USAGE
    assert ", ".join(PROCESSES) in unknown.err


def test_a_process_that_was_stopped_by_hand_is_named_with_the_line_that_starts_it(
    up: ZonerdProcess, operator: Operator
):
    assert operator.say("ctl", "stop", "consumer").exit_code == 0
    said = operator.say("status")
    assert said.exit_code == errors.PROCESS_NOT_RUNNING
    assert "consumer was stopped by hand" in said.out
    assert "ctl start consumer    (runbook ProcessStopped)" in said.out
    assert operator.process("consumer")["pid"] is None
    health = operator.say("health", "consumer")
    assert health.exit_code == errors.ANSWER_IS_NO
    assert re.fullmatch(r"consumer: no answer at 127\.0\.0\.1:\d+ \(connection refused\)\n", health.out)
    assert operator.say("health", "consumer", "--json").object["answered"] is False
    operator.say("ctl", "start", "consumer")
    operator.wait_for(errors.DONE)


def test_without_kafka_they_run_and_are_not_ready_and_it_says_why(
    up: ZonerdProcess, operator: Operator, kafka: KafkaBroker
):
    kafka.stop()
    try:
        said = operator.wait_for(errors.ANSWER_IS_NO)
        assert re.search(r"! consumer is not ready: .*kafka: \S", said.out), said.out
        assert "ctl tail -f consumer    (runbook NotReady)" in said.out
        assert operator.process("consumer")["reasons"]["kafka"]
        assert "kafka: " in operator.say("health", "consumer").out
    finally:
        kafka.start()
    operator.wait_for(errors.DONE)


def test_a_process_that_hangs_does_not_hold_up_the_answer(up: ZonerdProcess, operator: Operator):
    with stopped(operator.process("consumer")["pid"]):
        said = operator.say("status")
        assert said.took_s < ANSWER_WITHIN_S + PYTHON_STARTS_WITHIN_S
        assert said.exit_code == errors.ANSWER_IS_NO
        assert re.search(r"! consumer: no answer at 127\.0\.0\.1:\d+ in 1\.5 s\n.*ctl restart consumer", said.out), (
            said.out
        )
        assert "! producer" not in said.out
    operator.wait_for(errors.DONE)


def test_a_supervisord_that_hangs_does_not_hold_it_up_either_and_its_children_are_named(
    up: ZonerdProcess, operator: Operator
):
    with stopped(up.pid):
        said = operator.say("status")
        assert said.took_s < ANSWER_WITHIN_S + PYTHON_STARTS_WITHIN_S
        assert said.exit_code == errors.SUPERVISORD_UNREACHABLE
        assert re.search(r"! supervisord: .*no answer in time; still there: .*consumer \(pid \d+\)", said.out), said.out
    operator.wait_for(errors.DONE)


def test_without_a_supervisord_it_says_how_to_start_one(operator: Operator, file: Path):
    said = operator.say("status")
    assert said.exit_code == errors.SUPERVISORD_UNREACHABLE
    assert "! supervisord: " in said.out
    assert re.search(rf"-c \S*{file.name} up    \(runbook ProcessDown\)", said.out)
    told = operator.say("status", "--json")
    assert told.exit_code == errors.SUPERVISORD_UNREACHABLE
    assert told.object["supervisord"]["reason"]
    assert [one["state"] for one in told.object["processes"]] == ["UNKNOWN"] * 4


def test_watch_in_a_pipe_gives_one_look_after_the_other_until_ctrl_c(operator: Operator, file: Path):
    line = [sys.executable, "-m", "zonerd", "-c", str(file), "status", "--watch", "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == errors.INTERRUPTED
    assert looks[0]["at"] < looks[1]["at"]
