"""What is said of a database: which one was opened, and that it fails."""

from structlog.testing import CapturingLogger

from zonerd.errors import StoreUnavailable
from zonerd.store.opened import Opened


def test_a_store_is_named_once_and_another_one_again() -> None:
    log = CapturingLogger()
    opened = Opened(log, "events.db")
    for store_id in ("a", "a", "b"):
        opened.note(store_id)
    assert [(call.args[0], call.kwargs["store_id"]) for call in log.calls] == [
        ("store_opened", "a"),
        ("store_opened", "b"),
    ]


def test_a_failure_is_said_with_its_kind_at_most_now_and_then_and_waiting_is_none() -> None:
    log = CapturingLogger()
    opened = Opened(log, "events.db")
    opened.failed(StoreUnavailable("events.db: not there yet"))
    for _ in range(3):
        opened.failed(StoreUnavailable("events.db: database is locked", "locked"))
    assert [(call.args[0], call.kwargs["kind"]) for call in log.calls] == [("store_failed", "locked")]
