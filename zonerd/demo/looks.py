"""What a running pipeline shows to who looks at it from outside."""

import json
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from zonerd import config
from zonerd.cache import Cache
from zonerd.demo.place import Place
from zonerd.errors import ServiceUnavailable
from zonerd.kafka.embedded import EmbeddedBroker
from zonerd.store.history import History, Partition

RATE_OVER_S: Final = 5.0
BROKER_SILENT_FOR_S: Final = 10.0

_PAGE: Final = 1000


class Seen(NamedTuple):
    """What one look at the running pipeline found; `summary` is None until there is one."""

    records: int
    dead_letters: int
    gap_offsets: int
    per_s: float
    lag: int
    summary: tuple[tuple[str, int], ...] | None

    @property
    def stored(self) -> int:
        """How many events the history holds."""
        return self.records - self.dead_letters - self.gap_offsets


class Looks:
    """Looks at a pipeline from outside: at what is stored, what the broker holds, what Redis shows.

    What a look costs depends on what is new since the last one. Raises ServiceUnavailable when the broker
    has not answered for a while; the others may be missing.
    """

    def __init__(
        self, place: Place, settings: config.Config, broker: EmbeddedBroker, partitions: Sequence[int]
    ) -> None:
        self.place = place
        self._topic = settings.kafka.topic
        self._broker = broker
        self._partitions = partitions
        self._cache = Cache(settings.redis, None)
        self._ends: dict[int, int] = {}
        self._broker_answered_at = time.monotonic()
        self._tallies: dict[int, _Tally] = {}
        self._stored: tuple[Partition, ...] = ()
        self._history_of: deque[tuple[float, int]] = deque()

    def look(self) -> Seen:
        """Look once."""
        with suppress(ServiceUnavailable), History.open_reader(self.place.folder) as history, history.snapshot():
            self._stored = tuple(history.partitions())
            self._count(history)
        self._ask_broker()
        records = sum(part.next_offset - part.first_offset for part in self._stored)
        return Seen(
            records=records,
            dead_letters=sum(tally.dead_letters for tally in self._tallies.values()),
            gap_offsets=sum(tally.gap_offsets for tally in self._tallies.values()),
            per_s=self._rate(records),
            lag=self._lag(),
            summary=self._summary(),
        )

    def _count(self, history: History) -> None:
        for part in self._stored:
            tally = self._tallies.get(part.id)
            if tally is None or tally.offset > part.next_offset:  # taken back: count again
                tally = self._tallies[part.id] = _Tally(part.first_offset)
            tally.go_on(history, part)

    def _ask_broker(self) -> None:
        now = time.monotonic()
        try:
            self._ends = self._broker.end_offsets(self._topic, self._partitions)
            self._broker_answered_at = now
        except ServiceUnavailable:
            if now - self._broker_answered_at > BROKER_SILENT_FOR_S:
                raise

    def _lag(self) -> int:
        ours = self._broker.cluster_id
        here = [part for part in self._stored if part.open and (part.cluster_id, part.topic) == (ours, self._topic)]
        reached = {part.partition: part.next_offset for part in here}
        return sum(max(0, end - reached.get(partition, 0)) for partition, end in self._ends.items())

    def _rate(self, records: int) -> float:
        now = time.monotonic()
        self._history_of.append((now, records))
        while len(self._history_of) > 2 and now - self._history_of[1][0] >= RATE_OVER_S:  # noqa: PLR2004
            self._history_of.popleft()
        since, before = self._history_of[0]
        return max(0.0, (records - before) / (now - since)) if now > since else 0.0

    def _summary(self) -> tuple[tuple[str, int], ...] | None:
        try:
            published = self._cache.read()
        except ServiceUnavailable:
            return None
        if published is None or published.as_of.state == "loading":
            return None
        pairs = json.loads(str(published.values[self._cache.keys.summary_key]) or "[]")
        return tuple((str(name), int(count)) for name, count in pairs)


class _Tally:
    """The dead letters and gaps of one partition, counted as they come."""

    def __init__(self, first_offset: int) -> None:
        self.offset = first_offset
        self.dead_letters = 0
        self.gap_offsets = 0

    def go_on(self, history: History, part: Partition) -> None:
        """Count what came since the last time."""
        start = self.offset
        while letters := history.dead_letters_from(part.id, start, _PAGE):
            self.dead_letters += len(letters)
            start = letters[-1][0] + 1
        start = self.offset
        while gaps := history.gaps_from(part.id, start, _PAGE):
            self.gap_offsets += sum(gap.last_offset - gap.first_offset + 1 for gap in gaps)
            start = gaps[-1].last_offset + 1
        self.offset = part.next_offset
