"""Whether this process is alive and ready: the passes of its loop, and named checks, each change said once."""

import time
from collections.abc import Callable
from threading import Lock
from typing import Final, NamedTuple

from zonerd import metrics
from zonerd.log import Log

NOT_TRIED: Final = "not tried yet"
"""Why a check fails until it was tried; another one that fails is what it waits for."""


class Report(NamedTuple):
    """What /healthz and /readyz say of a process: how long ago a pass ended, and why each failing check fails."""

    last_pass_age_s: float
    reasons: dict[str, str | None]

    @property
    def ready(self) -> bool:
        """True while every check holds."""
        return not any(self.reasons.values())


class Health:
    """The named checks on which readiness rests, each failed at first without a word, and the loop's passes.

    A lost service (`kafka`, `redis`) is logged as `service_unavailable` and `service_available`, a
    store that cannot be written as `paused` and `resumed`, any other check as `not_ready`; `ready`
    once all hold. Any thread may call.
    """

    def __init__(self, log: Log, checks: tuple[str, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._guard = Lock()
        self._reasons: dict[str, str | None] = {}
        self._said: set[str] = set()
        self._was_ready = False
        self._passed_at = clock()
        self.add(*checks)

    @property
    def ready(self) -> bool:
        """True while every check holds."""
        return not any(self._reasons.values())

    @property
    def reasons(self) -> dict[str, str]:
        """Why each failing check fails."""
        return {check: reason for check, reason in self._reasons.items() if reason}

    def report(self) -> Report:
        """Give the state of now."""
        return Report(self._clock() - self._passed_at, dict(self._reasons))

    def beat(self) -> None:
        """Note that a pass of the loop ended."""
        self._passed_at = self._clock()
        metrics.LOOP_LAST_PASS.set_to_current_time()

    def add(self, *checks: str) -> None:
        """Let readiness rest on these checks too."""
        with self._guard:
            for check in checks:
                self._reasons[check] = NOT_TRIED
                metrics.READY.labels(check).set(0)

    def hold(self, check: str) -> None:
        """Note that this check holds."""
        with self._guard:
            if self._reasons[check] is not None:
                metrics.READY.labels(check).set(1)
            self._reasons[check] = None
            if check in self._said:
                self._said.discard(check)
                if check in _EVENTS:
                    self._log.info(_EVENTS[check][1], check=check)
            if self.ready and not self._was_ready:
                self._was_ready = True
                self._log.info("ready")

    def fail(self, check: str, reason: str, **fields: object) -> None:
        """Note that this check fails and why; said at once, and again only when the reason changes."""
        with self._guard:
            changed = self._reasons[check] != reason
            self._reasons[check] = reason
            self._was_ready = False
            if changed:
                metrics.READY.labels(check).set(0)
                self._said.add(check)
                self._say(check, reason, fields)

    def _say(self, check: str, reason: str, fields: dict[str, object]) -> None:
        event = _EVENTS[check][0] if check in _EVENTS else "not_ready"
        self._log.warning(event, check=check, reason=reason, **fields)


_EVENTS = {
    "kafka": ("service_unavailable", "service_available"),
    "redis": ("service_unavailable", "service_available"),
    "store": ("paused", "resumed"),
}
