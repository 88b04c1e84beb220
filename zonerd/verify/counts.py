"""The answers against the history: every count is what a fresh count gives, as of the folded offsets."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

from zonerd import rollups
from zonerd.errors import ServiceUnavailable
from zonerd.rollups import AGGREGATES, Aggregate, Cursor, Place, Snapshot
from zonerd.store.answers import Answers
from zonerd.store.audit import Audit
from zonerd.store.database import ROLLUPS
from zonerd.store.history import Partition
from zonerd.verify.coverage import add_up
from zonerd.verify.noted import Noted, Tell
from zonerd.verify.report import Findings, Part

REBUILD_PATIENCE_S: Final = 5.0
"""How long answers of another state of the history are waited out: a living aggregator counts them anew."""

SLICE_OFFSETS: Final = 50_000
"""Offsets that one statement counts: so long it holds the WAL."""


def check_answers(audit: Audit, answers: Answers, noted: Noted, *, quick: bool, tell: Tell) -> Part:
    """Count the events afresh, up to the offsets that are folded, and compare each count.

    `quick` compares sums only: all counts of an aggregate together, and the offsets that are no events.
    """
    findings = Findings("answers")
    snapshot, cause = _snapshot_of(audit, answers)
    if cause is not None:
        findings.differ(f"{ROLLUPS.name} was counted from another state of the history ({cause})")
    else:
        rows = {row.id: row for row in audit.partitions()}
        (_add_up if quick else _count)(audit, snapshot, rows, findings, tell)
    counts = sum(len(ranking) for ranking in snapshot.rankings.values())
    behind = sum(max(0, row.next_offset - _folded(snapshot.cursor, row)) for row in noted.partitions)
    figures = {
        "fold": snapshot.fold,
        "events": snapshot.cursor.events,
        "counts": counts,
        "offsets_behind": behind,
        "positions": _positions(snapshot.cursor),
    }
    how = "their sums compared" if quick else "each counted afresh"
    said = f"{counts:,} counts of {snapshot.cursor.events:,} events, {how} · fold {snapshot.fold}"
    return findings.part(said + (f" · {behind:,} offsets not folded yet" if behind else ""), figures)


def _snapshot_of(audit: Audit, answers: Answers) -> tuple[Snapshot, str | None]:
    """Give the answers, and why they are not of this history, if a patient look finds them so."""
    deadline = time.monotonic() + REBUILD_PATIENCE_S
    while True:
        snapshot = answers.read()
        if snapshot is None:
            raise ServiceUnavailable("store", f"{ROLLUPS.name}: nothing is folded yet")
        cause = _trouble(audit, snapshot.cursor)
        if cause is None or time.monotonic() > deadline:
            return snapshot, cause
        time.sleep(0.1)


def _trouble(audit: Audit, cursor: Cursor) -> str | None:
    with audit.snapshot():
        ends = {
            row.id: Place(row.id, row.cluster_id, row.topic, row.topic_id, row.partition, row.open, row.next_offset)
            for row in audit.partitions()
        }
        kinds = [change.kind for change in audit.changes_after(cursor.change_seq)]
        return rollups.trouble(cursor, audit.store_id, audit.nonce_of_change(cursor.change_seq), kinds, ends)


def _folded(cursor: Cursor, row: Partition) -> int:
    return cursor.places[row.id].offset if row.id in cursor.places else row.first_offset


def _positions(cursor: Cursor) -> dict[str, int]:
    return {place.label: place.offset for place in sorted(cursor.places.values()) if place.open}


def _count(audit: Audit, snapshot: Snapshot, rows: Mapping[int, Partition], findings: Findings, tell: Tell) -> None:
    places = snapshot.cursor.places
    total = len(AGGREGATES) * sum(place.offset - rows[id_].first_offset for id_, place in places.items())
    passed = 0
    for aggregate in AGGREGATES:
        fresh: Counter[str] = Counter()
        for id_, place in places.items():
            passed += _count_one(audit, aggregate, id_, (rows[id_].first_offset, place.offset), fresh)
            tell("answers", passed, total)
        _compare(aggregate, dict(snapshot.rankings[aggregate.name]), fresh, findings)
    events = sum(audit.count("events", id_, rows[id_].first_offset, place.offset) for id_, place in places.items())
    if events != snapshot.cursor.events:
        findings.differ(f"{snapshot.cursor.events} events are said to be folded, the history has {events} there")


def _count_one(audit: Audit, aggregate: Aggregate, id_: int, span: tuple[int, int], fresh: Counter[str]) -> int:
    """Add what a partition has from the first to below the second offset, a slice at a time."""
    first, end = span
    while (offset := audit.next_event(id_, first)) is not None and offset < end:
        first = min(offset + SLICE_OFFSETS, end)
        fresh.update(dict(audit.count_afresh(aggregate.check, id_, offset, first)))
    return end - span[0]


def _compare(aggregate: Aggregate, counted: Mapping[str, int], fresh: Mapping[str, int], findings: Findings) -> None:
    for name in sorted(counted.keys() | fresh.keys()):
        if counted.get(name, 0) != fresh.get(name, 0):
            findings.differ(f"{aggregate.name}: {name!r} is {counted.get(name, 0)}, a fresh count {fresh.get(name, 0)}")


def _add_up(audit: Audit, snapshot: Snapshot, rows: Mapping[int, Partition], findings: Findings, tell: Tell) -> None:
    events = snapshot.cursor.events
    for aggregate in AGGREGATES:
        counted = sum(count for _, count in snapshot.rankings[aggregate.name])
        if counted != events:
            findings.differ(f"{aggregate.name}: all counts together are {counted}, of {events} events folded")
    stored = 0
    for number, (id_, place) in enumerate(snapshot.cursor.places.items(), 1):
        stored += add_up(audit, rows[id_], place.offset, findings).events
        tell("answers", number, len(rows))
    if stored != events:
        findings.differ(f"{events} events are said to be folded, the history has {stored} there")
