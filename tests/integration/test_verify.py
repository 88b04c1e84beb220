"""`zonerd verify` against real Kafka, SQLite and Valkey: it finds every damage, and nothing where there is none."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec
import pytest
import structlog
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic
from redis import Redis

from services.kafka import KafkaBroker
from services.process import wait_until
from services.valkey import ValkeyServer
from zonerd import aggregator, config, consumer
from zonerd.errors import ANSWER_IS_NO, DONE, REFUSED, SERVICE_UNAVAILABLE, ServiceUnavailable
from zonerd.events import encode
from zonerd.kafka.cluster import Cluster
from zonerd.kafka.reader import Reader
from zonerd.store.audit import Audit
from zonerd.store.history import History
from zonerd.verify import Report, counts, published, verify
from zonerd.verify import broker as broker_check
from zonerd.verify.broker import Broker, Compared, Comparison
from zonerd.verify.noted import Moved, Noted, note, settled
from zonerd.verify.report import Findings, Part

DEADLINE_S = 60.0
PARTITIONS = 3
GOOD_EACH = 1500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class World(NamedTuple):
    """One topic, one data directory, one Redis."""

    config: config.Config
    redis: Redis
    admin: AdminClient

    @property
    def topic(self) -> str:
        return self.config.kafka.topic

    @property
    def options(self) -> list[str]:
        return [
            "-X", f"kafka.bootstrap_servers={self.config.kafka.bootstrap_servers}",
            "-X", f"kafka.topic={self.topic}",
            "-X", f"kafka.group_id={self.config.kafka.group_id}",
            "-X", f"store.data_dir={self.config.data_dir}",
            "-X", f"redis.url={self.config.redis.url}",
        ]  # fmt: skip

    def catch_up(self) -> None:
        log = structlog.get_logger()
        consumer.catch_up(self.config, None, log, 0)
        aggregator.catch_up(self.config, None, log)

    def verify(self, *, quick: bool = False) -> Report:
        return verify(self.config, None, {}, quick=quick, tell=lambda _check, _done, _of: None)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zonerd", *self.options, *words]
        return subprocess.run(command, text=True, capture_output=True, timeout=DEADLINE_S, check=False)

    def damage(self, file: str, *statements: str) -> None:
        """Change a database behind zonerd's back; every statement must change something."""
        connection = apsw.Connection(str(self.config.data_dir / file))
        try:
            for statement in statements:
                connection.execute(statement)
                assert connection.changes() > 0, statement
        finally:
            connection.close()

    def produce(self, values: list[tuple[int, bytes | None, bytes | None]], **transaction: bool) -> None:
        """Produce (partition, key, value); as one transaction with `commit=True` or `commit=False`."""
        settings = {"bootstrap.servers": self.config.kafka.bootstrap_servers, "linger.ms": 5}
        producer = Producer({**settings, **({"transactional.id": uuid.uuid4().hex} if transaction else {})})
        if transaction:
            producer.init_transactions()
            producer.begin_transaction()
        for partition, key, value in values:
            producer.produce(self.topic, value, key, partition)
        assert producer.flush(DEADLINE_S) == 0
        if transaction:
            (producer.commit_transaction if transaction["commit"] else producer.abort_transaction)()


def good(number: int) -> bytes:
    properties = {"mood": {"at": number}} if number % 3 == 0 else {}
    return encode(number % 7, ("sleep", "meal", "walk")[number % 3], 1_700_000_000 + number, properties)


