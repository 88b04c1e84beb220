"""Who a data directory is: the ids of its history and of its answers, read and made anew."""

import uuid
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from zonerd.errors import StoreUnavailable
from zonerd.store.database import EVENTS, ROLLUPS, Kind, open_writer, queries, transaction, translated, untouched


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


def renew(folder: Path, was: Identity) -> Identity:
    """Make another identity of it: same rows, same answers, nothing published yet. Gives who it is now.

    The caller holds the locks of the folder. The history is renamed first: whatever ends this between the two, the
    answers then belong to another history and are counted anew, and no Redis takes them for the original's.
    """
    now = Identity(uuid.uuid4().hex, was.rollups_id and uuid.uuid4().hex)
    with closing(open_writer(folder, EVENTS)) as events, transaction(events):
        events.execute(queries()["rename_store"], {"id": now.store_id})
    if now.rollups_id is not None:
        sql = queries("rollup_queries.sql")
        with closing(open_writer(folder, ROLLUPS)) as rollups, transaction(rollups):
            rollups.execute(sql["rename_answers"], {"id": now.rollups_id})
            rollups.execute(sql["follow_store"], {"was": was.store_id, "now": now.store_id})
    return now


def _asked(folder: Path, kind: Kind, statement: str) -> str | None:
    """Give the first value that a statement gives."""
    with untouched(folder, kind) as connection, translated(folder / kind.name):
        return next((str(row[0]) for row in connection.execute(statement)), None)
