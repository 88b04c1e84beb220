"""The history in itself: every offset exactly once, and a sound file."""

import time
from collections.abc import Iterator
from heapq import merge
from pathlib import Path
from typing import Final, NamedTuple

from zonerd.events import GAP_REASONS
from zonerd.store.audit import Audit
from zonerd.store.database import EVENTS
from zonerd.store.files import size_bytes
from zonerd.store.history import Partition
from zonerd.verify.noted import Noted, Tell
from zonerd.verify.report import Findings, Part

MAX_WAL_GROWTH_BYTES: Final = 256 * 1024 * 1024
"""The integrity check, one long read, ends once so much was written beside it."""

Run = tuple[int, int, str]
"""First and last offset, and the table that has them."""


class Covered(NamedTuple):
    """What stands in the ranges of some partitions: rows, and offsets in gaps."""

    events: int = 0
    dead_letters: int = 0
    gap_offsets: int = 0

    @property
    def offsets(self) -> int:
        """How many offsets that accounts for."""
        return self.events + self.dead_letters + self.gap_offsets

    def plus(self, other: "Covered") -> "Covered":
        """Give both together."""
        return Covered(*(a + b for a, b in zip(self, other, strict=True)))


def check_history(audit: Audit, data_dir: Path, noted: Noted, *, quick: bool, tell: Tell) -> Part:
    """Check that each offset of each partition, closed ones too, is in exactly one table, and none is outside.

    `quick` adds up instead of looking at each offset, and leaves out the file's own integrity.
    """
    findings = Findings("history")
    covered, passed = Covered(), 0
    total = sum(row.next_offset - row.first_offset for row in noted.partitions)
    for row in noted.partitions:
        one = add_up(audit, row, row.next_offset, findings) if quick else _walk(audit, row, findings)
        if quick and one.offsets != row.next_offset - row.first_offset:
            findings.differ(_sum_differs(one, row), row)
        covered = covered.plus(one)
        passed += row.next_offset - row.first_offset
        tell("history", passed, total)
    _name_strays(audit, noted, findings)
    integrity, took_s = ("skipped", 0.0) if quick else _integrity(audit, data_dir / EVENTS.name, findings)
    figures = {"offsets": total, **covered._asdict(), "partitions": len(noted.partitions)}
    how = "add up to that" if quick else "each offset once"
    said = (
        f"{total:,} offsets: {covered.events:,} events, {covered.dead_letters:,} dead letters, "
        f"{covered.gap_offsets:,} in gaps, {how} · integrity {integrity}"
    )
    return findings.part(said, {**figures, "integrity": integrity, "integrity_s": round(took_s, 3)})


def add_up(audit: Audit, row: Partition, end: int, findings: Findings) -> Covered:
    """Count what a partition has below this offset."""
    gap_offsets = sum(last - first + 1 for first, last, _ in _gaps(audit, row, end, findings))
    events = audit.count("events", row.id, row.first_offset, end)
    return Covered(events, audit.count("dead_letters", row.id, row.first_offset, end), gap_offsets)


def _walk(audit: Audit, row: Partition, findings: Findings) -> Covered:
    counts = dict.fromkeys(("events", "dead_letters", "gaps"), 0)
    expected = row.first_offset
    for first, last, table in _all_runs(audit, row, findings):
        counts[table] += last - first + 1
        if first > expected:
            findings.differ(f"nothing stands at offsets {expected} to {first - 1}", row, expected)
        elif first < expected:
            twice = f"{first} to {min(last, expected - 1)}"
            findings.differ(f"offsets {twice} are stored twice, once in {table}", row, first)
        expected = max(expected, last + 1)
    if expected < row.next_offset:
        findings.differ(f"nothing stands at offsets {expected} to {row.next_offset - 1}", row, expected)
    return Covered(counts["events"], counts["dead_letters"], counts["gaps"])


def _all_runs(audit: Audit, row: Partition, findings: Findings) -> Iterator[Run]:
    first, end = row.first_offset, row.next_offset
    yield from merge(
        ((*run, "events") for run in audit.runs("events", row.id, first, end)),
        ((*run, "dead_letters") for run in audit.runs("dead_letters", row.id, first, end)),
        _gaps(audit, row, end, findings),
    )


def _gaps(audit: Audit, row: Partition, end: int, findings: Findings) -> Iterator[Run]:
    for gap in audit.gaps(row.id, row.first_offset, end):
        if gap.reason not in GAP_REASONS:
            findings.differ(f"a gap has the unknown reason {gap.reason!r}", row, gap.first_offset)
        yield gap.first_offset, min(gap.last_offset, end - 1), "gaps"


def _sum_differs(one: Covered, row: Partition) -> str:
    return (
        f"{one.events} events, {one.dead_letters} dead letters and {one.gap_offsets} offsets in gaps "
        f"are not the {row.next_offset - row.first_offset} offsets from {row.first_offset} to {row.next_offset - 1}"
    )


def _name_strays(audit: Audit, noted: Noted, findings: Findings) -> None:
    rows = {row.id: row for row in noted.partitions}
    for table, id_, offset in audit.strays():
        if offset is None:
            findings.differ(f"{table} has rows of partition row {id_}, which there is not")
        else:
            findings.differ(f"a row of {table} stands outside the partition's range", rows.get(id_), offset)


def _integrity(audit: Audit, path: Path, findings: Findings) -> tuple[str, float]:
    """Let SQLite check the file, unless too much is written meanwhile: the read holds the WAL."""
    wal = path.with_name(path.name + "-wal")
    limit = size_bytes(wal) + MAX_WAL_GROWTH_BYTES
    began = time.monotonic()
    faults = audit.integrity(lambda: size_bytes(wal) > limit)
    took_s = time.monotonic() - began
    if faults is None:
        return "given up: too much was written meanwhile", took_s
    for fault in faults:
        findings.differ(f"{path.name}: {fault}")
    return "damaged" if faults else "ok", took_s
