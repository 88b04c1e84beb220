"""The command line: help that fits a screen, and ends that say what happened."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from zonerd import __version__, cli, errors

SCREEN_LINES = 24


def verbs() -> Iterator[tuple[str, ...]]:
    for name in cli.COMMANDS:
        yield (name,)
        command = cli.zonerd.get_command(click.Context(cli.zonerd), name)
        if isinstance(command, click.Group):
            yield from ((name, inner) for inner in command.commands)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zonerd", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("verb", list(verbs()), ids=" ".join)
def test_the_help_of_every_command_fits_a_screen_and_has_an_example(verb: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.zonerd, [*verb, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= SCREEN_LINES, result.output
    assert "Example: zonerd" in result.output or "Example: eval" in result.output or "Example: git log" in result.output


def test_the_help_of_zonerd_itself_fits_a_screen_and_says_where_to_begin() -> None:
    result = CliRunner().invoke(cli.zonerd, ["--help"])
    assert len(result.output.splitlines()) <= 2 * SCREEN_LINES
    assert "zonerd demo" in result.output


def test_the_list_of_commands_says_what_each_does_in_a_line_of_80_columns() -> None:
    listed = CliRunner().invoke(cli.zonerd, ["--help"], terminal_width=80).output.partition("Commands:")[2]
    assert "..." not in listed
    assert all(f"  {name} " in listed for name in cli.COMMANDS)


def test_every_command_has_its_file_and_every_file_its_command() -> None:
    files = {path.stem for path in Path(cli.__file__).with_name("commands").glob("*.py")} - {"__init__"}
    assert {name.replace("-", "_") for name in cli.COMMANDS} <= files


def test_the_version_is_one_line() -> None:
    assert run("--version").stdout == f"zonerd {__version__}\n"


def test_the_versions_of_what_it_stands_on_are_one_object() -> None:
    versions = json.loads(run("version", "--json").stdout)
    assert versions["schema"] == 1
    assert {"zonerd", "python", "sqlite", "librdkafka"} <= set(versions)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str) -> None:
    result = run("completion", shell)
    assert result.returncode == 0
    assert "_ZONERD_COMPLETE" in result.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    assert run("no-such-verb").returncode == errors.USAGE


def test_a_configuration_that_is_not_there_ends_a_process_with_78_and_one_line(tmp_path: Path) -> None:
    result = run("-c", str(tmp_path / "none.toml"), "consumer")
    assert result.returncode == errors.REFUSED
    assert len(result.stderr.splitlines()) == 1


def test_a_process_that_refuses_a_file_says_so_in_its_own_log(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    result = run("-X", f"store.data_dir={tmp_path}/data/inner", "consumer")
    assert result.returncode == errors.REFUSED
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["event"], last["level"], last["process"]) == ("refused", "error", "consumer")


def test_a_crash_ends_with_70_and_its_traceback_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = cli.Ending()

    def crash() -> None:
        raise RuntimeError("a bug")

    said: list[tuple[str, str]] = []
    monkeypatch.setattr(ending, "say", lambda event, error: said.append((event, str(error))))
    assert cli._exit_code(crash, ending) == errors.BUG
    assert said == [("crashed", "a bug")]


def test_a_consumer_number_past_the_configured_processes_is_a_usage_error(tmp_path: Path) -> None:
    result = run("-X", f"store.data_dir={tmp_path}", "consumer", "--process-number", "1")
    assert result.returncode == errors.USAGE
    assert "consumer.processes" in result.stderr


def test_the_command_line_of_a_child_carries_the_configuration_and_every_override(tmp_path: Path) -> None:
    file = tmp_path / "zonerd.toml"
    file.write_text("")
    session = cli.Session(file, ["kafka.topic=a", "log.level=debug"], 0)
    assert session.arguments[3:] == ["-c", str(file), "-X", "kafka.topic=a", "-X", "log.level=debug"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
@pytest.mark.parametrize(("owner", "becomes"), [(12345, "12345 23456 []"), (0, "0 0")])
def test_as_root_a_command_becomes_the_owner_of_the_data_directory(tmp_path: Path, owner: int, becomes: str) -> None:
    os.chown(tmp_path, owner, 23456)
    program = """
import os, pathlib, sys
from zonerd import cli
cli.become_owner(pathlib.Path(sys.argv[1]))
print(os.geteuid(), os.getegid(), os.getgroups())
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.startswith(becomes), done.stderr


def test_a_terminal_that_is_gone_does_not_change_the_exit_code() -> None:
    ours, terminals = os.openpty()
    code = "import os, sys; from zonerd import cli; os.read(0, 1); sys.stdout.write('x'); cli._let_go_of_a_terminal()"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    line = [sys.executable, "-c", code]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=terminals, env=buffered) as process:
        os.close(terminals)
        os.close(ours)
        process.communicate(b"x", timeout=60)
    assert process.returncode == 0