def fill(world: World) -> None:
    """Produce good, bad, empty and transactional records, so that markers and aborted records lie between and last."""
    places = range(PARTITIONS)
    world.produce([(p, b"%d" % n, good(n)) for p in places for n in range(GOOD_EACH // 2)])
    world.produce([(p, b"k", value) for p in places for value in (b"not json", b'{"user_id":1}', b"\xff")])
    world.produce([(p, b"gone", None) for p in places])
    world.produce([(p, None, good(n)) for p in places for n in range(5)], commit=False)
    world.produce([(p, None, good(n)) for p in places for n in range(5)], commit=True)
    world.produce([(p, b"%d" % n, good(n)) for p in places for n in range(GOOD_EACH // 2)])
    world.produce([(p, None, good(n)) for p in places for n in range(5)], commit=False)


def new_world(broker: KafkaBroker, folder: Path, redis_url: str) -> World:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    topic = f"v-{uuid.uuid4().hex}"
    make_topic(admin, topic)
    settings = [
        f"kafka.bootstrap_servers={broker.bootstrap_servers}", f"kafka.topic={topic}", f"kafka.group_id={topic}",
        f"store.data_dir={folder / 'data'}", f"redis.url={redis_url}",
        "aggregator.interval_s=0.1",
    ]  # fmt: skip
    return World(config.load(None, {}, settings).config, Redis.from_url(redis_url, decode_responses=True), admin)


def make_topic(admin: AdminClient, topic: str) -> None:
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(timeout=DEADLINE_S)
    wait_until(lambda: topic in admin.list_topics(timeout=10).topics)


@pytest.fixture(scope="module")
def pristine(broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A filled topic, and stored; tests work on copies of its data directory."""
    world = new_world(broker, tmp_path_factory.mktemp("pristine"), "redis://127.0.0.1:1/0")
    fill(world)
    consumer.catch_up(world.config, None, structlog.get_logger(), 0)
    return world


@pytest.fixture
def world(pristine: World, valkey: ValkeyServer, tmp_path: Path) -> World:
    """A copy of it, counted and published."""
    shutil.copytree(pristine.config.data_dir, tmp_path / "data")
    copy = World(
        msgspec.structs.replace(
            pristine.config,
            store=msgspec.structs.replace(pristine.config.store, data_dir=str(tmp_path / "data")),
            redis=msgspec.structs.replace(pristine.config.redis, url=valkey.url),
        ),
        valkey.client,
        pristine.admin,
    )
    aggregator.catch_up(copy.config, None, structlog.get_logger())
    return copy


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for what will not come: the tests make sure that nothing moves."""
    monkeypatch.setattr(published, "STILL_S", 0.5)
    monkeypatch.setattr(broker_check, "SHORTER_FOR_S", 0.5)
    monkeypatch.setattr(counts, "REBUILD_PATIENCE_S", 0.5)


def results(report: Report) -> dict[str, str]:
    return {part.check: part.result for part in report.parts}


def named(report: Report) -> str:
    return "\n".join(str(difference) for difference in report.named)


@pytest.mark.parametrize("quick", [False, True])
def test_an_undamaged_history_of_good_bad_empty_and_transactional_records_is_equal(world: World, quick: bool) -> None:
    report = world.verify(quick=quick)
    assert named(report) == ""
    assert set(results(report).values()) == {"equal"}
    assert report.exit_code == DONE
    figures = report.as_object()["checks"]
    assert figures["history"]["events"] == PARTITIONS * (GOOD_EACH + 5)
    assert figures["history"]["dead_letters"] == PARTITIONS * 4
    assert figures["history"]["gap_offsets"] == PARTITIONS * (5 + 1 + 1 + 5 + 1)
    assert figures["broker"]["not_stored_yet"] == 0
    if not quick:
        assert figures["broker"]["events"] == figures["history"]["events"]
        assert figures["broker"]["dead_letters"] == figures["history"]["dead_letters"]
        assert figures["history"]["integrity"] == "ok"


P0 = "partition_id = (select id from partitions where partition = 0)"
REST = "user_id, activity, timestamp_ms, logged_ms, properties"
LAST_GAP = f"(select max(first_offset) from gaps where {P0})"
NEWEST = f"{P0} and offset = (select max(offset) from events where {P0})"
DAMAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "row deleted": (
        (f"delete from events where {P0} and offset = 100",),
        ("broker: {topic}/0, offset 100: the broker has a record", "history: {topic}/0, offset 100: nothing stands"),
    ),
    "many rows deleted": (
        (f"delete from events where {P0} and offset between 100 and 199",),
        ("broker: {topic}/0, offset 100:", "nothing stands at offsets 100 to 199"),
    ),
    "activity altered": (
        (f"update events set activity = 'altered' where {P0} and offset = 100",),
        ("broker: {topic}/0, offset 100: the event is not the record: activity 'altered' instead of",),
    ),
    "timestamp altered": (
        (f"update events set timestamp_ms = timestamp_ms + 1 where {P0} and offset = 100",),
        ("broker: {topic}/0, offset 100: the event is not the record: timestamp_ms",),
    ),
    "logged_ms altered": (
        (f"update events set logged_ms = logged_ms + 1 where {P0} and offset = 100",),
        ("broker: {topic}/0, offset 100: the event is not the record: logged_ms",),
    ),
    "properties altered": (
        (f"update events set properties = '{{\"mood\":{{}}}}' where {P0} and offset = 102",),
        ("broker: {topic}/0, offset 102: the event is not the record: properties",),
    ),
    "properties lost": (
        (f"update events set properties = null where {P0} and offset = 102",),
        ("broker: {topic}/0, offset 102: the event is not the record: properties",),
    ),
    "user altered": (
        (f"update events set user_id = user_id + 1 where {P0} and offset = 100",),
        ("broker: {topic}/0, offset 100: the event is not the record: user_id",),
    ),
    "user of another type": (
        (f"update events set user_id = cast(user_id as real) where {P0} and offset = 100",),
        ("broker: {topic}/0, offset 100: the event is not the record: user_id",),
    ),
    "user as text": (
        (f"update events set user_id = cast(user_id as text) where {P0} and offset = 100",),
        ("broker: {topic}/0, offset 100: the event is not the record: user_id",),
    ),
    "row added beyond": (
        (f"insert into events select partition_id, 1000000, {REST} from events where {P0} and offset = 100",),
        ("history: {topic}/0, offset 1000000: a row of events stands outside",),
    ),
    "row added where the broker has none": (
        (f"insert into events select partition_id, {LAST_GAP}, {REST} from events where {P0} and offset = 100",),
        ("stored, but the broker has no record there", "are stored twice"),
    ),
    "row of no partition": (
        (f"insert into events select 99, offset, {REST} from events where {P0} and offset = 100",),
        ("history: events has rows of partition row 99",),
    ),
    "row stored twice": (
        ("insert into dead_letters select id, 100, 'not_json', '', null, null, 0 from partitions where partition = 0",),
        ("broker: {topic}/0, offset 100: stored as an event and as a dead letter", "history: {topic}/0, offset 100: "),
    ),
    "dead letter's bytes altered": (
        (f"update dead_letters set payload = 'altered' where {P0} and payload = cast('not json' as blob)".replace(
            "'altered'", "x'00'"),),
        ("the dead letter is not the record: payload",),
    ),
    "dead letter's key altered": (
        (f"update dead_letters set key = null where {P0} and payload is null",),
        ("the dead letter is not the record: key",),
    ),
    "tombstone no longer null": (
        (f"update dead_letters set payload = x'' where {P0} and payload is null",),
        ("the dead letter is not the record: payload",),
    ),
    "dead letter deleted": (
        (f"delete from dead_letters where {P0} and payload is null",),
        ("the broker has a record, the history has none", "nothing stands at offsets"),
    ),
    "gap over a record": (
        (f"delete from events where {P0} and offset = 100",
         "insert into gaps select id, 100, 100, 'not_delivered' from partitions where partition = 0"),
        ("broker: {topic}/0, offset 100: a gap (not_delivered) stands where the broker has a record",),
    ),
    "gap beside its record": (
        ("insert into gaps select id, 100, 100, 'not_delivered' from partitions where partition = 0",),
        ("history: {topic}/0, offset 100: offsets 100 to 100 are stored twice",),
    ),
    "gap of an unknown reason": (
        (f"update gaps set reason = 'mislaid' where {P0} and first_offset = {LAST_GAP}",),
        ("a gap has the unknown reason 'mislaid'",),
    ),
    "gap past the end": (
        (f"update gaps set last_offset = 999999 where {P0} and first_offset = {LAST_GAP}",),
        ("a row of gaps stands outside the partition's range",),
    ),
    "position moved on": (
        ("update partitions set next_offset = next_offset + 10 where partition = 0",),
        ("broker: {topic}/0: the broker's log ends at", "history: {topic}/0, offset"),
    ),
    "position moved back": (
        ("update partitions set next_offset = 1000 where partition = 0",),
        ("committed to Kafka up to", "history: {topic}/0, offset 1000: a row of events stands outside"),
    ),
    "another topic id": (
        ("update partitions set topic_id = 'other' where partition = 0",),
        ("broker: {topic}/0: the topic id is",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_history_is_found_and_named(world: World, damage: str) -> None:
    statements, wanted = DAMAGES[damage]
    world.damage("events.db", *statements)
    report = world.verify()
    assert report.exit_code == ANSWER_IS_NO
    for text in wanted:
        assert text.format(topic=world.topic) in named(report)


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        (f"delete from events where {P0} and offset = 100", "history"),
        (
            f"update events set activity = 'x' where {P0} and offset = (select max(offset) from events where {P0})",
            "broker",
        ),
        (f"update dead_letters set key = x'00' where {P0} and payload is null", "broker"),
        ("update partitions set next_offset = next_offset + 1 where partition = 0", "history"),
    ],
)
def test_a_quick_look_finds_a_missing_row_anywhere_and_an_altered_one_among_the_newest(
    world: World, statement: str, check: str
) -> None:
    world.damage("events.db", statement)
    report = world.verify(quick=True)
    assert report.exit_code == ANSWER_IS_NO
    assert results(report)[check] == "different"


def test_a_page_of_nonsense_in_the_file_is_found(world: World) -> None:
    path = world.config.data_dir / "events.db"
    connection = apsw.Connection(str(path))
    connection.execute("pragma wal_checkpoint(truncate)")
    page_bytes, pages = connection.pragma("page_size"), connection.pragma("page_count")
    connection.close()
    with path.open("r+b") as file:
        file.seek((pages - 2) * page_bytes)
        file.write(b"\x55" * page_bytes)
    report = world.verify()
    assert report.exit_code == ANSWER_IS_NO
    assert results(report)["history"] == "different"
    assert "damaged" in "\n".join(report.lines())


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("step", [1, -1])
def test_a_count_off_by_one_is_found_and_named(world: World, step: int, quick: bool) -> None:
    world.damage("rollups.db", f"update total set count = count + {step} where activity = 'meal'")
    report = world.verify(quick=quick)
    assert report.exit_code == ANSWER_IS_NO
    assert results(report)["answers"] == results(report)["redis"] == "different"
    assert ("all counts together are" if quick else "answers: total: 'meal' is ") in named(report)
    assert "'meal'" in named(report)


def test_two_counts_exchanged_are_found(world: World) -> None:
    world.damage(
        "rollups.db",
        "update total set count = count + 1 where activity = 'meal'",
        "update total set count = count - 1 where activity = 'walk'",
    )
    assert "answers: total: 'walk' is " in named(world.verify())


def test_a_folded_position_that_is_not_what_was_counted_is_found(world: World) -> None:
    world.damage("rollups.db", "update places set offset = offset - 50 where partition = 0")
    report = world.verify()
    assert results(report)["answers"] == "different"
    assert "events are said to be folded" in named(report)


CHANGES_IN_REDIS: dict[str, tuple[Callable[[Redis], object], str]] = {
    "a field changed": (lambda redis: redis.hset("zonerd:total", "meal", 1), "zonerd:total: 'meal' 1 instead of"),
    "a field added": (lambda redis: redis.hset("zonerd:total", "nap", 1), "zonerd:total: 'nap' 1 instead of None"),
    "a field that is no number": (lambda redis: redis.hset("zonerd:total", "meal", "many"), "zonerd:total: 'meal'"),
    "a field gone": (lambda redis: redis.hdel("zonerd:total", "meal"), "zonerd:total: 'meal' None instead of"),
    "a key gone": (lambda redis: redis.delete("zonerd:total"), "zonerd:total: "),
    "a key of another type": (
        lambda redis: (redis.delete("zonerd:total"), redis.set("zonerd:total", 1)),
        "zonerd:total",
    ),
    "summary changed": (lambda redis: redis.set("activity_summary", '[["meal", 1]]'), "activity_summary: is not what"),
    "summary gone": (lambda redis: redis.delete("activity_summary"), "activity_summary: is not what"),
    "a stale fold": (lambda redis: redis.hincrby("zonerd:as_of", "fold", -1), "rollups.db stands at fold"),
    "another publish": (lambda redis: redis.hset("zonerd:as_of", "nonce", "old"), "that rollups.db does not know"),
    "another store": (lambda redis: redis.hset("zonerd:as_of", "store", "other"), "kept by another store, other"),
    "another rollups.db": (lambda redis: redis.hset("zonerd:as_of", "rollups", "other"), "another rollups.db, other"),
    "another number of events": (lambda redis: redis.hset("zonerd:as_of", "events", 1), "zonerd:as_of: events is 1"),
    "left loading": (lambda redis: redis.hset("zonerd:as_of", "state", "loading"), "state loading"),
    "an unknown state": (lambda redis: redis.hset("zonerd:as_of", "state", "lost"), "state 'lost' is none of ours"),
    "no as_of": (lambda redis: redis.delete("zonerd:as_of"), "zonerd:as_of is not there"),
    "flushed": (lambda redis: redis.flushall(), "zonerd:as_of is not there"),
}


@pytest.mark.parametrize("change", CHANGES_IN_REDIS)
def test_a_changed_redis_is_found_and_named(world: World, change: str) -> None:
    make, wanted = CHANGES_IN_REDIS[change]
    make(world.redis)
    report = world.verify(quick=True)
    assert report.exit_code == ANSWER_IS_NO
    assert {check for check, result in results(report).items() if result != "equal"} == {"redis"}
    assert wanted in named(report)


def test_a_position_in_as_of_that_is_not_the_folded_one_is_found(world: World) -> None:
    world.redis.hincrby("zonerd:as_of", f"{world.topic}/1", -1)
    assert "redis: zonerd:as_of: positions is" in named(world.verify(quick=True))


def test_redis_left_behind_by_a_later_fold_is_found(broker: KafkaBroker, valkey: ValkeyServer, tmp_path: Path) -> None:
    world = new_world(broker, tmp_path, valkey.url)
    world.produce([(0, b"1", good(1))])
    world.catch_up()
    before = world.redis.hgetall("zonerd:as_of")
    world.produce([(0, b"1", good(2))])
    world.catch_up()
    world.redis.hset("zonerd:as_of", mapping=before)
    assert "redis: Redis shows fold" in named(world.verify())


def test_offsets_that_another_data_directory_committed_further_are_named(
    broker: KafkaBroker,
    valkey: ValkeyServer,
    tmp_path: Path,
) -> None:
    world = new_world(broker, tmp_path, valkey.url)
    world.produce([(0, b"1", good(1))])
    world.catch_up()
    assert world.verify().exit_code == DONE
    shutil.copytree(world.config.data_dir, tmp_path / "copy")
    world.produce([(0, b"1", good(2))])
    world.catch_up()
    store = msgspec.structs.replace(world.config.store, data_dir=str(tmp_path / "copy"))
    report = world._replace(config=msgspec.structs.replace(world.config, store=store)).verify()
    assert f"broker: {world.topic}/0: committed to Kafka up to 2, stored up to 1" in named(report)


def test_what_retention_took_is_a_number_and_no_difference(
    broker: KafkaBroker, valkey: ValkeyServer, tmp_path: Path
) -> None:
    world = new_world(broker, tmp_path, valkey.url)
    fill(world)
    world.catch_up()
    world.admin.delete_records([TopicPartition(world.topic, 0, 400), TopicPartition(world.topic, 1, -1)])
    stored = GOOD_EACH + 5 + 4
    report = until_expired(world, 400 + stored)
    assert report.exit_code == DONE, named(report)
    assert results(report)["broker"] == "equal"
    assert report.as_object()["checks"]["broker"]["not_checkable"]["expired"] == 400 + stored
    assert f"{400 + stored:,} below the broker's low watermark" in "\n".join(report.lines())


def test_what_retention_takes_while_it_is_read_is_no_difference(
    broker: KafkaBroker,
    valkey: ValkeyServer,
    tmp_path: Path,
) -> None:
    world = new_world(broker, tmp_path, valkey.url)
    world.produce([(0, b"1", good(n)) for n in range(100)])
    world.catch_up()
    world.admin.delete_records([TopicPartition(world.topic, 0, 40)])
    until_expired(world, 40)
    findings, compared = Findings("broker"), Compared()
    with (
        Audit.open_reader(world.config.data_dir) as audit,
        Cluster(world.config.kafka, None) as cluster,
        Reader(world.config.kafka, 1 << 20, None) as reader,
    ):
        row = next(row for row in audit.partitions() if row.partition == 0)
        asked = Broker(cluster, reader, world.topic)
        Comparison(audit, asked, row, findings, compared, lambda _check, _done, _of: None).run(0, 100)
    assert findings.differences == []
    assert (compared.expired, compared.events) == (40, 60)


def until_expired(world: World, number: int) -> Report:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        report = world.verify()
        if report.as_object()["checks"]["broker"]["not_checkable"]["expired"] == number or time.monotonic() > deadline:
            return report


def test_a_topic_made_again_is_said_to_be_another_one(
    broker: KafkaBroker, valkey: ValkeyServer, tmp_path: Path
) -> None:
    world = new_world(broker, tmp_path, valkey.url)
    world.produce([(0, b"1", good(n)) for n in range(100)])
    world.catch_up()
    remake(world)
    world.produce([(0, b"1", good(n)) for n in range(200)])
    report = world.verify()
    assert report.exit_code == ANSWER_IS_NO
    assert "the topic id is " in named(report)
    assert report.as_object()["checks"]["broker"]["not_checkable"]["other_incarnations"] == 100


def test_records_of_an_earlier_incarnation_are_a_number_and_still_covered(
    broker: KafkaBroker,
    valkey: ValkeyServer,
    tmp_path: Path,
) -> None:
    world = new_world(broker, tmp_path, valkey.url)
    world.produce([(0, b"1", good(n)) for n in range(100)])
    world.catch_up()
    remake(world)
    world.produce([(0, b"1", good(n)) for n in range(50)])
    follow = msgspec.structs.replace(world.config.consumer, on_topic_recreated="follow")
    world = world._replace(config=msgspec.structs.replace(world.config, consumer=follow))
    world.catch_up()
    report = world.verify()
    assert report.exit_code == DONE, named(report)
    figures = report.as_object()["checks"]
    assert figures["broker"]["not_checkable"]["other_incarnations"] == 100
    assert figures["history"]["events"] == figures["answers"]["events"] == 150
    world.damage("events.db", "delete from events where offset = 70")
    assert f"history: {world.topic}/0, offset 70: nothing stands" in named(world.verify())
    assert "in the closed row" in named(world.verify())


def remake(world: World) -> None:
    world.admin.delete_topics([world.topic])[world.topic].result(timeout=DEADLINE_S)
    wait_until(lambda: world.topic not in world.admin.list_topics(timeout=10).topics)
    make_topic(world.admin, world.topic)


def test_a_topic_that_compaction_may_thin_out_is_no_proof_against_a_stored_row(
    broker: KafkaBroker,
    valkey: ValkeyServer,
    tmp_path: Path,
) -> None:
    world = new_world(broker, tmp_path, valkey.url)
    world.produce([(0, b"1", good(n)) for n in range(10)])
    world.produce([(0, b"1", good(n)) for n in range(3)], commit=False)
    world.catch_up()
    world.damage(
        "events.db",
        "delete from gaps where first_offset = 10",
        "insert into gaps select id, 11, 13, 'not_delivered' from partitions where partition = 0",
        "insert into events select id, 10, 1, 'meal', 0, 0, null from partitions where partition = 0",
    )
    assert f"{world.topic}/0, offset 10: stored, but the broker has no record there" in named(world.verify())
    set_policy(world, "compact")
    figures = wait_until(lambda: compacted(world))
    assert figures == {"result": "equal", "compacted": 1}


def compacted(world: World) -> dict[str, Any] | None:
    broker = world.verify().as_object()["checks"]["broker"]
    if broker["not_checkable"]["compacted"] == 0:
        return None
    return {"result": broker["result"], "compacted": broker["not_checkable"]["compacted"]}


def set_policy(world: World, policy: str) -> None:
    entry = ConfigEntry("cleanup.policy", policy, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, world.topic, incremental_configs=[entry])
    world.admin.incremental_alter_configs([resource])[resource].result(timeout=DEADLINE_S)


def test_without_kafka_it_exits_69_and_checks_the_rest(world: World) -> None:
    kafka = msgspec.structs.replace(world.config.kafka, bootstrap_servers=f"127.0.0.1:{free_port()}")
    away = world._replace(config=msgspec.structs.replace(world.config, kafka=kafka))
    done = away.run("verify")
    assert done.returncode == SERVICE_UNAVAILABLE, done.stdout + done.stderr
    lines = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    assert lines == {"broker": "unavailable", "history": "equal", "answers": "equal", "redis": "equal", "as": "of"}


def test_without_redis_it_exits_69_and_with_redis_disabled_it_says_so(world: World) -> None:
    redis = msgspec.structs.replace(world.config.redis, url=f"redis://127.0.0.1:{free_port()}/0")
    report = world._replace(config=msgspec.structs.replace(world.config, redis=redis)).verify(quick=True)
    assert report.exit_code == SERVICE_UNAVAILABLE, list(report.lines())
    assert results(report) == {"broker": "equal", "history": "equal", "answers": "equal", "redis": "unavailable"}
    redis = msgspec.structs.replace(world.config.redis, enabled=False)
    report = world._replace(config=msgspec.structs.replace(world.config, redis=redis)).verify(quick=True)
    assert report.exit_code == DONE
    assert results(report)["redis"] == "disabled"


def test_a_difference_is_the_answer_even_where_a_service_is_away(world: World) -> None:
    world.damage("events.db", f"delete from events where {P0} and offset = 100")
    kafka = msgspec.structs.replace(world.config.kafka, bootstrap_servers=f"127.0.0.1:{free_port()}")
    report = world._replace(config=msgspec.structs.replace(world.config, kafka=kafka)).verify(quick=True)
    assert report.exit_code == ANSWER_IS_NO


def test_a_difference_found_before_the_broker_froze_is_still_the_answer(world: World, broker: KafkaBroker) -> None:
    world.damage("events.db", f"delete from events where {P0} and offset = 100")
    frozen: list[str] = []

    def freeze(check: str, _done: int, _of: int) -> None:
        if not frozen:
            frozen.append(check)
            broker.pause()

    began = time.monotonic()
    try:
        report = verify(world.config, None, {}, quick=False, tell=freeze)
    finally:
        broker.resume()
    assert frozen == ["broker"]
    assert report.exit_code == ANSWER_IS_NO
    assert f"broker: {world.topic}/0, offset 100: the broker has a record" in named(report)
    assert "not compared to the end: kafka: " in "\n".join(report.lines())
    assert time.monotonic() - began < 30


def test_without_answers_it_exits_69_and_without_a_history_too(world: World) -> None:
    for path in world.config.data_dir.glob("rollups.db*"):
        path.unlink()
    report = world.verify(quick=True)
    assert report.exit_code == SERVICE_UNAVAILABLE, list(report.lines())
    assert results(report) == {
        "broker": "equal", "history": "equal", "answers": "unavailable", "redis": "unavailable",
    }  # fmt: skip
    for path in world.config.data_dir.glob("events.db*"):
        path.unlink()
    assert world.run("verify").returncode == SERVICE_UNAVAILABLE


def test_json_says_all_that_the_lines_say_and_names_twenty_differences(world: World) -> None:
    world.damage("events.db", f"update events set activity = 'altered' where {P0} and offset < 30")
    done = world.run("verify", "--json")
    assert done.returncode == ANSWER_IS_NO, done.stderr
    report = json.loads(done.stdout)
    assert (report["schema"], report["exit_code"], report["quick"]) == (1, ANSWER_IS_NO, False)
    assert {check: one["result"] for check, one in report["checks"].items()} == {
        "broker": "different", "history": "equal", "answers": "different", "redis": "equal",
    }  # fmt: skip
    assert report["checks"]["broker"]["differing"] == 30
    assert len(report["differences"]) == 20
    assert report["differences"][0] == {
        "check": "broker", "topic": world.topic, "partition": 0, "offset": 0,
        "what": report["differences"][0]["what"],
    }  # fmt: skip
    assert set(report["as_of"]) == {f"{world.topic}/{partition}" for partition in range(PARTITIONS)}
    text = world.run("verify").stdout
    assert "30 differ" in text
    assert text.splitlines()[-1].startswith("and ")


def test_nothing_is_committed_to_kafka_or_written_to_a_file(world: World) -> None:
    def state() -> tuple[object, ...]:
        committed = world.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(world.config.kafka.group_id)])
        places = next(iter(committed.values())).result(timeout=DEADLINE_S).topic_partitions
        files = {path.name: path.read_bytes() for path in world.config.data_dir.glob("*.db")}
        return sorted((place.partition, place.offset) for place in places), files, world.redis.hgetall("zonerd:as_of")

    before = state()
    world.verify()
    assert state() == before


def test_recorded_it_leaves_its_whole_report_and_ends_as_it_does_without(world: World) -> None:
    file = world.config.data_dir / "verify.json"
    ended = world.run("verify", "--json")
    assert (ended.returncode, file.exists()) == (DONE, False)
    assert world.run("verify", "--record").returncode == DONE
    left = json.loads(file.read_text())
    assert time.time() - 60 < left.pop("ended_s") < time.time()
    assert left.keys() == json.loads(ended.stdout).keys()
    assert left["checks"].keys() == {"broker", "history", "answers", "redis"}
    assert file.stat().st_mode & 0o777 == 0o600
    world.redis.hset("zonerd:total", "nap", 1)
    assert world.run("verify", "--quick", "--record").returncode == ANSWER_IS_NO
    left = json.loads(file.read_text())
    assert (left["quick"], left["exit_code"], left["checks"]["redis"]["differing"]) == (True, ANSWER_IS_NO, 1)


def test_a_run_that_came_to_no_report_is_recorded_with_its_reason(world: World) -> None:
    events = world.config.data_dir / "events.db"
    kept = events.read_bytes()
    for content, code, reason in ((b"x" * 5000, REFUSED, "not a database"), (b"", SERVICE_UNAVAILABLE, "not there")):
        events.write_bytes(content)
        assert world.run("verify", "--record").returncode == code
        left = json.loads((events.parent / "verify.json").read_text())
        assert left["exit_code"] == code
        assert reason in left["reason"]
    events.write_bytes(kept)


def test_what_cannot_be_recorded_is_said_and_no_success_but_a_difference_stays_one(world: World) -> None:
    (world.config.data_dir / "verify.json").mkdir()
    ended = world.run("verify", "--quick", "--record")
    assert ended.returncode == SERVICE_UNAVAILABLE
    assert "zonerd: not recorded: store: " in ended.stderr
    assert "redis    equal" in ended.stdout
    world.redis.hset("zonerd:total", "nap", 1)
    assert world.run("verify", "--quick", "--record").returncode == ANSWER_IS_NO


def test_no_read_is_open_between_two_steps_so_that_the_wal_can_be_emptied(world: World) -> None:
    busy: dict[str, set[int]] = {}

    def empty_wal(check: str, _done: int, _of: int) -> None:
        for file in ("events.db", "rollups.db"):
            connection = apsw.Connection(str(world.config.data_dir / file))
            busy.setdefault(check, set()).add(connection.execute("pragma wal_checkpoint(truncate)").fetchall()[0][0])
            connection.close()

    assert verify(world.config, None, {}, quick=False, tell=empty_wal).exit_code == DONE
    assert busy == {"broker": {0}, "history": {0}, "answers": {0}}


def test_the_integrity_check_ends_when_it_is_told_to(world: World) -> None:
    with Audit.open_reader(world.config.data_dir) as audit:
        assert audit.integrity(lambda: True) is None
        assert audit.integrity(lambda: False) == []


def test_beside_a_live_load_it_is_equal_again_and_again(
    broker: KafkaBroker, valkey: ValkeyServer, tmp_path: Path
) -> None:
    world = new_world(broker, tmp_path, valkey.url)
    with load(world), running(world, "consumer"), running(world, "aggregator"):
        wait_until(lambda: world.redis.hget("zonerd:as_of", "events") not in (None, "0"))
        reached = []
        for quick in (False, True, False, True, False, False):
            done = world.run("verify", "--json", *(["--quick"] if quick else []))
            report = json.loads(done.stdout)
            assert done.returncode == DONE, report
            assert {one["result"] for one in report["checks"].values()} == {"equal"}
            reached.append(sum(report["as_of"].values()))
    assert reached == sorted(set(reached)), "the load stood still: that proves nothing"


@contextmanager
def load(world: World) -> Iterator[None]:
    """Produce some thousands a second, good ones, bad ones and aborted ones, until the end."""
    stop = threading.Event()

    def produce() -> None:
        number = 0
        while not stop.wait(0.1):
            values = [(n % PARTITIONS, b"1", good(n) if n % 97 else b"bad") for n in range(number, number + 500)]
            world.produce(values)
            world.produce(values[:5], commit=bool(number % 1000))
            number += 500

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def running(world: World, process: str) -> Iterator[None]:
    log = world.config.data_dir.parent / f"{process}.log"
    with log.open("w") as lines:
        command = [sys.executable, "-m", "zonerd", *world.options, process]
        child = subprocess.Popen(command, text=True, stdout=lines, stderr=lines)
    try:
        yield
    finally:
        child.terminate()
        assert child.wait(DEADLINE_S) == 0, log.read_text()[-5000:]


def test_rows_taken_back_meanwhile_are_checked_anew_and_a_restless_history_is_given_up(tmp_path: Path) -> None:
    part = Part("history", "equal", "", {})
    with History.open_writer(tmp_path) as history, Audit.open_reader(tmp_path) as audit:
        history.meet("cluster", "topic", "id", {0: 0}, {0: 0})
        runs: list[Noted] = []

        def once(noted: Noted) -> Part:
            runs.append(noted)
            if len(runs) == 1:
                note_take_back(tmp_path)
            return part

        def always(_noted: Noted) -> Part:
            note_take_back(tmp_path)
            return part

        def moving(_noted: Noted) -> Part:
            raise Moved

        assert settled(audit, note(audit), once) is part
        assert len(runs) == 2
        for restless in (always, moving):
            with pytest.raises(ServiceUnavailable, match="replaced during each of 3 tries"):
                settled(audit, note(audit), restless)


def note_take_back(folder: Path) -> None:
    connection = apsw.Connection(str(folder / "events.db"))
    connection.execute("insert into changes (kind, at_ms, nonce) values ('take_back', 0, x'00')")
    connection.close()
