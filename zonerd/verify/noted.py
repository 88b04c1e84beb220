"""Where a check starts, and whether the history below that stayed as it was."""

from collections.abc import Callable
from typing import Final, NamedTuple

from zonerd.errors import ServiceUnavailable
from zonerd.rollups import HARMLESS_CHANGES
from zonerd.store.audit import Audit
from zonerd.store.history import Partition
from zonerd.verify.report import Part

TRIES: Final = 3

Tell = Callable[[str, int, int], None]
"""Hears of each check how many rows it has passed, of how many."""


class Moved(Exception):
    """What is checked was replaced meanwhile: check again."""


class Noted(NamedTuple):
    """The partitions as they stood at the start of a check; what lies before never changes but by `changes`."""

    partitions: tuple[Partition, ...]
    change: int


def note(audit: Audit) -> Noted:
    """Note where the history stands now."""
    with audit.snapshot():
        return Noted(tuple(audit.partitions()), audit.last_change())


def settled(audit: Audit, noted: Noted, check: Callable[[Noted], Part]) -> Part:
    """Run a check as of the noted positions; and anew, if rows were taken back or the topic was replaced meanwhile."""
    for _ in range(TRIES):
        try:
            part = check(noted)
        except Moved:
            part = None
        if part is not None and all(change.kind in HARMLESS_CHANGES for change in audit.changes_after(noted.change)):
            return part
        noted = note(audit)
    raise ServiceUnavailable("store", f"the history was replaced during each of {TRIES} tries; try again later")
