"""What the aggregator exposes is what it folded and what Redis shows, as an outsider reads both over HTTP."""

import json
import math
import subprocess
import time

import pytest
from answering import World, fold_all

from services.process import wait_until
from services.scrape import Scraped, health, port_of, scrape
from zonerd import publisher
from zonerd.metrics import LOOP_STATES
from zonerd.publisher import RESULTS
from zonerd.rollups import FULL_REASONS
from zonerd.store.database import EVENTS, ROLLUPS, TROUBLES

PUBLISHES = "zonerd_aggregator_publishes_total"
LAST_PUBLISH = "zonerd_aggregator_last_publish_timestamp_seconds"
END_TO_END = "zonerd_end_to_end_seconds"


class Watched:
    """An aggregator process over a world, and what it exposes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.process: subprocess.Popen[str] | None = None

    def start(self, *words: str) -> None:
        (self._world.config.run_dir / "ports.json").unlink(missing_ok=True)
        self.process = self._world.start(*words, "aggregator")
        self.port = port_of(self._world.config.run_dir, "aggregator")

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(10) == 0

    def scrape(self) -> Scraped:
        return scrape(self.port)

    def ready(self) -> bool:
        return bool(health(self.port)["ready"])

    def value(self, name: str, **labels: str) -> float:
        return self.scrape().value(name, **labels)

    def timed(self, **labels: str) -> float:
        """Give how many events were timed on their way to Redis, in all or up to the bucket `le`."""
        name = f"{END_TO_END}_bucket" if labels else f"{END_TO_END}_count"
        return self.value(name, stage="published", **labels)

    def logged(self, event: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self._world.logged().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def watched(world: World) -> Watched:
    """An aggregator that is not started yet."""
    world.overrides.append("log.format=json")
    return Watched(world)


def ago_ms(seconds: float) -> int:
    """Give Kafka's timestamp of a record that came so long ago."""
    return int((time.time() - seconds) * 1000)


def test_every_label_stands_at_0_before_there_is_a_history(world: World, watched: Watched) -> None:
    (world.folder / EVENTS.name).rename(world.folder / "away")
    watched.start()
    wait_until(lambda: not watched.ready())
    seen = watched.scrape()
    assert seen.label(PUBLISHES, "result") == set(RESULTS)
    assert seen.label("zonerd_aggregator_full_pushes_total", "reason") == set(FULL_REASONS)
    assert seen.label("zonerd_loop_seconds_total", "state") == set(LOOP_STATES)
    assert seen.label("zonerd_store_errors_total", "kind") == set(TROUBLES)
    assert seen.label("zonerd_store_errors_total", "file") == {EVENTS.name, ROLLUPS.name}
    assert seen.total(PUBLISHES) == seen.total("zonerd_aggregator_full_pushes_total") == 0
    assert seen.value("zonerd_redis_up") == seen.value(LAST_PUBLISH) == 0
    assert seen.value("zonerd_aggregator_events_folded_total") == 0
    assert seen.value(f"{END_TO_END}_count", stage="published") == 0
    (world.folder / "away").rename(world.folder / EVENTS.name)
    wait_until(watched.ready)


def test_what_it_counts_is_what_was_stored_and_shown(world: World, watched: Watched) -> None:
    watched.start()
    wait_until(watched.ready)
    world.append(["a", "b", "c"] * 100, 0, bad=[3, 50], skip=2, logged_ms=ago_ms(3))
    world.append(["a", "d"] * 50, 1, bad=[0], logged_ms=ago_ms(40))
    wait_until(lambda: world.shown() == world.counted())
    events = world.counted().total()
    wait_until(lambda: watched.timed() == events == 397)
    seen = watched.scrape()
    assert seen.value("zonerd_aggregator_events_folded_total") == events
    assert seen.value("zonerd_aggregator_behind_events") == 0
    assert seen.value("zonerd_aggregator_activities") == len(world.counted())
    assert (watched.timed(le="2.5"), watched.timed(le="30.0"), watched.timed(le="60.0")) == (0, 298, 397)
    assert seen.value("zonerd_redis_up") == 1
    assert time.time() - 30 < seen.value(LAST_PUBLISH) < time.time()
    assert seen.value(LAST_PUBLISH) * 1000 >= int(world.as_of()["published_ms"])
    for name in (ROLLUPS.name, f"{ROLLUPS.name}-wal"):
        path = world.folder / name
        wait_until(lambda path=path: watched.value("zonerd_store_bytes", file=path.name) == path.stat().st_size)
    assert seen.value("zonerd_store_free_bytes") > 0


