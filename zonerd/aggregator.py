"""The aggregator: events.db → rollups.db → Redis, each event counted exactly once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zonerd import metrics, rollups
from zonerd.cache import Cache
from zonerd.config import Config
from zonerd.endpoint import Endpoint, Listening
from zonerd.errors import Overtaken, ServiceUnavailable, StoreUnavailable
from zonerd.health import Health
from zonerd.log import Limited, Log, Progress
from zonerd.metrics import LOOP
from zonerd.publisher import Publisher, Result, Withheld
from zonerd.rollups import RENEW_S, Cursor, State
from zonerd.shutdown import Shutdown
from zonerd.store import database
from zonerd.store.answers import Answers
from zonerd.store.database import EVENTS, ROLLUPS
from zonerd.store.history import History
from zonerd.store.lock import Lock, lock_when_free
from zonerd.store.opened import Opened
from zonerd.tally import Tally
from zonerd.unfolded import Reading, read_on

ROLE: Final = "aggregator"
CHECKS: Final = ("lock", "store", "redis", "summary")

RETRY_S: Final = 1.0
LOCK_WAIT_S: Final = 1.0
STOP_FOLD_S: Final = 2.0
STOP_BUSY_MS: Final = 500
OVERTAKEN_TRIES: Final = 10


class Aggregator:
    """Folds what the history has, and publishes it; holds nothing that a crash could lose.

    `beat` is called between what may take long, so that work is not taken for a hang.
    """

    def __init__(  # noqa: PLR0913 - its edges
        self,
        config: Config,
        log: Log,
        history: History,
        answers: Answers,
        cache: Cache | None,
        tally: Tally,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = log
        self._history = history
        self._answers = answers
        self._cache = cache
        paths = [config.data_dir / kind.name for kind in (EVENTS, ROLLUPS)]
        self._files = {path: _identity(path) for path in paths}
        self._tally = tally
        self._beat = beat
        self._publisher = Publisher(answers, config.aggregator.max_activities, log, beat)
        self._interval_s = config.aggregator.interval_s
        self._checked = False
        self._fold_at = 0.0
        self._publish_at = 0.0
        self._behind = 0
        self._fold = 0
        self.folded = 0

    def fold(self) -> bool:
        """Count the next slice of the history; True while more is stored than is counted.

        The order is the contract: the cursor is read, then one state of the history (its changes
        first, then a slice), then counts and cursor move in one transaction, only if nobody else has
        moved the cursor. Raises Overtaken if somebody has, and StoreUnavailable.
        """
        self._refuse_replaced_files()
        work = self._answers.work()
        reading = read_on(self._history, work.cursor)
        took_s = LOOP.end("decode")
        self._fold = work.fold
        if reading.trouble is not None:
            self._answers.begin_rebuild(work, reading.cursor)
            self._note_rebuild(reading, work.cursor)
            return True
        caught_up = reading.behind == 0
        if reading.cursor != work.cursor or (work.rebuilding and caught_up):
            swap = work.rebuilding and caught_up
            self._answers.advance(work, reading.cursor, rollups.fold(reading.facts), swap=swap)
            took_s += LOOP.end("store")
            anew = work.rebuilding or work.cursor is None
            self._tally.folded(reading.facts, took_s, anew=anew, caught_up=caught_up)
            self._note_folded(work.fold + 1, reading, swap=swap)
        self._behind = reading.behind
        self._tally.looked(reading.behind)
        return not caught_up or self._answers.cut_left_over()

    def fold_if_due(self) -> bool:
        """Fold, unless the last fold found no more and `interval_s` has not passed since; True while there is more."""
        now = time.monotonic()
        if now < self._fold_at:
            return False
        more = self.fold()
        self._fold_at = 0.0 if more else now + self._interval_s
        return more

    def publish(self, state: State = "live") -> None:
        """Bring Redis up to the answers; raises Withheld, Overtaken, ServiceUnavailable and StoreUnavailable."""
        if self._cache is None:
            return
        result: Result = "failed"
        redis_up = True
        self._beat()
        LOOP.end("store")
        try:
            self._check(self._cache)
            result = self._publisher.publish(self._cache, state)
        except Withheld as error:
            result = error.kind
            raise
        except Overtaken:
            result = "overtaken"
            raise
        except ServiceUnavailable as error:
            if error.service == "redis":
                redis_up = self._checked = False
            raise
        finally:
            self._tally.published(result, LOOP.end("commit"), redis_up=redis_up)

    def publish_if_due(self) -> bool:
        """Publish, unless Redis has it all, or an attempt was just made; True if it was, and Redis has it all now."""
        now = time.monotonic()
        if now < self._publish_at or not self._publisher.is_due(self._fold):
            return False
        self._publish_at = now + self._interval_s * (self._behind > 0)
        try:
            self.publish()
        except (ServiceUnavailable, Withheld):
            self._publish_at = time.monotonic() + RETRY_S
            raise
        return True

    def finish(self) -> None:
        """Fold what is stored, as far as 2 s allow, and let Redis say in one attempt that we have stopped."""
        deadline = time.monotonic() + STOP_FOLD_S
        self._answers.hurry(STOP_BUSY_MS)
        try:
            while self.fold() and time.monotonic() < deadline:
                pass
            if self._cache is not None:
                with self._cache.hurried() as cache:
                    self._publisher.publish(cache, "stopped")
        except (ServiceUnavailable, Withheld, Overtaken) as error:
            self._log.warning("not_ready", check="stop", reason=f"not published at the stop: {error}")

    @property
    def store_id(self) -> str:
        """Which history it counts."""
        return self._history.store_id

    def progress(self) -> dict[str, object]:
        """Give how many events were folded since the start, and how many offsets are still ahead."""
        return {"folded": self.folded, "behind": self._behind, "fold": self._fold}

    def _check(self, cache: Cache) -> None:
        """Look once, at first and after Redis was away, whether it is one that can serve."""
        if not self._checked:
            if warning := cache.check():
                self._log.warning("eviction_policy", reason=warning)
            self._checked = True
            self._beat()

    def _refuse_replaced_files(self) -> None:
        for path, identity in self._files.items():
            if _identity(path) != identity:
                raise StoreUnavailable(f"{path}: another file than the one that was opened")

    def _note_folded(self, fold: int, reading: Reading, *, swap: bool) -> None:
        self._fold = fold
        self.folded += len(reading.facts)
        self._log.debug("folded", fold=fold, events=len(reading.facts), behind=reading.behind)
        if swap:
            self._log.info("rebuild_finished", fold=fold, events=reading.cursor.events)

    def _note_rebuild(self, reading: Reading, old: Cursor | None) -> None:
        self._tally.rebuilding()
        if old is not None and reading.trouble in ("another_store", "another_history"):
            self._log.warning("another_store", reason=reading.trouble, was=old.store_id, now=reading.cursor.store_id)
        self._log.info("rebuild_started", reason=reading.trouble)


def run(config: Config, password: str | None, log: Log, shutdown: Shutdown) -> None:
    """Fold and publish until a stop is requested; a missing lock, history, disk or Redis is waited for, not ready."""
    health = Health(log, CHECKS)
    tally = Tally(config.data_dir)
    if not config.redis.enabled:
        metrics.leave_out_redis()
    log.info("started", data_dir=config.store.data_dir)
    libraries = {"sqlite": database.library_version()}
    with (
        Endpoint(Listening.of(config, ROLE), health, libraries=libraries),
        lock_when_free(config.data_dir, ROLE, health, shutdown) as locked,
    ):
        opened = Opened(log, EVENTS.name)
        while locked and not shutdown.requested:
            try:
                with aggregating(config, password, log, tally, health.beat, lambda: shutdown.requested) as aggregator:
                    opened.note(aggregator.store_id)
                    _aggregate(aggregator, health, shutdown, config, log)
            except StoreUnavailable as error:  # nothing was written; begin again with what is there
                opened.failed(error)
                health.fail("store", error.reason)
                health.beat()
                shutdown.wait(RETRY_S)
    log.info("stopped", orphaned=shutdown.orphaned)


def _aggregate(aggregator: Aggregator, health: Health, shutdown: Shutdown, config: Config, log: Log) -> None:
    progress = Progress(log, config.log.progress_s)
    limited = Limited()
    while not shutdown.requested:
        more = False
        LOOP.end("wait")
        try:
            more = aggregator.fold_if_due()
            health.hold("store")
            if aggregator.publish_if_due():
                health.hold("redis")
                health.hold("summary")
        except Overtaken as error:
            limited.warning(log, "overtaken", str(error))
        except Withheld as error:
            health.hold("redis")
            health.fail("summary", str(error))
            if error.kind == "foreign":
                limited.warning(log, "another_store", str(error))
        except StoreUnavailable:
            raise
        except ServiceUnavailable as error:
            if not shutdown.requested:
                health.fail(error.service, error.reason)
        progress.tick(aggregator.progress)
        health.beat()
        if not more:
            shutdown.wait(min(config.aggregator.interval_s, RENEW_S), health.beat)
    log.info("stop_requested")
    aggregator.finish()


def catch_up(config: Config, password: str | None, log: Log) -> int:
    """Fold and publish all that is stored, and give how many events were folded; nothing is waited for.

    Raises LockHeld, StoreUnavailable, ServiceUnavailable and Withheld.
    """
    tally = Tally(config.data_dir)
    with Lock(config.data_dir, ROLE, LOCK_WAIT_S), aggregating(config, password, log, tally) as aggregator:
        for _ in range(OVERTAKEN_TRIES):
            try:
                while aggregator.fold():
                    pass
                aggregator.publish("stopped")
            except Overtaken:
                continue
            return aggregator.folded
        raise ServiceUnavailable("redis", "another process writes the same answers all the time")


@contextmanager
def aggregating(  # noqa: PLR0913 - what an aggregator stands between
    config: Config,
    password: str | None,
    log: Log,
    tally: Tally,
    beat: Callable[[], None] = lambda: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Aggregator]:
    """Open the history, the answers and Redis, and close them in reverse order."""
    with History.open_reader(config.data_dir) as history, Answers.open_writer(config.data_dir) as answers:
        if not config.redis.enabled:
            yield Aggregator(config, log, history, answers, None, tally, beat)
            return
        with Cache(config.redis, password, interrupted) as cache:
            yield Aggregator(config, log, history, answers, cache, tally, beat)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        file = path.stat()
    except FileNotFoundError:
        return None
    return file.st_dev, file.st_ino
