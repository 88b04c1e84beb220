"""The answers, as pure functions: events become counts, and counts become what Redis must hold."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, get_args

Fact = tuple[int, int | str, str, int, int]
"""What is counted of an event: offset, user_id, activity, timestamp_ms, logged_ms."""

Ranking = Sequence[tuple[str, int]]
"""Names with their counts, count descending, then name."""

Value = str | dict[str, int]
"""A Redis string, or a hash of counts."""

State = Literal["loading", "live", "stopped"]

FullReason = Literal["missing", "rebuilt", "loading", "unknown", "taken_over"]
FULL_REASONS: Final[tuple[FullReason, ...]] = get_args(FullReason)
"""Why everything is sent again: Redis shows nothing; other answers than it was sent; a push that did not end; a publish
that we do not remember; somebody else's."""

OTHER: Final = "(other)"
"""What everything past the cap is published as, and an event's own activity of this name too."""

HARMLESS_CHANGES: Final = frozenset({"open"})
"""Changes of the history that leave every count as it was."""

LOOK_AHEAD: Final = 2
"""Rows to read past the cap: one tells that there are more, one may be an activity called `(other)`."""
RENEW_S: Final = 10.0
"""So often `as_of` is written again while nothing changes."""
FOREIGN_S: Final = 30.0
"""Another publisher whose `as_of` is younger than this is taken to be alive."""


class Form(NamedTuple):
    """One Redis key of an aggregate: what it is called, and how a ranking is written there."""

    key: str
    kind: Literal["hash", "string"]
    write: Callable[[Ranking], Value]


class Aggregate(NamedTuple):
    """One thing that is counted.

    `name` is also its table in rollups.db and the end of its statements' names there (`add_`,
    `top_`, `cut_`); `check` names the statement of events.db that counts one partition afresh.
    """

    name: str
    fold: Callable[[Iterable[Fact]], Mapping[str, int]]
    forms: tuple[Form, ...]
    check: str


def count_activities(facts: Iterable[Fact]) -> Mapping[str, int]:
    """Count events by activity."""
    return Counter([activity for _, _, activity, _, _ in facts])


def as_hash(ranking: Ranking) -> dict[str, int]:
    """Give a ranking as the fields of a hash."""
    return dict(ranking)


def as_pairs(ranking: Ranking) -> str:
    """Give a ranking as JSON `[[name, count], …]`, as readers of the prototype expect it."""
    return json.dumps(ranking, ensure_ascii=False)


AGGREGATES: Final[tuple[Aggregate, ...]] = (
    Aggregate(
        name="total",
        fold=count_activities,
        forms=(Form("{prefix}total", "hash", as_hash), Form("{summary_key}", "string", as_pairs)),
        check="check_total",
    ),
)
"""Everything that is counted; store, cache, summary and verify iterate over it."""


class Place(NamedTuple):
    """How far one partition of the history is folded: up to `offset`, which is not."""

    partition_id: int
    cluster_id: str
    topic: str
    topic_id: str
    partition: int
    open: bool
    offset: int

    @property
    def identity(self) -> tuple[str, str, int]:
        """What of it never changes in one history."""
        return self.cluster_id, self.topic, self.partition

    @property
    def label(self) -> str:
        """Its name in `as_of`."""
        return f"{self.topic}/{self.partition}"


class Cursor(NamedTuple):
    """What of the history is in the answers: all before these places, and every change up to this one."""

    store_id: str
    change_seq: int
    change_nonce: bytes | None
    corrections: int
    events: int
    places: Mapping[int, Place]


class Publish(NamedTuple):
    """One publish, as rollups.db remembers it."""

    fold: int
    nonce: str


class Snapshot(NamedTuple):
    """The answers at one moment, and what Redis was last told of them."""

    rollups_id: str
    fold: int
    cursor: Cursor
    rankings: Mapping[str, Ranking]
    last: Publish | None = None
    pending: Publish | None = None
    resend: bool = False


class AsOf(NamedTuple):
    """What Redis says it holds: whose answers, from which fold, up to which positions."""

    store: str
    rollups: str
    fold: int
    nonce: str
    state: str
    events: int
    published_ms: int
    corrections: int
    cluster: str
    topic_id: str
    positions: Mapping[str, int]

    def fields(self) -> dict[str, str | int]:
        """Give the fields of the hash."""
        fields = self._asdict()
        return {**fields.pop("positions"), **fields}


class Keys(NamedTuple):
    """How the keys in Redis are called."""

    prefix: str
    summary_key: str

    @property
    def as_of(self) -> str:
        """The key that says what all others hold."""
        return f"{self.prefix}as_of"

    def of(self, form: Form) -> str:
        """Give the key of one form of an aggregate."""
        return form.key.format(prefix=self.prefix, summary_key=self.summary_key)


class Need(NamedTuple):
    """What a publish has to do: nothing, an ordinary one, or all again; or why it must not."""

    kind: Literal["nothing", "renew", "ordinary", "full", "held", "foreign"]
    reason: str = ""


def fold(facts: Iterable[Fact]) -> dict[str, Mapping[str, int]]:
    """Give what these events add to each aggregate."""
    facts = list(facts)
    return {aggregate.name: aggregate.fold(facts) for aggregate in AGGREGATES}


def trouble(
    cursor: Cursor, store_id: str, nonce: bytes | None, kinds: Iterable[str], ends: Mapping[int, Place]
) -> str | None:
    """Tell why these answers are not of this history any more, so that they must be counted anew; None if they are.

    `nonce` is that of the cursor's change in the history, `kinds` are the changes behind it, `ends`
    tells for each partition row where it ends.
    """
    if cursor.store_id != store_id:
        return "another_store"
    if cursor.change_nonce != nonce:
        return "another_history"
    for kind in kinds:
        if kind not in HARMLESS_CHANGES:
            return kind
    for id_, place in cursor.places.items():
        end = ends.get(id_)
        if end is None or end.offset < place.offset or end.identity != place.identity:
            return "another_history"
    return None


