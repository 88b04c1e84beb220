"""A copy of one database: of one moment, beside those who write it, durable and checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from zonerd.errors import Refused, StoreUnavailable
from zonerd.store.database import EVENTS, Kind, queries, translated, untouched
from zonerd.store.files import make_durable, size_bytes

_STEPS_A_LOOK: Final = 1000


def needed_bytes(folder: Path, kind: Kind) -> int:
    """Give how large a copy becomes; raises StoreUnavailable while there is nothing to copy, and Refused."""
    with untouched(folder, kind) as source, translated(folder / kind.name):
        pages = int(source.pragma("page_count")) - int(source.pragma("freelist_count"))
        return pages * int(source.pragma("page_size"))


def copy(folder: Path, kind: Kind, to: Path, tell: Callable[[int], None]) -> None:
    """Copy a database as it is at one moment into the folder `to`, and check the copy; the original is only read.

    `tell` hears how many bytes are there, and may raise to end it. While it lasts, what others write stays in their
    WAL. Raises Refused where the original is damaged, and StoreUnavailable while there is none or where the copy
    cannot be written; what is there of the copy then is its caller's to remove.
    """
    source, target = folder / kind.name, to / kind.name
    with untouched(folder, kind) as connection:
        version = connection.pragma("user_version")
        connection.execute("pragma query_only = off")  # else SQLite takes the copy for a write to the original
        _watch(connection, lambda: tell(size_bytes(target)))
        try:
            with translated(source):
                connection.execute("vacuum into ?", (str(target),))
        except StoreUnavailable as error:  # what fails and is no damage is the copy's disk
            raise StoreUnavailable(f"{target}: {error.__cause__}", error.trouble) from error
    make_durable(target)
    if faults := _faults(to, kind, version, lambda: tell(size_bytes(target))):
        raise Refused(f"{source}: its copy is not sound: {'; '.join(faults)}; `zonerd verify` checks the original")


def _faults(folder: Path, kind: Kind, version: object, tell: Callable[[], None]) -> list[str]:
    """Find what a copy lacks: the file's integrity, its version, what stands at its positions."""
    with untouched(folder, kind) as connection, translated(folder / kind.name):
        _watch(connection, tell)
        faults = [str(row[0]) for row in connection.execute("pragma integrity_check(3)") if row[0] != "ok"]
        if (found := connection.pragma("user_version")) != version:
            faults.append(f"version {found} instead of {version}")
        unreached = queries("copying.sql")["unreached_partitions" if kind is EVENTS else "unreached_cursors"]
        return faults + [f"nothing stands at its {place}" for (place,) in connection.execute(unreached)]


def _watch(connection: apsw.Connection, tell: Callable[[], None]) -> None:
    def look() -> bool:
        tell()
        return False

    connection.set_progress_handler(look, _STEPS_A_LOOK)
