"""Health: true while every check holds, and each change said once."""

import pytest
from structlog.testing import CapturingLogger

from zonerd.health import Health


@pytest.fixture
def log() -> CapturingLogger:
    return CapturingLogger()


def _said(log: CapturingLogger) -> list[tuple[str, str | None, str | None]]:
    return [(call.args[0], call.kwargs.get("check"), call.kwargs.get("reason")) for call in log.calls]


def test_it_is_ready_once_all_checks_hold_and_says_so_once(log: CapturingLogger) -> None:
    health = Health(log, ("lock", "kafka"))
    assert not health.ready
    assert health.reasons == {"lock": "not tried yet", "kafka": "not tried yet"}
    health.hold("lock")
    assert (health.ready, _said(log)) == (False, [])
    health.hold("kafka")
    health.hold("kafka")
    assert (health.ready, health.reasons) == (True, {})
    assert _said(log) == [("ready", None, None)]


@pytest.mark.parametrize(
    ("check", "lost", "found"),
    [
        ("kafka", "service_unavailable", "service_available"),
        ("redis", "service_unavailable", "service_available"),
        ("store", "paused", "resumed"),
    ],
)
def test_a_lost_service_is_named_once_and_once_when_it_is_back(
    log: CapturingLogger, check: str, lost: str, found: str
) -> None:
    health = Health(log, (check,))
    health.hold(check)
    for reason in ("refused", "refused", "slow", "slow"):
        health.fail(check, reason)
    assert health.reasons == {check: "slow"}
    health.hold(check)
    assert _said(log) == [
        ("ready", None, None),
        (lost, check, "refused"),
        (lost, check, "slow"),
        (found, check, None),
        ("ready", None, None),
    ]


def test_another_check_is_said_as_not_ready_with_its_fields(log: CapturingLogger) -> None:
    health = Health(log, ("topic",))
    health.fail("topic", "replaced", topic="t")
    assert _said(log) == [("not_ready", "topic", "replaced")]
    assert log.calls[0].kwargs["topic"] == "t"
    health.hold("topic")
    assert _said(log)[1:] == [("ready", None, None)]
