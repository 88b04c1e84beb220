"""One SQLite file: opened only if it is ours, with the settings on which durability rests."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final, NamedTuple, get_args

import apsw

from zonerd import metrics
from zonerd.errors import Refused, StoreTrouble, StoreUnavailable

SCHEMA_VERSION: Final = 1
PAGE_BYTES: Final = 16384
_WAL_PAGES: Final = 4000
_HEADER_BYTES: Final = 100
_MAGIC: Final = b"SQLite format 3\x00"


class Kind(NamedTuple):
    """What a file of ours is: its name, the application id in its header, and its schema."""

    name: str
    application_id: int
    schema: str


EVENTS: Final = Kind("events.db", 0x7A6F6E45, "events.sql")  # "zonE"
ROLLUPS: Final = Kind("rollups.db", 0x7A6F6E52, "rollups.sql")  # "zonR"

_SETTINGS: Final = """
pragma busy_timeout = 5000;
pragma trusted_schema = off;
pragma mmap_size = 0;
"""
_WRITER_SETTINGS: Final = f"""
pragma synchronous = full;
pragma wal_autocheckpoint = {_WAL_PAGES};
pragma journal_size_limit = 134217728;
"""


def library_version() -> str:
    """Give the version of SQLite that is used."""
    return apsw.sqlite_lib_version()


def limit_wal(connection: apsw.Connection, max_bytes: int) -> None:
    """Let the WAL be written back, and cut, early enough to stay below this size while no reader holds it."""
    pages = max_bytes // 4 // PAGE_BYTES
    if pages < _WAL_PAGES:
        connection.execute(f"pragma wal_autocheckpoint = {pages}")
        connection.execute(f"pragma journal_size_limit = {2 * pages * PAGE_BYTES}")


def open_writer(folder: Path, kind: Kind) -> apsw.Connection:
    """Open this folder's file for writing, making it if there is none.

    Raises Refused, the file untouched, if it is corrupt, foreign or newer than this program, and
    StoreUnavailable if the disk does not let us.
    """
    path = folder / kind.name
    with translated(path):
        _refuse_foreign(path, kind)
        connection = apsw.Connection(str(path))
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # a file that is refused keeps its WAL too
        connection.execute(_SETTINGS)
        _make(connection, kind)
        _refuse_newer(connection, path)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        connection.execute("pragma journal_mode = wal")
        connection.execute(_WRITER_SETTINGS)
        return connection


def open_reader(folder: Path, kind: Kind) -> apsw.Connection:
    """Open this folder's file for reading; raises StoreUnavailable while there is none, else as `open_writer`."""
    path = folder / kind.name
    if not path.exists():
        raise StoreUnavailable(f"{path}: not there yet")
    with translated(path):
        _refuse_foreign(path, kind)
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # as above
        connection.execute(_SETTINGS)
        connection.execute("pragma query_only = on")
        if connection.pragma("application_id") == 0:
            raise StoreUnavailable(f"{path}: not there yet")  # its writer is about to make the tables
        _refuse_newer(connection, path)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        return connection


@contextmanager
def untouched(folder: Path, kind: Kind) -> Iterator[apsw.Connection]:
    """Open this folder's file as `open_reader` does, and leave even the WAL of a killed writer as it is."""
    wal = folder / f"{kind.name}-wal"
    left = wal.exists() and wal.stat().st_size > 0
    with closing(open_reader(folder, kind)) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(left))
        yield connection


