"""What a consumer tells Prometheus, held against the store and against another client of the same broker."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import apsw
import pytest
from consuming import Running, Trial, event

from services.kafka import KafkaBroker
from services.process import wait_until
from services.scrape import Scraped, health, scrape
from zonerd.events import GAP_REASONS, REASONS
from zonerd.meter import COMMIT_ERRORS, PAUSES
from zonerd.metrics import LOOP_STATES
from zonerd.store.database import TROUBLES

FRESH_S = 3.0
"""So old may an exposed lag be on a machine that is busy with other tests; some 0.7 s is usual, a scrape 15 s."""


def by_partition(scraped: Scraped, name: str) -> dict[int, float]:
    return {int(dict(labels)["partition"]): value for labels, value in scraped.series(name).items()}


def total_by(scraped: Scraped, name: str, label: str) -> Counter[str]:
    """Give the sums of a counter by one label, the zeros left out."""
    sums: Counter[str] = Counter()
    for labels, value in scraped.series(name).items():
        sums[dict(labels)[label]] += int(value)
    return +sums


def outsider_lag(trial: Trial) -> dict[int, int]:
    """Give end offset - next stored offset, as another Kafka client and another SQLite client read them."""
    stored = trial.next_offsets()
    return {partition: end - stored[partition] for partition, end in trial.ends().items()}


def wait_for_lag(trial: Trial, running: Running, wanted: Callable[[], dict[int, int]]) -> Scraped:
    """Scrape until position and lag are what is stored and what is wanted, and give that scrape."""

    def agreed() -> Scraped | None:
        scraped = trial.scrape(running)
        current = by_partition(scraped, "zonerd_consumer_next_offset") == trial.next_offsets()
        return scraped if current and by_partition(scraped, "zonerd_consumer_lag_records") == wanted() else None

    return wait_until(agreed, 10, lambda: f"{trial.scrape(running).series('zonerd_consumer_lag_records')}, {wanted()}")


# Every series from the start


def test_every_closed_label_is_there_at_0_before_anything_happens(trial: Trial) -> None:
    trial.create_topic(2)
    running = trial.start()
    running.wait_for("ready")
    scraped = trial.scrape(running)
    assert scraped.label("zonerd_consumer_dead_letters_total", "reason") == {*REASONS}
    assert scraped.label("zonerd_consumer_gap_offsets_total", "reason") == {*GAP_REASONS}
    assert scraped.label("zonerd_consumer_paused", "reason") == {*PAUSES}
    assert scraped.label("zonerd_consumer_commit_errors_total", "reason") == {*COMMIT_ERRORS}
    assert scraped.label("zonerd_store_errors_total", "kind") == {*TROUBLES}
    assert scraped.label("zonerd_loop_seconds_total", "state") == {*LOOP_STATES}
    for counter in ("dead_letters", "gap_offsets", "commit_errors", "fenced", "records", "bytes", "events_stored"):
        assert scraped.total(f"zonerd_consumer_{counter}_total") == 0
    assert by_partition(scraped, "zonerd_consumer_records_total") == {0: 0, 1: 0}


def test_a_consumer_that_was_never_assigned_a_partition_tells_of_none(trial: Trial) -> None:
    trial.bootstrap_servers = "127.0.0.1:1"
    running = trial.start()
    running.wait_for("service_unavailable", check="kafka")
    scraped = wait_until(
        lambda: s if (s := trial.scrape(running)).value("zonerd_consumer_paused", reason="kafka") else 0
    )
    for name in ("lag_records", "lag_seconds", "next_offset", "low_watermark_offset", "high_watermark_offset"):
        assert scraped.series(f"zonerd_consumer_{name}") == {}
    assert scraped.value("zonerd_consumer_assigned_partitions") == 0


# Counts


def test_over_restarts_the_counters_add_up_to_what_is_stored(trial: Trial) -> None:
    trial.create_topic(4)
    exposed: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    gaps: Counter[str] = Counter()
    bad = [None, b"\xff", b"{", b"[]", b"{}", b'{"user_id": 1, "activity": "a", "timestamp": -1}', b"x" * 5000]
    for round_ in range(3):
        running = trial.start(consumer__max_event_bytes=4096)
        for number in range(5):
            trial.produce_events(400)
            trial.produce([*bad[: 3 + number], event(10**6 + round_ * 100 + number)])
        with trial.transaction(abort=round_ == 1, transactional_id=str(round_)) as send:
            for partition in range(4):
                send(partition, event(10**7 + round_ * 10 + partition))
        trial.wait_until_stored()
        scraped = wait_for_lag(trial, running, lambda: dict.fromkeys(range(4), 0))
        for name in ("records", "events_stored", "bytes"):
            exposed[name] += int(scraped.total(f"zonerd_consumer_{name}_total"))
        exposed["observed"] += int(scraped.value("zonerd_end_to_end_seconds_count", stage="stored"))
        letters += total_by(scraped, "zonerd_consumer_dead_letters_total", "reason")
        gaps += total_by(scraped, "zonerd_consumer_gap_offsets_total", "reason")
        assert running.stop() == 0
    trial.assert_exact()
    assert exposed["events_stored"] == exposed["observed"] == trial.rows("select count(*) from events")[0][0]
    assert letters == Counter(dict(trial.rows("select reason, count(*) from dead_letters group by 1")))
    assert len(letters) >= 6
    assert exposed["records"] == exposed["events_stored"] + letters.total()
    assert exposed["bytes"] == sum(len(value or b"") for value in trial.ledger().values())
    sums = "select reason, sum(last_offset - first_offset + 1) from gaps group by 1"
    assert gaps == Counter(dict(trial.rows(sums)))
    assert gaps["not_delivered"] >= 12  # the markers, and what was aborted


# Lag


def test_at_rest_the_lag_is_what_another_client_reads(trial: Trial) -> None:
    trial.create_topic(4)
    trial.produce_events(1000)
    running = trial.start()
    trial.wait_until_stored()
    scraped = wait_for_lag(trial, running, lambda: outsider_lag(trial))
    assert set(by_partition(scraped, "zonerd_consumer_lag_records").values()) == {0}
    assert set(by_partition(scraped, "zonerd_consumer_lag_seconds").values()) == {0}
    assert by_partition(scraped, "zonerd_consumer_next_offset") == trial.next_offsets()
    assert by_partition(scraped, "zonerd_consumer_high_watermark_offset") == trial.ends("read_uncommitted")
    assert scraped.value("zonerd_consumer_assigned_partitions") == 4
    oldest_ms = trial.rows("select min(logged_ms) from events")[0][0]
    wait_until(
        lambda: trial.scrape(running).value("zonerd_store_oldest_event_timestamp_seconds") == oldest_ms / 1000, 10
    )


def test_while_nothing_can_be_stored_the_lag_grows_as_another_client_reads_it(trial: Trial) -> None:
    trial.create_topic(4)
    trial.produce_events(1000)
    trial.catch_up()
    full = trial.folder / "full"
    full.touch()
    running = trial.start(changed="disk_by_file", environment={"DISK_IS_FULL": str(full)})
    running.wait_for("paused", check="store")
    trial.produce_events(50_000)  # more than is fetched in advance
    full.unlink()
    trial.wait_until_stored()
    full.touch()
    running.wait_for("paused", count=2, check="store")
    running.wait_for("store_failed", kind="full")
    assert len(running.said("store_opened")) == 1
    paused_at = time.time()
    trial.produce_events(100_000)
    scraped = wait_for_lag(trial, running, lambda: outsider_lag(trial))
    assert scraped.total("zonerd_consumer_lag_records") == 100_000
    assert all(
        0 < age <= time.time() - paused_at + 60 for age in by_partition(scraped, "zonerd_consumer_lag_seconds").values()
    )
    assert scraped.value("zonerd_consumer_paused", reason="disk_full") == 1
    assert scraped.total("zonerd_consumer_paused") == 1
    full.unlink()
    trial.wait_until_stored()
    scraped = wait_for_lag(trial, running, lambda: dict.fromkeys(range(4), 0))
    assert set(by_partition(scraped, "zonerd_consumer_lag_seconds").values()) == {0}


def test_under_load_the_lag_is_what_an_outsider_read_within_the_last_scrape(trial: Trial) -> None:
    """Position and lag together tell where the log ends: it must have ended there a moment ago."""
    trial.create_topic(4)
    running = trial.start()
    trial.port(running)
    enough = Event()
    seen: list[tuple[float, dict[int, int]]] = []

    def produce() -> None:
        while not enough.is_set():
            trial.produce_events(4_000)

    def compared() -> int:
        seen.append((time.monotonic(), trial.ends()))
        asked_at = time.monotonic()
        scraped = trial.scrape(running)
        before = [ends for at, ends in seen if at < asked_at - FRESH_S]
        after = trial.ends()
        lag = by_partition(scraped, "zonerd_consumer_lag_records")
        known = {p: at for p, at in by_partition(scraped, "zonerd_consumer_next_offset").items() if before and p in lag}
        for partition, position in known.items():
            assert before[-1][partition] <= position + lag[partition] <= after[partition]
        return sum(before[-1][partition] < after[partition] for partition in known)

    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(produce)
        try:
            for _ in range(20):
                wait_until(compared)
        finally:
            enough.set()
        load.result()
    trial.wait_until_stored()
    wait_for_lag(trial, running, lambda: outsider_lag(trial))


@pytest.mark.parametrize("aborted", [False, True])
def test_what_stands_behind_an_open_transaction_is_no_lag(trial: Trial, aborted: bool) -> None:
    trial.create_topic(1)
    trial.produce_events(500)
    running = trial.start()
    trial.wait_until_stored()
    with trial.transaction(abort=aborted) as send:
        for number in range(20):
            send(0, event(10**6 + number))
        trial.produce_events(30)

        def seen() -> bool:
            scraped = trial.scrape(running)
            high = by_partition(scraped, "zonerd_consumer_high_watermark_offset")
            return high == trial.ends("read_uncommitted") == {0: 550}

        wait_until(seen, 10)
        scraped = wait_for_lag(trial, running, lambda: outsider_lag(trial))
        assert by_partition(scraped, "zonerd_consumer_lag_records") == {0: 0}
        assert by_partition(scraped, "zonerd_consumer_next_offset") == {0: 500}
    trial.wait_until_stored()
    wait_until(lambda: by_partition(trial.scrape(running), "zonerd_consumer_next_offset") == {0: 551}, 10)
    wait_for_lag(trial, running, lambda: outsider_lag(trial))


def test_the_low_watermark_follows_the_broker_while_nothing_is_stored(trial: Trial) -> None:
    """The race with retention must be seen before it is lost: nothing is fetched then that could tell it."""
    trial.create_topic(2)
    trial.produce_events(400)
    trial.catch_up()
    full = trial.folder / "full"
    full.touch()
    running = trial.start(changed="disk_by_file", environment={"DISK_IS_FULL": str(full)})
    running.wait_for("paused", check="store")
    full.unlink()
    running.wait_for("ready")
    full.touch()
    running.wait_for("paused", count=2, check="store")
    trial.produce_events(400)
    for low in (100, 150, 250):
        trial.expire_below({0: low})
        wait_until(
            lambda low=low: (
                by_partition(trial.scrape(running), "zonerd_consumer_low_watermark_offset") == {0: low, 1: 0}
            ),
            5,
        )
    scraped = wait_for_lag(trial, running, lambda: {0: 150, 1: 200})  # what is gone is no lag
    next_offsets = by_partition(scraped, "zonerd_consumer_next_offset")
    assert next_offsets[0] - by_partition(scraped, "zonerd_consumer_low_watermark_offset")[0] == -50
    full.unlink()
    running.wait_for("gap_recorded", reason="expired")
    trial.wait_until_stored()
    gone = wait_until(
        lambda: trial.scrape(running).value("zonerd_consumer_gap_offsets_total", partition="0", reason="expired")
    )
    assert gone == 50


# Partitions come and go


def test_added_partitions_have_series_of_their_own(trial: Trial) -> None:
    trial.create_topic(1)
    running = trial.start()
    running.wait_for("ready")
    trial.add_partitions(3)
    running.wait_for("partitions_added")
    trial.produce_events(900)
    trial.wait_until_stored()
    scraped = wait_for_lag(trial, running, lambda: dict.fromkeys(range(3), 0))
    assert by_partition(scraped, "zonerd_consumer_events_stored_total") == dict.fromkeys(range(3), 300)
    assert scraped.value("zonerd_consumer_assigned_partitions") == 3


def test_a_replaced_topic_takes_its_series_with_it(trial: Trial) -> None:
    trial.create_topic(2)
    trial.produce_events(1000)
    running = trial.start()
    trial.wait_until_stored()
    wait_for_lag(trial, running, lambda: {0: 0, 1: 0})
    trial.delete_topic()
    trial.create_topic(2)
    running.wait_for("not_ready", check="topic")
    scraped = wait_until(
        lambda: s if (s := trial.scrape(running)).value("zonerd_consumer_paused", reason="topic") else 0
    )
    for family in scraped.families:
        assert not any("partition" in dict(labels) for labels in scraped.series(family)), family
        assert not any("partition" in dict(labels) for labels in scraped.series(f"{family}_total")), family
    assert scraped.value("zonerd_consumer_assigned_partitions") == 0
    assert trial.run("topic", "accept", "--yes").returncode == 0
    trial.produce_events(100)
    trial.wait_until_stored()
    wait_for_lag(trial, running, lambda: {0: 0, 1: 0})
    wait_until(lambda: trial.scrape(running).total("zonerd_consumer_paused") == 0)


# What is in the way


def test_a_full_disk_is_a_pause_by_that_name(trial: Trial) -> None:
    trial.create_topic(1)
    running = trial.start(store__min_free_bytes=2**62)
    line = running.wait_for("paused", check="store")
    assert "min_free_bytes" in line["reason"]
    scraped = wait_until(
        lambda: s if (s := trial.scrape(running)).value("zonerd_consumer_paused", reason="disk_full") else 0
    )
    assert scraped.total("zonerd_consumer_paused") == 1
    disk = os.statvfs(trial.data)
    assert abs(scraped.value("zonerd_store_free_bytes") - disk.f_bavail * disk.f_frsize) < 2**30
    assert scraped.total("zonerd_store_errors_total") == 0  # SQLite has not even been asked


def test_a_locked_store_is_a_pause_and_an_error_of_its_kind(trial: Trial) -> None:
    trial.create_topic(1)
    trial.catch_up()
    holder = apsw.Connection(str(trial.data / "events.db"))
    holder.execute("begin immediate")
    running = trial.start()
    running.wait_for("paused", check="store")
    scraped = wait_until(
        lambda: s if (s := trial.scrape(running)).value("zonerd_consumer_paused", reason="store") else 0
    )
    assert scraped.value("zonerd_store_errors_total", file="events.db", kind="locked") >= 1
    holder.execute("rollback")
    running.wait_for("ready")
    wait_until(lambda: trial.scrape(running).total("zonerd_consumer_paused") == 0)
    holder.close()


def test_a_reader_that_holds_the_wal_makes_it_unready_but_stops_nothing(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(1000)
    running = trial.start(store__max_wal_bytes=16_777_216)
    trial.wait_until_stored()
    running.wait_for("ready")
    reader = apsw.Connection(str(trial.data / "events.db"))
    reader.execute("begin")
    assert reader.execute("select count(*) from events").get == 1000
    trial.produce(event(10**6 + number, 20_000) for number in range(1500))
    line = running.wait_for("wal_large")
    assert line["bytes"] > line["max_bytes"] == 16_777_216
    port = trial.port(running)
    wait_until(lambda: not health(port)["checks"]["wal"]["ok"])
    assert [check for check, answer in health(port)["checks"].items() if not answer["ok"]] == ["wal"]
    assert scrape(port).value("zonerd_store_bytes", file="events.db-wal") > 16_777_216
    trial.wait_until_stored()
    reader.execute("rollback")
    reader.close()
    trial.produce_events(10)  # the next write starts the WAL over
    trial.produce_events(10)
    running.wait_for("ready", count=2)
    assert len(running.said("wal_large")) == 1
    assert scrape(port).value("zonerd_store_bytes", file="events.db-wal") < 16_777_216


def test_a_taken_port_leaves_it_unready_and_stops_nothing_and_is_answered_once_free(trial: Trial) -> None:
    trial.create_topic(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = trial.start(http__port__consumer=port)
        running.wait_for("not_ready", check="http")
        trial.produce_events(1000)
        trial.wait_until_stored()
        assert running.said("ready") == []
    freed = time.monotonic()
    wait_until(lambda: _answers(port), 10)
    assert time.monotonic() - freed < 2
    assert health(port)["pid"] == running.process.pid
    running.wait_for("ready")


def _answers(port: int) -> bool:
    try:
        return bool(scrape(port).families)
    except OSError:
        return False


# Kafka goes away


@pytest.fixture(scope="module")
def own_broker() -> Iterator[KafkaBroker]:
    """A broker that only this module's tests stop."""
    broker = KafkaBroker()
    yield broker
    broker.close()


def test_while_kafka_is_away_the_last_known_values_stay(own_broker: KafkaBroker, tmp_path: Path) -> None:
    trial = Trial(own_broker.bootstrap_servers, tmp_path)
    trial.create_topic(2)
    trial.produce_events(600)
    trial.expire_below({0: 50})
    running = trial.start()
    trial.wait_until_stored()
    before = wait_for_lag(trial, running, lambda: {0: 0, 1: 0})
    own_broker.stop()
    try:
        running.wait_for("service_unavailable", check="kafka")
        scraped = wait_until(
            lambda: s if (s := trial.scrape(running)).value("zonerd_consumer_paused", reason="kafka") else 0
        )
        for name in ("lag_records", "next_offset", "low_watermark_offset", "high_watermark_offset"):
            assert scraped.series(f"zonerd_consumer_{name}") == before.series(f"zonerd_consumer_{name}")
        assert not health(trial.port(running))["ready"]
    finally:
        own_broker.start()
    trial.produce_events(100)
    trial.wait_until_stored()
    wait_for_lag(trial, running, lambda: {0: 0, 1: 0})
    wait_until(lambda: trial.scrape(running).total("zonerd_consumer_paused") == 0)
    trial.close()
