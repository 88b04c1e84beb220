"""`zonerd config new-identity`: a copy of a data directory becomes another store, and runs beside the original."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from confluent_kafka import Producer

from services.fixtures import ConfigFile, StartZonerd
from services.kafka import KafkaBroker
from services.process import ZonerdProcess, wait_until
from services.valkey import ValkeyServer
from zonerd.errors import DONE, INTERRUPTED, REFUSED, SERVICE_UNAVAILABLE, USAGE
from zonerd.events import encode
from zonerd.store.history import History
from zonerd.store.identity import identity, renew
from zonerd.store.lock import Lock

EVENTS = 300
APART = {"redis.prefix": "staging:", "redis.summary_key": "staging_summary"}
ROLES = ("supervisor", "producer", "consumer-0", "consumer-1", "aggregator")


class Store(NamedTuple):
    """A data directory and the configuration that runs over it."""

    file: Path
    data_dir: Path

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zonerd", "-c", str(self.file), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    def catch_up(self) -> None:
        for role in ("consumer", "aggregator"):
            ended = self.run(role, "--until-caught-up")
            assert ended.returncode == DONE, ended.stderr


class World(NamedTuple):
    """A topic, the original over it, a stopped copy, and what makes another configuration of either."""

    original: Store
    copy: Store
    settings: Mapping[str, Any]
    config_file: ConfigFile

    def of_copy(self, name: str, **more: Any) -> Store:  # noqa: ANN401 - a key's value
        data_dir = self.copy.data_dir
        places = {"store.data_dir": str(data_dir), "store.run_dir": str(data_dir / "run")}
        return Store(self.config_file({**self.settings, **places, **more}, name), data_dir)


def new_identity(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zonerd", "config", "new-identity", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.db*") if path.suffix != ".db-shm"}


def rows(folder: Path, file: str, statement: str) -> list[Any]:
    connection = apsw.Connection(str(folder / file), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


@pytest.fixture
def world(
    config_file: ConfigFile, data_dir: Path, kafka: KafkaBroker, topic: str, valkey: ValkeyServer, tmp_path: Path
) -> World:
    settings = {
        "kafka.bootstrap_servers": kafka.bootstrap_servers,
        "kafka.topic": topic,
        "kafka.group_id": topic,
        "redis.url": valkey.url,
        "aggregator.interval_s": 0.05,
    }
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(EVENTS):
        producer.produce(topic, encode(number, ("sleep", "meal")[number % 2], number, {}))
    assert producer.flush(60) == 0
    original = Store(config_file(settings), data_dir)
    original.catch_up()
    copied = original.run("backup", tmp_path / "b")
    assert copied.returncode == DONE, copied.stderr
    shutil.move(copied.stdout.strip(), tmp_path / "copy")
    world = World(original, Store(original.file, tmp_path / "copy"), settings, config_file)
    return world._replace(copy=world.of_copy("copy.toml", **APART))


def test_it_is_another_store_with_the_same_rows_and_answers_and_says_what_else_must_differ(world: World):
    was, before = identity(world.original.data_dir), content(world.original.data_dir)
    ended = new_identity(world.copy.data_dir, "--yes")
    assert ended.returncode == DONE, ended.stderr
    now = identity(world.copy.data_dir)
    assert len({*was, *now}) == 4
    assert all(id_ in ended.stdout for id_ in (*was, *now))
    for key in ("redis.prefix", "redis.summary_key", "redis.url", "kafka.group_id", "http.port", "producer.source"):
        assert key in ended.stdout
    assert content(world.original.data_dir) == before
    published = "select last_fold, last_nonce, pending_fold, pending_nonce, resend from answers"
    assert rows(world.copy.data_dir, "rollups.db", published) == [(None, None, None, None, 1)]
    for file, table in (("events.db", "events"), ("events.db", "changes"), ("rollups.db", "total")):
        statement = f"select * from {table}"
        assert rows(world.copy.data_dir, file, statement) == rows(world.original.data_dir, file, statement)


def test_the_copy_goes_on_without_a_rebuild_beside_the_original_and_both_are_exact(world: World, valkey: ValkeyServer):
    assert new_identity(world.copy.data_dir, "--yes").returncode == DONE
    copy = world.of_copy("copy.toml", **APART, **{"kafka.group_id": "staging"})
    ended = copy.run("-v", "aggregator", "--until-caught-up")
    assert ended.returncode == DONE
    assert "full_push_finished" in ended.stderr
    assert "rebuild_started" not in ended.stderr
    copy.catch_up()
    for one in (copy, world.original):
        verified = one.run("verify", "--json")
        assert verified.returncode == DONE, verified.stdout
        assert json.loads(verified.stdout)["checks"]["history"]["events"] == EVENTS
    assert valkey.client.get("staging_summary") == valkey.client.get("activity_summary")


def live(valkey: ValkeyServer, prefix: str) -> dict[str, str]:
    as_of: dict[str, str] = valkey.client.hgetall(f"{prefix}as_of")
    return as_of if as_of.get("state") == "live" else {}


def test_with_a_prefix_of_its_own_both_run_and_are_ready_on_one_redis(
    world: World, valkey: ValkeyServer, zonerd: StartZonerd
):
    assert new_identity(world.copy.data_dir, "--yes").returncode == DONE
    processes = [zonerd(one.file, "aggregator") for one in (world.original, world.copy)]
    for process, store, prefix in zip(processes, (world.original, world.copy), ("zonerd:", "staging:"), strict=True):
        process.wait_for("ready")
        shown = wait_until(lambda prefix=prefix: live(valkey, prefix), 30, process.story)
        assert (shown["store"], shown["rollups"]) == identity(store.data_dir)
        assert process.lines("rebuild_started") == []


def second_publisher(world: World, valkey: ValkeyServer, zonerd: StartZonerd) -> ZonerdProcess:
    """Start the original's aggregator, and then the copy's over the same keys."""
    first = zonerd(world.original.file, "aggregator")
    wait_until(lambda: live(valkey, "zonerd:"), 30, first.story)
    return zonerd(world.of_copy("same.toml").file, "aggregator")


def test_with_the_same_prefix_the_copy_waits_not_ready_and_names_both(
    world: World, valkey: ValkeyServer, zonerd: StartZonerd
):
    assert new_identity(world.copy.data_dir, "--yes").returncode == DONE
    second = second_publisher(world, valkey, zonerd)
    reason = second.wait_for("not_ready", check="summary")["reason"]
    ids = (*identity(world.original.data_dir), *identity(world.copy.data_dir))
    assert all(id_ in reason for id_ in ids), reason
    assert live(valkey, "zonerd:")["store"] == ids[0]


def test_without_it_the_copy_is_taken_for_the_original(world: World, valkey: ValkeyServer, zonerd: StartZonerd):
    second_publisher(world, valkey, zonerd).wait_for("ready")


@pytest.mark.parametrize("words", [(), ("--dry-run",)], ids=["for real", "only looking"])
@pytest.mark.parametrize("role", ROLES)
def test_while_a_process_runs_over_it_it_is_refused_and_names_it(world: World, role: str, words: tuple[str, ...]):
    before = content(world.copy.data_dir)
    with Lock(world.copy.data_dir, role):
        ended = new_identity(world.copy.data_dir, "--yes", *words)
    assert ended.returncode == REFUSED
    assert f"the {role} is already running: pid {os.getpid()} on" in ended.stderr
    assert content(world.copy.data_dir) == before


def test_a_running_consumer_is_named(world: World, zonerd: StartZonerd):
    process: ZonerdProcess = zonerd(world.copy.file, "consumer")
    process.wait_for("partitions_assigned")
    ended = new_identity(world.copy.data_dir, "--yes")
    assert ended.returncode == REFUSED
    assert f"pid {process.pid}" in ended.stderr


def test_a_dry_run_says_who_it_is_and_changes_nothing_and_nobody_is_not_asked(world: World):
    before = content(world.copy.data_dir)
    looked, unasked = new_identity(world.copy.data_dir, "--dry-run"), new_identity(world.copy.data_dir)
    assert (looked.returncode, unasked.returncode) == (DONE, USAGE)
    assert identity(world.copy.data_dir).store_id in looked.stdout
    assert "--yes" in unasked.stderr
    assert content(world.copy.data_dir) == before


def test_who_is_asked_and_says_no_changes_nothing(world: World):
    before = content(world.copy.data_dir)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "zonerd", "config", "new-identity", str(world.copy.data_dir)]
    os.write(ours, b"n\n")
    ended = subprocess.run(command, stdin=theirs, capture_output=True, timeout=60)
    assert ended.returncode == INTERRUPTED
    assert content(world.copy.data_dir) == before


def test_what_is_no_data_directory_is_refused_and_stays_as_it_is(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert new_identity(tmp_path / "empty", "--yes").returncode == REFUSED
    assert list((tmp_path / "empty").iterdir()) == []
    assert new_identity(tmp_path / "none", "--yes").returncode == USAGE
    (tmp_path / "empty" / "events.db").touch()
    assert new_identity(tmp_path / "empty", "--yes").returncode == SERVICE_UNAVAILABLE


def test_a_history_without_answers_gets_a_name_alone(tmp_path: Path):
    with History.open_writer(tmp_path) as history:
        was = history.store_id
    now = renew(tmp_path, identity(tmp_path))
    assert now.store_id != was
    assert now.rollups_id is None
    assert identity(tmp_path) == now
    assert not (tmp_path / "rollups.db").exists()


def test_ended_between_the_two_files_the_answers_are_counted_anew_and_are_nobody_elses(world: World):
    was = identity(world.copy.data_dir)
    rollups = world.copy.data_dir / "rollups.db"
    half = rollups.read_bytes()
    renew(world.copy.data_dir, was)
    for path in world.copy.data_dir.glob("rollups.db*"):
        path.unlink()
    rollups.write_bytes(half)
    ended = world.copy.run("-v", "aggregator", "--until-caught-up")
    assert ended.returncode == DONE, ended.stderr
    assert "rebuild_started" in ended.stderr
    assert world.copy.run("verify").returncode == DONE
