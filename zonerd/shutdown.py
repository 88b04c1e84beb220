"""When to stop: upon a signal, or when the supervisor that started this process is gone."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType


class Shutdown:
    """Whether this process has been asked to stop; a loop looks at `requested` once a pass.

    `supervisor_pid` is the parent whose end is a request to stop too; None: nobody's.
    """

    def __init__(self, supervisor_pid: int | None = None) -> None:
        self.supervisor_pid = supervisor_pid
        self.signalled = False

    def install(self, *, hangup: bool = True) -> "Shutdown":
        """Take SIGTERM, SIGINT and, if `hangup`, SIGHUP as requests to stop; call it in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        signal.signal(signal.SIGHUP, self._note if hangup else signal.SIG_IGN)
        return self

    @property
    def requested(self) -> bool:
        """True from the first request on."""
        return self.signalled or self.orphaned

    @property
    def orphaned(self) -> bool:
        """True once the parent is no longer the supervisor that started this process."""
        return self.supervisor_pid is not None and os.getppid() != self.supervisor_pid

    def wait(self, seconds: float, beat: Callable[[], None] = lambda: None) -> None:
        """Wait so long, or until a stop is requested, whichever comes first, and call `beat` meanwhile."""
        deadline = time.monotonic() + seconds
        while not self.requested and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
            beat()

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.signalled = True


def keep_to_the_end() -> None:
    """Let no signal that was a request to stop change the exit code: at its exit Python makes it deadly again."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, signal.SIG_IGN)
