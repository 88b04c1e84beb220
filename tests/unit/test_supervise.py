"""What supervisord is given to read, and what it makes of it."""

import os
import shlex
from pathlib import Path

import pytest
from supervisor.states import SupervisorStates
from supervisor.xmlrpc import RPCError

from zonerd import config, supervise
from zonerd.errors import Refused
from zonerd.supervise import server

CLONE = Path(__file__).parents[2]
WEIRD = "50% [a] #x ;y 'q' \"d\""
"""Each of these means something to supervisord, to its ini files, to glob or to a shell."""


def load(folder: Path, *overrides: str) -> config.Config:
    return config.load(None, {}, [f"store.data_dir={folder}", *overrides]).config


def options(place: supervise.Place, command: list[str]) -> server._Options:
    return server._Options(place, command)


def programs(opts: server._Options) -> dict[str, object]:
    return {f"{group.name}:{one.name}": one for group in opts.process_group_configs for one in group.process_configs}


def test_the_clones_supervisord_conf_is_the_template_for_its_own_run_directory():
    rendered = supervise.render_supervisord("%(here)s/../var/zonerd/run")
    assert (CLONE / "etc" / "supervisord.conf").read_text(encoding="utf-8") == rendered


def test_the_clones_supervisord_conf_listens_where_its_zonerd_toml_says():
    settings = config.load(CLONE / "etc" / "zonerd.toml", {}, ["store.run_dir=../var/zonerd/run"]).config
    assert supervise._listens_at(CLONE / "etc" / "supervisord.conf", supervise.socket_of(settings))


def test_one_consumer_is_called_consumer_and_several_are_numbered(tmp_path: Path):
    one = options(supervise.prepare(load(tmp_path / "a"), None), ["zonerd"])
    assert set(programs(one)) == {
        "producer:producer", "consumer:consumer", "aggregator:aggregator", "watchdog:watchdog",
    }  # fmt: skip
    three = options(supervise.prepare(load(tmp_path / "b", "consumer.processes=3"), None), ["zonerd"])
    found = programs(three)
    assert [name for name in sorted(found) if name.startswith("consumer")] == [
        "consumer:consumer-0", "consumer:consumer-1", "consumer:consumer-2",
    ]  # fmt: skip
    assert found["consumer:consumer-2"].command == "zonerd consumer --process-number 2"
    assert found["consumer:consumer-2"].stdout_logfile == str(tmp_path / "b" / "log" / "consumer-2.log")


def test_they_stop_one_after_another_the_producer_first_and_the_watchdog_last(tmp_path: Path):
    opts = options(supervise.prepare(load(tmp_path), None), ["zonerd"])
    groups = sorted(opts.process_group_configs, key=lambda group: -group.priority)
    assert [group.name for group in groups] == ["producer", "consumer", "aggregator", "watchdog"]
    waits = {name: one.stopwaitsecs for name, one in programs(opts).items() if one.killasgroup}
    assert sorted(waits.values()) == [5, 10, 10, 10]


def test_a_path_may_hold_what_means_something_to_supervisord(tmp_path: Path):
    folder = tmp_path / WEIRD
    place = supervise.prepare(load(folder), None)
    command = ["/opt/py 3%d/python", "-m", "zonerd", "-c", str(folder / "zonerd.toml"), "-X", "kafka.topic=100%"]
    found = programs(options(place, command))
    words = shlex.split(found["producer:producer"].command)
    assert words == [*command, "producer"]
    assert found["producer:producer"].stdout_logfile == str(folder / "log" / "producer.log")
    assert options(place, command).serverurl == f"unix://{supervise.socket_of(load(folder))}"


def test_children_are_told_who_supervises_them(tmp_path: Path):
    opts = options(supervise.prepare(load(tmp_path), None), ["zonerd"])
    assert {one.environment["ZONERD_SUPERVISED"] for one in programs(opts).values()} == {str(os.getpid())}


