"""What a consumer tells Prometheus: counted by the batch, looked at twice a second, all of it at 0 from the start."""

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, get_args

from zonerd import metrics
from zonerd.config import Config
from zonerd.errors import ServiceUnavailable, StoreUnavailable
from zonerd.events import GAP_REASONS, REASONS, EventRow, Record, Slice
from zonerd.kafka.reader import Taken
from zonerd.kafka.watch import Extent, Watch
from zonerd.log import Log
from zonerd.metrics import LOOP_STATES, LoopState
from zonerd.store.database import EVENTS, TROUBLES
from zonerd.store.files import free_bytes, size_bytes

Pause = Literal["disk_full", "store", "topic", "kafka"]
PAUSES: Final[tuple[Pause, ...]] = get_args(Pause)

COMMIT_ERRORS: Final = (
    "coordinator_load_in_progress",
    "coordinator_not_available",
    "group_authorization_failed",
    "illegal_generation",
    "not_coordinator",
    "rebalance_in_progress",
    "request_timed_out",
    "timed_out",
    "topic_authorization_failed",
    "transport",
    "unknown_member_id",
    "unknown_topic_or_part",
    "other",
)

FILES_EVERY_S: Final = 1.0
"""How often the sizes of the files are looked at."""

_WAL: Final = f"{EVENTS.name}-wal"
_LOGGED_MS: Final = 4
"""Where an event's row has Kafka's timestamp."""


