"""`zonerd doctor`: what is wrong around zonerd is named, with what to do, and nothing is changed."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from services.fixtures import ConfigFile, StartZonerd
from services.kafka import KafkaBroker, free_ports
from services.process import wait_until
from services.valkey import ValkeyServer
from zonerd import config, doctor, errors, ports
from zonerd.doctor import places, running
from zonerd.doctor.finding import Finding
from zonerd.store.answers import Answers
from zonerd.store.history import History

NOBODY = "127.0.0.1:1"


def examined(file: Path) -> list[Finding]:
    return list(doctor.examine(config.load(file, {}, []).config, file, {}))


def about(found: list[Finding], what: str) -> list[tuple[str, str]]:
    return [(one.level, one.detail) for one in found if one.what == what]


def typed(file: Path, *words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "zonerd", "-c", str(file), *words]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(environment or {})}
    )


@pytest.fixture
def down(config_file: ConfigFile) -> Path:
    """A configuration of which nothing is there."""
    return config_file({"kafka.bootstrap_servers": NOBODY, "redis.url": f"redis://{NOBODY}/0", "redis.timeout_s": 0.5})


@pytest.fixture
def well(config_file: ConfigFile, kafka: KafkaBroker, valkey: ValkeyServer, topic: str) -> Path:
    """A configuration whose services answer."""
    return config_file(
        {"kafka.bootstrap_servers": kafka.bootstrap_servers, "kafka.topic": topic, "redis.url": valkey.url}
    )


def test_where_all_is_well_nothing_fails_and_every_service_is_named_with_its_time(well: Path, topic: str):
    done = typed(well, "doctor")
    assert done.returncode == errors.DONE, done.stdout
    assert "FAIL" not in done.stdout
    for wanted in (
        "kafka          127.0.0.1:",
        " ms: cluster ",
        f"{topic}: 4 partitions, id ",
        " ms: Valkey ",
        "sqlite 3",
    ):
        assert wanted in done.stdout
    assert "clock" in done.stdout
    told = json.loads(typed(well, "doctor", "--json").stdout)
    assert (told["schema"], told["ok"]) == (1, True)
    assert {"versions", "data_dir", "disk", "kafka", "topic", "redis", "clock"} <= {
        one["what"] for one in told["checks"]
    }
    assert all(set(one) == {"level", "what", "detail"} for one in told["checks"])


def test_services_that_are_down_fail_and_the_rest_is_tried_all_the_same(down: Path, data_dir: Path):
    done = typed(down, "doctor")
    assert done.returncode == errors.ANSWER_IS_NO
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert failed == ["kafka", "redis"]
    assert "nothing is supervised: zonerd up" in done.stdout
    assert list(data_dir.iterdir()) == []


def test_a_broken_configuration_is_said_line_by_line_and_ends_with_78(config_file: ConfigFile):
    file = config_file({"kafka.topic": "a b", "consumer.processes": 0, "store.nonsense": "tell-nobody"})
    done = typed(file, "doctor")
    assert done.returncode == errors.REFUSED
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAIL  configuration")]
    assert {"kafka.topic", "consumer.processes", "store.nonsense"} <= {line.split()[2].strip(":") for line in lines} | {
        line.split()[3].strip(":") for line in lines
    }
    assert "tell-nobody" not in done.stdout + done.stderr
    assert json.loads(typed(file, "doctor", "--json").stdout)["ok"] is False


def test_no_password_is_shown_and_one_that_others_may_read_is_named(well: Path, tmp_path: Path, valkey: ValkeyServer):
    secret = tmp_path / "password"
    secret.write_text("correct-horse")
    secret.chmod(0o644)
    done = typed(well, "-X", f"redis.password_file={secret}", "doctor")
    assert f"chmod 600 {secret}" in done.stdout
    assert "correct-horse" not in done.stdout + done.stderr
    gone = typed(well, "-X", f"kafka.sasl_password_file={tmp_path}/gone", "doctor")
    assert gone.returncode == errors.ANSWER_IS_NO
    assert "kafka.sasl_password_file: the file cannot be read" in gone.stdout


def test_a_topic_that_is_not_there_is_a_warning_only_where_it_is_made(config_file: ConfigFile, kafka: KafkaBroker):
    made = {"kafka.bootstrap_servers": kafka.bootstrap_servers, "kafka.topic": "not-there"}
    assert about(examined(config_file(made)), "topic")[0][0] == "warn"
    ((level, detail),) = about(examined(config_file({**made, "kafka.create_topic": False})), "topic")
    assert (level, "zonerd topic create" in detail) == ("fail", True)
    assert "not-there" not in kafka.topics()


def test_a_redis_that_evicts_is_a_warning(well: Path, valkey: ValkeyServer):
    valkey.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert ("warn", "maxmemory-policy is allkeys-lru; noeviction keeps answers whole") in about(
            examined(well), "redis"
        )
    finally:
        valkey.client.config_set("maxmemory-policy", "noeviction")


def test_databases_are_seen_at_a_glance_sound_foreign_cut_short_or_without_a_table(down: Path, data_dir: Path):
    settings = config.load(down, {}, []).config
    assert [one.level for one in places.examine(settings) if one.what.endswith(".db")] == ["ok", "ok"]
    History.open_writer(data_dir).__exit__()
    Answers.open_writer(data_dir).__exit__()
    whole = {one.what: one for one in places.examine(settings)}
    assert whole["events.db"].detail.startswith("schema 1, ")
    assert (whole["events.db"].level, whole["rollups.db"].level) == ("ok", "ok")

    with sqlite3.connect(data_dir / "events.db") as connection:
        connection.execute("drop view user_activity")
    connection.close()
    (data_dir / "rollups.db").write_bytes(b"not a database, but long enough to have a header" * 10)
    broken = {one.what: one for one in places.examine(settings)}
    assert (broken["events.db"].level, "without view user_activity" in broken["events.db"].detail) == ("fail", True)
    assert (broken["rollups.db"].level, "not a database" in broken["rollups.db"].detail) == ("fail", True)

    (data_dir / "rollups.db").rename(data_dir / "rollups.db-wal")
    assert next(one for one in places.examine(settings) if one.what == "rollups.db").level == "fail"


def test_what_a_crash_left_in_the_wal_is_still_there_after_a_look(down: Path, data_dir: Path, tmp_path: Path):
    alive = tmp_path / "alive"
    alive.mkdir()
    with History.open_writer(alive):
        shutil.copytree(alive, data_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*-shm"))

    def left() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in data_dir.glob("events.db*") if path.suffix != ".db-shm"}

    before = left()
    assert before["events.db-wal"]
    assert about(list(places.examine(config.load(down, {}, []).config)), "events.db")[0][0] == "ok"
    assert left() == before


def test_directories_and_files_that_others_may_read_are_named_with_the_line_that_mends_it(down: Path, data_dir: Path):
    History.open_writer(data_dir).__exit__()
    data_dir.chmod(0o755)
    (data_dir / "events.db").chmod(0o644)
    found = list(places.examine(config.load(down, {}, []).config))
    assert f"chmod 700 {data_dir}" in about(found, "data_dir")[0][1]
    assert f"chmod 600 {data_dir}/events.db" in about(found, "files")[0][1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_owner_than_its_directory_fails(down: Path, data_dir: Path):
    History.open_writer(data_dir).__exit__()
    os.chown(data_dir / "events.db", 12345, 12345)
    found = list(places.examine(config.load(down, {}, []).config))
    assert about(found, "files")[0][0] == "fail"


def test_a_full_disk_and_one_of_several_machines_fail(
    down: Path, config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    free = shutil.disk_usage(tmp_path).free
    settings = config.load(config_file({"store.min_free_bytes": free * 2}, name="full.toml"), {}, []).config
    assert about(list(places.examine(settings)), "disk")[0][0] == "fail"
    settings = config.load(config_file({"store.min_free_bytes": free // 2}, name="low.toml"), {}, []).config
    assert about(list(places.examine(settings)), "disk")[0][0] == "warn"
    monkeypatch.setattr(places, "file_system", lambda _: "nfs4")
    assert about(list(places.examine(settings)), "file system")[0][0] == "fail"


def test_a_port_is_free_foreign_or_of_another_zonerd(config_file: ConfigFile):
    free, taken = free_ports(2)
    file = config_file({"http.port.consumer": free, "http.port.producer": taken})
    settings = config.load(file, {}, []).config
    with socket.create_server(("127.0.0.1", taken)):
        found = list(running.examine(settings, file))
    assert about(found, "consumer") == [("ok", f"127.0.0.1 port {free} is free")]
    ((level, detail),) = about(found, "producer")
    assert level == "fail"
    assert f"taken by another program; try: ss -ltnp 'sport = :{taken}'" in detail

    class Another(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"process": "producer", "pid": 5, "ok": true, "last_pass_age_s": 1}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", taken), Another) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        ((level, detail),) = about(list(running.examine(settings, file)), "producer")
        assert (level, "a producer of zonerd's, pid 5: another zonerd's" in detail) == ("fail", True)
        ports.note(settings.run_dir, "producer", taken)
        ((level, detail),) = about(list(running.examine(settings, file)), "producer")
        assert (level, "left without supervisord or started by hand" in detail) == ("fail", True)
        server.shutdown()


def test_what_runs_is_held_against_what_is_installed_and_configured(
    well: Path, zonerd: StartZonerd, monkeypatch: pytest.MonkeyPatch
):
    up = zonerd(well, "up")
    settings = config.load(well, {}, []).config

    def settled() -> bool:
        found = list(running.examine(settings, well))
        return len(found) == 1 + 2 * len(settings.processes) and all(one.level == "ok" for one in found)

    wait_until(settled, 60, lambda: f"all run and answer: {list(running.examine(settings, well))}")
    monkeypatch.setattr(running, "__version__", "99.0")
    warned = [one for one in running.examine(settings, well) if one.level == "warn"]
    assert {one.what for one in warned} == set(settings.processes)
    assert all("(installed: 99.0); try: zonerd ctl restart" in one.detail for one in warned)
    monkeypatch.undo()
    os.utime(well)
    later = [one for one in running.examine(settings, well) if one.level == "warn"]
    assert all("was changed at" in one.detail for one in later)
    assert {one.what for one in later} == set(settings.processes)
    up.signal(signal.SIGTERM)
    up.ends_with(0, 40)
