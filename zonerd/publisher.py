"""Answers → Redis: what it lacks is sent in one transaction, and only over what it said it holds."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Final, Literal, get_args

from zonerd import metrics, rollups
from zonerd.cache import Cache, Rejected, View
from zonerd.errors import ANSWER_IS_NO, Overtaken, ZonerdError
from zonerd.log import Log
from zonerd.rollups import OTHER, AsOf, Publish, Ranking, Snapshot, State, Value
from zonerd.store.answers import Answers

COUNT_EVERY_S: Final = 10.0
"""So often activities past the cap are counted: a million take some 40 ms."""
CHUNK_KEYS: Final = 1000
"""So many keys go in one transaction when everything is sent again."""

Result = Literal["sent", "renewed", "full", "unchanged", "held", "foreign", "overtaken", "failed"]
RESULTS: Final[tuple[Result, ...]] = get_args(Result)
"""What becomes of an attempt to publish: Redis has what is new; it has it again, or all of it; it had it already; it
shows more than we have; it belongs to another; another wrote meanwhile; it does not serve, or rollups.db does not."""
SHOWN: Final[tuple[Result, ...]] = ("sent", "renewed", "full", "unchanged")
"""Results after which Redis shows the newest answers."""

_RESULTS_OF: Final[dict[str, Result]] = {
    "ordinary": "sent", "renew": "renewed", "full": "full", "nothing": "unchanged",
}  # fmt: skip


class Withheld(ZonerdError):
    """Nothing may be published now: Redis shows more than we have, or belongs to another."""

    exit_code = ANSWER_IS_NO

    def __init__(self, kind: Literal["held", "foreign"], reason: str) -> None:
        super().__init__(reason)
        self.kind: Literal["held", "foreign"] = kind


class Publisher:
    """Brings one Redis up to the answers of one rollups.db, at most `limit` activities by name.

    `beat` is called between the chunks of a full push, so that it is not taken for a hang.
    """

    def __init__(
        self,
        answers: Answers,
        limit: int,
        log: Log,
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answers = answers
        self._limit = limit
        self._log = log
        self._beat = beat
        self._clock = clock
        self._confirmed: tuple[int, State] | None = None
        self._confirmed_at = 0.0
        self._capped = False
        self._counted_at = -COUNT_EVERY_S

    def publish(self, cache: Cache, state: State = "live") -> Result:
        """Let Redis show the answers as they stand; cheap when it does already. Gives one of SHOWN.

        The order is the contract: Redis is read and watched, then the answers are read (so they are
        never older than what we ourselves had sent), then the publish is remembered as pending, then
        it is sent, then confirmed. Raises Withheld, Overtaken (another wrote meanwhile) and
        ServiceUnavailable; each leaves Redis showing one whole fold, or saying that it is loading.
        """
        with cache.watch() as view:
            snapshot = self._answers.read(self._limit + rollups.LOOK_AHEAD)
            if snapshot is None:
                return "unchanged"
            need = rollups.need(view.shown, snapshot, state, view.now_ms)
            if need.kind in ("held", "foreign"):
                raise Withheld(need.kind, need.reason)
            if need.kind == "full":
                loading = self._begin_loading(view, snapshot, need.reason)
            elif need.kind == "ordinary":
                self._send(view, snapshot, state)
            else:
                self._renew(view, snapshot, state, write=need.kind == "renew")
        if need.kind == "full":
            self._fill(cache, snapshot, state, loading)
        self._note_activities(snapshot.rankings["total"])
        self._confirmed, self._confirmed_at = (snapshot.fold, state), self._clock()
        return _RESULTS_OF[need.kind]

    def is_due(self, fold: int) -> bool:
        """Tell whether Redis has to be looked at: it was not told this fold, or not for 10 s."""
        return self._confirmed != (fold, "live") or self._clock() - self._confirmed_at >= rollups.RENEW_S

    def _send(self, view: View, snapshot: Snapshot, state: State) -> None:
        publish = self._pending(snapshot)
        values = rollups.publication(snapshot, view.keys, self._limit)
        try:
            _write(view, values, rollups.as_of(snapshot, publish.nonce, state, view.now_ms))
        except Rejected:
            self._answers.demand_resend()
            raise
        self._answers.confirm(publish)
        self._log.debug("published", fold=snapshot.fold, events=snapshot.cursor.events, keys=len(values))

    def _renew(self, view: View, snapshot: Snapshot, state: State, *, write: bool) -> None:
        """Say again that what Redis shows is current; the same values, so the same nonce."""
        if view.shown is None:
            return
        shown = Publish(view.shown.fold, view.shown.nonce)
        if shown != snapshot.last:
            self._answers.confirm(shown)  # its answer never came, but it had arrived
        if write:
            _write(view, {}, rollups.as_of(snapshot, shown.nonce, state, view.now_ms))

    def _begin_loading(self, view: View, snapshot: Snapshot, reason: str) -> str:
        metrics.AGGREGATOR_FULL_PUSHES.labels(reason).inc()
        self._log.info("full_push_started", reason=reason, fold=snapshot.fold)
        loading = uuid.uuid4().hex
        _write(view, {}, rollups.as_of(snapshot, loading, "loading", view.now_ms))
        return loading

    def _fill(self, cache: Cache, snapshot: Snapshot, state: State, loading: str) -> None:
        values = rollups.publication(snapshot, cache.keys, self._limit)
        for chunk in _chunks(values):
            self._beat()
            with _still(cache, loading) as view:
                _write(view, chunk, rollups.as_of(snapshot, loading, "loading", view.now_ms))
        publish = self._pending(snapshot)
        with _still(cache, loading) as view:
            _write(view, {}, rollups.as_of(snapshot, publish.nonce, state, view.now_ms))
        self._answers.confirm(publish, full=True)
        self._log.info("full_push_finished", fold=snapshot.fold, events=snapshot.cursor.events, keys=len(values))

    def _pending(self, snapshot: Snapshot) -> Publish:
        publish = Publish(snapshot.fold, uuid.uuid4().hex)
        self._answers.note_pending(publish)
        return publish

    def _note_activities(self, ranking: Ranking) -> None:
        """Tell how many activities there are; of a ranking that was cut off, that has to be asked."""
        capped = sum(name != OTHER for name, _ in ranking) > self._limit
        if not capped:
            metrics.AGGREGATOR_ACTIVITIES.set(len(ranking))
        elif self._clock() - self._counted_at >= COUNT_EVERY_S:
            self._counted_at = self._clock()
            metrics.AGGREGATOR_ACTIVITIES.set(self._answers.activities())
        if capped and not self._capped:
            self._log.warning("activities_capped", max_activities=self._limit)
        self._capped = capped


def _write(view: View, values: Mapping[str, Value], as_of: AsOf) -> None:
    view.send(values, as_of)
    metrics.AGGREGATOR_KEYS_WRITTEN.inc(len(values) + 1)


@contextmanager
def _still(cache: Cache, loading: str) -> Iterator[View]:
    """Watch Redis while it says that it is being filled by us; raises Overtaken if it says anything else."""
    with cache.watch() as view:
        if view.shown is None or view.shown.nonce != loading:
            raise Overtaken("Redis was written by another while it was filled")
        yield view


def _chunks(values: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
    items = iter(values.items())
    while chunk := dict(islice(items, CHUNK_KEYS)):
        yield chunk
