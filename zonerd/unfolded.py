"""What of the history is not folded yet: one look at it, behind a cursor."""

from typing import Final, NamedTuple

from zonerd import rollups
from zonerd.rollups import Cursor, Fact, Place
from zonerd.store.history import History

SLICE_EVENTS: Final = 50_000
"""One fold takes no more: so long a reader holds the WAL, and so much memory it needs."""


class Reading(NamedTuple):
    """What one look at the history found behind a cursor: `trouble` asks for a rebuild from `cursor` on."""

    cursor: Cursor
    facts: list[Fact]
    behind: int
    trouble: str | None


def read_on(history: History, cursor: Cursor | None) -> Reading:
    """Look at one state of the history: changes first, then a slice of events behind the cursor."""
    with history.snapshot():
        partitions = history.partitions()
        ends = {
            row.id: Place(row.id, row.cluster_id, row.topic, row.topic_id, row.partition, row.open, row.next_offset)
            for row in partitions
        }
        if cursor is None:
            cursor = _fresh(history)
        changes = history.changes_after(cursor.change_seq)
        nonce = history.nonce_of_change(cursor.change_seq)
        trouble = rollups.trouble(cursor, history.store_id, nonce, [change.kind for change in changes], ends)
        if trouble is not None:
            return Reading(_fresh(history), [], 1, trouble)
        starts = {
            row.id: cursor.places[row.id].offset if row.id in cursor.places else row.first_offset for row in partitions
        }
        facts, places = _slice(history, starts, ends)
    if changes:
        cursor = cursor._replace(change_seq=changes[-1].seq, change_nonce=changes[-1].nonce)
    cursor = cursor._replace(events=cursor.events + len(facts), places=places)
    return Reading(cursor, facts, sum(ends[id_].offset - place.offset for id_, place in places.items()), None)


def _fresh(history: History) -> Cursor:
    """Give the cursor before the first event, behind all changes that there are."""
    changes = history.changes_after(0)
    seq, nonce = (changes[-1].seq, changes[-1].nonce) if changes else (0, None)
    return Cursor(history.store_id, seq, nonce, history.taken_back(seq), 0, {})


def _slice(history: History, starts: dict[int, int], ends: dict[int, Place]) -> tuple[list[Fact], dict[int, Place]]:
    """Take events of all partitions that have some, in fair shares; a partition without more is at its end."""
    offsets = dict(starts)
    facts: list[Fact] = []
    behind = [id_ for id_, end in ends.items() if offsets[id_] < end.offset]
    while behind and len(facts) < SLICE_EVENTS:
        share = max(1, (SLICE_EVENTS - len(facts)) // len(behind))
        for id_ in behind[: SLICE_EVENTS - len(facts)]:
            taken = history.facts_from(id_, offsets[id_], share)
            facts += taken
            offsets[id_] = taken[-1][0] + 1 if len(taken) == share else ends[id_].offset
        behind = [id_ for id_ in behind if offsets[id_] < ends[id_].offset]
    return facts, {id_: end._replace(offset=offsets[id_]) for id_, end in ends.items()}