class Meter:
    """Counts what one consumer process does, and shows how far behind the broker it is.

    `look` belongs into every pass and every wait: it asks the broker without waiting for the answer, so that the
    lag is told while nothing is stored too. What one batch costs here does not grow with its events, unless it
    holds several partitions.
    """

    def __init__(self, config: Config, log: Log, watch: Watch, clock: Callable[[], float] = time.time) -> None:
        self.wal_too_large = False
        self._topic = config.kafka.topic
        self._store = config.store
        self._log = log
        self._watch = watch
        self._clock = clock
        self._partitions: dict[int, _Partition] = {}
        self._looked_at_files = -FILES_EVERY_S
        self._records = 0
        self._batch_seconds = {stage: metrics.CONSUMER_BATCH_SECONDS.labels(stage) for stage in LOOP_STATES}
        self._begin()

    # What the loop does

    def lap(self, stage: LoopState) -> None:
        """Note what the loop did since the last lap."""
        took_s = metrics.LOOP.end(stage)
        if self._records:
            self._batch_seconds[stage].observe(took_s)

    def took(self, records: Sequence[Record]) -> None:
        """Note the batch that the laps from now on are about, perhaps an empty one."""
        self._records = len(records)
        if records:
            metrics.CONSUMER_BATCH_EVENTS.observe(len(records))

    def assigned(self, next_offsets: Mapping[int, int], last_logged_ms: Callable[[int], int | None]) -> None:
        """Note which partitions are ours now, and where the history of each one ends; the others' series go."""
        for partition in self._partitions.keys() - next_offsets.keys():
            self._partitions.pop(partition).remove()
        for partition, offset in next_offsets.items():
            if partition not in self._partitions:
                self._partitions[partition] = _Partition(self._topic, partition, self._clock())
            self._partitions[partition].begin(offset, last_logged_ms(partition))
        metrics.CONSUMER_PARTITIONS.set(len(self._partitions))
        self._show()

    def lost(self) -> None:
        """Note that the topic is another one: none of its partitions is ours."""
        self._watch.forget()
        self.assigned({}, lambda _: None)

    def stored(self, slices: Sequence[Slice], taken: Taken) -> None:
        """Count what one transaction has stored of what was taken."""
        now = self._clock()
        sizes = _sizes(slices, taken)
        for piece in slices:
            self._partitions[piece.partition].stored(piece, sizes.get(piece.partition, 0), now)
            for reason, times in Counter(letter.reason for _, letter in piece.dead_letters).items():
                metrics.CONSUMER_DEAD_LETTERS.labels(self._topic, reason).inc(times)
            observe_stored(piece.events, now)

    def fenced(self) -> None:
        """Count a slice that another process had stored before."""
        metrics.CONSUMER_FENCED.inc()

    def commit_failed(self, error: str) -> None:
        """Count an offset that Kafka did not take, by the name that librdkafka gives the error."""
        reason = error.lower().lstrip("_")
        metrics.CONSUMER_COMMIT_ERRORS.labels(reason if reason in COMMIT_ERRORS else "other").inc()

    def paused(self, reason: Pause | None) -> None:
        """Note why nothing is stored now; None: nothing is in the way. Time so far is no batch's then."""
        if reason is not None:
            self._records = 0
            self.lap("wait")
        for one in PAUSES:
            metrics.CONSUMER_PAUSED.labels(one).set(one == reason)

    # What it looks at

    def look(self) -> None:
        """Look at the broker's extents and at the files, each as often as it wants; never waits, never raises."""
        if self._watch.look(self._partitions):
            self._show()
        if time.monotonic() - self._looked_at_files >= FILES_EVERY_S:
            self._looked_at_files = time.monotonic()
            self._look_at_files()

    def oldest(self, logged_ms: int | None) -> None:
        """Note Kafka's time of the oldest event; None without any."""
        metrics.STORE_OLDEST.set(math.nan if logged_ms is None else logged_ms / 1000)

    def ends_below(self, partition: int) -> bool:
        """Say whether a log was last known to end before what is stored of it; after a store that may be old news."""
        extent, ours = self._watch.known.get(partition), self._partitions.get(partition)
        return extent is not None and ours is not None and extent.high < ours.next_offset

    def lag(self, partition: int) -> int:
        """Give how far the history of a partition is behind its last stable record, as far as that is known."""
        extent = self._watch.known.get(partition)
        ours = self._partitions.get(partition)
        return 0 if extent is None or ours is None else extent.lag(ours.next_offset)

    def _begin(self) -> None:
        """Make every series whose labels are known."""
        metrics.prepare(metrics.CONSUMER_DEAD_LETTERS, [self._topic], REASONS)
        metrics.prepare(metrics.CONSUMER_COMMIT_ERRORS, COMMIT_ERRORS)
        metrics.prepare(metrics.LOOP_SECONDS, LOOP_STATES)
        metrics.prepare(metrics.STORE_ERRORS, [EVENTS.name], TROUBLES)
        self.paused(None)
        self.oldest(None)

    def _show(self) -> None:
        now = self._clock()
        for partition, ours in self._partitions.items():
            ours.show(self._watch.known.get(partition), now)

    def _look_at_files(self) -> None:
        sizes = {name: size_bytes(Path(self._store.data_dir, name)) for name in (EVENTS.name, _WAL)}
        for name, size in sizes.items():
            metrics.STORE_BYTES.labels(name).set(size)
        with suppress(OSError):
            metrics.STORE_FREE.set(free_bytes(self._store.data_dir))
        was_too_large, self.wal_too_large = self.wal_too_large, sizes[_WAL] > self._store.max_wal_bytes
        if self.wal_too_large and not was_too_large:
            self._log.warning("wal_large", bytes=sizes[_WAL], max_bytes=self._store.max_wal_bytes)