def capped(ranking: Ranking, events: int, limit: int) -> Ranking:
    """Keep the `limit` most frequent names of a ranking; `events` in all, the rest in `(other)`, last."""
    named = [(name, count) for name, count in ranking if name != OTHER][:limit]
    rest = events - sum(count for _, count in named)
    return [*named, (OTHER, rest)] if rest else named


def publication(snapshot: Snapshot, keys: Keys, limit: int) -> dict[str, Value]:
    """Give exactly what Redis must hold for these answers, by key, `as_of` aside; an empty hash is no key.

    `limit` is `aggregator.max_activities`; the rankings need not go on behind it.
    """
    values: dict[str, Value] = {}
    for aggregate in AGGREGATES:
        ranking = capped(snapshot.rankings[aggregate.name], snapshot.cursor.events, limit)
        values |= {keys.of(form): form.write(ranking) for form in aggregate.forms}
    return values


def as_of(snapshot: Snapshot, nonce: str, state: State, published_ms: int) -> AsOf:
    """Give what Redis must say of itself once it holds these answers.

    A topic's partitions are replaced one by one: those of the incarnation before the newest are left
    out, for their offsets say nothing about the one that is named.
    """
    opened = sorted(place for place in snapshot.cursor.places.values() if place.open)
    newest = {place.topic: (place.cluster_id, place.topic_id) for place in opened}
    places = [place for place in opened if (place.cluster_id, place.topic_id) == newest[place.topic]]
    return AsOf(
        store=snapshot.cursor.store_id,
        rollups=snapshot.rollups_id,
        fold=snapshot.fold,
        nonce=nonce,
        state=state,
        events=snapshot.cursor.events,
        published_ms=published_ms,
        corrections=snapshot.cursor.corrections,
        cluster=places[-1].cluster_id if places else "",
        topic_id=places[-1].topic_id if places else "",
        positions={place.label: place.offset for place in places},
    )


def parse_as_of(fields: Mapping[str, str]) -> AsOf | None:
    """Read the hash back; None where there is none, or none of ours."""
    try:
        return AsOf(
            store=fields["store"],
            rollups=fields["rollups"],
            fold=int(fields["fold"]),
            nonce=fields["nonce"],
            state=fields["state"],
            events=int(fields["events"]),
            published_ms=int(fields["published_ms"]),
            corrections=int(fields["corrections"]),
            cluster=fields["cluster"],
            topic_id=fields["topic_id"],
            positions={name: int(value) for name, value in fields.items() if "/" in name},
        )
    except (KeyError, ValueError):
        return None


def need(shown: AsOf | None, ours: Snapshot, state: State, now_ms: int) -> Need:
    """Tell what a publish of our answers over what Redis shows has to do; `now_ms` is Redis' own clock.

    What Redis shows is trusted only if it is a publish that we remember; whatever else it is, all is
    sent again, but never over another publisher that is alive, and never a step back.
    """
    if shown is None:
        return Need("full", "missing")
    age_s = (now_ms - shown.published_ms) / 1000
    known = Publish(shown.fold, shown.nonce) in (ours.last, ours.pending) and shown.rollups == ours.rollups_id
    if not known and abs(age_s) < FOREIGN_S and _is_foreign(shown, ours):
        return Need("foreign", _who(shown, ours))
    if behind := next(_behind(shown, ours), None):
        return Need("held", behind)
    if reason := _why_full(shown, ours, known=known):
        return Need("full", reason)
    if shown.fold != ours.fold or shown.store != ours.cursor.store_id:
        return Need("ordinary")
    return Need("nothing" if shown.state == state and 0 <= age_s < RENEW_S else "renew")


def _why_full(shown: AsOf, ours: Snapshot, *, known: bool) -> FullReason | None:
    if ours.resend:
        return "rebuilt"
    if shown.state == "loading":
        return "loading"
    if known:
        return None
    return "unknown" if shown.rollups == ours.rollups_id else "taken_over"


def _is_foreign(shown: AsOf, ours: Snapshot) -> bool:
    ours_too = shown.rollups == ours.rollups_id and shown.store == ours.cursor.store_id
    return not ours_too or shown.fold > ours.fold


def _who(shown: AsOf, ours: Snapshot) -> str:
    theirs, us = (shown.store, shown.rollups), (ours.cursor.store_id, ours.rollups_id)
    if theirs == us:
        who = f"a copy of us, store {shown.store}, rollups {shown.rollups}, that is ahead of us"
    else:
        who = f"store {shown.store}, rollups {shown.rollups}; we are store {us[0]}, rollups {us[1]}"
    return f"Redis is kept by {who}; waiting until nothing was heard of it for {FOREIGN_S:.0f} s"


def _behind(shown: AsOf, ours: Snapshot) -> Iterator[str]:
    """Name the positions that Redis shows of our incarnation and history and that we have not reached."""
    if shown.store != ours.cursor.store_id or shown.corrections < ours.cursor.corrections:
        return
    reached: dict[str, int] = {}
    for place in ours.cursor.places.values():
        if (place.cluster_id, place.topic_id) == (shown.cluster, shown.topic_id):
            reached[place.label] = max(place.offset, reached.get(place.label, 0))
    topics = {label.rpartition("/")[0] for label in reached}
    for label, offset in shown.positions.items():
        if label.rpartition("/")[0] in topics and reached.get(label, 0) < offset:
            yield f"Redis shows {label} up to {offset}, and the history is not folded so far yet"
