"""Runs zonerd with one thing changed, killed at a point or deliberately broken: `changes.py NAME its arguments`."""
# ruff: noqa: ANN401, N802 - it stands in for functions of others, and calls them as they are called

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from itertools import count
from types import SimpleNamespace
from typing import Any

import apsw
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from zonerd import cli, consumer
from zonerd.events import Slice
from zonerd.incarnation import Topic
from zonerd.kafka import connection, reader
from zonerd.kafka.cluster import Cluster
from zonerd.kafka.reader import NOTHING_TAKEN, Reader, Taken
from zonerd.store import database, history
from zonerd.store.history import History

KEPT: list[object] = []
BATCHES_BEFORE = 3
"""So many batches are stored before the kill: it comes in the middle of work."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Points of death


def after_consume() -> None:
    take, batches = Reader.take, count()

    def taking(self: Reader, limit: int, wait_s: float) -> Taken:
        taken = take(self, limit, wait_s)
        if taken.records and next(batches) >= BATCHES_BEFORE:
            die()
        return taken

    Reader.take = taking  # type: ignore[method-assign]


def after_begin() -> None:
    _before_statement("update partitions\nset next_offset")


def after_fence() -> None:
    _before_statement("insert into events")


def mid_insert() -> None:
    _before_statement("insert into events", 3)


def before_commit() -> None:
    _before_statement("commit")


def before_telling_kafka() -> None:
    append, batches = History.append, count()

    def appending(self: History, slices: Sequence[Slice], ids: Mapping[int, int]) -> list[int]:
        fenced = append(self, slices, ids)
        if next(batches) >= BATCHES_BEFORE:
            die()
        return fenced

    History.append = appending  # type: ignore[method-assign]


def in_checkpoint() -> None:
    """In WAL mode only a checkpoint writes to the file itself."""
    writes = count()

    class Dying(apsw.VFSFile):
        def xWrite(self, data: bytes, offset: int) -> None:
            super().xWrite(data, offset)
            if history_is_made and next(writes) >= 5:
                die()

    class Watching(apsw.VFS):
        def __init__(self) -> None:
            super().__init__("watching", "unix", makedefault=True)

        def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
            if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
                return Dying("unix", name, flags)
            return super().xOpen(name, flags)

    history_is_made: list[bool] = []
    database._WRITER_SETTINGS = database._WRITER_SETTINGS.replace("4000", "10")  # type: ignore[misc]
    KEPT.append(Watching())
    append = History.append

    def appending(self: History, slices: Sequence[Slice], ids: Mapping[int, int]) -> list[int]:
        history_is_made.append(True)
        return append(self, slices, ids)

    History.append = appending  # type: ignore[method-assign]


def _before_statement(beginning: str, of_a_batch: int = 1) -> None:
    """Die before this statement is executed, the n-th of its kind in a transaction that appends."""
    open_writer = history.open_writer
    begun, seen = count(), count(1)
    state = {"batch": -1, "appending": False}

    def trace(_cursor: object, sql: str, _values: object) -> bool:
        nonlocal seen
        if sql.startswith("begin"):
            seen = count(1)
            state["appending"] = False
        if sql.startswith("update partitions\nset next_offset") and not state["appending"]:
            state["appending"] = True
            state["batch"] = next(begun)
        ripe = state["appending"] and state["batch"] >= BATCHES_BEFORE
        if ripe and sql.startswith(beginning) and next(seen) == of_a_batch:
            die()
        return True

    def opening(*place: Any) -> apsw.Connection:
        connection = open_writer(*place)
        connection.exec_trace = trace
        return connection

    history.open_writer = opening


def pausing() -> None:
    """Stop (SIGSTOP) once, with a batch in hand."""
    append, batches = History.append, count()

    def appending(self: History, slices: Sequence[Slice], ids: Mapping[int, int]) -> list[int]:
        if next(batches) == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return append(self, slices, ids)

    History.append = appending  # type: ignore[method-assign]


def nothing() -> None:
    """Change nothing."""


# Circumstances


def blind_for_a_while() -> None:
    """Take the topic for the known one until 1000 offsets are stored: it was replaced since the last look."""
    recognise, check = Topic.recognise, consumer.Consumer._check

    def recognising(self: Topic) -> Any:
        rows = [row for row in self._history.partitions() if row.open]
        if rows[0].next_offset >= 1000:
            return recognise(self)
        return self._find(), {row.partition: row for row in rows}

    def checking(self: consumer.Consumer) -> None:
        if min(self._next.values()) >= 1000:
            check(self)
            self.forget()

    Topic.recognise = recognising  # type: ignore[method-assign]
    consumer.Consumer._check = checking  # type: ignore[method-assign]


def no_ids_for_a_while() -> None:
    describe, asked = Cluster._describe, count()

    def describing(self: Cluster) -> Any:
        if next(asked) > 2:
            return describe(self)
        refused: Future[Any] = Future()
        refused.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))
        return refused

    Cluster._describe = describing  # type: ignore[method-assign]


def disk_by_file() -> None:
    """The disk is full while the file named in DISK_IS_FULL is there."""
    statvfs, full = os.statvfs, os.environ["DISK_IS_FULL"]

    def looking(path: str) -> Any:
        return SimpleNamespace(f_bavail=0, f_frsize=1) if os.path.exists(full) else statvfs(path)  # noqa: PTH110

    os.statvfs = looking  # type: ignore[assignment]


def sqlite_full_for_a_while() -> None:
    """SQLite finds no room in the middle of the second and third transaction, as it says itself."""
    insert, batches = History._insert, count()

    def inserting(self: History, id_: int, piece: Slice) -> None:
        if 1 <= next(batches) <= 2:
            pages = self._connection.pragma("page_count")
            self._connection.execute(f"pragma max_page_count = {pages}")
        try:
            insert(self, id_, piece)
            self._connection.execute("create table filler as select zeroblob(100000)") if self._connection.pragma(
                "max_page_count"
            ) < 10**6 else None
        finally:
            self._connection.execute("pragma max_page_count = 1073741823")

    History._insert = inserting  # type: ignore[method-assign]


# Callbacks that raise


def _raise(*_: object) -> None:
    raise RuntimeError("a callback of the client's has failed")


def raising_statistics() -> None:
    build = connection.build
    reader.build = lambda client, values: build(  # type: ignore[attr-defined]
        client, {**values, "statistics.interval.ms": 50, "stats_cb": _raise}
    )


def raising_error() -> None:
    connection.Notes.on_error = _raise  # type: ignore[assignment,method-assign]


def raising_log() -> None:
    connection.Notes.emit = _raise  # type: ignore[assignment,method-assign]
    build = connection.build
    reader.build = lambda client, values: build(  # type: ignore[attr-defined]
        client, {**values, "debug": "fetch", "log_level": 7}
    )


def raising_commit() -> None:
    Reader._on_commit = _raise  # type: ignore[assignment,method-assign]


def failing_consume() -> None:
    """One consume() in three takes its records and raises all the same."""
    build, calls = connection.build, count(1)

    class Failing:
        def __init__(self, client: Any) -> None:
            self.client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self.client, name)

        def consume(self, *place: Any) -> Any:
            messages = self.client.consume(*place)
            if messages and next(calls) in (3, 6, 9):
                raise KafkaException(KafkaError(KafkaError._TRANSPORT))
            return messages

    def building(client: Any, values: dict[str, Any]) -> Any:
        return Failing(build(client, values))

    reader.build = building  # type: ignore[attr-defined]


# Deliberately broken


def without_primary_key() -> None:
    """The fence alone must keep records from being stored twice."""
    read = database.files

    class Schema:
        def __init__(self, place: Any) -> None:
            self.place = place

        def joinpath(self, *names: str) -> "Schema":
            return Schema(self.place.joinpath(*names))

        def read_text(self, encoding: str) -> str:
            key = r",([^,\n]*)\n  primary key \(partition_id, offset\)\n\) strict, without rowid"
            text, tables = re.subn(key, r"\1\n) strict", self.place.read_text(encoding=encoding))
            assert tables == (2 if "create table events" in text else 0)
            return text

    database.files = lambda package: Schema(read(package))  # type: ignore[attr-defined]


def without_fence() -> None:
    """Neither fence nor primary key: each process believes that it is alone."""
    without_primary_key()
    fenced = " and next_offset = :expected and closed_ms is null"
    assert fenced in database.queries()["take_fence"]
    database.queries()["take_fence"] = database.queries()["take_fence"].replace(fenced, " and :expected >= 0")


def without_fence_but_key() -> None:
    """Without the fence the primary key still refuses a second copy: by a crash."""
    fenced = " and next_offset = :expected and closed_ms is null"
    database.queries()["take_fence"] = database.queries()["take_fence"].replace(fenced, " and :expected >= 0")


def tells_kafka_first() -> None:
    """Offsets go to Kafka before the store, and a start begins at Kafka's."""
    store, assign = consumer.Consumer._store, Reader.assign
    recognise = consumer.Consumer._recognise

    def storing(self: consumer.Consumer, slices: list[Slice], taken: Taken = NOTHING_TAKEN) -> None:
        if slices:
            places = [TopicPartition(self._config.kafka.topic, one.partition, one.next_offset) for one in slices]
            self._reader._consumer.commit(offsets=places, asynchronous=False)
        store(self, slices, taken)

    def recognising(self: consumer.Consumer) -> None:
        recognise(self)
        offsets = {**self._next, **self._cluster.committed(tuple(self._next))}
        assign(self._reader, offsets)

    consumer.Consumer._store = storing  # type: ignore[method-assign]
    consumer.Consumer._recognise = recognising  # type: ignore[method-assign]


if __name__ == "__main__":
    for name in sys.argv[1].split(","):
        change: Callable[[], None] = globals()[name]
        change()
    cli.main(sys.argv[2:])
