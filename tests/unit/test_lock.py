"""One holder a role over a data directory, named, and gone with its process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zonerd.errors import LockHeld, Refused
from zonerd.health import Health
from zonerd.log import logger
from zonerd.shutdown import Shutdown
from zonerd.store import lock as lock_module
from zonerd.store.lock import Lock, lock_when_free

HOLD = """
import pathlib, sys
from zonerd.store.lock import Lock
lock = Lock(pathlib.Path(sys.argv[1]), "consumer-0")
lock.take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock of consumer-0."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_names_it(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(LockHeld, match=rf"consumer-0 is already running: pid {held.pid} on \S+, since 20"),
        Lock(tmp_path, "consumer-0"),
    ):
        pass


def test_each_role_has_a_lock_of_its_own(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    with Lock(tmp_path, "consumer-1"), Lock(tmp_path, "aggregator"):
        assert held.poll() is None


def test_a_lock_is_free_once_its_holder_is_killed(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    held.send_signal(signal.SIGKILL)
    held.wait()
    with Lock(tmp_path, "consumer-0", wait_s=1):
        assert lock_module.holder(tmp_path / "lock" / "consumer-0.lock").startswith(f"pid {os.getpid()} ")


def test_a_stop_ends_the_wait_for_a_lock(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    shutdown = Shutdown()
    shutdown.signalled = True
    health = Health(logger("test", 1), ("lock",))
    with lock_when_free(tmp_path, "consumer-0", health, shutdown) as locked:
        assert not locked
    assert f"pid {held.pid}" in health.reasons["lock"]


def test_a_file_system_of_several_machines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("nfs4", "cifs", "fuse.sshfs", "9p"):
        monkeypatch.setattr(lock_module, "file_system", lambda _, kind=kind: kind)
        with pytest.raises(Refused, match=kind), Lock(tmp_path, "consumer-0"):
            pass


def test_a_data_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot be made"), Lock(tmp_path / "file" / "data", "consumer-0"):
        pass


def test_the_data_directory_is_its_owners_alone(tmp_path: Path) -> None:
    with Lock(tmp_path / "data", "consumer-0"):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "data" / "lock" / "consumer-0.lock").stat().st_mode & 0o777 == 0o600