class _Partition:
    """The series of one partition, and what its lag is told from."""

    def __init__(self, topic: str, partition: int, now: float) -> None:
        self._names = names = (topic, str(partition))
        self._records = metrics.CONSUMER_RECORDS.labels(*names)
        self._bytes = metrics.CONSUMER_BYTES.labels(*names)
        self._events = metrics.CONSUMER_STORED.labels(*names)
        self._gaps = {reason: metrics.CONSUMER_GAPS.labels(*names, reason) for reason in GAP_REASONS}
        self.next_offset = 0
        self._last_logged = now
        self._level_at = 0.0

    def begin(self, next_offset: int, last_logged_ms: int | None) -> None:
        self.next_offset = next_offset
        if last_logged_ms is not None and last_logged_ms >= 0:
            self._last_logged = last_logged_ms / 1000

    def stored(self, piece: Slice, size: int, now: float) -> None:
        self.next_offset = piece.next_offset
        self._records.inc(len(piece.events) + len(piece.dead_letters))
        self._events.inc(len(piece.events))
        self._bytes.inc(size)
        for gap in piece.gaps:
            self._gaps[gap.reason].inc(gap.last_offset - gap.first_offset + 1)
        if piece.last is not None:
            self._last_logged = piece.last.timestamp_ms / 1000 if piece.last.timestamp_ms >= 0 else now

    def show(self, extent: Extent | None, now: float) -> None:
        metrics.CONSUMER_NEXT.labels(*self._names).set(self.next_offset)
        if extent is None:
            return  # no lag is told before the broker has told where its log ends
        lag = extent.lag(self.next_offset)
        metrics.CONSUMER_LAG.labels(*self._names).set(lag)
        metrics.CONSUMER_LAG_SECONDS.labels(*self._names).set(self._seconds_behind(lag, now))
        metrics.CONSUMER_LOW.labels(*self._names).set(extent.low)
        metrics.CONSUMER_HIGH.labels(*self._names).set(extent.high)

    def remove(self) -> None:
        for metric in _BY_PARTITION:
            metric.remove(*self._names)
        for reason in GAP_REASONS:
            metrics.CONSUMER_GAPS.remove(*self._names, reason)

    def _seconds_behind(self, lag: int, now: float) -> float:
        """Give how old what waits may be: it came after the last stored record, and after there was no lag."""
        if lag == 0:
            self._level_at = now
            return 0.0
        return max(0.0, now - max(self._last_logged, self._level_at))


_BY_PARTITION: Final = (
    metrics.CONSUMER_RECORDS,
    metrics.CONSUMER_BYTES,
    metrics.CONSUMER_STORED,
    metrics.CONSUMER_NEXT,
    metrics.CONSUMER_LAG,
    metrics.CONSUMER_LAG_SECONDS,
    metrics.CONSUMER_LOW,
    metrics.CONSUMER_HIGH,
)


def observe_stored(rows: Sequence[EventRow], now: float) -> None:
    """Observe how old each of these events is now; a stretch whose ends fall into one bucket is one observation.

    Kafka's timestamps rise along a partition where the broker sets them; where clients do, a stretch of events that
    are out of order may be counted in a neighbour's bucket.
    """
    start = 0 if rows and rows[0][_LOGGED_MS] >= 0 else len(rows)
    while start < len(rows):
        end = _end_of_bucket(rows, start, now)
        age = now - (rows[start][_LOGGED_MS] + rows[end - 1][_LOGGED_MS]) / 2000
        metrics.END_TO_END.observe("stored", max(0.0, age), end - start)
        start = end


def _end_of_bucket(rows: Sequence[EventRow], start: int, now: float) -> int:
    bounds = metrics.LATENCY_BUCKETS_S
    bucket = bisect_left(bounds, now - rows[start][_LOGGED_MS] / 1000)
    if bucket == bisect_left(bounds, now - rows[-1][_LOGGED_MS] / 1000):
        return len(rows)
    younger_ms = (now - bounds[bucket - 1]) * 1000 if bucket else math.inf
    return bisect_left(rows, younger_ms, start + 1, key=lambda row: row[_LOGGED_MS])


def pause_of(error: ServiceUnavailable) -> Pause:
    """Give why nothing is stored after this error."""
    if isinstance(error, StoreUnavailable):
        return "disk_full" if error.trouble == "full" else "store"
    return "kafka"


def _sizes(slices: Sequence[Slice], taken: Taken) -> dict[int, int]:
    """Give the bytes of the values by partition: under load a batch is of one, and nothing is added up again."""
    if len(slices) == 1 and len(slices[0].events) + len(slices[0].dead_letters) == len(taken.records):
        return {slices[0].partition: taken.value_bytes}
    sizes = {piece.partition: 0 for piece in slices}
    expected = {piece.partition: piece.expected_offset for piece in slices}
    for record in taken.records:
        if record.offset >= expected.get(record.partition, math.inf):  # what lies below was stored before
            sizes[record.partition] += len(record.value or b"")
    return sizes