def test_a_supervisord_conf_beside_the_configuration_is_used_when_it_listens_at_our_socket(tmp_path: Path):
    beside = tmp_path / "supervisord.conf"
    beside.write_text(supervise.render_supervisord("%(here)s/run"), encoding="utf-8")
    assert supervise.prepare(load(tmp_path), tmp_path / "zonerd.toml").conf == beside
    elsewhere = load(tmp_path / "other")
    assert supervise.prepare(elsewhere, tmp_path / "zonerd.toml").conf == elsewhere.run_dir / "supervisord.conf"


def test_a_line_in_that_file_wins_over_the_rendered_program_and_its_own_programs_stay(tmp_path: Path):
    beside = tmp_path / "supervisord.conf"
    mine = "[program:consumer]\nstopwaitsecs = 33\n[program:mine]\ncommand = sleep 5\n"
    beside.write_text(supervise.render_supervisord("%(here)s/run") + mine, encoding="utf-8")
    found = programs(options(supervise.prepare(load(tmp_path), tmp_path / "zonerd.toml"), ["zonerd"]))
    assert found["consumer:consumer"].stopwaitsecs == 33
    assert found["consumer:consumer"].command == "zonerd consumer --process-number 0"
    assert found["mine:mine"].command == "sleep 5"


def test_a_supervisord_conf_that_is_none_is_refused_by_name(tmp_path: Path):
    (tmp_path / "supervisord.conf").write_text("nonsense", encoding="utf-8")
    with pytest.raises(Refused, match=r"supervisord\.conf"):
        supervise.prepare(load(tmp_path), tmp_path / "zonerd.toml")
    (tmp_path / "supervisord.conf").write_text(
        supervise.render_supervisord("%(here)s/run") + "[program:x]\nnumprocs = many\n", encoding="utf-8"
    )
    place = supervise.prepare(load(tmp_path), tmp_path / "zonerd.toml")
    with pytest.raises(Refused, match=r"supervisord\.conf"):
        options(place, ["zonerd"])


def test_run_and_log_directories_are_for_their_owner_alone(tmp_path: Path):
    before = os.umask(0)
    try:
        settings = load(tmp_path / "new")
        supervise.prepare(settings, None)
    finally:
        os.umask(before)
    assert settings.run_dir.stat().st_mode & 0o777 == 0o700
    assert (settings.data_dir / "log").stat().st_mode & 0o777 == 0o700


def test_stdout_holds_json_lines_only_and_stderr_has_a_file_of_its_own_and_goes_to_syslog(tmp_path: Path):
    found = programs(options(supervise.prepare(load(tmp_path), None), ["zonerd"]))
    for name in ("producer", "consumer", "aggregator"):
        one = found[f"{name}:{name}"]
        assert not one.redirect_stderr
        assert one.stderr_syslog
        assert one.stderr_logfile == str(tmp_path / "log" / f"{name}.stderr.log")
    watchdog = found["watchdog:watchdog"]
    assert watchdog.stdout_logfile is None
    assert watchdog.stderr_logfile == str(tmp_path / "log" / "watchdog.log")


def test_a_restart_is_refused_as_long_as_the_configuration_is(tmp_path: Path):
    def again() -> supervise.Place:
        raise Refused("consumer.processes: must be an integer")

    place = supervise.prepare(load(tmp_path), None)
    opts = server._Options(place, ["zonerd"], again)
    with pytest.raises(RPCError, match=r"consumer\.processes"):
        opts.mood = SupervisorStates.RESTARTING
    assert opts.mood == SupervisorStates.RUNNING
    opts.mood = SupervisorStates.SHUTDOWN
    assert opts.mood == SupervisorStates.SHUTDOWN


def test_a_restart_goes_on_where_the_new_configuration_says(tmp_path: Path):
    more = load(tmp_path, "consumer.processes=2")
    opts = server._Options(supervise.prepare(load(tmp_path), None), ["zonerd"], lambda: supervise.prepare(more, None))
    opts.mood = SupervisorStates.RESTARTING
    assert "consumer:consumer-1" in programs(opts.following)
    assert "consumer:consumer-1" not in programs(opts)
