"""A consumer that is killed, at any point and at random, has stored each record exactly once in the end."""

import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from consuming import Trial

from services.process import wait_until
from services.scrape import port_of, scrape

POINTS = (
    "after_consume",
    "after_begin",
    "after_fence",
    "mid_insert",
    "before_commit",
    "before_telling_kafka",
    "in_checkpoint",
)
KILLS = 50
EVENTS = 300_000
RESTARTS = 100


@contextmanager
def load(trial: Trial, events: int, in_s: float) -> Iterator[threading.Thread]:
    """Send so many events from another thread, spread over so many seconds."""

    def send() -> None:
        portion = events // 100
        begin = time.monotonic()
        for number in range(100):
            trial.produce_events(portion)
            time.sleep(max(0.0, begin + in_s * (number + 1) / 100 - time.monotonic()))

    thread = threading.Thread(target=send)
    thread.start()
    yield thread
    thread.join()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_this_point_it_goes_on_exactly(trial: Trial, point: str) -> None:
    trial.create_topic(4)
    trial.produce_events(8000)
    running = trial.start(changed=point, consumer__batch_events=500)
    assert running.end() == -signal.SIGKILL, running.log.read_text()
    stored = trial.stored()
    assert 0 < stored < 8000, "it died in the middle of its work"
    trial.catch_up()
    assert trial.assert_exact().records == 8000


@pytest.mark.timeout(240)
def test_fifty_kills_at_random_under_load_double_and_lose_nothing(
    trial: Trial, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trial.create_topic(8)
    choose = random.Random(seed)
    worked = 0
    with load(trial, EVENTS, in_s=45.0):
        for _ in range(KILLS):
            before = sum(trial.next_offsets().values())
            running = trial.start(consumer__batch_events=choose.choice((50, 500, 2000)))
            if choose.random() < 0.8:
                running.wait_for("partitions_assigned")
            time.sleep(choose.uniform(0.0, 0.7))  # the moment of the kill is the experiment
            running.kill()
            worked += sum(trial.next_offsets().values()) > before
    trial.catch_up()
    verdict = trial.assert_exact()
    assert verdict.records == EVENTS
    assert worked > KILLS // 2, "most kills hit a process that was storing"
    with capsys.disabled():
        print(f"\n{KILLS} kills ({worked} while storing), {verdict.records} records: {verdict} (seed {seed})")


@pytest.mark.timeout(300)
def test_killed_or_stopped_and_started_at_once_it_reads_on_each_time(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    trial.create_topic(4)
    taken_s = []
    for number in range(RESTARTS):
        before = sum(trial.next_offsets().values())
        trial.produce_events(400)
        running = trial.start()
        wait_until(lambda before=before: sum(trial.next_offsets().values()) > before, 20)
        taken_s.append(time.monotonic() - running.started)
        if number % 2:
            running.kill()
        else:
            assert running.stop() == 0
    trial.catch_up()
    trial.assert_exact()
    with capsys.disabled():
        worst, median = max(taken_s), statistics.median(taken_s)
        print(f"\n{RESTARTS} restarts: first row stored after {median:.2f} s (median), {worst:.2f} s (worst)")


def test_the_slower_of_two_consumers_over_the_same_partitions_is_fenced(trial: Trial) -> None:
    slow, fast = two_over_the_same_partitions(trial)
    slow.wait_for("fenced")
    trial.wait_until_stored()
    port = port_of(trial.folder / "slow", "consumer")
    stored = "zonerd_consumer_events_stored_total"
    wait_until(lambda: scrape(port).total(stored) + trial.scrape(fast).total(stored) == trial.stored())
    wait_until(lambda: scrape(port).value("zonerd_consumer_fenced_total") == len(slow.said("fenced")) > 0)
    assert slow.stop() == 0
    assert fast.stop() == 0
    trial.catch_up()
    trial.assert_exact()


def test_the_fence_alone_suffices_without_any_primary_key(trial: Trial) -> None:
    slow, fast = two_over_the_same_partitions(trial, "without_primary_key")
    slow.wait_for("fenced")
    assert slow.stop() == 0
    assert fast.stop() == 0
    assert trial.verdict().exact


def test_without_the_fence_the_same_check_finds_duplicates(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = two_over_the_same_partitions(trial, "without_fence")
    assert slow.stop() == 0
    assert fast.stop() == 0
    verdict = trial.verdict()
    assert verdict.duplicates > 0
    with capsys.disabled():
        print(f"\nwithout the fence: {verdict}")


def test_without_the_fence_but_with_the_key_the_slower_one_crashes(trial: Trial) -> None:
    slow, _ = two_over_the_same_partitions(trial, "without_fence_but_key")
    assert slow.end() == 70


def two_over_the_same_partitions(trial: Trial, changed: str = "") -> tuple:
    """Stop a consumer that holds a batch, let a second one overtake it, and let the first go on."""
    trial.create_topic(4)
    trial.produce_events(2000)
    slow = trial.start(
        changed=f"{changed},pausing" if changed else "pausing",
        consumer__batch_events=500,
        store__run_dir=trial.folder / "slow",
    )
    wait_until(lambda: slow.state == "T" or slow.process.poll() is not None)
    assert slow.process.poll() is None, slow.log.read_text()
    (trial.data / "lock" / "consumer-0.lock").unlink()
    trial.produce_events(20_000)
    fast = trial.start(changed=changed or "nothing")
    trial.wait_until_stored()
    slow.go_on()
    trial.produce_events(5000)
    wait_until(lambda: slow.process.poll() is not None or sum(trial.next_offsets().values()) >= 27_000)
    return slow, fast


def test_told_to_kafka_before_stored_the_same_check_finds_a_loss(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    trial.create_topic(4)
    trial.produce_events(8000)
    running = trial.start(changed="tells_kafka_first,before_commit", consumer__batch_events=500)
    assert running.end() == -signal.SIGKILL, running.log.read_text()
    again = trial.start(changed="tells_kafka_first")
    trial.wait_until_stored()
    again.stop()
    verdict = trial.verdict()
    assert not verdict.exact
    assert verdict.missing > 0
    with capsys.disabled():
        print(f"\ntold to Kafka first: {verdict}")


@pytest.mark.timeout(180)
def test_processes_that_share_overlap_die_and_change_in_number_store_each_record_once(trial: Trial, seed: int) -> None:
    trial.create_topic(8)
    choose = random.Random(seed)
    with load(trial, 60_000, in_s=16.0):
        for processes in (3, 1, 8, 3):
            wave = [trial.start(number=n, consumer__processes=processes) for n in range(min(processes, 4))]
            for running in wave:
                running.wait_for("partitions_assigned")
            if processes == 3:  # one more, over the partitions of them all
                (trial.data / "lock" / "consumer-0.lock").unlink()
                wave.append(trial.start(number=0, consumer__processes=1))
                wave[-1].wait_for("partitions_assigned")
            time.sleep(choose.uniform(0.5, 2.0))  # the moment of the kill is the experiment
            for running in wave:
                assert running.process.poll() is None, running.log.read_text()[-2000:]
                running.kill()
    waves = [trial.start("--until-caught-up", number=n, consumer__processes=3) for n in range(3)]
    assert [running.end() for running in waves] == [0, 0, 0]
    assert trial.assert_exact().records == 60_000
