"""The request to stop: by a signal, or by the end of the supervisor."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonerd.shutdown import Shutdown

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

ORPHAN = """
import os, sys, time
from zonerd.shutdown import Shutdown
if os.fork() == 0:
    shutdown = Shutdown(os.getppid())
    print("orphaned" if shutdown.requested else "supervised", flush=True)
    shutdown.wait(30)
    print("orphaned" if shutdown.orphaned else "supervised", flush=True)
else:
    sys.stdin.read()
    os._exit(0)
"""

LATE = """
import os, signal, sys
from zonerd import cli
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=int(sys.argv[1])):
        kill(pid, number)  # while modules are taken apart, after Python's own handling of signals has ended
last = Last()
cli.main(["-X", f"store.data_dir={sys.argv[2]}", "-X", "http.port.watchdog=0", "watchdog"])
"""


@pytest.fixture
def shutdown() -> Iterator[Shutdown]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield Shutdown().install()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_to_stop(shutdown: Shutdown, number: int) -> None:
    assert not shutdown.requested
    os.kill(os.getpid(), number)
    assert shutdown.requested
    assert not shutdown.orphaned


def test_waiting_ends_early_upon_a_signal(shutdown: Shutdown) -> None:
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    begin = time.monotonic()
    timer.start()
    shutdown.wait(30)
    timer.join()
    assert shutdown.requested
    assert time.monotonic() - begin < 10


def test_waiting_lasts_as_long_as_asked(shutdown: Shutdown) -> None:
    begin = time.monotonic()
    shutdown.wait(0.25)
    assert time.monotonic() - begin >= 0.25
    assert not shutdown.requested


def test_a_process_stops_when_its_supervisor_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdin is not None
        assert supervisor.stdout.readline() == b"supervised\n"
        supervisor.stdin.close()
        assert supervisor.stdout.readline() == b"orphaned\n"


def test_the_supervisor_named_must_be_the_parent() -> None:
    assert not Shutdown(os.getppid()).requested
    assert Shutdown(os.getppid() + 1).orphaned


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_comes_while_the_interpreter_ends_changes_no_exit_code(tmp_path: Path, number: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LATE, str(int(number)), str(tmp_path)],
        env={**os.environ, "SUPERVISOR_SERVER_URL": f"unix://{tmp_path}/none.sock"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 0, ended.stderr
