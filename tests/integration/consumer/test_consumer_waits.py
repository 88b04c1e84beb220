"""What a consumer does while something that it needs is missing, hung, full or held, and when it is asked to stop."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from confluent_kafka import Consumer, TopicPartition
from consuming import Running, Trial, event

from services.kafka import KafkaBroker
from services.process import wait_until


@pytest.fixture(scope="module")
def own_broker() -> Iterator[KafkaBroker]:
    """A broker that only this module's tests stop and hang."""
    broker = KafkaBroker()
    yield broker
    broker.close()


@pytest.fixture
def alone(own_broker: KafkaBroker, tmp_path: Path) -> Iterator[Trial]:
    trial = Trial(own_broker.bootstrap_servers, tmp_path)
    yield trial
    trial.close()


# Kafka is missing or comes and goes


def test_without_a_broker_it_waits_with_one_line_and_stops_when_asked(trial: Trial) -> None:
    trial.bootstrap_servers = "127.0.0.1:1"
    running = trial.start()
    running.wait_for("service_unavailable", check="kafka")
    running.wait_for("kafka_client")
    assert len(running.said("service_unavailable")) == 1
    assert running.stop() == 0


def test_without_a_broker_a_one_shot_run_ends_with_69(trial: Trial) -> None:
    trial.bootstrap_servers = "127.0.0.1:1"
    done = trial.run("consumer", "--until-caught-up")
    assert done.returncode == 69
    assert "kafka" in done.stderr


def test_a_missing_topic_is_made_as_configured(trial: Trial) -> None:
    running = trial.start(kafka__topic_partitions=7)
    running.wait_for("ready")
    assert len(trial._known_partitions()) == 7
    done = trial.run("topic", "show", "--json")
    assert done.returncode == 0, done.stderr
    trial.produce_events(100)
    trial.wait_until_stored()
    assert running.stop() == 0
    trial.assert_exact()


def test_a_missing_topic_is_waited_for_where_it_may_not_be_made(trial: Trial) -> None:
    running = trial.start(kafka__create_topic="false")
    line = running.wait_for("service_unavailable", check="kafka")
    assert "there is no topic" in line["reason"]
    assert trial._known_partitions() == {}
    trial.create_topic(2)
    trial.produce_events(100)
    trial.wait_until_stored()
    running.wait_for("ready")
    assert len(running.said("service_unavailable")) == 1
    assert running.stop() == 0


def test_a_broker_that_restarts_costs_neither_the_process_nor_a_record(alone: Trial, own_broker: KafkaBroker) -> None:
    alone.create_topic(4)
    alone.produce_events(2000)
    running = alone.start()
    alone.wait_until_stored()
    own_broker.restart()
    alone.produce_events(2000)
    alone.wait_until_stored()
    assert running.process.poll() is None
    wait_until(lambda: len(running.said("ready")) >= 1)
    assert running.stop() == 0
    assert alone.assert_exact().records == 4000


def test_a_broker_that_hangs_is_waited_for(alone: Trial, own_broker: KafkaBroker) -> None:
    alone.create_topic(4)
    alone.produce_events(2000)
    running = alone.start()
    alone.wait_until_stored()
    running.wait_for("ready")
    own_broker.pause()
    try:
        running.wait_for("service_unavailable", check="kafka")
    finally:
        own_broker.resume()
    running.wait_for("ready", count=2)
    alone.produce_events(2000)
    alone.wait_until_stored()
    assert running.stop() == 0
    assert alone.assert_exact().records == 4000


@pytest.mark.parametrize("moment", ["at work", "at once", "after a while"])
def test_it_stops_within_ten_seconds_though_the_broker_hangs(
    alone: Trial, own_broker: KafkaBroker, moment: str
) -> None:
    alone.create_topic(4)
    alone.produce_events(2000)
    if moment == "at once":
        own_broker.pause()
        running = alone.start()
        running.wait_for("started")
    else:
        running = alone.start()
        alone.wait_until_stored()
        own_broker.pause()
    try:
        if moment != "at work":
            running.wait_for("service_unavailable", check="kafka")
        assert running.stop(within_s=10) == 0, running.log.read_text()
    finally:
        own_broker.resume()


