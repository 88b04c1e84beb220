"""The aggregator process waits for what is missing, is quick, and stops as it promises."""

import json
import signal
import time

import pytest
from answering import World

from services.process import wait_until


def test_an_event_is_visible_in_redis_within_a_second(world: World) -> None:
    world.start("aggregator")
    wait_until(lambda: world.as_of().get("state") == "live")
    for number in range(5):
        begin = time.monotonic()
        world.append([f"activity {number}"])
        wait_until(lambda name=f"activity {number}": name in world.shown())
        assert time.monotonic() - begin < 1.0


def test_it_waits_for_the_history_and_for_redis(world: World) -> None:
    (world.folder / "events.db").rename(world.folder / "away")
    world.valkey.stop()
    process = world.start("aggregator")
    wait_until(lambda: "not there yet" in world.logged())
    (world.folder / "away").rename(world.folder / "events.db")
    wait_until(lambda: "service_unavailable" in world.logged())
    world.append(["a"])
    world.valkey.start()
    wait_until(lambda: world.shown() == {"a": 1})
    wait_until(lambda: '"ready"' in world.logged())
    assert world.logged().count("not there yet") == 1
    process.terminate()
    assert process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_counts_and_publishes_what_is_stored_and_says_so(world: World, number: signal.Signals) -> None:
    process = world.start("-X", "aggregator.interval_s=3600", "aggregator")
    wait_until(lambda: world.as_of().get("state") == "live")
    world.append(["a"] * 3)
    process.send_signal(number)
    assert process.wait(10) == 0
    assert world.shown() == {"a": 3}
    assert world.as_of()["state"] == "stopped"


def test_asked_to_stop_while_redis_hangs_it_ends_in_time_and_loses_nothing(world: World) -> None:
    process = world.start("-X", "redis.timeout_s=5", "aggregator")
    wait_until(lambda: world.as_of().get("state") == "live")
    world.valkey.pause()
    world.append(["a"] * 3)
    wait_until(lambda: world.answered() == {"a": 3})
    process.terminate()
    assert process.wait(10) == 0
    world.valkey.resume()
    assert world.run("aggregator", "--until-caught-up").returncode == 0
    assert world.shown() == {"a": 3}


def test_counting_goes_on_while_redis_is_away(world: World) -> None:
    world.start("aggregator")
    wait_until(lambda: world.as_of().get("state") == "live")
    world.valkey.stop()
    world.append(["a"])
    wait_until(lambda: world.answered() == {"a": 1})
    world.valkey.start()
    wait_until(lambda: world.shown() == {"a": 1})


def test_while_one_runs_a_one_shot_run_is_refused_and_says_who(world: World) -> None:
    process = world.start("aggregator")
    wait_until(lambda: world.as_of().get("state") == "live")
    begin = time.monotonic()
    refused = world.run("aggregator", "--until-caught-up")
    assert refused.returncode == 78
    assert str(process.pid) in refused.stderr
    assert time.monotonic() - begin < 4


def test_a_second_process_waits_and_takes_over(world: World) -> None:
    first = world.start("aggregator")
    wait_until(lambda: world.as_of().get("state") == "live")
    world.start("aggregator")
    wait_until(lambda: "another aggregator is running" in world.logged())
    first.kill()
    world.append(["a"])
    wait_until(lambda: world.shown() == {"a": 1})


def test_one_shot_runs_do_not_wait(world: World) -> None:
    world.valkey.stop()
    assert world.run("aggregator", "--until-caught-up").returncode == 69
    assert world.run("-X", "redis.enabled=false", "aggregator", "--until-caught-up").returncode == 0
    (world.folder / "events.db").rename(world.folder / "away")
    missing = world.run("aggregator", "--until-caught-up")
    (world.folder / "away").rename(world.folder / "events.db")
    assert missing.returncode == 69
    assert "events.db" in missing.stderr


def test_the_summary_says_what_it_is_as_of(world: World) -> None:
    assert world.run("summary").returncode == 1
    assert world.run("summary", "--from", "rollups").returncode == 1
    world.append(["meal"] * 2 + ["sleep"] * 3, 1)
    world.catch_up()
    plain = world.run("summary")
    assert plain.returncode == 0
    assert plain.stdout == "sleep\t3\nmeal\t2\n"
    assert "as of user_activity/0 0, user_activity/1 5" in plain.stderr
    answer = json.loads(world.run("summary", "--json", "--top", "1").stdout)
    assert answer["schema"] == 1
    assert answer["activities"] == [{"activity": "sleep", "count": 3}]
    assert answer["more"] == 1
    assert answer["as_of"]["positions"] == {"user_activity/0": 0, "user_activity/1": 5}
    assert answer["as_of"]["age_s"] >= 0


def test_the_summary_says_when_nobody_renews_it_and_when_redis_is_away(world: World) -> None:
    world.append(["meal"])
    world.catch_up()
    world.age_as_of()
    assert "nothing was heard of the aggregator" in world.run("summary").stderr
    world.redis.hset("zonerd:as_of", "state", "loading")
    assert "being filled" in world.run("summary").stderr
    world.valkey.stop()
    away = world.run("summary")
    assert away.returncode == 69
    assert "--from rollups" in away.stderr
    assert world.run("summary", "--from", "rollups").stdout == "meal\t1\n"
