"""What zonerd counts: every metric, with its help sentence, in one place."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from threading import Lock
from typing import Final, Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

disable_created_metrics()  # type: ignore[no-untyped-call]

Role = Literal["producer", "consumer", "aggregator", "watchdog"]
LoopState = Literal["wait", "decode", "store", "commit"]
LOOP_STATES: Final[tuple[LoopState, ...]] = get_args(LoopState)

LATENCY_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
DURATION_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZE_BUCKETS: Final = (1, 10, 50, 100, 250, 500, 1000, 2000, 5000, 10_000, 50_000)


class Weighed(Collector):
    """A histogram that takes many observations at once; prometheus_client's takes them one by one, at 1.2 µs each.

    With at most one label, whose values are given; '' is none.
    """

    def __init__(  # noqa: PLR0913 - what a histogram is
        self,
        name: str,
        documentation: str,
        label: str,
        values: Iterable[str],
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._bounds = (*buckets, float("inf"))
        self._counts = {value: [0] * len(self._bounds) for value in values}
        self._sums = dict.fromkeys(self._counts, 0.0)
        self._guard = Lock()
        registry.register(self)

    def observe(self, value: str, amount: float, times: int = 1) -> None:
        """Count this amount so many times, under this value of the label."""
        with self._guard:
            self._counts[value][bisect_left(self._bounds, amount)] += times
            self._sums[value] += amount * times

    def observe_all(self, amounts: Sequence[float], value: str = "") -> None:
        """Count each of these amounts once, under this value of the label, at some 0.2 µs each."""
        with self._guard:
            counts = self._counts[value]
            for amount in amounts:
                counts[bisect_left(self._bounds, amount)] += 1
            self._sums[value] += sum(amounts)

    def collect(self) -> Iterator[Metric]:
        """Give the histogram as Prometheus wants it: each bucket with all below it."""
        labelled = bool(self._label)
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label][:labelled])
        with self._guard:
            for value, counts in self._counts.items():
                total, buckets = 0, []
                for bound, count in zip(self._bounds, counts, strict=True):
                    total += count
                    buckets.append((str(floatToGoString(bound)), float(total)))  # type: ignore[no-untyped-call]
                family.add_metric([value][:labelled], buckets, self._sums[value])
        yield family


class Late(Collector):
    """A gauge that has no sample until it is set; prometheus_client's begins at 0."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._value: float | None = None
        registry.register(self)

    def set(self, value: float | None) -> None:
        """Show this value; None: no sample again."""
        self._value = value

    def collect(self) -> Iterator[Metric]:
        """Give the gauge as Prometheus wants it."""
        yield GaugeMetricFamily(self._name, self._documentation, value=self._value)


class _Exposed:
    """Several registries as one; a second look within MAX_AGE_S costs nothing."""

    def __init__(self, *registries: CollectorRegistry) -> None:
        self._registries = registries
        self._guard = Lock()
        self._text = b""
        self._text_until = 0.0

    def collect(self) -> Iterator[Metric]:
        return chain.from_iterable(registry.collect() for registry in self._registries)

    def text(self) -> bytes:
        with self._guard:
            if time.monotonic() >= self._text_until:
                self._text = generate_latest(self)
                self._text_until = time.monotonic() + MAX_AGE_S
            return self._text


MAX_AGE_S: Final = 0.25
"""So old may an exposition be: however many scrape, it is written four times a second at most."""

_COMMON = CollectorRegistry()
_DATA = CollectorRegistry()
_PRODUCER = CollectorRegistry()
_CONSUMER = CollectorRegistry()
_AGGREGATOR = CollectorRegistry()
_WATCHDOG = CollectorRegistry()

_EXPOSED: Final = {
    "producer": _Exposed(_COMMON, _PRODUCER),
    "consumer": _Exposed(_COMMON, _DATA, _CONSUMER),
    "aggregator": _Exposed(_COMMON, _DATA, _AGGREGATOR),
    "watchdog": _Exposed(_COMMON, _WATCHDOG),
}


def exposition(role: Role) -> bytes:
    """Give what /metrics of such a process answers, in Prometheus' text format, at most MAX_AGE_S old."""
    return _EXPOSED[role].text()


