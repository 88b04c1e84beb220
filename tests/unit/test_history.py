"""events.db: appended to under a fence for each partition, taken back when a topic was replaced."""

import gc
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from zonerd import metrics
from zonerd.errors import Refused, StoreUnavailable
from zonerd.events import Gap, Record, Slice, Standing, encode, sort_out
from zonerd.store.database import translated
from zonerd.store.history import History, Partition

PLACE = ("cluster", "topic", "id")


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """A history of two partitions that begin at 0."""
    with History.open_writer(tmp_path) as history:
        history.meet(*PLACE, {0: 0, 1: 0}, {0: 0, 1: 0})
        yield history


def records(first: int, count: int, partition: int = 0) -> list[Record]:
    return [
        Record(partition, first + n, 5000, b"k", b"bad" if n % 7 == 3 else encode(n, "a", n, {"n": n}))
        for n in range(count)
    ]


def piece(first: int, count: int, partition: int = 0) -> Slice:
    (only,) = sort_out(records(first, count, partition), {}, {partition: Standing(first, 0)}, 1000)
    return only


def ids(history: History) -> dict[int, int]:
    return {row.partition: row.id for row in history.partitions() if row.open}


def row(history: History, partition: int = 0) -> Partition:
    return next(row for row in history.partitions() if row.open and row.partition == partition)


def offsets(history: History, id_: int) -> list[int]:
    both = [*history.events_from(id_, 0, 10**6), *history.dead_letters_from(id_, 0, 10**6)]
    return sorted(one[0] for one in both)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 99, 100, 101, 199, 200, 201, 401, 2000])
def test_a_batch_of_any_size_is_stored_whole(history: History, count: int) -> None:
    assert history.append([piece(0, count)], ids(history)) == []
    assert offsets(history, row(history).id) == list(range(count))
    assert row(history).next_offset == count
    assert row(history).anchor is not None


def test_a_slice_at_another_offset_is_fenced_off_and_the_others_are_stored(history: History) -> None:
    history.append([piece(0, 10)], ids(history))
    assert history.append([piece(5, 10), piece(0, 10, 1)], ids(history)) == [0]
    assert row(history).next_offset == 10
    assert row(history, 1).next_offset == 10
    assert history.append([piece(12, 10)], ids(history)) == [0], "ahead is as wrong as behind"
    assert offsets(history, row(history).id) == list(range(10))


def test_a_closed_partition_takes_nothing_any_more(history: History) -> None:
    known = ids(history)
    assert history.replace(row(history), None, None)
    assert history.append([piece(0, 10)], known) == [0]
    assert offsets(history, known[0]) == []


def test_a_second_replacement_of_the_same_row_does_nothing(history: History) -> None:
    old = row(history)
    assert history.replace(old, None, None)
    assert not history.replace(old, None, None)


def test_a_row_that_grew_since_it_was_read_is_not_replaced(history: History) -> None:
    old = row(history)
    history.append([piece(0, 10)], ids(history))
    with pytest.raises(StoreUnavailable, match="grew"):
        history.replace(old, None, None)
    assert row(history).next_offset == 10


def test_what_is_taken_back_leaves_what_lies_before(history: History) -> None:
    history.append([piece(0, 100)], ids(history))
    gap = Slice(0, 100, 120, gaps=[Gap(100, 119, "not_delivered")])
    history.append([gap], ids(history))
    history.append([piece(120, 10)], ids(history))
    old = row(history)
    new = Partition(0, "cluster", "topic", "id-2", 0, 0, 0, 0, None, None)
    assert history.replace(old, 110, new)
    closed = next(one for one in history.partitions() if not one.open)
    assert (closed.next_offset, closed.anchor) == (110, None)
    assert offsets(history, old.id) == list(range(100))
    assert history.gaps_from(old.id, 0, 10) == [Gap(100, 109, "not_delivered")]
    assert row(history).topic_id == "id-2"
    change = history.changes_after(0)[-1]
    assert (change.kind, change.first_offset, change.next_offset) == ("take_back", 110, 130)


def test_nothing_is_stored_when_the_transaction_fails_in_the_middle(tmp_path: Path, history: History) -> None:
    twice = Slice(0, 0, 10, events=[(1, 1, "a", 1, 1, None), (1, 1, "a", 1, 1, None)])
    with pytest.raises(apsw.ConstraintError):
        history.append([piece(0, 10, 1), twice], ids(history))
    assert row(history, 1).next_offset == 0
    assert offsets(history, row(history, 1).id) == []
    history.append([piece(0, 10, 1)], ids(history))


def test_two_writers_that_race_store_each_offset_once(tmp_path: Path, history: History, seed: int) -> None:
    choose = random.Random(seed)
    with History.open_writer(tmp_path) as other:
        for _ in range(200):
            writer = choose.choice((history, other))
            expected = max(0, row(history).next_offset - choose.choice((0, 0, 0, 3, 50)))
            writer.append([piece(expected, choose.randint(1, 30))], ids(history))
    assert offsets(history, row(history).id) == list(range(row(history).next_offset))


def test_start_offsets_are_decided_once(history: History) -> None:
    history.meet(*PLACE, {0: 7, 1: 7, 2: 7}, {0: 3, 1: 3, 2: 3})
    assert {one.partition: one.first_offset for one in history.partitions()} == {0: 0, 1: 0, 2: 3}


def test_only_what_is_stored_can_be_confirmed(history: History) -> None:
    history.append([piece(0, 10)], ids(history))
    history.confirm({row(history).id: 11})
    assert row(history).confirmed_offset == 0
    history.confirm({row(history).id: 10})
    history.confirm({row(history).id: 5})
    assert row(history).confirmed_offset == 10


