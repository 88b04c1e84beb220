"""A database seen at a glance: at a cost that does not grow with it."""

from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import apsw

from zonerd.errors import Refused
from zonerd.store.database import Kind, translated, untouched

_OBJECTS = "select type || ' ' || name from sqlite_master where name not like 'sqlite_%'"


class Inspection(NamedTuple):
    """What a file holds; `missing` are the tables, indexes and views of its schema that it has not."""

    version: int
    file_bytes: int
    wal_bytes: int
    missing: tuple[str, ...]


def inspect(folder: Path, kind: Kind) -> Inspection:
    """Look at a file's header, schema and size; raises Refused and StoreUnavailable as opening it does."""
    path = folder / kind.name
    wal = path.with_name(f"{path.name}-wal")
    if not path.exists() and wal.exists():
        raise Refused(f"{path}: missing, but {wal.name} is there: put its file back, or move it away")
    with untouched(folder, kind) as connection, translated(path):
        version = int(connection.pragma("user_version"))
        missing = _wanted(kind) - _objects(connection)
        wal_bytes = wal.stat().st_size if wal.exists() else 0
        return Inspection(version, path.stat().st_size, wal_bytes, tuple(sorted(missing)))


def _wanted(kind: Kind) -> set[str]:
    with closing(apsw.Connection(":memory:")) as connection:
        connection.execute(files("zonerd").joinpath("sql", kind.schema).read_text(encoding="utf-8"))
        return _objects(connection)


def _objects(connection: apsw.Connection) -> set[str]:
    return {str(row[0]) for row in connection.execute(_OBJECTS)}
