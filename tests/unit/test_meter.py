"""What a consumer counts and shows, by itself: the buckets of a slice, the age of a lag, labels that stay closed."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from services.scrape import Scraped
from zonerd import config, metrics
from zonerd.errors import ServiceUnavailable, StoreUnavailable
from zonerd.events import EventRow, Record, Slice
from zonerd.kafka.reader import Taken
from zonerd.kafka.watch import Extent, Watch
from zonerd.meter import COMMIT_ERRORS, Meter, observe_stored, pause_of

NOW = 1_700_000_000.0


class Known(Watch):
    """What a broker has told, without a broker."""

    def __init__(self) -> None:
        self.known = {}

    def look(self, partitions: object) -> bool:  # noqa: ARG002 - as the real one
        return True


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch() -> Known:
    return Known()


@pytest.fixture
def own_topic(tmp_path: Path) -> str:
    """The name of a topic that only this test has."""
    return tmp_path.name


@pytest.fixture
def meter(tmp_path: Path, own_topic: str, watch: Known, clock: Clock) -> Iterator[Meter]:
    settings = config.load(None, {}, [f"store.data_dir={tmp_path}", f"kafka.topic={own_topic}"]).config
    meter = Meter(settings, CapturingLogger(), watch, clock)
    yield meter
    meter.lost()


def exposed() -> Scraped:
    metrics._EXPOSED["consumer"]._text_until = 0.0
    return Scraped.parse(metrics.exposition("consumer").decode())


def rows_at(*logged_ms: int) -> list[EventRow]:
    return [(offset, 1, "a", 0, at, None) for offset, at in enumerate(logged_ms)]


def slice_of(partition: int, first: int, *values: bytes | None, logged_ms: int) -> tuple[Slice, list[Record]]:
    """Give a slice whose records are all events, and these records."""
    records = [Record(partition, first + n, logged_ms, None, value) for n, value in enumerate(values)]
    events: list[EventRow] = [(record.offset, 1, "a", 0, logged_ms, None) for record in records]
    return Slice(partition, first, first + len(records), events, last=records[-1]), records


# End to end


@given(st.lists(st.integers(0, 8_000_000), max_size=300))
def test_a_slice_is_observed_in_the_buckets_that_each_of_its_events_would_fall_into(ages_ms: list[int]) -> None:
    one_by_one, at_once = (
        metrics.Weighed("h", "h", "stage", ["stored"], metrics.LATENCY_BUCKETS_S, CollectorRegistry()) for _ in range(2)
    )
    logged_ms = sorted(int(NOW * 1000) - age for age in ages_ms)
    for at in logged_ms:
        one_by_one.observe("stored", NOW - at / 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "END_TO_END", at_once)
        observe_stored(rows_at(*logged_ms), NOW)
    assert at_once._counts == one_by_one._counts


@given(st.lists(st.integers(-8_000_000, 8_000_000), min_size=1, max_size=100))
def test_every_event_is_observed_once_whatever_its_clients_clocks_say(ages_ms: list[int]) -> None:
    weighed = metrics.Weighed("h", "h", "stage", ["stored"], metrics.LATENCY_BUCKETS_S, CollectorRegistry())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "END_TO_END", weighed)
        observe_stored(rows_at(*(int(NOW * 1000) - age for age in ages_ms)), NOW)
    assert sum(weighed._counts["stored"]) == len(ages_ms)
    assert weighed._sums["stored"] >= 0


def test_an_event_without_a_timestamp_of_kafkas_is_not_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    weighed = metrics.Weighed("h", "h", "stage", ["stored"], metrics.LATENCY_BUCKETS_S, CollectorRegistry())
    monkeypatch.setattr(metrics, "END_TO_END", weighed)
    observe_stored(rows_at(-1, -1), NOW)
    observe_stored([], NOW)
    assert sum(weighed._counts["stored"]) == 0


# Lag


@pytest.mark.parametrize(
    ("extent", "next_offset", "lag"),
    [
        (Extent(0, 10, 10), 10, 0),
        (Extent(0, 10, 10), 4, 6),
        (Extent(7, 10, 10), 4, 3),  # what is gone cannot be read any more
        (Extent(0, 10, 25), 10, 0),  # the rest stands behind an open transaction
        (Extent(0, 9, 9), 12, 0),  # an answer from before what was stored since
    ],
)
def test_the_lag_is_what_the_log_still_has_up_to_its_last_stable_record(
    extent: Extent, next_offset: int, lag: int
) -> None:
    assert extent.lag(next_offset) == lag


def test_a_lag_is_as_old_as_the_last_stored_record_but_not_older_than_the_last_time_without_one(
    meter: Meter, watch: Known, clock: Clock, own_topic: str
) -> None:
    def age() -> float:
        meter.look()
        return exposed().value("zonerd_consumer_lag_seconds", topic=own_topic)

    watch.known = {0: Extent(0, 10, 10)}
    meter.assigned({0: 4}, lambda _: int(NOW * 1000) - 90_000)
    assert age() == 90
    piece, records = slice_of(0, 4, *[b"x"] * 6, logged_ms=int(NOW * 1000) - 60_000)
    meter.stored([piece], Taken(records, {}, set(), {}, 6))
    assert age() == 0
    clock.now += 3600
    assert age() == 0
    clock.now += 2
    watch.known = {0: Extent(0, 11, 11)}
    assert age() == 2  # an hour of silence is no lag
    watch.known = {0: Extent(0, 10, 10)}
    clock.now -= 7200
    assert age() == 0


def test_no_lag_is_told_before_the_broker_has_told_where_its_log_ends(
    meter: Meter, watch: Known, own_topic: str
) -> None:
    meter.assigned({0: 4}, lambda _: None)
    meter.look()
    assert exposed().value("zonerd_consumer_next_offset", topic=own_topic) == 4
    assert math.isnan(exposed().value("zonerd_consumer_lag_records", topic=own_topic))
    assert meter.lag(0) == 0
    watch.known = {0: Extent(0, 9, 9)}
    meter.look()
    assert exposed().value("zonerd_consumer_lag_records", topic=own_topic) == meter.lag(0) == 5


def test_the_series_of_a_partition_that_is_no_longer_ours_are_gone(meter: Meter, watch: Known, own_topic: str) -> None:
    def partitions() -> set[str]:
        return {
            dict(labels)["partition"]
            for family in exposed().families.values()
            for sample in family.samples
            if (labels := sample.labels).get("topic") == own_topic and "partition" in labels
        }

    watch.known = {partition: Extent(0, 9, 9) for partition in range(3)}
    meter.assigned(dict.fromkeys(range(3), 0), lambda _: None)
    meter.look()
    assert partitions() == {"0", "1", "2"}
    meter.assigned({1: 0}, lambda _: None)
    assert partitions() == {"1"}
    meter.lost()
    assert partitions() == set()


# Counting


def test_bytes_are_counted_by_partition_though_a_batch_holds_several(meter: Meter, own_topic: str) -> None:
    meter.assigned({0: 0, 1: 0}, lambda _: None)
    one, ones = slice_of(0, 0, b"123", b"4", None, logged_ms=0)
    other, others = slice_of(1, 0, b"12", logged_ms=0)
    meter.stored([one, other], Taken([ones[0], others[0], *ones[1:]], {}, set(), {}, 6))
    alone, record = slice_of(1, 1, b"12345", logged_ms=0)
    meter.stored([alone], Taken(record, {}, set(), {}, 5))
    scraped = exposed()
    assert scraped.value("zonerd_consumer_bytes_total", topic=own_topic, partition="0") == 4
    assert scraped.value("zonerd_consumer_bytes_total", topic=own_topic, partition="1") == 7
    assert scraped.value("zonerd_consumer_events_stored_total", topic=own_topic, partition="0") == 3


def test_bytes_that_were_stored_before_or_by_another_process_are_not_counted(meter: Meter, own_topic: str) -> None:
    meter.assigned({0: 0, 1: 0, 2: 0}, lambda _: None)
    _, again = slice_of(0, 0, b"123", b"4567", logged_ms=0)
    fresh, ours = slice_of(0, 2, b"89", logged_ms=0)
    other, others = slice_of(1, 0, b"12345", logged_ms=0)
    _, fenced = slice_of(2, 0, b"1", logged_ms=0)
    meter.stored([fresh, other], Taken([*again, *ours, *others, *fenced], {}, set(), {}, 15))
    sizes = [exposed().value("zonerd_consumer_bytes_total", topic=own_topic, partition=str(p)) for p in range(3)]
    assert sizes == [2, 5, 0]


def test_the_time_of_a_pass_that_failed_and_of_its_pause_is_no_batchs(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, records = slice_of(0, 0, b"1", logged_ms=0)
    meter.took(records)
    meter.lap("wait")
    before = exposed()
    monkeypatch.setattr(metrics.LOOP, "_since", metrics.LOOP._since - 3600)
    meter.paused("store")
    meter.took(records)
    meter.lap("wait")
    after = exposed()
    waited = [scraped.value("zonerd_consumer_batch_seconds_sum", stage="wait") for scraped in (before, after)]
    looped = [scraped.value("zonerd_loop_seconds_total", state="wait") for scraped in (before, after)]
    assert waited[1] - waited[0] < 3600 <= looped[1] - looped[0]


def test_an_error_of_the_brokers_that_has_no_label_is_another_one(meter: Meter) -> None:
    before = exposed()
    for error in ("UNKNOWN_MEMBER_ID", "_TRANSPORT", "TOPIC_WITH_AN_ODD_NAME", ""):
        meter.commit_failed(error)
    after = exposed()
    name = "zonerd_consumer_commit_errors_total"
    grown = {
        reason: after.value(name, reason=reason) - before.value(name, reason=reason)
        for reason in after.label(name, "reason")
    }
    assert after.label(name, "reason") == {*COMMIT_ERRORS}
    assert {reason: by for reason, by in grown.items() if by} == {"unknown_member_id": 1, "transport": 1, "other": 2}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreUnavailable("", "full"), "disk_full"),
        (StoreUnavailable("", "locked"), "store"),
        (StoreUnavailable(""), "store"),
        (ServiceUnavailable("kafka", ""), "kafka"),
    ],
)
def test_a_pause_has_one_reason_at_a_time(meter: Meter, error: ServiceUnavailable, reason: str) -> None:
    meter.paused("topic")
    meter.paused(pause_of(error))
    assert exposed().value("zonerd_consumer_paused", reason=reason) == 1
    assert exposed().total("zonerd_consumer_paused") == 1
    meter.paused(None)
    assert exposed().total("zonerd_consumer_paused") == 0
