"""The tally times each event's way to Redis once, in bounded memory, and forgets what is counted anew."""

from pathlib import Path

import pytest

from zonerd import metrics
from zonerd.rollups import Fact
from zonerd.tally import MOST_MOMENTS, Tally

NOW_MS = 1_700_000_000_000


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    """A tally for which it is always NOW_MS, and which has caught up."""
    return Tally(tmp_path, lambda: NOW_MS / 1000)


def facts(*ages_ms: int) -> list[Fact]:
    return [(offset, 1, "sleep", 0, NOW_MS - age) for offset, age in enumerate(ages_ms)]


def timed() -> tuple[float, float]:
    """Give how many events were timed so far, and the sum of their seconds."""
    (family,) = metrics.END_TO_END.collect()
    samples = {
        sample.name.rpartition("_")[2]: sample.value
        for sample in family.samples
        if sample.labels["stage"] == "published" and "le" not in sample.labels
    }
    return samples["count"], samples["sum"]


def fold(tally: Tally, *ages_ms: int, anew: bool = False, caught_up: bool = True) -> None:
    tally.folded(facts(*ages_ms), 0.01, anew=anew, caught_up=caught_up)


def published(tally: Tally) -> tuple[float, float]:
    """Let Redis show what was folded; gives how many events that timed, and the sum of their seconds."""
    events, seconds = timed()
    tally.published("sent", 0.01, redis_up=True)
    return timed()[0] - events, round(timed()[1] - seconds, 3)


def test_an_event_is_timed_when_redis_shows_it_and_only_then(tally: Tally) -> None:
    before = timed()
    fold(tally, 3000, 5000, 5000)
    tally.published("failed", 0.01, redis_up=False)
    tally.published("foreign", 0.01, redis_up=True)
    assert timed() == before
    assert published(tally) == (3, 13.0)
    assert published(tally) == (0, 0.0)


def test_what_is_counted_anew_is_not_timed_until_that_has_caught_up(tally: Tally) -> None:
    fold(tally, 1, anew=True, caught_up=False)
    fold(tally, 2, caught_up=False)
    fold(tally, 3)
    assert published(tally) == (0, 0.0)
    fold(tally, 4000, caught_up=False)
    assert published(tally) == (1, 4.0)


def test_what_waits_when_a_rebuild_begins_is_not_timed(tally: Tally) -> None:
    fold(tally, 1000)
    tally.rebuilding()
    assert published(tally) == (0, 0.0)


def test_a_record_without_a_timestamp_or_from_the_future_has_no_negative_time(tally: Tally) -> None:
    fold(tally, NOW_MS + 1, -5000)
    assert published(tally) == (1, 0.0)


def test_while_redis_is_away_for_days_memory_stays_bounded_and_no_event_is_forgotten(tally: Tally) -> None:
    events = 0
    for hour in range(48):
        ages = range(hour * 3_600_000, (hour + 1) * 3_600_000, 1200)
        fold(tally, *ages)
        events += len(ages)
        assert len(tally._waiting) <= MOST_MOMENTS
    count, seconds = published(tally)
    assert count == events
    assert seconds / count == pytest.approx(24 * 3600, rel=0.01)
    fold(tally, 1234)
    assert published(tally) == (1, 1.234)
