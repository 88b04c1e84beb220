"""Each event is counted exactly once, whatever the batches, the kills and the aggregators beside."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import pytest
from answering import World, fold_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.process import wait_until
from zonerd import rollups, unfolded
from zonerd.errors import Overtaken, StoreUnavailable
from zonerd.store.answers import Answers
from zonerd.store.history import History
from zonerd.unfolded import read_on

BATCHES = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.lists(st.sampled_from(["sleep", "meal", "(other)", "é"]), min_size=1, max_size=9),
        st.integers(0, 3),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=BATCHES, slice_events=st.integers(1, 7))
def test_a_rebuild_gives_the_same_answers_as_any_batching(
    batches: list[tuple[int, list[str], int]],
    slice_events: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unfolded, "SLICE_EVENTS", slice_events)
    folder = tmp_path_factory.mktemp("batches")
    world = _offline(folder)
    with History.open_reader(folder) as history, Answers.open_writer(folder) as answers:
        for partition, activities, skip in batches:
            world.append(activities, partition, bad=[1], skip=skip)
            _fold(history, answers)
        while _fold(history, answers):
            pass
        grown = _dump(folder)
    (folder / "rollups.db").unlink()
    monkeypatch.setattr(unfolded, "SLICE_EVENTS", 50_000)
    with History.open_reader(folder) as history, Answers.open_writer(folder) as answers:
        while _fold(history, answers):
            pass
    assert _dump(folder) == grown
    assert world.answered() == world.counted()
    world.close()


def test_two_aggregators_fold_each_event_once(world: World) -> None:
    world.append(["sleep", "meal"])
    with Answers.open_writer(world.folder) as slow, world.aggregator() as fast:
        work = slow.work()
        fold_all(fast)
        reading = read_on(world.history, work.cursor)
        with pytest.raises(Overtaken):
            slow.advance(work, reading.cursor, rollups.fold(reading.facts))
    assert world.answered() == world.counted() == {"sleep": 1, "meal": 1}


def test_without_the_fence_two_aggregators_count_twice(world: World) -> None:
    world.append(["sleep", "meal"])
    with Answers.open_writer(world.folder) as slow, world.aggregator() as fast:
        work = slow.work()
        fold_all(fast)
        reading = read_on(world.history, work.cursor)
        slow._sql = {**slow._sql, "take_fence": "update answers set fold = :fold + 1"}
        slow.advance(work, reading.cursor, rollups.fold(reading.facts))
        counts = Counter(dict(slow._rows("top_total", 1, -1)))
    assert counts == {"sleep": 2, "meal": 2}


def test_two_aggregator_processes_over_one_directory_stay_exact(world: World) -> None:
    unlocked = "import zonerd.store.lock as l\nl.fcntl.flock = lambda *_: None"
    world.append(["sleep"] * 10)
    processes = [world.start("-X", "aggregator.interval_s=0.01", "aggregator", before=unlocked) for _ in range(2)]
    wait_until(lambda: world.logged().count('"event": "started"') == len(processes))
    for number in range(100):
        world.append([f"activity {number % 7}"] * 20, number % 2)
    wait_until(lambda: world.shown() == world.counted())
    for process in processes:
        process.terminate()
        assert process.wait(10) == 0
    assert world.answered() == world.shown() == world.counted()


def test_dead_letters_and_gaps_are_passed_and_counted_by_no_name(world: World) -> None:
    world.append(["a", "b", "c"], bad=[2], skip=5)
    world.catch_up()
    assert world.shown() == {"a": 1, "b": 1}
    assert world.as_of()[f"{'user_activity'}/0"] == "8"


def test_a_slice_takes_a_share_of_every_partition(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfolded, "SLICE_EVENTS", 10)
    world.append(["a"] * 100, 0)
    world.append(["b"] * 3, 1)
    reading = read_on(world.history, None)
    assert Counter(fact[2] for fact in reading.facts) == {"a": 7, "b": 3}
    assert reading.behind == 93


def test_an_idle_pass_writes_nothing(world: World) -> None:
    world.append(["a"])
    with world.aggregator() as aggregator:
        fold_all(aggregator)
        aggregator.publish()
        other = apsw.Connection(str(world.folder / "rollups.db"))
        before = other.pragma("data_version")
        fold_all(aggregator)
        aggregator.publish_if_due()
        assert other.pragma("data_version") == before
        other.close()


def test_the_cost_of_a_refresh_follows_the_new_events_not_the_history(world: World) -> None:
    world.append([f"activity {number}" for number in range(500)])
    world.catch_up()
    small = _steps_of_a_refresh(world)
    for _ in range(20):
        world.append([f"activity {number}" for number in range(500)] * 4)
    world.catch_up()
    large = _steps_of_a_refresh(world)
    assert large["steps"] < small["steps"] * 1.5
    assert large["full_scan_rows"] <= small["full_scan_rows"]


def test_a_scan_of_the_history_would_be_noticed(world: World) -> None:
    world.append(["a"] * 100)
    world.catch_up()
    before = _steps_of_a_refresh(world, scan=True)
    world.append(["a"] * 2000)
    world.catch_up()
    assert _steps_of_a_refresh(world, scan=True)["steps"] > before["steps"] * 5


def test_what_is_taken_back_is_counted_anew_while_readers_keep_the_old_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfolded, "SLICE_EVENTS", 2)
    world.append(["old"] * 4 + ["wrong"] * 4)
    world.catch_up()
    old = next(row for row in world.history.partitions() if row.partition == 0)
    world.history.replace(old, 4, old._replace(topic_id="topic-2", first_offset=0, closed_ms=None))
    world.append(["new"])
    with world.aggregator() as aggregator:
        assert aggregator.fold()
        assert aggregator.fold()
        aggregator.publish()
        assert world.answered() == world.shown() == {"old": 4, "wrong": 4}
        fold_all(aggregator)
        aggregator.publish()
    assert world.answered() == world.shown() == world.counted() == {"old": 4, "new": 1}
    assert world.as_of()["corrections"] == "1"


def test_what_is_taken_back_during_a_rebuild_begins_it_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfolded, "SLICE_EVENTS", 2)
    world.append(["a"] * 8, 0)
    world.append(["b"] * 8, 1)
    world.catch_up()
    with world.aggregator() as aggregator:
        for partition in (0, 1):
            old = next(row for row in world.history.partitions() if row.partition == partition)
            world.history.replace(old, 5, old._replace(topic_id="topic-2", first_offset=0, closed_ms=None))
            aggregator.fold()
            aggregator.fold()
        fold_all(aggregator)
    assert world.answered() == world.counted() == {"a": 5, "b": 5}
    assert _generations(world.folder) == 1


def test_an_older_copy_of_the_history_is_noticed_and_counted_anew(world: World, tmp_path: Path) -> None:
    world.append(["a"] * 3)
    world.close()
    shutil.copy(world.folder / "events.db", tmp_path / "older")
    world.history = History.open_writer(world.folder)
    world.append(["a"] * 3)
    world.catch_up()
    world.close()
    shutil.copy(tmp_path / "older", world.folder / "events.db")
    world.history = History.open_writer(world.folder)
    world.append(["b"])
    with world.aggregator() as aggregator:
        fold_all(aggregator)
    assert world.answered() == world.counted() == {"a": 3, "b": 1}


def test_another_history_in_place_of_ours_is_noticed(world: World) -> None:
    world.append(["a"] * 3)
    world.catch_up()
    world.close()
    (world.folder / "events.db").unlink()
    world.history = History.open_writer(world.folder)
    world.meet("cluster", "topic-1", 2)
    world.append(["b"] * 5)
    world.catch_up()
    assert world.answered() == world.shown() == {"b": 5}


def test_a_history_replaced_while_we_run_is_not_read_on(world: World) -> None:
    world.append(["a"])
    with world.aggregator() as aggregator:
        fold_all(aggregator)
        (world.folder / "events.db").rename(world.folder / "away.db")
        with pytest.raises(StoreUnavailable):
            aggregator.fold()


def _offline(folder: Path) -> World:
    world = World.__new__(World)
    world.folder = folder
    world.history = History.open_writer(folder)
    world.meet("cluster", "topic-1", 3)
    world.close = lambda: world.history.__exit__(None, None, None)  # type: ignore[method-assign]
    return world


def _fold(history: History, answers: Answers) -> bool:
    work = answers.work()
    reading = read_on(history, work.cursor)
    if reading.cursor != work.cursor:
        answers.advance(work, reading.cursor, rollups.fold(reading.facts))
    return reading.behind > 0


def _dump(folder: Path) -> list[Any]:
    connection = apsw.Connection(str(folder / "rollups.db"))
    rows = [
        connection.execute("select * from total order by 1, 2").fetchall(),
        connection.execute("select * from places order by 1, 2").fetchall(),
        connection.execute("select store_id, change_seq, change_nonce, corrections, events from cursors").fetchall(),
    ]
    connection.close()
    return rows


def _generations(folder: Path) -> int:
    connection = apsw.Connection(str(folder / "rollups.db"))
    count = connection.execute("select count(distinct generation) from total").get
    connection.close()
    return int(str(count))


def _steps_of_a_refresh(world: World, *, scan: bool = False) -> Counter[str]:
    """Count SQLite's steps in both files while ten new events are folded and published."""
    world.append(["activity 1"] * 10)
    work: Counter[str] = Counter()

    def note(event: dict[str, Any]) -> None:
        work["steps"] += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]
        work["full_scan_rows"] += event["stmt_status"]["SQLITE_STMTSTATUS_FULLSCAN_STEP"]

    with world.aggregator() as aggregator:
        for store in (aggregator._history, aggregator._answers):
            store._connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, note)
        if scan:
            aggregator._history._connection.execute("select activity, count(*) from events group by 1").fetchall()
        fold_all(aggregator)
        aggregator.publish()
    return work
