"""Whether this process is ready, check by check, said once a change."""

from zonerd.log import Log


class Readiness:
    """The named checks on which readiness rests; each begins as failed, without a word.

    A lost service (`kafka`, `redis`) is logged as `service_unavailable` and `service_available`, a
    store that cannot be written as `paused` and `resumed`, any other check as `not_ready`; `ready`
    once all hold.
    """

    def __init__(self, log: Log, checks: tuple[str, ...]) -> None:
        self._log = log
        self._reasons: dict[str, str | None] = dict.fromkeys(checks, "not tried yet")
        self._said: set[str] = set()
        self._was_ready = False

    @property
    def ready(self) -> bool:
        """True while every check holds."""
        return not any(self._reasons.values())

    @property
    def reasons(self) -> dict[str, str]:
        """Why each failing check fails."""
        return {check: reason for check, reason in self._reasons.items() if reason}

    def hold(self, check: str) -> None:
        """Note that this check holds."""
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
        changed = self._reasons[check] != reason
        self._reasons[check] = reason
        self._was_ready = False
        if changed:
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
