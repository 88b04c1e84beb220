"""One supervised process as the watchdog knows it: what supervisord says, what it answers, and what is due."""

from typing import Final

from zonerd.errors import REFUSED
from zonerd.watchdog.polls import Answer

RUNNING: Final = "RUNNING"
FATAL: Final = "FATAL"
ON_THE_WAY: Final = ("", "STARTING", "BACKOFF")
"""The states in which it is not known yet whether a process will run."""

KILL_AFTER_S: Final = 1.5
"""So long a process that is sent SIGABRT has to write where it hung."""
RETRY_AFTER_S: Final = 1.0
"""What supervisord did not take is tried again after so long."""
CONFIRMED_BY: Final = 2
"""So many answers in a row must say that it hangs: a machine that slept wakes up with old ones."""
STEADY_S: Final = 60.0
"""Who has run for so long is started again, should it become FATAL, after the shortest wait."""
MAX_RETRY_S: Final = 600.0


class Watched:
    """Moments are monotonic seconds, given by the caller."""

    def __init__(self, name: str, stall_s: float, retry_fatal_s: float) -> None:
        self.name = name
        self.group = name.partition("-")[0]
        self.state = ""
        self.pid = 0
        self.exit_code = 0
        self.settled = False
        self.kill_at: float | None = None
        self.retry_at: float | None = None
        self.answer = Answer(name, reason="not asked yet")
        self._stall_s = stall_s
        self._first_retry_s = self._retry_s = retry_fatal_s
        self._running_since = 0.0
        self._passed_at = 0.0
        self._evidence = 0

    def enter(self, state: str, pid: int, now: float) -> None:
        """Note what supervisord says; the same state of the same process is no news."""
        if (state, pid) == (self.state, self.pid):
            return
        if self.state == RUNNING and now - self._running_since >= STEADY_S:
            self._retry_s = self._first_retry_s
        if state == RUNNING:
            self.answer = Answer(self.name, reason="not asked yet")
            self._running_since = now
            self.forgive(now)
        if state == FATAL:
            self.retry_at = now + self._retry_s
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
        self.state, self.pid, self.kill_at = state, pid, None
        self.settled = self.settled or state not in ON_THE_WAY

    def hear(self, answer: Answer, now: float) -> None:
        """Note what it answered. Silence counts from the last known pass; no port, or another's answer, for nothing."""
        self.answer = answer
        if answer.pid and answer.pid == self.pid:
            self._passed_at = now - answer.last_pass_age_s
        elif not answer.silent:
            self._passed_at = now
        self._evidence = self._evidence + 1 if self.last_pass_age_s(now) >= self._stall_s else 0

    def forgive(self, now: float) -> None:
        """Count from now: we did not look for a while."""
        self._passed_at = now
        self._evidence = 0

    def last_pass_age_s(self, now: float) -> float:
        """Give how long ago the last pass of its loop ended, as far as is known; 0 where it does not run."""
        return now - self._passed_at if self.state == RUNNING else 0.0

    def hangs(self) -> bool:
        """Say whether it must be ended to start again."""
        return self.state == RUNNING and self._evidence >= CONFIRMED_BY and self.kill_at is None

    def must_be_killed(self, now: float) -> bool:
        """Say whether what it was sent has not ended it."""
        return self.state == RUNNING and self.kill_at is not None and now >= self.kill_at

    def is_retried(self, now: float) -> bool:
        """Say whether it is FATAL, and for long enough to start it again; who was refused wants another file first."""
        wanted = self._first_retry_s > 0 and self.exit_code != REFUSED
        return self.state == FATAL and wanted and self.retry_at is not None and now >= self.retry_at

    @property
    def reason(self) -> str | None:
        """Why it is not ready; None where it is."""
        return self.answer.reason if self.state == RUNNING else self.state or "not in supervisord"
