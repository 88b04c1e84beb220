"""What the aggregator tells its metrics: what was folded, what Redis shows, and how late."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from zonerd import metrics
from zonerd.metrics import LOOP_SECONDS, LOOP_STATES, prepare
from zonerd.publisher import RESULTS, SHOWN, Result
from zonerd.rollups import FULL_REASONS, Fact
from zonerd.store.database import EVENTS, ROLLUPS, TROUBLES
from zonerd.store.files import free_bytes, size_bytes

MOST_MOMENTS: Final = 10_000
"""So many different Kafka timestamps of events that wait for Redis are kept apart; past it they are rounded."""

_LOGGED_MS: Final = 4
"""Where a fact has Kafka's timestamp."""


class Tally:
    """Counts for one data directory; every label stands at 0 from the beginning.

    An event's way to Redis is timed once: when it was counted as it came. What a rebuild counts, and the first count
    of a history until it has caught up, is no latency.
    """

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._data_dir = data_dir
        self._waiting: Counter[int] = Counter()
        self._moment_ms = 1
        self._catching_up = False
        prepare(LOOP_SECONDS, LOOP_STATES)
        prepare(metrics.AGGREGATOR_PUBLISHES, RESULTS)
        prepare(metrics.STORE_ERRORS, [EVENTS.name, ROLLUPS.name], TROUBLES)
        prepare(metrics.AGGREGATOR_FULL_PUSHES, FULL_REASONS)

    def folded(self, facts: list[Fact], took_s: float, *, anew: bool, caught_up: bool) -> None:
        """Note a fold; `anew`: in a rebuild, or into answers that had never counted anything."""
        metrics.AGGREGATOR_FOLDED.inc(len(facts))
        metrics.AGGREGATOR_FOLD_SECONDS.observe(took_s)
        old = anew or self._catching_up
        self._catching_up = old and not caught_up
        if not old:
            self._wait(Counter([fact[_LOGGED_MS] for fact in facts]))

    def rebuilding(self) -> None:
        """Note that all is counted anew: whatever waits is part of that now."""
        self._waiting.clear()

    def published(self, result: Result, took_s: float, *, redis_up: bool) -> None:
        """Note an attempt to publish, and how late what Redis shows since then came there."""
        metrics.AGGREGATOR_PUBLISHES.labels(result).inc()
        metrics.AGGREGATOR_PUBLISH_SECONDS.observe(took_s)
        metrics.REDIS_UP.set(redis_up)
        if result in SHOWN:
            metrics.AGGREGATOR_LAST_PUBLISH.set(self._clock())
            self._show()

    def looked(self, behind: int) -> None:
        """Note how much is stored and not folded, and how large our files are."""
        metrics.AGGREGATOR_BEHIND.set(behind)
        for name in (ROLLUPS.name, f"{ROLLUPS.name}-wal"):
            metrics.STORE_BYTES.labels(name).set(size_bytes(self._data_dir / name))
        with suppress(OSError):
            metrics.STORE_FREE.set(free_bytes(self._data_dir))

    def _wait(self, moments: Mapping[int, int]) -> None:
        for moment, events in moments.items():
            if moment >= 0:
                self._waiting[moment - moment % self._moment_ms] += events
        while len(self._waiting) > MOST_MOMENTS:
            self._round()

    def _round(self) -> None:
        """Keep fewer moments apart: the longer Redis is away, the less a second matters."""
        self._moment_ms *= 10
        exact, self._waiting = self._waiting, Counter()
        self._wait(exact)

    def _show(self) -> None:
        now_ms = self._clock() * 1000
        for moment, events in self._waiting.items():
            metrics.END_TO_END.observe("published", max(now_ms - moment, 0) / 1000, events)
        self._waiting.clear()
        self._moment_ms = 1
