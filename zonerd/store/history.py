"""events.db: the history, appended to in fenced transactions, read in slices."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import apsw

from zonerd.errors import StoreUnavailable
from zonerd.events import Anchor, EventRow, Gap, Slice, anchor_of
from zonerd.store.database import EVENTS, limit_wal, open_reader, open_writer, queries, transaction, translated

DeadLetterRow = tuple[int, str, str, bytes | None, bytes | None, int]
"""offset, reason, detail, key, payload, logged_ms."""

ROWS_PER_STATEMENT: Final = (200, 20, 1)
"""One statement for many rows costs half of one for each (measured; 50 to 400 are alike)."""


class Partition(NamedTuple):
    """One partition of one incarnation of a topic, and how far its history reaches."""

    id: int
    cluster_id: str
    topic: str
    topic_id: str
    partition: int
    first_offset: int
    next_offset: int
    confirmed_offset: int
    anchor: Anchor | None
    closed_ms: int | None

    @property
    def open(self) -> bool:
        """True while no other incarnation has taken its place."""
        return self.closed_ms is None


class Change(NamedTuple):
    """Something that happened to the history besides appending."""

    seq: int
    kind: str
    partition_id: int | None
    first_offset: int | None
    next_offset: int | None
    nonce: bytes


class History:
    """The history of one data directory, open for reading or for writing.

    Every method may raise StoreUnavailable (nothing was written; try again later) and Refused.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._sql = queries()
        ids = self._read("store_id")
        if not ids:
            raise StoreUnavailable(f"{connection.filename}: not there yet")  # its writer is about to name it
        self.store_id = str(ids[0][0])

    @classmethod
    def open_writer(cls, data_dir: Path, max_wal_bytes: int | None = None) -> Self:
        """Open the history for appending, making it if there is none, and note that a writer started."""
        connection = open_writer(data_dir, EVENTS)
        if max_wal_bytes is not None:
            limit_wal(connection, max_wal_bytes)
        sql = queries()
        with transaction(connection):
            connection.execute(sql["new_store"], (uuid.uuid4().hex, _now_ms()))
            _note(connection, "open")
        return cls(connection)

    @classmethod
    def open_reader(cls, data_dir: Path) -> Self:
        """Open the history for reading; raises StoreUnavailable while there is none."""
        return cls(open_reader(data_dir, EVENTS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    # Appending

    def check_writable(self) -> None:
        """Raise StoreUnavailable where a write could not even begin: locked, or read-only."""
        with transaction(self._connection):
            pass

    def append(self, slices: Sequence[Slice], ids: Mapping[int, int]) -> list[int]:
        """Store all of these slices in one durable transaction; give the partitions that were fenced off.

        `ids` tells for each partition number its row. A slice whose partition does not stand at
        `expected_offset` any more, or is closed, is left out whole: another process was faster.
        """
        with transaction(self._connection):
            taken = [piece for piece in slices if self._take_fence(ids[piece.partition], piece)]
            for piece in taken:
                self._insert(ids[piece.partition], piece)
        return [piece.partition for piece in slices if piece not in taken]

    def confirm(self, offsets: Mapping[int, int]) -> None:
        """Note for rows that their topic was still the same one when they stood at these offsets."""
        with transaction(self._connection):
            for id_, offset in offsets.items():
                self._connection.execute(self._sql["confirm"], {"id": id_, "offset": offset})

    def _take_fence(self, id_: int, piece: Slice) -> bool:
        anchor = anchor_of(piece.last) if piece.last is not None else None
        self._connection.execute(
            self._sql["take_fence"],
            {
                "id": id_,
                "expected": piece.expected_offset,
                "next_offset": piece.next_offset,
                "anchor_offset": anchor and anchor.offset,
                "anchor_sha256": anchor and anchor.sha256,
            },
        )
        return self._connection.changes() == 1

    def _insert(self, id_: int, piece: Slice) -> None:
        execute = self._connection.execute
        for rows in _portions(piece.events):
            execute(_insert_events(len(rows)), (id_, *chain.from_iterable(rows)))
        for record, letter in piece.dead_letters:
            row = (id_, record.offset, *letter, record.key, record.value, record.timestamp_ms)
            execute(self._sql["add_dead_letter"], row)
        for gap in piece.gaps:
            execute(self._sql["add_gap"], (id_, *gap))

    # Which topic this is

    def meet(
        self, cluster_id: str, topic: str, topic_id: str, first: Mapping[int, int], later: Mapping[int, int]
    ) -> None:
        """Open the rows of partitions that have none yet, all in one transaction.

        `first` tells where to begin, by partition, if no topic of this name was ever met; `later` where otherwise.
        """
        with transaction(self._connection):
            known = self._connection.execute(self._sql["topic_is_known"], (topic,)).get
            for partition, offset in (later if known else first).items():
                self._open_partition(cluster_id, topic, topic_id, partition, offset)

    def give_topic_id(self, ids: Sequence[int], topic_id: str) -> None:
        """Note the id of a topic whose broker had told none before."""
        if not ids:
            return
        with transaction(self._connection):
            for id_ in ids:
                self._connection.execute(self._sql["give_topic_id"], {"id": id_, "topic_id": topic_id})

    def replace(self, old: Partition, from_offset: int | None, new: Partition | None) -> bool:
        """Close a partition whose topic was replaced, and open `new` in its place, in one transaction.

        From `from_offset` on, what was stored of it is taken back: those records were already the
        new topic's. A `new` that has a row already (an earlier incarnation is back) is opened again.
        False: another process has closed it before, and nothing was done. Raises StoreUnavailable when `old`
        has grown since it was read: what came last may be the new topic's too, so look again.
        """
        with transaction(self._connection):
            place = {"id": old.id, "next_offset": old.next_offset, "now_ms": _now_ms()}
            self._connection.execute(self._sql["close_partition"], place)
            if self._connection.changes() == 0:
                if any(row.open and row.id == old.id for row in self.partitions(old.topic)):
                    raise StoreUnavailable(f"partition {old.partition} grew while its topic was taken over")
                return False
            if from_offset is not None and from_offset < old.next_offset:
                self._take_back(old, from_offset)
            if new is not None and new.closed_ms is not None:
                self._connection.execute(self._sql["reopen_partition"], {"id": new.id})
            elif new is not None:
                self._open_partition(new.cluster_id, new.topic, new.topic_id, new.partition, new.first_offset)
            return True

    def _open_partition(self, cluster_id: str, topic: str, topic_id: str, partition: int, offset: int) -> None:
        values = {"cluster_id": cluster_id, "topic": topic, "topic_id": topic_id}
        self._connection.execute(self._sql["open_partition"], {**values, "partition": partition, "offset": offset})

    def _take_back(self, old: Partition, from_offset: int) -> None:
        execute = self._connection.execute
        execute(self._sql["cut_events"], (old.id, from_offset))
        execute(self._sql["cut_dead_letters"], (old.id, from_offset))
        execute(self._sql["cut_gaps"], (old.id, from_offset))
        execute(self._sql["shorten_gap"], {"id": old.id, "offset": from_offset})
        execute(self._sql["set_back"], {"id": old.id, "offset": from_offset})
        _note(self._connection, "take_back", old.id, from_offset, old.next_offset)

    # Reading

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all reads inside see one state of the history; keep it short, it holds the WAL."""
        with transaction(self._connection, "deferred"):
            yield

    def partitions(self, topic: str | None = None) -> list[Partition]:
        """Give the rows of one topic name, or of all, open and closed, oldest first."""
        rows = self._read("all_partitions") if topic is None else self._read("partitions_of", topic)
        return [Partition._make((*row[:8], Anchor(row[8], row[9]) if row[9] else None, row[10])) for row in rows]

    def changes_after(self, seq: int) -> list[Change]:
        """Give the changes behind this one, oldest first."""
        return [Change(*row) for row in self._read("changes_after", seq)]

    def nonce_of_change(self, seq: int) -> bytes | None:
        """Give the nonce of one change; None if this history has no such change."""
        return next((nonce for (nonce,) in self._read("nonce_of_change", seq)), None)

    def events_from(self, id_: int, offset: int, limit: int) -> list[EventRow]:
        """Give at most `limit` events of a partition from this offset on, in order."""
        return self._read("events_from", id_, offset, limit)

    def facts_from(self, id_: int, offset: int, limit: int) -> list[tuple[int, int | str, str, int, int]]:
        """Give what is counted of at most `limit` events from this offset on, in order: all but properties."""
        return self._read("facts_from", id_, offset, limit)

    def last_logged_ms(self, id_: int) -> int | None:
        """Give Kafka's timestamp of the last record that is stored of a partition; None without any."""
        return next((logged_ms for (logged_ms,) in self._read("last_logged", id_)), None)

    def oldest_logged_ms(self) -> int | None:
        """Give Kafka's timestamp of the oldest first event of a partition; None without events."""
        oldest: int | None = self._read("oldest_logged")[0][0]
        return oldest

    def taken_back(self, seq: int) -> int:
        """Tell how many of the changes up to this one took events back."""
        return int(self._read("taken_back", seq)[0][0])

    def count_afresh(self, check: str, id_: int, first: int, end: int) -> list[tuple[str, int]]:
        """Count the events of a partition from `first` to below `end` with an aggregate's `check` statement."""
        return self._read(check, id_, first, end)

    def dead_letters_from(self, id_: int, offset: int, limit: int) -> list[DeadLetterRow]:
        """Give at most `limit` dead letters of a partition from this offset on, in order."""
        return self._read("dead_letters_from", id_, offset, limit)

    def gaps_from(self, id_: int, offset: int, limit: int) -> list[Gap]:
        """Give at most `limit` gaps of a partition that end at this offset or behind, in order."""
        return [Gap(*row) for row in self._read("gaps_from", id_, offset, limit)]

    def _read(self, name: str, *values: int | str) -> list[Any]:
        with translated(self._connection.filename):
            return self._connection.execute(self._sql[name], values).fetchall()


def _portions(rows: list[EventRow]) -> Iterator[list[EventRow]]:
    start = 0
    for count in ROWS_PER_STATEMENT:
        while len(rows) - start >= count:
            yield rows[start : start + count]
            start += count


@lru_cache
def _insert_events(count: int) -> str:
    return "insert into events values " + ",".join(["(?1,?,?,?,?,?,?)"] * count)  # noqa: S608 - no value in it


def _note(connection: apsw.Connection, kind: str, *place: int) -> None:
    partition_id, first_offset, next_offset = place or (None, None, None)
    connection.execute(
        queries()["note_change"],
        {
            "kind": kind,
            "partition_id": partition_id,
            "first_offset": first_offset,
            "next_offset": next_offset,
            "at_ms": _now_ms(),
        },
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