def test_its_publishes_are_counted_by_what_became_of_them(world: World, watched: Watched) -> None:
    watched.start()
    wait_until(watched.ready)
    seen = watched.scrape()
    assert seen.value("zonerd_aggregator_full_pushes_total", reason="missing") == 1
    assert seen.value(PUBLISHES, result="full") == seen.total(PUBLISHES) == 1
    keys = len(world.redis.keys("*"))
    full = seen.value("zonerd_aggregator_keys_written_total")
    world.append(["a"])
    wait_until(lambda: watched.value(PUBLISHES, result="sent") == 1)
    seen = watched.scrape()
    assert seen.value("zonerd_aggregator_keys_written_total") - full == keys + 1 == 3
    assert seen.value("zonerd_aggregator_publish_seconds_count") == seen.total(PUBLISHES)
    assert watched.logged("full_push_started")[0]["reason"] == "missing"
    finished = watched.logged("full_push_finished")[0]
    assert {"fold", "events", "keys"} <= finished.keys()


def test_a_history_from_before_and_a_rebuild_are_no_latency_and_what_comes_after_is(
    world: World, watched: Watched
) -> None:
    world.append(["a"] * 10, logged_ms=ago_ms(100))
    watched.start()
    wait_until(lambda: world.shown() == {"a": 10})
    old = next(row for row in world.history.partitions() if row.partition == 0)
    world.history.replace(old, 5, old._replace(topic_id="topic-2", first_offset=0, closed_ms=None))
    wait_until(lambda: world.shown() == {"a": 5})
    seen = watched.scrape()
    assert seen.value("zonerd_aggregator_events_folded_total") == 15
    assert seen.value(f"{END_TO_END}_count", stage="published") == 0
    assert watched.logged("rebuild_started")[0]["reason"] == "take_back"
    assert {"fold", "events"} <= watched.logged("rebuild_finished")[0].keys()
    world.append(["b"], logged_ms=ago_ms(0))
    wait_until(lambda: watched.timed() == 1)


def test_what_was_stored_while_no_aggregator_ran_is_late_and_told_so(world: World, watched: Watched) -> None:
    watched.start()
    wait_until(watched.ready)
    watched.stop()
    world.append(["a"] * 10, logged_ms=ago_ms(100))
    watched.start()
    wait_until(lambda: watched.timed() == 10)
    assert (watched.timed(le="60.0"), watched.timed(le="300.0")) == (0, 10)


def test_while_redis_is_away_that_shows_and_grows_and_heals_with_it(world: World, watched: Watched) -> None:
    watched.start()
    wait_until(watched.ready)
    world.valkey.stop()
    world.append(["a"] * 3, logged_ms=ago_ms(0))
    wait_until(lambda: watched.value(PUBLISHES, result="failed") >= 2)
    seen = watched.scrape()
    assert not watched.ready()
    assert seen.value("zonerd_redis_up") == 0
    assert seen.value("zonerd_aggregator_events_folded_total") == 3
    assert seen.value(f"{END_TO_END}_count", stage="published") == 0
    stood_still_at = seen.value(LAST_PUBLISH)
    wait_until(lambda: watched.value(PUBLISHES, result="failed") >= 3)
    assert watched.value(LAST_PUBLISH) == stood_still_at
    world.valkey.start()
    wait_until(lambda: watched.timed() == 3)
    wait_until(watched.ready)
    seen = watched.scrape()
    assert seen.value("zonerd_redis_up") == 1
    assert seen.value(LAST_PUBLISH) > stood_still_at
    assert seen.value("zonerd_aggregator_full_pushes_total", reason="missing") == 2