def families(role: Role) -> Iterator[Metric]:
    """Give the metrics that such a process exposes, for the reference and its test."""
    return _EXPOSED[role].collect()


def prepare(metric: Counter | Gauge, *label_values: Iterable[str]) -> None:
    """Make the series of each combination of these values, at 0, so that a rate is right from the first one on."""
    combinations: list[tuple[str, ...]] = [()]
    for values in label_values:
        combinations = [(*so_far, value) for so_far in combinations for value in values]
    for combination in combinations:
        metric.labels(*combination)


class Laps:
    """Where a loop's time goes: each call counts for its state what passed since the call before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()

    def end(self, state: LoopState) -> float:
        """Count what passed since the last call for this state, and give it, in seconds."""
        since, self._since = self._since, self._clock()
        LOOP_SECONDS.labels(state).inc(self._since - since)
        return self._since - since


# Every process

ProcessCollector(registry=_COMMON)
BUILD_INFO = Gauge(
    "zonerd_build_info",
    "Always 1; the labels tell the versions, empty where this process does not use the library.",
    ["version", "sqlite", "librdkafka", "python"],
    registry=_COMMON,
)
READY = Gauge("zonerd_ready", "1 while this check of /readyz holds.", ["check"], registry=_COMMON)
LOOP_LAST_PASS = Gauge(
    "zonerd_loop_last_pass_timestamp_seconds", "When the last pass of this process's loop ended.", registry=_COMMON
)
LOOP_SECONDS = Counter(
    "zonerd_loop_seconds_total",
    "Time that the loop spent, by state: wait (for work, or for a service), decode (reading and judging what comes in),"
    " store (producer: until Kafka acknowledges; consumer: events.db; aggregator: rollups.db), commit (producer: the"
    " source's position; consumer: offsets; aggregator: Redis).",
    ["state"],
    registry=_COMMON,
)
LOOP: Final = Laps()
"""Of the one loop that a process has."""
LOG_LINES = Counter("zonerd_log_lines_total", "Log lines said, by level.", ["level"], registry=_COMMON)
prepare(LOG_LINES, ("debug", "info", "warning", "error"))
LOG_LINES_DROPPED = Counter(
    "zonerd_log_lines_dropped_total", "Log lines that journald or the output did not take.", registry=_COMMON
)

# The producer

PRODUCER_DELIVERED = Counter(
    "zonerd_producer_events_delivered_total", "Messages that the broker acknowledged.", registry=_PRODUCER
)
PRODUCER_BYTES = Counter(
    "zonerd_producer_bytes_delivered_total", "Bytes of the values that the broker acknowledged.", registry=_PRODUCER
)
PRODUCER_ERRORS = Counter(
    "zonerd_producer_errors_total",
    "Times that the broker did not take a message, by reason.",
    ["reason"],
    registry=_PRODUCER,
)
PRODUCER_INVALID = Counter(
    "zonerd_producer_lines_invalid_total", "Lines of the source that are no event, by reason.", ["reason"],
    registry=_PRODUCER,
)  # fmt: skip
PRODUCER_DELIVERY = Weighed(
    "zonerd_producer_delivery_seconds",
    "From handing a message over, for the first time, until its acknowledgement was taken.",
    "",
    ("",),
    DURATION_BUCKETS_S,
    _PRODUCER,
)
PRODUCER_QUEUED = Gauge(
    "zonerd_producer_queued_events",
    "Messages handed over that are not acknowledged yet, or stand behind one that is not.",
    registry=_PRODUCER,
)

# Consumer and aggregator

END_TO_END = Weighed(
    "zonerd_end_to_end_seconds",
    "From a record's Kafka timestamp until it was stored, or until Redis had confirmed to show it, once an event: a"
    " rebuild, or the first count of a history that was there before, is no latency.",
    "stage",
    ("stored", "published"),
    LATENCY_BUCKETS_S,
    _DATA,
)
STORE_BYTES = Gauge("zonerd_store_bytes", "Size of each file of the data directory.", ["file"], registry=_DATA)
STORE_FREE = Gauge("zonerd_store_free_bytes", "Free bytes on the disk of the data directory.", registry=_DATA)
STORE_ERRORS = Counter(
    "zonerd_store_errors_total", "Times that a file could not be read or written, by kind.", ["file", "kind"],
    registry=_DATA,
)  # fmt: skip

# The consumer

CONSUMER_RECORDS = Counter(
    "zonerd_consumer_records_total", "Records that Kafka delivered and that were stored, events or not.",
    ["topic", "partition"], registry=_CONSUMER,
)  # fmt: skip
CONSUMER_BYTES = Counter(
    "zonerd_consumer_bytes_total", "Bytes of the values of these records.", ["topic", "partition"], registry=_CONSUMER
)
CONSUMER_STORED = Counter(
    "zonerd_consumer_events_stored_total", "Events that were committed to the history.", ["topic", "partition"],
    registry=_CONSUMER,
)  # fmt: skip
CONSUMER_DEAD_LETTERS = Counter(
    "zonerd_consumer_dead_letters_total", "Records that were kept as dead letters, by reason.", ["topic", "reason"],
    registry=_CONSUMER,
)  # fmt: skip
CONSUMER_GAPS = Counter(
    "zonerd_consumer_gap_offsets_total",
    "Offsets at which Kafka has no record, by reason.",
    ["topic", "partition", "reason"],
    registry=_CONSUMER,
)
CONSUMER_LAG = Gauge(
    "zonerd_consumer_lag_records", "Records from the history's position to the last stable one.",
    ["topic", "partition"], registry=_CONSUMER,
)  # fmt: skip
CONSUMER_LAG_SECONDS = Gauge(
    "zonerd_consumer_lag_seconds",
    "While records wait: the age of the last stored one, or the time since none waited, if that is less; else 0.",
    ["topic", "partition"], registry=_CONSUMER,
)  # fmt: skip
CONSUMER_NEXT = Gauge(
    "zonerd_consumer_next_offset", "The first offset that is not in the history.", ["topic", "partition"],
    registry=_CONSUMER,
)  # fmt: skip
CONSUMER_LOW = Gauge(
    "zonerd_consumer_low_watermark_offset", "The first offset that Kafka still has.", ["topic", "partition"],
    registry=_CONSUMER,
)  # fmt: skip
CONSUMER_HIGH = Gauge(
    "zonerd_consumer_high_watermark_offset", "The offset that Kafka will give to the next record.",
    ["topic", "partition"], registry=_CONSUMER,
)  # fmt: skip
CONSUMER_PARTITIONS = Gauge(
    "zonerd_consumer_assigned_partitions", "Partitions that this process reads now.", registry=_CONSUMER
)
CONSUMER_FENCED = Counter(
    "zonerd_consumer_fenced_total", "Slices dropped because another process had stored them first.", registry=_CONSUMER
)
CONSUMER_PAUSED = Gauge(
    "zonerd_consumer_paused", "1 while nothing is stored for this reason.", ["reason"], registry=_CONSUMER
)
CONSUMER_BATCH_EVENTS = Histogram(
    "zonerd_consumer_batch_events", "Records in a batch.", buckets=SIZE_BUCKETS, registry=_CONSUMER
)
CONSUMER_BATCH_SECONDS = Histogram(
    "zonerd_consumer_batch_seconds", "Time that a batch took, by stage.", ["stage"], buckets=DURATION_BUCKETS_S,
    registry=_CONSUMER,
)  # fmt: skip
CONSUMER_COMMIT_ERRORS = Counter(
    "zonerd_consumer_commit_errors_total", "Offsets that Kafka did not take, by reason.", ["reason"],
    registry=_CONSUMER,
)  # fmt: skip
STORE_OLDEST = Gauge(
    "zonerd_store_oldest_event_timestamp_seconds", "Kafka's time of the oldest event in the history; NaN without any.",
    registry=_CONSUMER,
)  # fmt: skip

# The aggregator

AGGREGATOR_FOLDED = Counter(
    "zonerd_aggregator_events_folded_total", "Events that were folded into the answers.", registry=_AGGREGATOR
)
AGGREGATOR_FOLD_SECONDS = Histogram(
    "zonerd_aggregator_fold_seconds",
    "Time that a fold took that moved the answers.",
    buckets=DURATION_BUCKETS_S,
    registry=_AGGREGATOR,
)
AGGREGATOR_BEHIND = Gauge(
    "zonerd_aggregator_behind_events", "Offsets that are stored and not folded yet.", registry=_AGGREGATOR
)
AGGREGATOR_LAST_PUBLISH = Gauge(
    "zonerd_aggregator_last_publish_timestamp_seconds",
    "When Redis was last confirmed to show the newest answers, idle or not; 0: not since this process started. Absent"
    " without Redis.",
    registry=_AGGREGATOR,
)
AGGREGATOR_PUBLISHES = Counter(
    "zonerd_aggregator_publishes_total", "Attempts to bring Redis up to date, by result.", ["result"],
    registry=_AGGREGATOR,
)  # fmt: skip
AGGREGATOR_KEYS_WRITTEN = Counter(
    "zonerd_aggregator_keys_written_total", "Keys that were written to Redis, as_of among them.", registry=_AGGREGATOR
)
AGGREGATOR_FULL_PUSHES = Counter(
    "zonerd_aggregator_full_pushes_total", "Times that everything was sent to Redis again, by reason.", ["reason"],
    registry=_AGGREGATOR,
)  # fmt: skip
AGGREGATOR_PUBLISH_SECONDS = Histogram(
    "zonerd_aggregator_publish_seconds", "Time that one attempt to publish took.", buckets=DURATION_BUCKETS_S,
    registry=_AGGREGATOR,
)  # fmt: skip
AGGREGATOR_ACTIVITIES = Gauge(
    "zonerd_aggregator_activities", "Different activities in the answers.", registry=_AGGREGATOR
)
REDIS_UP = Gauge(
    "zonerd_redis_up",
    "1 while Redis takes what is sent; looked at with each publish, every 10 s when idle. Absent without Redis.",
    registry=_AGGREGATOR,
)


def leave_out_redis() -> None:
    """Take out what would be a false alarm where no Redis is wanted."""
    for metric in (AGGREGATOR_LAST_PUBLISH, REDIS_UP):
        _AGGREGATOR.unregister(metric)


# The watchdog

PROCESS_STATE = Gauge(
    "zonerd_process_state", "1 for the state that supervisord sees a process in, else 0.", ["name", "group", "state"],
    registry=_WATCHDOG,
)  # fmt: skip
PROCESS_START_TIME = Gauge(
    "zonerd_process_start_time_seconds", "When supervisord started the process last.", ["name", "group"],
    registry=_WATCHDOG,
)  # fmt: skip
PROCESS_EXITS = Counter(
    "zonerd_process_exits_total", "Ends of a process, by whether supervisord expected them.",
    ["name", "group", "expected"], registry=_WATCHDOG,
)  # fmt: skip
WATCHDOG_RESTARTS = Counter(
    "zonerd_watchdog_restarts_total", "Times that the watchdog started a process again, by reason.",
    ["name", "reason"], registry=_WATCHDOG,
)  # fmt: skip
WATCHDOG_LAST_TICK = Gauge(
    "zonerd_watchdog_last_tick_timestamp_seconds", "When supervisord last said that it is alive.", registry=_WATCHDOG
)
VERIFY_LAST_RUN = Late(
    "zonerd_verify_last_run_timestamp_seconds",
    "When `zonerd verify --record` ended last; absent until it has.",
    _WATCHDOG,
)
VERIFY_LAST_EXIT_CODE = Late(
    "zonerd_verify_last_exit_code",
    "Exit code of the last `zonerd verify --record`: 0 equal, 1 different, 69 something could not be reached.",
    _WATCHDOG,
)
VERIFY_DIFFERENCES = Gauge(
    "zonerd_verify_differences",
    "Differences that the last `zonerd verify --record` found, by check; absent for one that could not be made.",
    ["check"],
    registry=_WATCHDOG,
)
BACKUP_LAST_SUCCESS = Late(
    "zonerd_backup_last_success_timestamp_seconds",
    "When `zonerd backup` last succeeded; absent until it has.",
    _WATCHDOG,
)
