"""events.db as people look at it: the newest events, the dead letters; each read is short and holds nothing after."""

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from zonerd.errors import StoreUnavailable
from zonerd.events import EventRow
from zonerd.store.audit import Audit
from zonerd.store.database import EVENTS, open_reader, queries, translated
from zonerd.store.history import DeadLetterRow, Partition

SLICE_ROWS: Final = 5000
BRIEF_ROWS: Final = 500
"""SQLite reads each payload whole to cut it; so many of 1 MiB take a quarter of a second."""
BEGINNING_BYTES: Final = 160
"""So much of a dead letter's payload is read where many are listed."""


class Brief(NamedTuple):
    """A dead letter without most of its payload; `size_bytes` is None for a tombstone."""

    offset: int
    reason: str
    detail: str
    size_bytes: int | None
    beginning: bytes | None
    logged_ms: int


class Records(Audit):
    """A history that people look at."""

    @classmethod
    def open_if_there(cls, data_dir: Path) -> Self | None:
        """Open the history for reading; None while there is none. Raises StoreUnavailable and Refused."""
        if not (data_dir / EVENTS.name).exists():
            return None
        connection = open_reader(data_dir, EVENTS)
        try:
            return cls(connection)
        except StoreUnavailable:
            connection.close()
            raise

    def newest(self, partitions: Sequence[Partition], count: int) -> dict[int, int]:
        """Give for each partition row the offset from which on stand the `count` newest events of all of them."""
        each = (self._backwards(row, min(count, SLICE_ROWS)) for row in partitions)
        newest = itertools.islice(heapq.merge(*each, reverse=True), count)
        ends = {row.id: row.next_offset for row in partitions}
        return ends | {id_: offset for _, id_, offset in newest}

    def events_of(self, partitions: Sequence[Partition], start: Mapping[int, int]) -> Iterator[tuple[int, EventRow]]:
        """Give the events from these offsets to where the rows end, with their row's id, oldest first.

        Those of one partition come in the order of their offsets.
        """
        each = (self._forwards(row, start[row.id]) for row in partitions)
        return heapq.merge(*each, key=lambda one: one[1][4])

    def gap_offsets(self, id_: int) -> int:
        """Count the offsets of a partition row at which there is no record."""
        total = first = 0
        while True:
            count, offsets, last = self._look("gap_offsets", id_, first, SLICE_ROWS)[0]
            total += int(offsets)
            if count < SLICE_ROWS:
                return total
            first = last + 1

    def briefs(self, row: Partition) -> Iterator[Brief]:
        """Give the dead letters of a partition row, in order."""
        first = row.first_offset
        while rows := self._look("briefs_from", row.id, first, BRIEF_ROWS, BEGINNING_BYTES):
            yield from map(Brief._make, rows)
            first = rows[-1][0] + 1

    def dead_letter(self, id_: int, offset: int) -> DeadLetterRow | None:
        """Give one dead letter, whole."""
        return next((row for row in self.dead_letters_from(id_, offset, 1) if row[0] == offset), None)

    def _backwards(self, row: Partition, at_once: int) -> Iterator[tuple[int, int, int]]:
        end = row.next_offset
        while rows := self._look("moments_before", row.id, end, at_once):
            for offset, logged_ms in rows:
                yield logged_ms, row.id, offset
            end = rows[-1][0]

    def _forwards(self, row: Partition, first: int) -> Iterator[tuple[int, EventRow]]:
        for event in self.stored("events", row.id, first, row.next_offset):
            yield row.id, event

    def _look(self, name: str, *values: int) -> list[Any]:
        with translated(self._connection.filename):
            return self._connection.execute(queries("reading.sql")[name], values).fetchall()
