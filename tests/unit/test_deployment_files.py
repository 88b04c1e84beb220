"""The files of a deployment agree with each other and with the code."""

import re
from collections.abc import Mapping
from configparser import RawConfigParser
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from services.docker import STAND_INS
from zonerd import __version__, supervise

Programs: TypeAlias = Mapping[str, dict[str, str]]
Compose: TypeAlias = Mapping[str, Any]

CLONE = Path(__file__).parents[2]
UNITS = ("zonerd", "zonerd-verify", "zonerd-backup")
STOP_WITHIN_S = 60
OWN_TO_A_PLACE = {"command", "process_name", "numprocs", "user", "environment", "stderr_syslog", "killasgroup"}
"""What a program says otherwise under another's supervisord; its log files stand elsewhere too."""


def read(place: str) -> str:
    return (CLONE / place).read_text(encoding="utf-8")


def sections(text: str) -> Programs:
    parser = RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(text)
    return {name: dict(parser.items(name)) for name in parser.sections()}


@pytest.fixture(scope="module")
def programs() -> Programs:
    """What supervisord reads of each program under `zonerd up`."""
    return sections(supervise.render_programs(1))


@pytest.fixture(scope="module")
def compose() -> Compose:
    """docker-compose.yml."""
    found: Compose = yaml.safe_load(read("docker-compose.yml"))
    return found


def test_every_time_to_stop_is_longer_than_the_sum_of_what_is_inside(programs: Programs, compose: Compose):
    inside_s = sum(int(program["stopwaitsecs"]) for program in programs.values())
    assert inside_s < STOP_WITHIN_S
    assert f"TimeoutStopSec={STOP_WITHIN_S}\n" in read("systemd/zonerd.service")
    assert compose["services"]["zonerd"]["stop_grace_period"] == f"{STOP_WITHIN_S}s"


def test_the_image_says_the_version_of_the_program():
    assert f"ARG VERSION={__version__}\n" in read("Dockerfile")


def test_in_a_container_every_process_speaks_to_the_containers_own_output(programs: Programs):
    container = sections(read("etc/container/supervisord.conf"))
    assert container.keys() & programs.keys() == programs.keys()
    for name in programs:
        streams = {key: value for key, value in container[name].items() if key.endswith("_logfile")}
        assert set(streams.values()) <= {"/dev/fd/1", "/dev/fd/2"}, name
        assert all(container[name][f"{key}_maxbytes"] == "0" for key in streams), name


def test_the_drop_in_runs_the_programs_as_zonerd_up_does(programs: Programs):
    drop_in = sections(read("etc/supervisor.d/zonerd.conf"))
    assert drop_in.keys() == programs.keys()
    for name, program in programs.items():
        assert drop_in[name]["command"].endswith(program["command"].removeprefix("%(ENV_ZONERD_COMMAND)s")), name
        assert _kept(drop_in[name]) == {**_kept(program), **_events(drop_in[name])}, name


def _kept(program: Mapping[str, str]) -> dict[str, str]:
    """Give what must not depend on whose supervisord it is."""
    return {
        key: value
        for key, value in program.items()
        if key not in OWN_TO_A_PLACE and "logfile" not in key and not key.startswith("stopsignal")
    }


def _events(program: Mapping[str, str]) -> dict[str, str]:
    """Give the events that the watchdog hears: nobody tells it of a restart there."""
    return {"events": program["events"]} if "events" in program else {}


def test_every_unit_may_do_as_little_as_the_others():
    hardening = []
    for unit in UNITS:
        text = read(f"systemd/{unit}.service")
        lines = text[text.index("# What it may do") :].partition("[Install]")[0].splitlines()
        hardening.append([line for line in lines if line and "chown" not in line and "owner of its socket" not in line])
    assert hardening[0] == hardening[1] == hardening[2]
    assert "ProtectSystem=strict" in hardening[0]


def test_no_port_of_the_compose_file_is_open_beyond_this_machine(compose: Compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports), ports


def test_every_variable_of_the_compose_file_is_explained_with_its_default():
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", read("docker-compose.yml")))
    explained = dict(re.findall(r"^#(\w+)=(.*)$", read(".env.example"), re.MULTILINE))
    assert used == explained


def test_every_image_of_the_compose_file_has_a_stand_in_but_grafana(compose: Compose):
    named = {service["image"] for service in compose["services"].values()}
    base = re.findall(r"^ARG PYTHON=(.*)$", read("Dockerfile"), re.MULTILINE)
    stand_ins = {image for image, _ in STAND_INS.values()} - {f"python:{base[0]}"}
    assert {name for name in named if not name.startswith("grafana/")} == stand_ins | {"zonerd"}


def test_every_service_is_limited_restarted_and_looked_after(compose: Compose):
    for name, service in compose["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert {"mem_limit", "healthcheck", "logging"} <= service.keys(), name
