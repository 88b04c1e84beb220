"""The simulation makes up what it was told to, at its pace."""

import json

from zonerd.config import Simulate
from zonerd.events import Event, decode
from zonerd.sources import Line
from zonerd.sources.simulation import NoSource, Simulation


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def made(simulate: Simulate, seconds: float) -> list[Line]:
    clock = Clock()
    simulation = Simulation(simulate, clock, clock)
    lines = simulation.take()
    begin = clock.now
    for tenth in range(round(seconds * 10)):
        clock.now = begin + (tenth + 1) / 10
        lines += simulation.take()
    return lines


def spoken(lines: list[Line]) -> list[tuple[int, str]]:
    records = [json.loads(line.value or b"") for line in lines]
    return [(record["user_id"], record["activity"]) for record in records]


def test_the_same_seed_gives_the_same_users_and_activities() -> None:
    first, second = made(Simulate(seed=7), 20), made(Simulate(seed=7), 20)
    assert spoken(first) == spoken(second)
    assert spoken(first) != spoken(made(Simulate(seed=8), 20))


def test_users_are_1_to_the_number_configured_and_every_activity_occurs() -> None:
    pairs = spoken(made(Simulate(rate_per_s=1000, users=100), 5))
    assert {user for user, _ in pairs} == set(range(1, 101))
    assert {activity for _, activity in pairs} == {"sleep", "meal", "light_exposure"}


def test_events_come_at_the_rate_configured_with_the_present_time() -> None:
    lines = made(Simulate(rate_per_s=50), 10)
    assert abs(len(lines) - 500) <= 2
    last = decode(lines[-1].value, 1000)
    assert isinstance(last, Event)
    assert abs(last.timestamp_ms - 1_700_000_010_000) <= 100


def test_after_a_stall_it_makes_up_for_one_second_at_most() -> None:
    clock = Clock()
    simulation = Simulation(Simulate(rate_per_s=100), clock, clock)
    simulation.take()
    clock.now += 3600
    assert len(simulation.take()) <= 101
    assert len(simulation.take()) == 0


def test_a_slow_rate_is_kept() -> None:
    assert len(made(Simulate(rate_per_s=0.2), 60)) in (12, 13)


def test_no_source_gives_nothing_and_lacks_nothing() -> None:
    source = NoSource()
    assert source.take() == []
    assert source.waiting_for == ""
