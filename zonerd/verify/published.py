"""Redis against the answers: exactly what they say, of one and the same fold."""

import time
from typing import Final

from zonerd import rollups
from zonerd.cache import Cache, Published
from zonerd.config import Config
from zonerd.errors import ServiceUnavailable
from zonerd.rollups import Publish, Snapshot, Value
from zonerd.store.answers import Answers
from zonerd.store.database import ROLLUPS
from zonerd.verify.report import Findings, Part

STILL_S: Final = 3.0
"""After so long without a step of either, Redis is not being brought up to the answers any more."""
PATIENCE_S: Final = 20.0
"""So long the same fold is waited for beside an aggregator that goes on."""

_RETRY_S: Final = 0.02
_TOLD_NAMES: Final = 3


def check_redis(answers: Answers, cache: Cache, config: Config) -> Part:
    """Compare what Redis holds, at one moment, with what rollups.db says for the same fold.

    Beside a living aggregator both are looked at until they are of one fold.
    """
    findings = Findings("redis")
    limit = config.aggregator.max_activities
    published, snapshot = _of_one_fold(answers, cache, limit, max(STILL_S, 4 * config.aggregator.interval_s))
    if published is None:
        findings.differ(f"{cache.keys.as_of} is not there, or is none of ours: nothing says what Redis holds")
        return findings.part("not published", {"fold": None, "state": None})
    shown = published.as_of
    figures = {
        "fold": shown.fold, "state": shown.state, "age_s": round(published.age_s, 3), "events": shown.events,
        "keys": len(published.values), "positions": dict(shown.positions),
    }  # fmt: skip
    said = f"fold {shown.fold}, state {shown.state}, written {published.age_s:,.1f} s ago"
    if not _is_known(published, snapshot):
        findings.differ(_stranger(published, snapshot))
        return findings.part(said, figures)
    _compare(published, snapshot, rollups.publication(snapshot, cache.keys, limit), cache, findings)
    return findings.part(f"{len(published.values):,} keys of {shown.events:,} events · {said}", figures)


def _of_one_fold(answers: Answers, cache: Cache, limit: int, still_s: float) -> tuple[Published | None, Snapshot]:
    """Read Redis, then the answers, until both are of one fold, or neither moves any more."""
    begin = moved_at = time.monotonic()
    before: tuple[object, ...] | None = None
    while True:
        published = cache.read()
        snapshot = answers.read(limit + rollups.LOOK_AHEAD)
        if snapshot is None:
            raise ServiceUnavailable("store", f"{ROLLUPS.name}: nothing is folded yet")
        if published is not None and _is_known(published, snapshot):
            return published, snapshot
        now = time.monotonic()
        state = (published and published.as_of._replace(published_ms=0), snapshot.fold)
        if state != before:
            before, moved_at = state, now
        if now - moved_at > still_s or now - begin > PATIENCE_S:
            return published, snapshot
        time.sleep(_RETRY_S)


def _is_known(published: Published, snapshot: Snapshot) -> bool:
    """Whether Redis shows, whole, a publish of these very answers at this fold."""
    shown = published.as_of
    return (
        (shown.rollups, shown.store, shown.fold) == (snapshot.rollups_id, snapshot.cursor.store_id, snapshot.fold)
        and shown.state != "loading"
        and Publish(shown.fold, shown.nonce) in (snapshot.last, snapshot.pending)
    )


def _stranger(published: Published, snapshot: Snapshot) -> str:
    shown = published.as_of
    if shown.store != snapshot.cursor.store_id:
        return f"Redis is kept by another store, {shown.store}; ours is {snapshot.cursor.store_id}"
    if shown.rollups != snapshot.rollups_id:
        return f"Redis is kept by another rollups.db, {shown.rollups}; ours is {snapshot.rollups_id}"
    if shown.state == "loading":
        return "Redis is being filled (state loading), and is no nearer to its end"
    if shown.fold != snapshot.fold:
        return f"Redis shows fold {shown.fold}, {ROLLUPS.name} stands at fold {snapshot.fold}"
    return f"Redis shows a publish of fold {shown.fold} that {ROLLUPS.name} does not know (nonce {shown.nonce!r})"


def _compare(
    published: Published, snapshot: Snapshot, expected: dict[str, Value], cache: Cache, findings: Findings
) -> None:
    shown = published.as_of
    wanted = rollups.as_of(snapshot, shown.nonce, "live", shown.published_ms)._replace(state=shown.state)
    for name, theirs in shown._asdict().items():
        ours = wanted._asdict()[name]
        if theirs != ours:
            findings.differ(f"{cache.keys.as_of}: {name} is {theirs!r}, {ROLLUPS.name} says {ours!r}")
    if shown.state not in ("live", "stopped"):
        findings.differ(f"{cache.keys.as_of}: state {shown.state!r} is none of ours")
    for key, value in expected.items():
        if published.values.get(key) != value:
            findings.differ(f"{key}: {_what_differs(published.values.get(key), value)}")


def _what_differs(theirs: Value | None, ours: Value) -> str:
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return f"is not what {ROLLUPS.name} makes of it"
    names = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    told = ", ".join(f"{name!r} {theirs.get(name)} instead of {ours.get(name)}" for name in names[:_TOLD_NAMES])
    return told + (f", and {len(names) - _TOLD_NAMES} more" if len(names) > _TOLD_NAMES else "")
