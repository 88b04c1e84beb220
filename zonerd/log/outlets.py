"""Where lines of text go; what does not take them can neither end this process nor hold it up for long."""

import os
import select
import time
from collections.abc import Callable
from threading import Lock
from typing import Final

from zonerd import metrics

PATIENCE_S: Final = 0.1
"""So long a line may hold up the work."""

FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 60.0

PIECE_BYTES: Final = 4096
"""A pipe that is ready takes so much without waiting."""


class Rest:
    """When something that held us up is tried again: the longer it hangs, the more seldom."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._length_s = FIRST_REST_S
        self._until = 0.0

    @property
    def lasts(self) -> bool:
        """True while it is not to be tried."""
        return self._clock() < self._until

    def begin(self) -> None:
        """Leave it alone, twice as long as the last time."""
        self._until = self._clock() + self._length_s
        self._length_s = min(2 * self._length_s, LONGEST_REST_S)

    def forget(self) -> None:
        """Begin with the shortest rest again."""
        self._length_s = FIRST_REST_S


class Output:
    """Writes lines to a file descriptor; one that it does not take is dropped and counted."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._guard = Lock()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._rest = Rest()
        self._torn = False

    def write(self, line: str) -> None:
        """Write a line; never raises."""
        with self._guard:
            text = f"\n{line}\n" if self._torn else f"{line}\n"
            if self._rest.lasts or not self._takes(text.encode(errors="replace")):
                metrics.LOG_LINES_DROPPED.inc()

    debug = info = warning = error = write

    def _takes(self, text: bytes) -> bool:
        left = text
        try:
            while left and self._is_ready():
                left = left[os.write(self._descriptor, left[:PIECE_BYTES]) :]
        except OSError:
            pass  # counted by who asks; the log is where it would be said
        if len(left) < len(text):
            self._torn = bool(left)
        return not left

    def _is_ready(self) -> bool:
        if self._poll.poll(PATIENCE_S * 1000):
            self._rest.forget()
            return True
        self._rest.begin()
        return False
