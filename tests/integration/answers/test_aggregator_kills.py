"""The aggregator is killed before and after each of its effects, and goes on exactly where it was."""

import random

import pytest
from answering import World

from services.process import wait_until

KILL = "import os, signal\ndef die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"

POINTS = {
    "before the fold commits": """
from zonerd.store.answers import Answers
Answers._write_cursor = die
""",
    "after the fold, before the publish is remembered": """
from zonerd.store.answers import Answers
Answers.note_pending = die
""",
    "before MULTI": """
from redis.client import Pipeline
Pipeline.multi = die
""",
    "mid-pipeline": """
from redis.connection import AbstractConnection
send = AbstractConnection.send_packed_command
def half(self, command, check_health=True):
    data = b"".join(command) if not isinstance(command, bytes) else command
    if b"MULTI" not in data:
        return send(self, command, check_health)
    self._sock.sendall(data[: len(data) * 2 // 3])
    die()
AbstractConnection.send_packed_command = half
""",
    "after EXEC was sent, before its answer is read": """
from redis.connection import AbstractConnection
send = AbstractConnection.send_packed_command
def whole(self, command, check_health=True):
    send(self, command, check_health)
    if b"EXEC" in (b"".join(command) if not isinstance(command, bytes) else command):
        die()
AbstractConnection.send_packed_command = whole
""",
    "after EXEC, before it is confirmed": """
from zonerd.store.answers import Answers
Answers.confirm = die
""",
}


@pytest.mark.parametrize("filled", [True, False], ids=["ordinary", "full"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_the_answers_stay_exact(world: World, point: str, *, filled: bool) -> None:
    world.append(["a", "b"] * 20)
    if filled:
        world.catch_up()
        world.append(["b", "c"] * 20, 1)
    killed = world.run("aggregator", "--until-caught-up", before=KILL + POINTS[point])
    assert killed.returncode == -9, killed.stderr
    before = world.shown()
    assert before in ({}, {"a": 20, "b": 20}, world.counted())
    done = world.run("aggregator", "--until-caught-up")
    assert done.returncode == 0, done.stderr
    assert world.shown() == world.answered() == world.counted()
    assert world.as_of()["state"] == "stopped"


def test_killed_while_redis_is_filled_it_is_filled_again(world: World) -> None:
    world.append(["a"] * 5)
    between = "from zonerd import publisher\npublisher._chunks = die\n"
    assert world.run("aggregator", "--until-caught-up", before=KILL + between).returncode == -9
    assert world.as_of()["state"] == "loading"
    assert world.run("aggregator", "--until-caught-up").returncode == 0
    assert world.shown() == {"a": 5}


def test_killed_at_random_while_events_come_in_it_counts_each_once(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.append(["a"])
    for number in range(12):
        before = world.as_of().get("fold")
        process = world.start("-X", "aggregator.interval_s=0.01", "aggregator")
        wait_until(lambda before=before: world.as_of().get("fold", before) != before)
        last = int(world.as_of()["fold"]) + chance.randrange(20)
        while int(world.as_of()["fold"]) < last:
            world.append([f"activity {chance.randrange(5)}"] * chance.randrange(1, 50), chance.randrange(2))
        process.kill()
        process.wait()
        world.append([f"life {number}"])
    world.run("aggregator", "--until-caught-up")
    assert world.shown() == world.answered() == world.counted()


@pytest.mark.parametrize("when", ["begin_rebuild", "advance", "cut_left_over"])
def test_killed_in_a_rebuild_it_is_gone_on_with(world: World, when: str) -> None:
    world.append(["a"] * 5 + ["wrong"] * 5)
    world.catch_up()
    old = next(row for row in world.history.partitions() if row.partition == 0)
    world.history.replace(old, 5, old._replace(topic_id="topic-2", first_offset=0, closed_ms=None))
    after = f"""
from zonerd.store.answers import Answers
original = Answers.{when}
def and_die(*words, **keywords):
    original(*words, **keywords)
    die()
Answers.{when} = and_die
"""
    assert world.run("aggregator", "--until-caught-up", before=KILL + after).returncode == -9
    assert world.run("aggregator", "--until-caught-up").returncode == 0
    assert world.shown() == world.answered() == world.counted() == {"a": 5}
    assert world.as_of()["corrections"] == "1"


def test_without_one_transaction_for_counts_and_cursor_a_kill_counts_twice(world: World) -> None:
    world.append(["a"] * 5)
    counts_first = """
from zonerd.store.answers import Answers
def advance(self, work, cursor, added, swap=False):
    for name, counts in added.items():
        rows = [(work.generation, *row) for row in counts.items()]
        self._connection.executemany(self._sql["add_" + name], rows)
    die()
Answers.advance = advance
"""
    assert world.run("aggregator", "--until-caught-up", before=KILL + counts_first).returncode == -9
    assert world.run("aggregator", "--until-caught-up").returncode == 0
    assert dict(world.pairs())["a"] == 10
    assert world.counted() == {"a": 5}
