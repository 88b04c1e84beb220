"""What the demo writes, and how it says what it saw."""

import os
import shlex
import socket
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from services.kafka import free_ports
from zonerd import config
from zonerd.commands.demo import as_line, as_table, introduction
from zonerd.demo.looks import Seen
from zonerd.demo.place import Place, Wanted, child_environment, place_of, write

SEEN = Seen(1230, 20, 10, 9.96, 3, (("meal", 700), ("[b]sleep", 500)))


@pytest.mark.parametrize("name", ["demo", "50% [a] #x ;y 'q' \"d\" \\", "ü✓"])
def test_its_configuration_is_good_wherever_it_lies(tmp_path: Path, name: str):
    place = place_of(tmp_path / name)
    place.folder.mkdir()
    settings = write(place, "127.0.0.1:1234", Wanted(place.folder, 12.5, None, []))
    assert settings.data_dir == place.folder
    assert settings.run_dir == place.run_dir
    assert settings.producer.source == "simulate"
    assert settings.producer.simulate.rate_per_s == 12.5
    assert settings.producer.simulate.activities == config.Simulate().activities
    assert settings.consumer.on_topic_recreated == "follow"


def test_a_path_too_long_for_a_socket_gets_a_short_run_directory(tmp_path: Path):
    place = place_of(tmp_path / ("x" * 100))
    assert len(os.fsencode(place.cache_socket)) < 100
    place.folder.mkdir()
    assert write(place, "127.0.0.1:1", Wanted(place.folder, 1, None, [])).run_dir == place.run_dir


def test_an_override_of_the_command_line_reaches_the_pipeline(tmp_path: Path):
    place = place_of(tmp_path)
    assert write(place, "127.0.0.1:1", Wanted(tmp_path, 1, None, ["consumer.processes=2"])).consumer.processes == 2


def test_nothing_in_the_environment_overrides_the_demos_configuration():
    place = Place(Path("/d"), Path("/d/run"))
    told = {"PATH": "/bin", "ZONERD_KAFKA__TOPIC": "x", "RUNTIME_DIRECTORY": "/run/x", "ZONERD_CONFIG": "/etc/z"}
    given = child_environment(told, Path("/opt/my valkey"), place)
    assert given["PATH"] == "/bin"
    assert "ZONERD_KAFKA__TOPIC" not in given
    assert "RUNTIME_DIRECTORY" not in given
    assert given["ZONERD_SUPERVISED"] == str(os.getpid())
    assert "/opt/my valkey" in shlex.split(given["ZONERD_DEMO_CACHE"])


def test_a_line_says_what_is_stored_how_fast_what_is_wrong_and_the_summary():
    assert as_line(SEEN) == (
        "stored 1,200 events, 10.0/s, dead letters 20, lag 3; summary: meal 700, [b]sleep 500"
    )  # fmt: skip
    assert as_line(SEEN._replace(summary=None)).endswith("summary: none yet")


def test_a_table_shows_names_as_they_are():
    console = Console(width=80, record=True, file=StringIO())
    console.print(as_table(SEEN, 61))
    shown = console.export_text()
    assert "1,200 events stored" in shown
    assert "[b]sleep" in shown
    assert "gaps 10" in shown


def test_the_introduction_gives_lines_that_can_be_typed():
    place = Place(Path("/w/var/demo"), Path("/w/var/demo/run"))
    lines = introduction(place, config.Config(), 12345, ".venv/bin/zonerd", Path("/w"))
    assert "found 12,345 events" in lines[0]
    text = "\n".join(lines)
    assert ".venv/bin/zonerd -c var/demo/zonerd.toml summary" in text
    assert ".venv/bin/zonerd -c var/demo/zonerd.toml send -" in text
    assert '{"user_id":"%ae","activity":"commit","timestamp":%at}' in text
    assert "curl http://127.0.0.1:19310/metrics" in text
    assert str(os.getpid()) in text


def test_the_introduction_says_where_the_ports_stand_when_any_were_taken():
    place = Place(Path("/w/var/demo"), Path("/w/var/demo/run"))
    any_port = config.Config(
        store=config.Store(run_dir="/w/var/demo/run"), http=config.Http(port=config.Ports(consumer=0))
    )
    text = "\n".join(introduction(place, any_port, 0, "zonerd", Path("/w")))
    assert "/metrics at the ports in var/demo/run/ports.json" in text


def test_one_port_that_is_taken_makes_all_others_any_and_the_command_line_still_wins(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        wanted = Wanted(tmp_path, 1, None, [f"http.port.producer={taken}"])
        written = write(place_of(tmp_path), "127.0.0.1:1", wanted)
    assert written.http.port == config.Ports(watchdog=0, producer=taken, aggregator=0, consumer=0)


def test_free_ports_are_the_ones_that_the_configuration_names(tmp_path: Path):
    roles = ("watchdog", "producer", "aggregator", "consumer")
    free = dict(zip(roles, free_ports(4), strict=True))
    overrides = [f"http.port.{role}={port}" for role, port in free.items()]
    written = write(place_of(tmp_path), "127.0.0.1:1", Wanted(tmp_path, 1, None, overrides))
    assert written.http.port == config.Ports(**free)
    assert "[http]" not in (tmp_path / "zonerd.toml").read_text(encoding="utf-8")
