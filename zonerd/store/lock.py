"""One holder a role over a data directory: a lock that the kernel drops when its holder ends."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from zonerd.errors import LockHeld, Refused, StoreUnavailable
from zonerd.health import Health
from zonerd.shutdown import Shutdown
from zonerd.store.files import chown_line

RETRY_S: Final = 1.0

SHARED_FILE_SYSTEMS: Final = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "glusterfs")
"""Here neither flock nor SQLite's WAL can be trusted: both need one kernel."""


class Lock:
    """The lock of one role; `with` waits up to `wait_s` seconds for it.

    Raises LockHeld, naming the holder, when another process keeps it, and Refused where the data
    directory cannot be made or lies on a file system that several machines share.
    """

    def __init__(self, data_dir: Path, role: str, wait_s: float = 0.0) -> None:
        self.role = role
        self._data_dir = data_dir
        self.path = data_dir / "lock" / f"{role}.lock"
        self._wait_s = wait_s
        self._descriptor = -1

    def __enter__(self) -> Self:
        prepare(self._data_dir)
        deadline = time.monotonic() + self._wait_s
        while not self.take():
            if time.monotonic() >= deadline:
                raise LockHeld(f"{self._data_dir}: the {self.role} is already running: {holder(self.path)}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let another process have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def take(self) -> bool:
        """Take the lock if nobody holds it; True if it is ours now. Raises StoreUnavailable where it cannot be made."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        since = datetime.now(UTC).isoformat(timespec="seconds")
        name = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})
        with suppress(OSError):  # on a full disk the lock holds without its holder's name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, name.encode(), 0)
        return True


@contextmanager
def all_locks(data_dir: Path, roles: Iterable[str]) -> Iterator[None]:
    """Hold the locks of these roles and of every role that ever ran there; raises LockHeld and Refused as Lock does."""
    ran = {path.stem for path in (data_dir / "lock").glob("*.lock")}
    with ExitStack() as stack:
        for role in sorted({*roles, *ran}):
            stack.enter_context(Lock(data_dir, role))
        yield


@contextmanager
def lock_when_free(data_dir: Path, role: str, health: Health, shutdown: Shutdown) -> Iterator[bool]:
    """Hold the lock of a role; while another process keeps it, wait, not ready (check `lock`).

    Gives False when a stop was requested first. Raises Refused as Lock does.
    """
    prepare(data_dir)
    lock = Lock(data_dir, role)
    while not _take(lock, health):
        shutdown.wait(RETRY_S, health.beat)
        if shutdown.requested:
            yield False
            return
    health.hold("lock")
    try:
        yield True
    finally:
        lock.release()


def _take(lock: Lock, health: Health) -> bool:
    try:
        if lock.take():
            return True
        health.fail("lock", f"another {lock.role} is running: {holder(lock.path)}")
    except StoreUnavailable as error:  # a full disk, perhaps
        health.fail("lock", error.reason)
    return False


def holder(path: Path) -> str:
    """Give who wrote this lock file last, as words."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"pid {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "by an unknown process"


def prepare(data_dir: Path) -> None:
    """Make the data directory, for its owner alone; raises Refused where it cannot serve."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{data_dir}: cannot be made: {error.strerror}") from None
    kind = file_system(data_dir.resolve())
    if kind.startswith(SHARED_FILE_SYSTEMS):
        raise Refused(f"{data_dir}: lies on {kind}; SQLite's WAL needs a disk of this machine")
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise Refused(f"{data_dir}: not writable; try: {chown_line(data_dir)}")


def file_system(folder: Path) -> str:
    """Give the kind of the file system that holds this folder, as Linux names it; '' elsewhere."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    for line in mounts.splitlines():
        _, mount, name, *_ = line.split(" ")
        place = mount.replace("\\040", " ")
        if len(place) >= len(best) and folder.is_relative_to(place):
            best, kind = place, name
    return kind
