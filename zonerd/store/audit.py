"""events.db as it is checked: what stands where, read in slices beside those who write."""

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple, overload

import apsw

from zonerd.events import EventRow, Gap
from zonerd.store.database import queries, translated
from zonerd.store.history import DeadLetterRow, History

Table = Literal["events", "dead_letters", "gaps"]
TABLES: Final[tuple[Table, ...]] = ("events", "dead_letters", "gaps")

SLICE_ROWS: Final = 20_000
"""Rows a read: so long it holds the WAL."""

STORED_ROWS: Final = 2000
SLICE_BYTES: Final = 4 * 1024 * 1024
"""Whole rows a read: so many, or so much, whichever is less."""

MAX_STRAYS: Final = 1000
"""Rows outside their partition's range that are looked for, a partition and table."""

_STEPS_A_LOOK: Final = 10_000


class Stray(NamedTuple):
    """A row outside the range of its partition, or of a partition that there is not."""

    table: Table
    partition_id: int
    offset: int | None


class Audit(History):
    """A history that is only checked; each read ends before the next begins, and none is long but `integrity`."""

    def last_change(self) -> int:
        """Give the number of the last change; 0 before the first."""
        return int(self._ask("last_change")[0][0])

    def runs(
        self, table: Literal["events", "dead_letters"], id_: int, first: int, end: int
    ) -> Iterator[tuple[int, int]]:
        """Give the offsets of a table from `first` to below `end` as runs without a hole: first and last of each."""
        while offsets := [row[0] for row in self._ask(f"offsets_of_{table}", id_, first, end, SLICE_ROWS)]:
            yield from _runs(offsets)
            first = offsets[-1] + 1

    @overload
    def stored(self, table: Literal["events"], id_: int, first: int, end: int) -> Iterator[EventRow]: ...
    @overload
    def stored(self, table: Literal["dead_letters"], id_: int, first: int, end: int) -> Iterator[DeadLetterRow]: ...
    def stored(self, table: Literal["events", "dead_letters"], id_: int, first: int, end: int) -> Iterator[Any]:
        """Give the rows of a table from `first` to below `end`, holding about SLICE_BYTES of them at a time."""
        statement = self._sql[f"{table}_from"]
        while first < end:
            with translated(self._connection.filename):
                rows = _at_most(SLICE_BYTES, self._connection.execute(statement, (id_, first, STORED_ROWS)))
            for row in rows:
                if row[0] >= end:
                    return
                yield row
            if not rows:
                return
            first = rows[-1][0] + 1

    def count(self, table: Literal["events", "dead_letters"], id_: int, first: int, end: int) -> int:
        """Count the rows of a table from `first` to below `end`."""
        total = 0
        while first < end:
            number, last = self._ask(f"count_{table}", id_, first, end, SLICE_ROWS)[0]
            if not number:
                break
            total += number
            first = last + 1
        return total

    def next_event(self, id_: int, offset: int) -> int | None:
        """Give the first offset, from this one on, at which an event stands."""
        return next((row[0] for row in self._ask("next_event", id_, offset)), None)

    def gaps(self, id_: int, first: int, end: int) -> Iterator[Gap]:
        """Give the gaps that begin at `first` up to below `end`, in order."""
        while gaps := [Gap(*row) for row in self._ask("gaps_after", id_, first, end, SLICE_ROWS)]:
            yield from gaps
            first = gaps[-1].first_offset + 1

    def gap_at(self, id_: int, offset: int) -> Gap | None:
        """Give the gap that this offset is in."""
        gap = next((Gap(*row) for row in self._ask("gap_at", id_, offset)), None)
        return gap if gap is not None and gap.last_offset >= offset else None

    def strays(self) -> Iterator[Stray]:
        """Find the rows that no partition's range, as it is now, has a place for; at most MAX_STRAYS a partition."""
        with self.snapshot():
            partitions = {row.id: row for row in self.partitions()}
            found = [Stray(table, id_, None) for table in TABLES for id_ in self._partitions_in(table)]
            strays = [stray for stray in found if stray.partition_id not in partitions]
            for id_, row in partitions.items():
                values = {"id": id_, "first": row.first_offset, "next": row.next_offset, "limit": MAX_STRAYS}
                for table in TABLES:
                    rows: list[Any] = self._connection.execute(self._checks[f"{table}_outside"], values).fetchall()
                    strays += [Stray(table, id_, row[0]) for row in rows]
        yield from strays

    def integrity(self, give_up: Callable[[], bool]) -> list[str] | None:
        """Give what `pragma integrity_check` finds, nothing if all is well; None if `give_up` became true.

        This is one read of the whole file: while it lasts, the WAL grows by all that is written.
        """
        self._connection.set_progress_handler(give_up, _STEPS_A_LOOK)
        try:
            with translated(self._connection.filename):
                lines = [str(row[0]) for row in self._connection.execute("pragma integrity_check")]
        except apsw.InterruptError:
            return None
        finally:
            self._connection.set_progress_handler(None)
        return [line for line in lines if line != "ok"]

    def _partitions_in(self, table: Table) -> Iterator[int]:
        id_ = -(2**63)
        while (found := self._ask(f"next_partition_with_{table}", id_)[0][0]) is not None:
            id_ = int(found)
            yield id_

    @property
    def _checks(self) -> dict[str, str]:
        return queries("audit_queries.sql")

    def _ask(self, name: str, *values: int) -> list[Any]:
        with translated(self._connection.filename):
            return self._connection.execute(self._checks[name], values).fetchall()


def _runs(offsets: list[int]) -> Iterator[tuple[int, int]]:
    if offsets[-1] - offsets[0] + 1 == len(offsets):
        yield offsets[0], offsets[-1]
        return
    first = last = offsets[0]
    for offset in offsets[1:]:
        if offset != last + 1:
            yield first, last
            first = offset
        last = offset
    yield first, last


def _at_most(size_bytes: int, cursor: apsw.Cursor) -> list[Any]:
    """Take rows until they are about so large; at least one, if there is one."""
    rows: list[Any] = []
    for row in cursor:
        rows.append(row)
        size_bytes -= sum([len(value) for value in row[3:] if value.__class__ in (bytes, str)])
        if size_bytes < 0:
            cursor.close()
            break
    return rows
