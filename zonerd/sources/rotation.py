"""Where a followed file has gone: its rotated siblings, and which of them comes next."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zonerd.sources.position import fingerprint

COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst", ".Z", ".lz4")
"""Siblings that are no lines any more; logrotate's `delaycompress` leaves the time to read them before."""


class Seen(NamedTuple):
    """A file as it was seen last."""

    device: int
    inode: int
    modified_ns: int


def find(path: Path, seen: Seen | None, head: bytes | str, offset: int, head_bytes: int | None = None) -> Path | None:
    """Give the file of which so much was read: by its inode and first bytes, else by its first bytes alone.

    `head` is these bytes, or their fingerprint with their number. Without `seen` only siblings are looked at.
    """
    wanted = head if isinstance(head, str) else fingerprint(head)
    length = len(head) if head_bytes is None else head_bytes
    alike = None
    for candidate, status in _family(path, with_itself=seen is not None):
        if status.st_size < offset or not _begins(candidate, wanted, length):
            continue
        if seen is not None and (status.st_dev, status.st_ino) == (seen.device, seen.inode):
            return candidate
        if length and alike is None:
            alike = candidate
    return alike


def next_after(path: Path, seen: Seen, finished: set[tuple[int, int]]) -> Path | None:
    """Give the file that was written after the one seen: the oldest rotated one since, else `path`; None: no such yet.

    A file without a byte is none yet: until the new one has some, the old one may still be written to.
    """
    rotated = []
    for candidate, status in _family(path, with_itself=False):
        identity = (status.st_dev, status.st_ino)
        if (
            status.st_mtime_ns >= seen.modified_ns
            and status.st_size
            and identity not in finished
            and identity != (seen.device, seen.inode)
            and _is_rotation(path, candidate)
        ):
            rotated.append((status.st_mtime_ns, candidate))
    if rotated:
        return min(rotated)[1]
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    is_another = (status.st_dev, status.st_ino) != (seen.device, seen.inode)
    return path if is_another and status.st_size else None


def _family(path: Path, with_itself: bool) -> Iterator[tuple[Path, os.stat_result]]:
    """Give the file, if asked for, then all that share the beginning of its name and may hold its lines."""
    names = sorted(os.listdir(path.parent))  # noqa: PTH208 - names, not paths
    if with_itself and path.name in names:
        names.remove(path.name)
        names.insert(0, path.name)
    for name in names:
        candidate = path.parent / name
        if (name == path.name and not with_itself) or not name.startswith(path.stem) or name.endswith(COMPRESSED):
            continue
        try:
            status = candidate.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield candidate, status


def _is_rotation(path: Path, candidate: Path) -> bool:
    """Tell whether this is a name that a rotation gives: NAME.1, NAME-20260131, STEM-20260131.SUFFIX, STEM.1.SUFFIX."""
    mark = r"[.-]\d[\dT:.-]*"
    forms = (re.escape(path.name) + mark, re.escape(path.stem) + mark + re.escape(path.suffix))
    return any(re.fullmatch(form, candidate.name) for form in forms)


def _begins(candidate: Path, wanted: str, length: int) -> bool:
    try:
        with candidate.open("rb") as file:
            return fingerprint(file.read(length)) == wanted
    except OSError:
        return False
