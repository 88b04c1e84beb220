"""What a process says and where: on a terminal, to an output that fails, and at an end before it has a log."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from services.fixtures import ConfigFile, StartZonerd
from services.process import wait_until
from services.scrape import port_of, scrape

NOWHERE = {"kafka.bootstrap_servers": "127.0.0.1:1"}
COLOR = re.compile(r"\x1b\[[0-9;]*m")


class Spoken:
    """A consumer whose standard streams are of the test's choosing."""

    def __init__(self, path: Path, *words: str, environment: Mapping[str, str] | None = None, **streams: int) -> None:
        self.process = subprocess.Popen(
            [*words, sys.executable, "-m", "zonerd", "-c", str(path), "consumer"],
            env={**os.environ, **(environment or {})},
            **{"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams},
        )

    def dropped(self, data_dir: Path) -> float:
        """Give how many lines it says were dropped."""
        port = wait_until(lambda: port_of(data_dir / "run", "consumer"))
        return scrape(port).value("zonerd_log_lines_dropped_total")

    def ends_well(self) -> None:
        """Ask it to stop, and want exit code 0."""
        assert self.process.poll() is None, "it has ended already"
        self.process.terminate()
        assert self.process.wait(20) == 0

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: the person's, and the program's."""
    person, program = pty.openpty()
    yield person, program
    os.close(person)
    os.close(program)


def _shown(person: int, until: str) -> str:
    shown = b""
    while f"{until} " not in COLOR.sub("", shown.decode(errors="replace")):
        shown += os.read(person, 65536)
    return shown.decode()


@pytest.mark.parametrize(
    ("environment", "colored"),
    [({"TERM": "xterm", "NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb", "NO_COLOR": ""}, False)],
    ids=["colors", "NO_COLOR", "dumb"],
)
def test_a_terminal_gets_lines_for_people_in_colors_unless_they_are_not_wanted(
    config_file: ConfigFile, terminal: tuple[int, int], environment: dict[str, str], colored: bool
) -> None:
    person, program = terminal
    spoken = Spoken(config_file({**NOWHERE, "log.format": "auto"}), stdout=program, environment=environment)
    try:
        shown = _shown(person, "started")
    finally:
        spoken.close()
    assert (COLOR.search(shown) is not None) == colored
    assert re.search(r"(?m)^\S+Z \[info +\] started +process=consumer pid=\d+ ", COLOR.sub("", shown))


def test_a_file_gets_one_json_object_a_line(config_file: ConfigFile, zonerd: StartZonerd) -> None:
    process = zonerd(config_file({**NOWHERE, "log.format": "auto"}), "consumer")
    process.wait_for("started")
    process.terminate()
    lines = process.out.read_text().splitlines()
    assert all(list(json.loads(line))[:5] == ["ts", "level", "event", "process", "pid"] for line in lines)


def test_each_level_of_lines_is_exposed_from_the_start(
    config_file: ConfigFile, zonerd: StartZonerd, data_dir: Path
) -> None:
    process = zonerd(config_file(NOWHERE), "consumer")
    process.wait_for("started")
    port = wait_until(lambda: port_of(data_dir / "run", "consumer"))
    lines = {"debug": 0.0, "info": 0.0, "warning": 0.0, "error": 0.0}

    def agree() -> bool:
        said = process.lines()
        counted = {level: sum(line["level"] == level for line in said) for level in lines}
        exposed = scrape(port)
        return all(exposed.value("zonerd_log_lines_total", level=level) == counted[level] for level in lines)

    wait_until(agree)


def test_a_closed_pipe_ends_neither_the_process_nor_its_good_exit(config_file: ConfigFile, data_dir: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    spoken = Spoken(config_file(NOWHERE), stdout=writer)
    os.close(writer)
    try:
        wait_until(lambda: spoken.dropped(data_dir) > 0)
        spoken.ends_well()
    finally:
        spoken.close()


def test_a_full_disk_ends_neither_the_process_nor_its_good_exit(config_file: ConfigFile, data_dir: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        spoken = Spoken(config_file(NOWHERE), stdout=full.fileno())
    try:
        wait_until(lambda: spoken.dropped(data_dir) > 0)
        spoken.ends_well()
    finally:
        spoken.close()


def test_a_pipe_that_nobody_reads_does_not_stop_the_process(config_file: ConfigFile, data_dir: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    spoken = Spoken(config_file(NOWHERE), stdout=writer)
    try:
        wait_until(lambda: spoken.dropped(data_dir) > 0)
        spoken.ends_well()
    finally:
        spoken.close()
        os.close(reader)
        os.close(writer)


def test_closed_standard_streams_are_no_place_for_a_database(config_file: ConfigFile, data_dir: Path) -> None:
    spoken = Spoken(config_file(NOWHERE), "sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    try:
        wait_until(lambda: port_of(data_dir / "run", "consumer"))
        wait_until((data_dir / "events.db").exists)
        streams = {Path(f"/proc/{spoken.process.pid}/fd/{number}").readlink() for number in range(3)}
        assert streams == {Path(os.devnull)}
        spoken.ends_well()
    finally:
        spoken.close()


def test_an_abort_leaves_its_stack_on_stderr(config_file: ConfigFile, zonerd: StartZonerd) -> None:
    process = zonerd(config_file(NOWHERE), "consumer")
    process.wait_for("started")
    process.signal(signal.SIGABRT)
    process.ends_with(-signal.SIGABRT)
    stack = process.err.read_text()
    assert stack.startswith("Fatal Python error: Aborted")
    assert "zonerd/consumer.py" in stack


@pytest.mark.parametrize(("module", "code"), [("apsw", 70), ("structlog", 70), ("click", 1)])
def test_an_import_that_fails_before_there_is_a_log_is_told_on_stderr(
    config_file: ConfigFile, zonerd: StartZonerd, tmp_path: Path, module: str, code: int
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / f"{module}.py").write_text("raise ImportError('a library is missing')\n")
    process = zonerd(config_file(NOWHERE), "consumer", environment={"PYTHONPATH": str(broken)})
    process.ends_with(code)
    assert process.err.read_text().endswith("ImportError: a library is missing\n")
    assert process.out.read_bytes() == b""
