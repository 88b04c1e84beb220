"""A partition in trouble is tried again, then rested, then tried again, and forgotten once it moves."""

from zonerd.stalls import MAX_TRIES, REST_S, Stalls


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_partition_is_named_with_its_cause_after_the_last_try_only() -> None:
    stalls = Stalls(60)
    for _ in range(MAX_TRIES - 1):
        stalls.failed(3, "damaged")
    assert stalls.reasons == {}
    assert not stalls.resting(3)
    stalls.failed(3, "damaged")
    assert stalls.reasons == {3: "damaged"}
    assert stalls.resting(3)


def test_a_partition_that_moves_is_forgotten() -> None:
    stalls = Stalls(60)
    for _ in range(MAX_TRIES):
        stalls.failed(3, "damaged")
    stalls.moved(3)
    assert stalls.reasons == {}
    assert not stalls.resting(3)


def test_a_rest_ends_with_another_try_and_the_cause_stays_named() -> None:
    clock = Clock()
    stalls = Stalls(60, clock)
    for _ in range(MAX_TRIES):
        stalls.failed(3, "damaged")
    assert not stalls.look([3], {3: 7})
    clock.now += REST_S
    assert stalls.look([3], {3: 7})
    assert not stalls.resting(3)
    assert stalls.reasons == {3: "damaged"}
    assert not stalls.look([3], {3: 7}), "once a rest"


def test_lag_without_progress_is_a_try_in_vain() -> None:
    clock = Clock()
    stalls = Stalls(10, clock)
    assert not stalls.look([0], {0: 5})
    clock.now += 9
    assert not stalls.look([0], {0: 5})
    clock.now += 1
    assert stalls.look([0], {0: 5})
    assert not stalls.look([0], {0: 5}), "counted from anew"


def test_progress_or_no_lag_begins_the_count_anew() -> None:
    clock = Clock()
    stalls = Stalls(10, clock)
    stalls.look([0, 1], {0: 5, 1: 5})
    clock.now += 9
    assert not stalls.look([0], {0: 6, 1: 5})
    clock.now += 9
    assert not stalls.look([0, 1], {0: 6, 1: 5})
    clock.now += 1
    assert stalls.look([0, 1], {0: 6, 1: 5})
    assert not stalls.look([1], {0: 6, 1: 5})