def test_a_redis_that_is_kept_by_another_is_not_ready_and_not_fresh(world: World, watched: Watched) -> None:
    world.append(["a"])
    world.catch_up()
    theirs = {**world.as_of(), "store": "theirs", "rollups": "them", "nonce": "other"}
    world.redis.hset("zonerd:as_of", mapping=theirs)
    watched.start()
    wait_until(lambda: watched.value(PUBLISHES, result="foreign") >= 2)
    checks = health(watched.port)["checks"]
    assert not checks["summary"]["ok"]
    assert "theirs" in checks["summary"]["reason"]
    assert checks["redis"]["ok"]
    seen = watched.scrape()
    assert (seen.value("zonerd_redis_up"), seen.value(LAST_PUBLISH)) == (1, 0)
    assert "theirs" in str(watched.logged("another_store")[0]["reason"])
    assert len(watched.logged("another_store")) == 1


def test_without_redis_nothing_is_told_that_would_be_a_false_alarm(world: World, watched: Watched) -> None:
    world.append(["a"])
    watched.start("-X", "redis.enabled=false")
    wait_until(watched.ready)
    seen = watched.scrape()
    assert math.isnan(seen.value("zonerd_redis_up"))
    assert math.isnan(seen.value(LAST_PUBLISH))
    assert seen.value("zonerd_aggregator_events_folded_total") == 1
    assert seen.total(PUBLISHES) == 0


def test_idle_redis_is_confirmed_every_ten_seconds_however_seldom_is_folded(world: World, watched: Watched) -> None:
    watched.start("-X", "aggregator.interval_s=3600")
    wait_until(watched.ready)
    first, fields = watched.value(LAST_PUBLISH), world.as_of()
    wait_until(lambda: watched.value(LAST_PUBLISH) > first, 15)
    assert watched.value(LAST_PUBLISH) - first < 13
    assert int(world.as_of()["published_ms"]) > int(fields["published_ms"])
    seen = watched.scrape()
    assert seen.value(PUBLISHES, result="renewed") == 1
    assert health(watched.port, "/healthz")["last_pass_age_s"] < 5


def test_all_activities_are_counted_past_the_cap_and_each_crossing_is_said_once(world: World, watched: Watched) -> None:
    watched.start("-X", "aggregator.max_activities=2")
    wait_until(watched.ready)
    world.append(["a", "b"])
    wait_until(lambda: watched.value("zonerd_aggregator_activities") == 2)
    assert not watched.logged("activities_capped")
    world.append([f"activity {number}" for number in range(20)])
    wait_until(lambda: watched.value("zonerd_aggregator_activities") == 22)
    world.append(["c"])
    wait_until(lambda: dict(world.pairs()).get("(other)") == 21)
    assert [line["max_activities"] for line in watched.logged("activities_capped")] == [2]


def test_a_redis_that_hangs_is_never_taken_for_a_hang_of_ours(world: World, watched: Watched) -> None:
    watched.start("-X", "redis.timeout_s=5")
    wait_until(watched.ready)
    world.valkey.pause()
    world.append(["a"])
    ages = []

    def failed_twice() -> bool:
        ages.append(health(watched.port, "/healthz")["last_pass_age_s"])
        return watched.value(PUBLISHES, result="failed") >= 2

    wait_until(failed_twice)
    assert 2 < max(ages) < 7
    world.valkey.resume()
    wait_until(lambda: world.shown() == {"a": 1})


def test_a_full_push_says_that_it_goes_on_with_every_chunk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "CHUNK_KEYS", 1)
    beats: list[float] = []
    world.append(["a"])
    with world.aggregator(lambda: beats.append(time.monotonic())) as aggregator:
        fold_all(aggregator)
        aggregator.publish()
        chunks = len(world.redis.keys("*")) - 1
        before = len(beats)
        aggregator.publish()
        assert before - (len(beats) - before) >= chunks == 2
