"""The files of a data directory: their size, the disk's space, whose they are, and one put in another's place."""

import os
import shlex
from pathlib import Path


def size_bytes(path: Path) -> int:
    """Give the size of a file; 0 where it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def free_bytes(folder: str | Path) -> int:
    """Give how much this process may still write to the disk of this folder; raises OSError."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def chown_line(folder: Path) -> str:
    """Give the line that makes a folder this process' own, for a person to type as root.

    A mounted folder may be a container's: then the host knows it by another name, which is said.
    """
    line = f"chown -R {os.geteuid()}:{os.getegid()} {shlex.quote(str(folder))}"
    return f"{line} (from outside a container: the folder that is mounted there)" if folder.is_mount() else line


def put(file: Path, content: bytes) -> None:
    """Put this content, for its owner alone, in the place of what is there: whatever happens, one of both is whole.

    Raises OSError.
    """
    fresh = file.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        target.write(content)
        target.flush()
        os.fsync(descriptor)
    fresh.replace(file)
    make_durable(file.parent)


def make_durable(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
