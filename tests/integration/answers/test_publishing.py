"""Redis holds exactly the answers, and whatever it comes back with is noticed at the next publish."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from answering import World, fold_all
from redis.client import Pipeline

from services.kafka import free_ports
from services.valkey import ValkeyServer
from zonerd import rollups
from zonerd.aggregator import Aggregator
from zonerd.errors import Overtaken, Refused, ServiceUnavailable
from zonerd.publisher import Withheld


def test_the_first_publish_shows_an_empty_summary(world: World) -> None:
    world.catch_up()
    assert world.redis.get("activity_summary") == "[]"
    assert world.as_of()["state"] == "live"
    assert world.as_of()["user_activity/1"] == "0"


def test_an_older_snapshot_of_redis_is_noticed_at_the_next_publish_and_healed(world: World) -> None:
    older_snapshot_is_healed(world)


def test_without_the_comparison_an_older_snapshot_would_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "need", lambda *_: rollups.Need("nothing"))
    with pytest.raises(AssertionError):
        older_snapshot_is_healed(world)


def older_snapshot_is_healed(world: World) -> None:
    with world.aggregator() as aggregator:
        world.append(["a"])
        publish(aggregator)
        world.valkey.save_to(world.folder / "older.rdb")
        world.append(["b"])
        publish(aggregator)
        world.valkey.restore_from(world.folder / "older.rdb")
        assert world.shown() == {"a": 1}
        try_to_publish(aggregator)
    assert world.shown() == {"a": 1, "b": 1}


def try_to_publish(aggregator: Aggregator) -> None:
    """Publish; the first attempt may meet the connection that went with the old server."""
    try:
        aggregator.publish()
    except ServiceUnavailable:
        aggregator.publish()


def test_what_another_writes_between_our_read_and_our_write_is_noticed_and_healed(world: World) -> None:
    between_read_and_write_is_healed(world, world.redis.flushall)


def test_an_older_snapshot_that_comes_between_our_read_and_our_write_is_noticed_and_healed(world: World) -> None:
    def come_back() -> None:
        fields = world.as_of()
        world.redis.hset("zonerd:as_of", mapping={**fields, "nonce": "older"})
        world.redis.set("zonerd:total", "of another type")

    between_read_and_write_is_healed(world, come_back)


def test_without_the_watch_a_flush_between_read_and_write_goes_unnoticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Pipeline.watch
    monkeypatch.setattr(Pipeline, "watch", lambda pipeline, _: watch(pipeline, "a key that nobody writes"))
    with pytest.raises(pytest.fail.Exception):
        between_read_and_write_is_healed(world, world.redis.flushall)


def between_read_and_write_is_healed(world: World, interfere: Callable[[], object]) -> None:
    with world.aggregator() as aggregator:
        world.append(["a"])
        publish(aggregator)
        world.append(["b"])
        fold_all(aggregator)
        with pytest.raises(Overtaken):
            interfered(aggregator, interfere)
        aggregator.publish()
    assert world.shown() == world.counted()


def interfered(aggregator: Aggregator, interfere: Callable[[], object]) -> None:
    """Publish while somebody else writes after Redis was read and before it is written."""
    answers = aggregator._answers
    original = answers.note_pending

    def note_pending(sent: rollups.Publish) -> None:
        interfere()
        original(sent)

    answers.note_pending = note_pending  # type: ignore[method-assign]
    try:
        aggregator.publish()
    finally:
        answers.note_pending = original  # type: ignore[method-assign]


def publish(aggregator: Aggregator) -> None:
    fold_all(aggregator)
    aggregator.publish()


def test_a_full_resend_that_is_overtaken_is_given_up_and_made_again(world: World) -> None:
    world.append(["a"])
    with world.aggregator() as aggregator:
        fold_all(aggregator)
        with pytest.raises(Overtaken):
            interfered(aggregator, world.redis.flushall)
        aggregator.publish()
    assert world.shown() == {"a": 1}
    assert world.as_of()["state"] == "live"


def test_a_flushed_redis_is_filled_again(world: World) -> None:
    with world.aggregator() as aggregator:
        world.append(["a"])
        publish(aggregator)
        world.redis.flushall()
        aggregator.publish()
    assert world.shown() == {"a": 1}


def test_a_key_of_another_type_and_a_damaged_as_of_are_replaced(world: World) -> None:
    world.append(["a"])
    with world.aggregator() as aggregator:
        publish(aggregator)
        world.redis.set("zonerd:as_of", "text")
        world.redis.set("zonerd:total", "text")
        world.redis.delete("activity_summary")
        world.redis.hset("activity_summary", "a", "hash")
        aggregator.publish()
    assert world.shown() == {"a": 1}


def test_a_redis_that_is_full_keeps_one_whole_fold_and_heals_when_it_has_room(world: World) -> None:
    world.append(["a"])
    with world.aggregator() as aggregator:
        publish(aggregator)
        world.append(["b"])
        fold_all(aggregator)
        world.redis.config_set("maxmemory", "1")
        with pytest.raises(ServiceUnavailable):
            aggregator.publish()
        world.redis.config_set("maxmemory", "0")
        assert world.shown() == {"a": 1}
        aggregator.publish()
    assert world.shown() == {"a": 1, "b": 1}


def test_another_live_publisher_is_left_alone_and_named(world: World) -> None:
    world.append(["a"])
    world.catch_up()
    theirs = {**world.as_of(), "store": "theirs", "rollups": "them", "nonce": "other"}
    world.redis.hset("zonerd:as_of", mapping=theirs)
    before = world.as_of()
    with world.aggregator() as aggregator:
        world.append(["b"])
        fold_all(aggregator)
        with pytest.raises(Withheld) as refusal:
            aggregator.publish()
        assert world.as_of() == before
        assert "theirs" in str(refusal.value)
        assert world.history.store_id in str(refusal.value)
        world.age_as_of()
        aggregator.publish()
    assert world.shown() == {"a": 1, "b": 1}


def test_a_copy_of_us_that_is_ahead_is_left_alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    world.append(["a"])
    world.catch_up()
    copy = tmp_path_factory.mktemp("copy") / "rollups.db"
    shutil.copy(world.folder / "rollups.db", copy)
    for activity in ("b", "c"):
        world.append([activity])
        world.catch_up()
    shutil.copy(copy, world.folder / "rollups.db")
    with world.aggregator() as aggregator, pytest.raises(Withheld, match="a copy of us"):
        aggregator.publish()
    assert world.shown() == {"a": 1, "b": 1, "c": 1}


def test_without_rollups_db_all_is_counted_anew_and_redis_never_steps_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zonerd.unfolded.SLICE_EVENTS", 2)
    world.append(["a"] * 6)
    world.catch_up()
    (world.folder / "rollups.db").unlink()
    world.age_as_of()
    with world.aggregator() as aggregator:
        while aggregator.fold():
            with pytest.raises(Withheld, match="user_activity/0"):
                aggregator.publish()
            assert world.shown() == {"a": 6}
        aggregator.publish()
    assert world.shown() == {"a": 6}


def test_nothing_is_held_back_where_the_broker_came_back_as_another(world: World) -> None:
    world.append(["a"] * 6)
    world.catch_up()
    old = next(row for row in world.history.partitions() if row.partition == 0)
    world.history.replace(old, None, old._replace(topic_id="topic-2", first_offset=0, closed_ms=None))
    world.append(["b"])
    world.catch_up()
    assert world.shown() == {"a": 6, "b": 1}
    assert world.as_of()["user_activity/0"] == "1"


def test_the_most_frequent_names_are_kept_and_the_rest_is_other_last(world: World) -> None:
    world.overrides.append("aggregator.max_activities=2")
    world.append(["x"] * 3 + ["b"] * 2 + ["c"] * 2 + ["d"] + ["(other)"] * 9)
    world.catch_up()
    assert json.loads(world.redis.get("activity_summary") or "") == [["x", 3], ["b", 2], ["(other)", 12]]
    assert world.redis.hgetall("zonerd:total") == {"x": "3", "b": "2", "(other)": "12"}
    world.append(["d"] * 9)
    world.catch_up()
    assert json.loads(world.redis.get("activity_summary") or "") == [["d", 10], ["x", 3], ["(other)", 13]]
    assert world.redis.hgetall("zonerd:total") == {"d": "10", "x": "3", "(other)": "13"}


def test_hostile_names_arrive_as_they_are(world: World) -> None:
    names = ['"], ["x', "'; drop table total; --", "é\u202e", "{prefix}", "a" * 128, "\U0001f600", "%s", "[red]", "\\n"]
    world.append(names)
    world.catch_up()
    assert world.shown() == world.counted() == dict.fromkeys(names, 1)


def test_what_is_current_is_renewed_after_ten_seconds_and_not_before(world: World) -> None:
    world.append(["a"])
    with world.aggregator() as aggregator:
        publish(aggregator)
        first = world.as_of()
        aggregator.publish()
        assert world.as_of() == first
        world.redis.hincrby("zonerd:as_of", "published_ms", -11_000)
        aggregator.publish()
        renewed = world.as_of()
    assert int(renewed["published_ms"]) >= int(first["published_ms"])
    assert renewed["nonce"] == first["nonce"]


def test_a_cluster_is_refused(world: World, tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "valkey")
    try:
        server.stop()
        server.start("--cluster-enabled", "yes", "--cluster-port", str(free_ports(1)[0]))
        world.overrides.append(f"redis.url={server.url}")
        with pytest.raises(Refused, match="cluster"):
            world.catch_up()
    finally:
        server.close()


def test_a_password_and_a_unix_socket_are_used(world: World, tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "valkey", unix_socket=True)
    (tmp_path / "password").write_text("secret word\n")
    try:
        server.client.config_set("requirepass", "secret word")
        world.append(["a"])
        world.overrides += [f"redis.url={server.url}", f"redis.password_file={tmp_path}/password"]
        assert world.run("aggregator", "--until-caught-up").returncode == 0
        summary = world.run("summary")
        assert summary.stdout == "a\t1\n"
        world.overrides[-1] = "redis.password_file="
        refused = world.run("summary")
        assert refused.returncode == 69
        assert "secret" not in refused.stderr
    finally:
        server.close()
