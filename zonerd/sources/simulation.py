"""Sources without a file: none at all, and events that are made up."""

import random
import time
from collections.abc import Callable
from typing import Final, Self

from zonerd import config
from zonerd.events import encode
from zonerd.sources import Line, Place

CATCH_UP_S: Final = 1.0
"""After a stall no more is made up for than this: a burst would be no better simulation than a gap."""
_MOST_LINES: Final = 1000
_LONGEST_PAUSE_S: Final = 0.1


class NoSource:
    """Gives nothing: events come from elsewhere."""

    waiting_for = ""
    pause_s = _LONGEST_PAUSE_S

    def take(self) -> list[Line]:
        """Give nothing."""
        return []

    def ack(self, place: Place) -> None:
        """Nothing to note."""

    def path_of(self, place: Place) -> None:
        """None: there is no file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Simulation(NoSource):
    """Makes events up, `rate_per_s` of them: users 1 to `users`, activities as configured, timestamp now.

    The same seed gives the same users and activities in the same order.
    """

    def __init__(
        self,
        simulate: config.Simulate,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._simulate = simulate
        self._random = random.Random(simulate.seed)  # noqa: S311 - made up, not secret
        self._clock = clock
        self._monotonic = monotonic
        self._made = 0
        self._next_at = monotonic()
        self.pause_s = 0.0

    def take(self) -> list[Line]:
        """Give the events that are due by now."""
        now = self._monotonic()
        step_s = 1 / self._simulate.rate_per_s
        self._next_at = max(self._next_at, now - max(CATCH_UP_S, step_s))
        lines: list[Line] = []
        while self._next_at <= now and len(lines) < _MOST_LINES:
            lines.append(self._make())
            self._next_at += step_s
        self.pause_s = min(max(self._next_at - self._monotonic(), 0.0), _LONGEST_PAUSE_S)
        return lines

    def _make(self) -> Line:
        user_id = self._random.randint(1, self._simulate.users)
        activity = self._random.choice(self._simulate.activities)
        self._made += 1
        return Line(encode(user_id, activity, round(self._clock(), 3), {}), Place(0, self._made - 1, self._made))
