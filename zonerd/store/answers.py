"""rollups.db: the answers, moved together with their cursor, under a fence."""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import apsw

from zonerd.errors import Overtaken, StoreUnavailable
from zonerd.rollups import AGGREGATES, Cursor, Place, Publish, Snapshot
from zonerd.store.database import ROLLUPS, open_reader, open_writer, queries, transaction, translated

CUT_ROWS: Final = 5000
"""So many rows of a generation that nobody reads any more go in one transaction."""
_ALL: Final = -1


class Work(NamedTuple):
    """Where folding goes on: in the generation that readers see, or in the one that a rebuild fills."""

    fold: int
    generation: int
    rebuilding: bool
    cursor: Cursor | None


class Answers:
    """The answers of one data directory, open for reading or for writing.

    Every method may raise StoreUnavailable (nothing was written; try again later) and Refused.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._sql = queries("rollup_queries.sql")

    @classmethod
    def open_writer(cls, data_dir: Path) -> Self:
        """Open the answers for folding, making the file, with an id of its own, if there is none."""
        connection = open_writer(data_dir, ROLLUPS)
        with transaction(connection):
            values = (uuid.uuid4().hex, time.time_ns() // 1_000_000)
            connection.execute(queries("rollup_queries.sql")["new_answers"], values)
        return cls(connection)

    @classmethod
    def open_reader(cls, data_dir: Path) -> Self:
        """Open the answers for reading; raises StoreUnavailable while there are none."""
        return cls(open_reader(data_dir, ROLLUPS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def hurry(self, wait_ms: int) -> None:
        """Wait no longer than this for another process' transaction from now on."""
        self._connection.set_busy_timeout(wait_ms)

    # Folding

    def work(self) -> Work:
        """Tell where folding goes on."""
        with transaction(self._connection, "deferred"):
            fold, live, building = self._answers()[1:4]
            generation = live if building is None else building
            cursor = self._cursor(generation)
            return Work(fold, generation, building is not None, cursor and cursor[1])

    def advance(
        self, work: Work, cursor: Cursor, added: Mapping[str, Mapping[str, int]], *, swap: bool = False
    ) -> None:
        """Add counts and move the cursor of this work in one transaction; `swap` shows a rebuild to readers.

        Raises Overtaken, nothing written, if another process has moved any cursor since `work()`.
        """
        before = work.cursor.places if work.cursor else {}
        with transaction(self._connection):
            self._take_fence(work.fold)
            self._write_cursor(work.generation, work.fold + 1, cursor)
            for id_, place in cursor.places.items():
                if before.get(id_) != place:
                    self._connection.execute(self._sql["set_place"], (work.generation, *place))
            for aggregate in AGGREGATES:
                rows = [(work.generation, *row) for row in added[aggregate.name].items()]
                self._connection.executemany(self._sql[f"add_{aggregate.name}"], rows)
            if swap:
                self._connection.execute(self._sql["swap"])

    def begin_rebuild(self, work: Work, cursor: Cursor) -> None:
        """Begin an empty generation beside the one that readers see; one that was being built is dropped.

        Raises Overtaken, nothing written, if another process has moved any cursor since `work()`.
        """
        with transaction(self._connection):
            self._take_fence(work.fold)
            newest = self._rows("newest_generation")[0][0]
            self._connection.execute(self._sql["begin_rebuild"], (newest + 1,))
            self._write_cursor(newest + 1, work.fold + 1, cursor)

    def cut_left_over(self) -> bool:
        """Delete a slice of a generation that nobody reads any more; False if there is none."""
        with translated(self._connection.filename):
            generation = next((row[0] for row in self._rows("left_over")), None)
        if generation is None:
            return False
        with transaction(self._connection):
            if not self._cut(generation):
                self._connection.execute(self._sql["cut_places"], (generation,))
                self._connection.execute(self._sql["cut_cursor"], (generation,))
        return True

    def _cut(self, generation: int) -> int:
        cut = 0
        for aggregate in AGGREGATES:
            values = {"generation": generation, "rows": CUT_ROWS}
            self._connection.execute(self._sql[f"cut_{aggregate.name}"], values)
            cut += self._connection.changes()
        return cut

    def _take_fence(self, fold: int) -> None:
        self._connection.execute(self._sql["take_fence"], {"fold": fold})
        if self._connection.changes() == 0:
            raise Overtaken(f"{ROLLUPS.name}: another aggregator has folded beside this one")

    def _write_cursor(self, generation: int, fold: int, cursor: Cursor) -> None:
        values = (generation, fold, *cursor[:5])
        self._connection.execute(self._sql["set_cursor"], values)

    # Publishing

    def note_pending(self, publish: Publish) -> None:
        """Remember a publish before it is sent, so that it is known even if its answer never comes."""
        self._write("note_pending", publish)

    def confirm(self, publish: Publish, *, full: bool = False) -> None:
        """Remember that Redis shows this publish; a `full` one ends the demand for one."""
        self._write("confirm", {"fold": publish.fold, "nonce": publish.nonce, "full": full})

    def demand_resend(self) -> None:
        """Let the next publish send everything."""
        self._write("demand_resend", ())

    def _write(self, name: str, values: tuple[Any, ...] | dict[str, Any]) -> None:
        with transaction(self._connection):
            self._connection.execute(self._sql[name], values)

    # Reading

    def read(self, limit: int | None = None) -> Snapshot | None:
        """Give the answers that readers see, of each ranking at most the `limit` first; None before the first fold.

        All of it is one state: the counts are those of exactly the events before the cursor's places.
        """
        with transaction(self._connection, "deferred"):
            id_, _, generation, _, *publishes, resend = self._answers()
            cursor = self._cursor(generation)
            if cursor is None:
                return None
            rankings = {
                aggregate.name: self._rows(f"top_{aggregate.name}", generation, _ALL if limit is None else limit)
                for aggregate in AGGREGATES
            }
        last, pending = (Publish(*pair) if pair[1] else None for pair in (publishes[:2], publishes[2:]))
        return Snapshot(id_, *cursor, rankings, last, pending, bool(resend))

    def activities(self) -> int:
        """Tell how many different activities readers see, all of them counted: some 40 ms a million."""
        with translated(self._connection.filename):
            return int(self._rows("activities")[0][0])

    def _answers(self) -> tuple[Any, ...]:
        rows = self._rows("answers")
        if not rows:
            raise StoreUnavailable(f"{self._connection.filename}: not there yet")  # its writer is about to name it
        return tuple(rows[0])

    def _cursor(self, generation: int) -> tuple[int, Cursor] | None:
        rows = self._rows("cursor", generation)
        if not rows:
            return None
        fold, store_id, change_seq, change_nonce, corrections, events = rows[0]
        places = {
            id_: Place(id_, cluster_id, topic, topic_id, partition, bool(open_), offset)
            for id_, cluster_id, topic, topic_id, partition, open_, offset in self._rows("places", generation)
        }
        return fold, Cursor(store_id, change_seq, change_nonce, corrections, events, places)

    def _rows(self, name: str, *values: int) -> list[Any]:
        return self._connection.execute(self._sql[name], values).fetchall()
