"""Partitions that do not move: how often each was tried, and when to try it again."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

MAX_TRIES: Final = 5
"""So often in a row a partition is assigned anew before it is left alone for a while."""

REST_S: Final = 60.0


class Stalls:
    """The partitions in trouble; one that moves is forgotten at once."""

    def __init__(self, no_progress_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._no_progress_s = no_progress_s
        self._clock = clock
        self._tries: dict[int, int] = {}
        self._causes: dict[int, str] = {}
        self._rests_until: dict[int, float] = {}
        self._lagging_since: dict[int, tuple[int, float]] = {}

    @property
    def reasons(self) -> dict[int, str]:
        """Why each partition that has used up its tries does not move."""
        return {partition: cause for partition, cause in self._causes.items() if self._tries[partition] >= MAX_TRIES}

    def failed(self, partition: int, cause: str) -> None:
        """Note one more try in vain; the last of MAX_TRIES begins a rest of REST_S."""
        self._tries[partition] = self._tries.get(partition, 0) + 1
        self._causes[partition] = cause
        if self._tries[partition] >= MAX_TRIES:
            self._rests_until[partition] = self._clock() + REST_S

    def moved(self, partition: int) -> None:
        """Note that records of this partition were stored."""
        for notes in (self._tries, self._causes, self._rests_until, self._lagging_since):
            notes.pop(partition, None)

    def resting(self, partition: int) -> bool:
        """Whether this partition should be left out for now."""
        return self._clock() < self._rests_until.get(partition, 0.0)

    def look(self, lagging: Iterable[int], positions: Mapping[int, int]) -> bool:
        """Note which partitions lag at which positions; True when some partition should be assigned anew."""
        now = self._clock()
        rested = [partition for partition, until in self._rests_until.items() if until <= now]
        for partition in rested:
            del self._rests_until[partition]
        again = bool(rested)
        before, self._lagging_since = self._lagging_since, {}
        for partition in lagging:
            if self.resting(partition):
                continue  # nobody reads it now
            position = positions[partition]
            at, since = before.get(partition, (position, now))
            self._lagging_since[partition] = (at, since) if at == position else (position, now)
            if at == position and now - since >= self._no_progress_s:
                self.failed(partition, f"no record came at offset {position} for {self._no_progress_s:g} s")
                self._lagging_since[partition] = (position, now)
                again = True
        return again
