"""`zonerd backup` beside a pipeline that works, and back from it: whole, and nothing twice."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from confluent_kafka import Producer
from redis import Redis

from services.fixtures import ConfigFile, StartZonerd
from services.kafka import KafkaBroker
from services.process import ZonerdProcess, wait_until
from services.valkey import ValkeyServer
from zonerd.errors import DONE, StoreUnavailable
from zonerd.events import encode
from zonerd.store.answers import Answers
from zonerd.store.audit import Audit
from zonerd.store.history import History
from zonerd.verify.counts import check_answers
from zonerd.verify.coverage import check_history
from zonerd.verify.noted import note

ACTIVITIES = ("sleep", "meal", "walk")
DATABASES = ("events.db", "rollups.db")


class Pipeline:
    """A consumer and an aggregator over a real Kafka and a real Valkey, and what was sent to them."""

    def __init__(self, file: Path, data_dir: Path, kafka: KafkaBroker, topic: str, start: StartZonerd) -> None:
        self.file = file
        self.data_dir = data_dir
        self.topic = topic
        self.sent: Counter[str] = Counter()
        self._start = start
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 5})
        self.processes: list[ZonerdProcess] = []

    def start(self) -> list[ZonerdProcess]:
        self.processes = [self._start(self.file, role) for role in ("consumer", "aggregator")]
        return self.processes

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()

    def send(self, count: int) -> None:
        for number in range(count):
            activity = ACTIVITIES[number % len(ACTIVITIES)]
            value = b"no event" if number % 50 == 49 else encode(number, activity, number, {"n": number})
            self._producer.produce(self.topic, value)
            self.sent[activity if number % 50 != 49 else "dead"] += 1
        assert self._producer.flush(60) == 0

    def run(self, *words: object, code: int = DONE) -> str:
        command = [sys.executable, "-m", "zonerd", "-c", str(self.file), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def reached(self) -> int:
        """Give up to where the history stands, all partitions together; 0 while it cannot be read."""
        with suppress(StoreUnavailable), History.open_reader(self.data_dir) as history:
            return sum(row.next_offset for row in history.partitions())
        return 0

    def wait_until_all_is_shown(self, redis: Redis) -> None:
        wanted = {name: count for name, count in self.sent.items() if name != "dead"}
        wait_until(lambda: shown(redis) == wanted, 90, lambda: f"{shown(redis)} is {wanted}\n{self.story()}")

    def story(self) -> str:
        return "\n".join(process.story() for process in self.processes)


def shown(redis: Redis) -> dict[str, int]:
    return {name: int(count) for name, count in redis.hgetall("zonerd:total").items()}


@pytest.fixture
def pipeline(
    config_file: ConfigFile, data_dir: Path, kafka: KafkaBroker, topic: str, valkey: ValkeyServer, zonerd: StartZonerd
) -> Pipeline:
    settings = {"kafka.bootstrap_servers": kafka.bootstrap_servers, "kafka.topic": topic, "kafka.group_id": topic}
    file = config_file({**settings, "redis.url": valkey.url, "aggregator.interval_s": 0.05})
    return Pipeline(file, data_dir, kafka, topic, zonerd)


def is_consistent(folder: Path) -> bool:
    """Check a copy for itself, as verify does: every offset once, the file sound, every count counted afresh."""
    quiet: Callable[[str, int, int], None] = lambda _check, _done, _of: None  # noqa: E731
    with Audit.open_reader(folder) as audit, Answers.open_reader(folder) as answers:
        noted = note(audit)
        parts = [
            check_history(audit, folder, noted, quick=False, tell=quiet),
            check_answers(audit, answers, noted, quick=False, tell=quiet),
        ]
    return [(part.result, part.differences) for part in parts] == [("equal", ()), ("equal", ())]


@pytest.mark.timeout(300)
def test_copies_made_while_events_are_stored_and_counted_are_each_one_consistent_state(
    pipeline: Pipeline, valkey: ValkeyServer, tmp_path: Path
):
    pipeline.start()
    pipeline.send(2000)
    pipeline.wait_until_all_is_shown(valkey.client)
    over = Event()

    def go_on_sending() -> None:
        while not over.is_set():
            pipeline.send(500)

    sending = Thread(target=go_on_sending)
    sending.start()
    try:
        made: list[dict[str, Any]] = [json.loads(pipeline.run("backup", tmp_path / "b", "--json")) for _ in range(4)]
    finally:
        over.set()
        sending.join()
    reached = [sum(one["positions"].values()) for one in made]
    assert reached[0] >= 2000
    assert reached == sorted(set(reached)), "nothing was stored beside it"
    assert [one["rebuild"] for one in made] == [None] * len(made)
    assert all(is_consistent(Path(one["path"])) for one in made)
    pipeline.wait_until_all_is_shown(valkey.client)
    pipeline.stop()
    pipeline.run("verify")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("with_answers", [True, False], ids=["both files", "the history alone"])
def test_restored_from_a_copy_it_catches_up_and_nothing_is_missing_or_twice(
    pipeline: Pipeline, valkey: ValkeyServer, tmp_path: Path, with_answers: bool
):
    pipeline.start()
    pipeline.send(1000)
    pipeline.wait_until_all_is_shown(valkey.client)
    copy = Path(pipeline.run("backup", tmp_path / "b").strip())
    pipeline.send(700)
    pipeline.wait_until_all_is_shown(valkey.client)
    pipeline.stop()
    for path in pipeline.data_dir.glob("*.db*"):
        path.unlink()
    for name in DATABASES if with_answers else DATABASES[:1]:
        shutil.copy(copy / name, pipeline.data_dir)
    _, aggregator = pipeline.start()
    wait_until(lambda: pipeline.reached() == pipeline.sent.total(), 60, pipeline.story)
    aggregator.wait_for("full_push_finished", 60)  # Redis had shown more, and then says so again
    pipeline.wait_until_all_is_shown(valkey.client)
    report = json.loads(pipeline.run("verify", "--json"))
    assert report["checks"]["history"]["events"] == pipeline.sent.total() - pipeline.sent["dead"]
    assert report["checks"]["history"]["dead_letters"] == pipeline.sent["dead"]
    assert aggregator.lines("rebuild_started") == []
    pipeline.stop()