@pytest.mark.parametrize("grown_past_us", [False, True])
def test_a_broker_restored_from_an_older_copy_is_not_our_topic(
    alone: Trial, own_broker: KafkaBroker, tmp_path: Path, grown_past_us: bool
) -> None:
    alone.create_topic(1)
    alone.produce_events(100)
    own_broker.stop()
    shutil.copytree(own_broker.data, tmp_path / "copy")
    own_broker.start()
    alone.produce_events(100)
    running = alone.start()
    alone.wait_until_stored()
    running.wait_for("ready")
    own_broker.stop()
    shutil.rmtree(own_broker.data)
    shutil.copytree(tmp_path / "copy", own_broker.data)
    if grown_past_us:
        running.pause()
    own_broker.start()
    if grown_past_us:
        alone.numbers = 5000
        alone.produce_events(150)
        running.go_on()
    reason = running.wait_for("not_ready", check="topic")["reason"]
    assert ("another record at offset 199" if grown_past_us else "ends at 100, below our 200") in reason
    assert alone.next_offsets() == {0: 200}
    assert alone.run("topic", "accept", "--yes").returncode == 0
    alone.wait_until_stored()
    assert running.stop() == 0
    alone.assert_exact()


# Stopping


def test_a_second_signal_while_it_stops_changes_nothing(trial: Trial) -> None:
    trial.create_topic(4)
    trial.produce_events(20_000)
    running = trial.start()
    wait_until(lambda: trial.stored() > 0)
    running.process.terminate()
    running.process.terminate()
    assert running.process.wait(10) == 0
    trial.catch_up()
    trial.assert_exact()


def test_it_ends_when_the_supervisor_that_started_it_is_gone(trial: Trial, tmp_path: Path) -> None:
    trial.create_topic(1)
    log = tmp_path / "orphan.log"
    words = [sys.executable, "-m", "zonerd", *trial.options(), "consumer"]
    program = (
        "import os, subprocess, sys; os.environ['ZONERD_SUPERVISED'] = str(os.getpid());"
        "child = subprocess.Popen(sys.argv[2:], stdout=open(sys.argv[1], 'wb'));"
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(log), *words], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: log.exists() and '"ready"' in log.read_text())
        parent.kill()
    try:
        wait_until(lambda: '"stopped"' in log.read_text(), 10)
        assert '"orphaned": true' in log.read_text()
        wait_until(
            lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", 10
        )
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


# The lock


def test_a_second_consumer_of_the_same_number_waits_and_names_the_holder(trial: Trial) -> None:
    trial.create_topic(1)
    first = trial.start()
    first.wait_for("ready")
    second = trial.start()
    line = second.wait_for("not_ready", check="lock")
    assert f"pid {first.process.pid}" in line["reason"]
    begun = time.monotonic()
    refused = trial.run("consumer", "--until-caught-up")
    assert refused.returncode == 78
    assert f"pid {first.process.pid}" in refused.stderr
    assert time.monotonic() - begun < 4
    first.kill()
    second.wait_for("ready")
    assert len(second.said("not_ready")) == 1
    assert second.stop() == 0


# The disk