def test_a_history_that_another_holds_is_unavailable_not_lost(tmp_path: Path, history: History) -> None:
    history._connection.set_busy_timeout(50)
    other = apsw.Connection(str(tmp_path / "events.db"))
    other.execute("begin immediate")
    with pytest.raises(StoreUnavailable):
        history.check_writable()
    with pytest.raises(StoreUnavailable) as caught:
        history.append([piece(0, 10)], ids(history))
    assert caught.value.trouble == "locked"
    other.execute("rollback")
    other.close()
    assert history.append([piece(0, 10)], ids(history)) == []


def test_what_it_acknowledged_is_durable_by_its_settings(history: History) -> None:
    settings = {name: history._connection.pragma(name) for name in ("synchronous", "journal_mode", "page_size")}
    assert settings == {"synchronous": 2, "journal_mode": "wal", "page_size": 16384}


def test_the_table_that_people_query_reads_as_in_the_prototype(history: History) -> None:
    history.append([piece(0, 2)], ids(history))
    assert history._connection.execute("select user_id, activity, timestamp from user_activity").fetchall() == [
        (0, "a", 0.0),
        (1, "a", 1.0),
    ]


def test_it_knows_kafkas_times_of_its_last_record_and_of_its_oldest_event(history: History) -> None:
    assert history.oldest_logged_ms() is None
    assert history.last_logged_ms(row(history).id) is None

    def stored_at(partition: int, first: int, value: bytes, logged_ms: int) -> None:
        one = Record(partition, first, logged_ms, b"k", value)
        history.append(sort_out([one], {}, {partition: Standing(first, 0)}, 1000), ids(history))

    good = encode(1, "a", 1.0, {})
    stored_at(0, 0, b"bad", 1000)
    assert history.oldest_logged_ms() is None, "a dead letter is no event"
    stored_at(0, 1, good, 4000)
    stored_at(1, 0, good, 3000)
    stored_at(1, 1, b"bad", 5000)
    stored_at(1, 2, good, 4500)
    assert history.oldest_logged_ms() == 3000
    assert history.last_logged_ms(row(history).id) == 4000
    assert history.last_logged_ms(row(history, 1).id) == 4500, "the last by offset, whatever the clocks say"


def test_a_newer_history_is_refused_to_a_reader_with_its_wal_as_it_was(tmp_path: Path) -> None:
    alive, left = tmp_path / "alive", tmp_path / "left"
    alive.mkdir()
    with History.open_writer(alive) as history:
        history._connection.execute("pragma user_version = 99")
        shutil.copytree(alive, left, ignore=shutil.ignore_patterns("*-shm"))
    before = {path.name: path.read_bytes() for path in left.iterdir()}
    assert before["events.db-wal"]
    with pytest.raises(Refused, match="newer"):
        History.open_reader(left)
    gc.collect()
    assert {path.name: path.read_bytes() for path in left.iterdir() if path.suffix != ".db-shm"} == before


def test_the_oldest_event_is_told_without_reading_on_where_kafka_has_no_times(history: History) -> None:
    def store(first: int, count: int, logged_ms: int) -> None:
        timeless = [Record(0, first + n, logged_ms, b"k", encode(n, "a", 1.0, {})) for n in range(count)]
        history.append(sort_out(timeless, {}, {0: Standing(first, 0)}, 1000), ids(history))

    store(0, 999, -1)
    assert history.oldest_logged_ms() is None
    store(999, 1, 3000)
    assert history.oldest_logged_ms() == 3000
    store(1000, 19_000, 4000)
    steps: list[None] = []
    history._connection.set_progress_handler(lambda: bool(steps.append(None)), 1000)
    history._connection.execute("update events set logged_ms = -1")
    steps.clear()
    assert history.oldest_logged_ms() is None
    assert len(steps) < 30, "it read far beyond the beginning"


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (apsw.FullError, "full"),
        (apsw.BusyError, "locked"),
        (apsw.ReadOnlyError, "read_only"),
        (apsw.IOError, "io"),
        (OSError, "io"),
        (apsw.NoMemError, "other"),
    ],
)
def test_an_error_of_the_disks_is_counted_by_file_and_kind(error: type[Exception], trouble: str) -> None:
    count = metrics.STORE_ERRORS.labels("rollups.db", trouble)
    before = count._value.get()
    with pytest.raises(StoreUnavailable) as caught, translated("/some/where/rollups.db"), translated("rollups.db"):
        raise error
    assert caught.value.trouble == trouble
    assert count._value.get() == before + 1


def test_damage_is_counted_and_refused() -> None:
    count = metrics.STORE_ERRORS.labels("events.db", "damaged")
    before = count._value.get()
    with pytest.raises(Refused), translated(Path("events.db")):
        raise apsw.CorruptError
    assert count._value.get() == before + 1


def test_a_low_limit_of_the_wal_is_kept_without_a_reader(tmp_path: Path) -> None:
    limit = 16_777_216
    with History.open_writer(tmp_path, limit) as history:
        history.meet(*PLACE, {0: 0}, {0: 0})
        wal = tmp_path / "events.db-wal"
        sizes = []
        for first in range(0, 20_000, 2000):
            events = [(first + n, 1, "a", 0, 0, "x" * 1500) for n in range(2000)]
            history.append([Slice(0, first, first + 2000, events)], ids(history))
            sizes.append(wal.stat().st_size)
    assert sum(size > 0 for size in sizes) == 10
    assert max(sizes) < limit
