"""Who a data directory is: the ids of its history and of its answers, read at a glance."""

from pathlib import Path
from typing import NamedTuple

from zonerd.errors import StoreUnavailable
from zonerd.store.database import EVENTS, ROLLUPS, Kind, queries, translated, untouched


class Identity(NamedTuple):
    """Whose history it is, and whose answers; None without answers."""

    store_id: str
    rollups_id: str | None


def identity(folder: Path) -> Identity:
    """Give who this is; raises StoreUnavailable while there is no history, and Refused. Writes nothing."""
    store_id = _asked(folder, EVENTS, queries()["store_id"])
    if store_id is None:
        raise StoreUnavailable(f"{folder / EVENTS.name}: not there yet")
    answered = (folder / ROLLUPS.name).exists()
    return Identity(store_id, _asked(folder, ROLLUPS, queries("rollup_queries.sql")["answers"]) if answered else None)


def _asked(folder: Path, kind: Kind, statement: str) -> str | None:
    """Give the first value that a statement gives."""
    with untouched(folder, kind) as connection, translated(folder / kind.name):
        return next((str(row[0]) for row in connection.execute(statement)), None)