def test_a_disk_that_is_too_full_pauses_it_until_there_is_room(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    free = shutil.disk_usage(trial.folder).free
    running = trial.start(store__min_free_bytes=free + 64 * 2**20)
    running.wait_for("paused", check="store")
    assert trial.stored() == 0
    assert running.said("ready") == []
    assert len(running.said("paused")) == 1
    assert running.stop() == 0
    again = trial.start()
    trial.wait_until_stored()
    assert again.stop() == 0
    trial.assert_exact()


def test_a_disk_that_fills_and_is_freed_while_it_runs_loses_nothing(trial: Trial) -> None:
    trial.create_topic(1)
    running = trial.start(changed="disk_by_file", environment={"DISK_IS_FULL": str(trial.folder / "full")})
    running.wait_for("ready")
    (trial.folder / "full").touch()
    running.wait_for("paused", check="store")
    trial.produce_events(1000)
    (trial.folder / "full").unlink()
    running.wait_for("resumed", check="store")
    trial.wait_until_stored()
    assert len(running.said("paused")) == 1
    assert len(running.said("resumed")) == 1
    assert running.stop() == 0
    trial.assert_exact()


def test_sqlite_full_in_the_middle_of_a_transaction_stores_nothing_of_it(trial: Trial) -> None:
    trial.create_topic(2)
    trial.produce_events(6000)
    running = trial.start(changed="sqlite_full_for_a_while")
    running.wait_for("paused", check="store")
    running.wait_for("resumed", check="store")
    trial.wait_until_stored()
    assert running.stop() == 0
    assert trial.assert_exact().records == 6000


def test_a_history_that_another_writer_holds_is_waited_for(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    trial.catch_up()
    running = trial.start()
    running.wait_for("ready")
    holder = apsw.Connection(str(trial.data / "events.db"))
    holder.execute("begin immediate")
    trial.produce_events(100)
    running.wait_for("paused", check="store")
    assert trial.stored() == 100
    holder.execute("rollback")
    holder.close()
    running.wait_for("resumed", check="store")
    trial.wait_until_stored()
    assert len(running.said("paused")) == 1
    assert running.stop() == 0
    trial.assert_exact()


# Files that are not what they should be


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100 : len(content) // 2] = os.urandom(len(content) // 2 - 100)
    path.write_bytes(content)


def corrupt_header(path: Path) -> None:
    path.write_bytes(b"x" * 4096 + path.read_bytes()[4096:])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_to_a_piece(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def foreign(path: Path) -> None:
    path.unlink()
    connection = apsw.Connection(str(path))
    connection.execute("create table mine (a); insert into mine values (1)")
    connection.close()


def foreign_with_an_id(path: Path) -> None:
    foreign(path)
    connection = apsw.Connection(str(path))
    connection.execute("pragma application_id = 7")
    connection.close()


def newer(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("pragma user_version = 1000")
    connection.close()


def newer_in_its_wal(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.execute("pragma user_version = 1000")
    connection.close()


def wal_without_its_file(path: Path) -> None:
    newer_in_its_wal(path)
    path.unlink()


DAMAGE = (
    corrupt, corrupt_header, truncated, truncated_to_a_piece, foreign, foreign_with_an_id, newer, newer_in_its_wal,
    wal_without_its_file,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda one: one.__name__)
def test_a_file_that_is_not_ours_or_not_whole_is_refused_untouched(trial: Trial, damage) -> None:  # noqa: ANN001
    trial.create_topic(1)
    trial.produce_events(5000)
    trial.catch_up()
    damage(trial.data / "events.db")
    before = contents(trial.data)
    running = trial.start()
    assert running.end(15) == 78, running.log.read_text()
    refused = running.said("refused")
    assert len(refused) == 1
    assert "events.db" in refused[0]["reason"]
    assert contents(trial.data) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and not path.name.endswith("-shm") and path.stat().st_size
    }


# Bad payloads, sizes, callbacks


@pytest.mark.parametrize("place", [0, 50, 99])
def test_a_bad_payload_leaves_its_neighbours_unharmed(trial: Trial, place: int) -> None:
    trial.create_topic(1)
    values: list[bytes | None] = [event(number) for number in range(100)]
    bad: tuple[bytes | None, ...] = (b"", b"\xff\xfe", b"[1]", None, b'{"user_id":1}', b"\x00" * 1000)
    for copy in range(len(bad)):
        values[place] = bad[copy]
        trial.produce(values)
    trial.catch_up(consumer__batch_events=100)
    offsets = [offset for (offset,) in trial.rows("select offset from dead_letters order by offset")]
    assert offsets == [place + 100 * copy for copy in range(len(bad))]
    assert trial.rows("select count(*) from events") == [(100 * len(bad) - len(bad),)]
    trial.assert_exact()


def test_a_batch_takes_no_more_bytes_than_configured_and_large_events_pass(trial: Trial) -> None:
    trial.create_topic(1, max_message_bytes="3000000")
    trial.producer = type(trial.producer)(
        {"bootstrap.servers": trial.bootstrap_servers, "message.max.bytes": 3_000_000}
    )
    trial.produce([event(number, 100_000) for number in range(20)])
    trial.produce([event(99, 1_048_576), event(100, 1_048_577), event(101)])
    running = trial.start(consumer__batch_bytes=250_000)
    trial.wait_until_stored()
    batches = [line["events"] for line in running.said("batch_stored")]
    assert max(batches) <= 2
    assert running.stop() == 0
    assert trial.rows("select offset, reason from dead_letters") == [(21, "too_large")]
    trial.assert_exact()


def test_an_error_callback_that_raises_swallows_no_record(alone: Trial, own_broker: KafkaBroker) -> None:
    alone.create_topic(4)
    alone.produce_events(2000)
    running = alone.start(changed="raising_error")
    alone.wait_until_stored()
    own_broker.stop()
    try:
        assert running.end() == 70, running.log.read_text()[-2000:]
    finally:
        own_broker.start()
    alone.produce_events(2000)
    alone.catch_up()
    assert alone.assert_exact().records == 4000


@pytest.mark.parametrize("callback", ["statistics", "log", "commit"])
def test_a_client_callback_that_raises_swallows_no_record(trial: Trial, callback: str) -> None:
    trial.create_topic(4)
    trial.produce_events(20_000)
    running = trial.start(changed=f"raising_{callback}", consumer__batch_events=200)
    assert running.end() == 70, running.log.read_text()[-2000:]
    assert running.said("crashed")
    trial.catch_up()
    assert trial.assert_exact().records == 20_000


def test_a_consume_that_fails_is_begun_again_at_the_store(trial: Trial) -> None:
    trial.create_topic(4)
    trial.produce_events(20_000)
    running = trial.start(changed="failing_consume", consumer__batch_events=200)
    running.wait_for("service_unavailable", check="kafka")
    trial.wait_until_stored()
    assert running.stop() == 0
    assert trial.assert_exact().records == 20_000


def test_the_group_shows_in_kafka_how_far_the_store_is_though_nothing_comes(trial: Trial) -> None:
    trial.create_topic(2)
    trial.produce_events(400)
    running: Running = trial.start()
    trial.wait_until_stored()
    wait_until(lambda: trial.committed() == trial.next_offsets(), 10)
    assert running.stop() == 0


def test_offsets_that_are_set_back_in_kafka_store_nothing_twice(trial: Trial) -> None:
    trial.create_topic(2)
    trial.produce_events(400)
    trial.catch_up()
    reader = Consumer({"bootstrap.servers": trial.bootstrap_servers, "group.id": trial.topic})
    reader.commit(offsets=[TopicPartition(trial.topic, partition, 0) for partition in (0, 1)], asynchronous=False)
    reader.close()
    assert trial.committed() == {0: 0, 1: 0}
    trial.produce_events(400)
    trial.catch_up()
    assert trial.assert_exact().records == 800


def test_another_program_in_our_group_is_named_and_harmless(trial: Trial) -> None:
    trial.create_topic(2)
    foreign = Consumer({"bootstrap.servers": trial.bootstrap_servers, "group.id": trial.topic})
    foreign.subscribe([trial.topic])
    wait_until(lambda: foreign.poll(0.1) or foreign.assignment())
    running = trial.start()
    trial.produce_events(400)
    line = running.wait_for("group_in_use")
    assert line["group"] == trial.topic
    trial.wait_until_stored()
    assert running.stop() == 0
    foreign.close()
    assert trial.assert_exact().records == 400
