"""docs/deploy.md on three brokers: one is killed under load, and each record is stored once."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from services.fixtures import StartZonerd
from services.kafka_cluster import KafkaCluster
from services.missing import required
from services.pages import configuration
from services.process import wait_until
from services.verbs import does

TOPIC = "user_activity"
EVENTS = 100_000


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with required():
        cluster = KafkaCluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture
def printed(cluster: KafkaCluster, tmp_path: Path) -> Path:
    """The example of the page, with a producer that sends a file."""
    words = {f"kafka{number}.example.com:9092": one.bootstrap for number, one in enumerate(cluster.brokers, 1)}
    rest = '[redis]\nenabled = false\n[producer]\nsource = "file"\npath = "events.jsonl"\n'
    return configuration(tmp_path / "zonerd.toml", "Several brokers", words, rest)


def stored(data: Path) -> list[int]:
    """Give the numbers that are stored, in their order."""
    connection = apsw.Connection(str(data / "events.db"), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5000)
    try:
        return [number for (number,) in connection.execute("select user_id from events order by 1")]
    finally:
        connection.close()


def test_a_broker_that_is_killed_under_load_costs_no_record_and_doubles_none(
    cluster: KafkaCluster, printed: Path, zonerd: StartZonerd
) -> None:
    does(printed, "topic", "create")
    wait_until(lambda: cluster.in_sync(TOPIC), 30, "three replicas are in sync")
    lines = [f'{{"user_id": {number}, "activity": "sleep", "timestamp": 1}}\n' for number in range(EVENTS)]
    (printed.parent / "events.jsonl").write_text("".join(lines))
    consumer = zonerd(printed, "consumer")
    consumer.wait_for("ready")
    producer = zonerd(printed, "producer")
    data = printed.parent / "data"
    wait_until(lambda: len(stored(data)) > EVENTS // 50)
    cluster.leader_of(TOPIC, 0).kill()
    assert len(stored(data)) < EVENTS, "it was not killed under load"
    wait_until(lambda: len(stored(data)) >= EVENTS, 90, lambda: f"{producer.story()}\n{consumer.story()}")
    producer.terminate()
    consumer.terminate()
    assert stored(data) == list(range(EVENTS))
    does(printed, "aggregator", "--until-caught-up")
    assert f"broker   equal        {EVENTS:,} events and 0 dead letters" in does(printed, "verify")
