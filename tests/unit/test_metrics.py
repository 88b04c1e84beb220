"""Histograms that take much at once say what prometheus_client's own would say, and laps add up."""

import itertools
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from zonerd import metrics

AMOUNTS = [0.0, 0.4, 0.5, 0.5000001, 1.0, 2.5, 2.5, 1e9]
BUCKETS = (0.5, 1, 2.5)


def samples(registry: CollectorRegistry) -> Iterable[tuple[str, dict[str, str], float]]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def test_many_amounts_at_once_are_what_they_are_one_by_one() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    weighed = metrics.Weighed("x_seconds", "How long.", "", ("",), BUCKETS, ours)
    histogram = Histogram("x_seconds", "How long.", buckets=BUCKETS, registry=theirs)
    assert samples(ours) == samples(theirs)
    weighed.observe_all(AMOUNTS)
    for amount in AMOUNTS:
        histogram.observe(amount)
    assert samples(ours) == samples(theirs)


def test_one_amount_many_times_is_under_its_label() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    weighed = metrics.Weighed("x_seconds", "How long.", "stage", ("a", "b"), BUCKETS, ours)
    histogram = Histogram("x_seconds", "How long.", ["stage"], buckets=BUCKETS, registry=theirs)
    histogram.labels("a")
    weighed.observe("b", 1.5, 3)
    for _ in range(3):
        histogram.labels("b").observe(1.5)
    assert samples(ours) == samples(theirs)


def test_a_lap_counts_for_its_state_what_passed_since_the_one_before() -> None:
    moments = itertools.accumulate([100.0, 2.0, 3.0])
    laps = metrics.Laps(lambda: next(moments))
    wait = metrics.LOOP_SECONDS.labels("wait")
    before = wait._value.get()  # type: ignore[attr-defined]
    assert laps.end("wait") == 2.0
    assert laps.end("decode") == 3.0
    assert wait._value.get() - before == 2.0  # type: ignore[attr-defined]
