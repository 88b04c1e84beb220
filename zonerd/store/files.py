"""How large the files of a data directory are, and how much its disk still takes."""

import os
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