@contextmanager
def translated(path: str | Path) -> Iterator[None]:
    """Give SQLite's errors the names of ours: what may pass is StoreUnavailable, damage is Refused."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError) as error:
        _count(path, "damaged")
        raise Refused(f"{path}: damaged: {error}; restore a copy, or move it away") from error
    except tuple(_PASSING) as error:
        trouble = _PASSING.get(type(error), "other")
        _count(path, trouble)
        raise StoreUnavailable(f"{path}: {error}", trouble) from error
    except OSError as error:
        _count(path, "io")
        raise StoreUnavailable(f"{path}: {error.strerror}", "io") from error


TROUBLES: Final[tuple[StoreTrouble, ...]] = get_args(StoreTrouble)

_PASSING: Final[dict[type[apsw.Error], StoreTrouble]] = {
    apsw.FullError: "full",
    apsw.BusyError: "locked",
    apsw.LockedError: "locked",
    apsw.ReadOnlyError: "read_only",
    apsw.IOError: "io",
    apsw.CantOpenError: "io",
    apsw.PermissionsError: "read_only",
    apsw.NoMemError: "other",
}


def _count(path: str | Path, trouble: StoreTrouble) -> None:
    name = Path(path).name
    if name in (EVENTS.name, ROLLUPS.name):
        metrics.STORE_ERRORS.labels(name, trouble).inc()


@contextmanager
def transaction(connection: apsw.Connection, mode: str = "immediate") -> Iterator[None]:
    """Commit all of what happens inside, or nothing of it; errors as `translated` names them."""
    with translated(connection.filename):
        connection.execute(f"begin {mode}")
        try:
            yield
            connection.execute("commit")
        except BaseException:
            if connection.in_transaction:  # SQLITE_FULL has rolled back by itself
                connection.execute("rollback")
            raise


@cache
def queries(file: str = "queries.sql") -> dict[str, str]:
    """Give the statements of one file by the names that stand above them."""
    text = files("zonerd").joinpath("sql", file).read_text(encoding="utf-8")
    blocks = re.split(r"^-- name: (\w+)[^\n]*\n", text, flags=re.MULTILINE)[1:]
    return {name: sql.strip().rstrip(";") for name, sql in zip(blocks[::2], blocks[1::2], strict=True)}


def _refuse_foreign(path: Path, kind: Kind) -> None:
    wal = path.with_name(path.name + "-wal")
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        if wal.exists() and wal.stat().st_size:
            raise Refused(f"{path}: missing or empty, but {wal.name} is there: put its file back, or move both away")
        return
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise Refused(f"{path}: not a database; it was left as it is")
    if int.from_bytes(header[68:72], "big") not in (kind.application_id, 0):
        raise Refused(f"{path}: another program's database; it was left as it is")
    if size < _whole_size(header, wal):
        raise Refused(f"{path}: cut short; restore a copy, or move it away")


def _whole_size(header: bytes, wal: Path) -> int:
    """Give the least size of the file: all its pages, or one, where a WAL may hold the others."""
    page_bytes = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    written_by_one_who_counts = header[24:28] == header[92:96]  # the change counter is the one the page count is for
    alone = not wal.exists() or wal.stat().st_size == 0
    return (page_bytes if page_bytes > 1 else 65536) * (pages if alone and written_by_one_who_counts else 1)


def _refuse_newer(connection: apsw.Connection, path: Path) -> None:
    version = connection.pragma("user_version")
    if version > SCHEMA_VERSION:
        raise Refused(f"{path}: written by a newer zonerd (version {version}; this one knows {SCHEMA_VERSION})")


def _make(connection: apsw.Connection, kind: Kind) -> None:
    """Make the tables, outside WAL: so the file's own header names us from its first byte on."""
    if connection.pragma("application_id") == kind.application_id:
        return
    connection.execute(f"pragma page_size = {PAGE_BYTES}")
    with transaction(connection, "exclusive"):
        if connection.pragma("application_id") == kind.application_id:
            return  # another process was faster
        if connection.execute("select count(*) from sqlite_master").get:
            raise Refused(f"{connection.filename}: another program's database; it was left as it is")
        connection.execute(files("zonerd").joinpath("sql", kind.schema).read_text(encoding="utf-8"))
        connection.execute(f"pragma application_id = {kind.application_id}")
        connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
