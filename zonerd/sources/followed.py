"""A file of JSON lines, followed as it grows, is renamed, is truncated; its position survives a restart."""

import os
import stat
import time
from pathlib import Path
from typing import Final, Self

from zonerd.errors import Refused
from zonerd.log import Log
from zonerd.sources import Line, Place
from zonerd.sources.lines import BLOCK_BYTES, Cut, Cutter
from zonerd.sources.position import Position, fingerprint, load, save
from zonerd.sources.rotation import Seen, find, next_after

POSITION_FILE: Final = "producer-position.json"
HEAD_BYTES: Final = 1024
"""By so many of its first bytes a file is recognised under another name, inode or device."""
SAVE_EVERY_S: Final = 1.0
_PAUSE_S: Final = 0.1
_MOST_BLOCKS: Final = 64
"""Read at once of a line without end, before the loop gets another look at what else there is to do."""


class _Opened:
    """One file while it is read."""

    def __init__(self, path: Path, number: int, offset: int, max_line_bytes: int) -> None:
        self.path = path
        self.number = number
        self.cutter = Cutter(max_line_bytes, offset)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._read_offset = offset
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise Refused(f"{path}: not a regular file; `zonerd send` reads pipes")
        self.device, self.inode, self.modified_ns = status.st_dev, status.st_ino, status.st_mtime_ns
        self.head = os.pread(self._descriptor, HEAD_BYTES, 0)

    def close(self) -> None:
        os.close(self._descriptor)

    def truncated(self) -> bool:
        """Tell whether this is no longer the file that was read so far: shorter, or with another beginning."""
        status = os.fstat(self._descriptor)
        head = os.pread(self._descriptor, HEAD_BYTES, 0)
        if status.st_size < self._read_offset or not head.startswith(self.head):
            return True
        self.modified_ns, self.head = status.st_mtime_ns, head
        return False

    def read(self) -> bytes:
        block = os.pread(self._descriptor, BLOCK_BYTES, self._read_offset)
        self._read_offset += len(block)
        return block

    def seen(self) -> Seen:
        return Seen(self.device, self.inode, self.modified_ns)

    def position(self, offset: int, path: Path) -> Position:
        head = self.head[:offset]
        return Position(
            path=str(path),
            device=self.device,
            inode=self.inode,
            offset=offset,
            head_bytes=len(head),
            head_sha256=fingerprint(head),
            modified_ns=self.modified_ns,
        )


class FollowedFile:
    """Gives the lines of a file as they are written.

    A last line without its end waits for it. A file that was renamed is read to its end first, then those that came
    after it, oldest first, then the new one; of one that was copied and truncated the rest is read from the copy.
    Where each line is settled (`ack`) is saved, with fsync, once a second and at the end: after a kill up to a second's
    lines are given again.
    """

    def __init__(self, path: str, data_dir: Path, max_line_bytes: int, log: Log) -> None:
        self.waiting_for = ""
        self.pause_s = _PAUSE_S
        self._path = Path(path)
        self._position_file = data_dir / POSITION_FILE
        self._max_line_bytes = max_line_bytes
        self._log = log
        self._file: _Opened | None = None
        self._number = 0
        self._unsettled: dict[int, _Opened] = {}
        self._finished: set[tuple[int, int]] = set()
        self._acknowledged: Place | None = None
        self._saved: Place | None = None
        self._saved_at = 0.0
        self._not_saved = ""

    def __enter__(self) -> Self:
        load(self._position_file)
        return self

    def __exit__(self, *_: object) -> None:
        self._save()
        if self._file is not None:
            self._file.close()

    def ack(self, place: Place) -> None:
        """Note that all up to this line is settled; it is on the disk within SAVE_EVERY_S."""
        self._acknowledged = place
        if time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self._save()

    def path_of(self, place: Place) -> str:
        """Give the path under which the file of this line was opened."""
        return str(self._unsettled[place.file].path)

    def take(self) -> list[Line]:
        """Give the next lines; none while the file is not there or has not grown."""
        self.pause_s = _PAUSE_S
        try:
            if self._file is None:
                self._begin()
            lines = self._take(self._file) if self._file is not None else []
        except OSError as error:
            self.waiting_for = f"{error.filename or self._path}: {error.strerror}"
            return []
        self.waiting_for = self._not_saved
        return lines

    def _take(self, file: _Opened) -> list[Line]:
        if file.truncated():
            return self._follow_truncated(file)
        lines = self._read(file)
        if lines or not self.pause_s:
            return lines
        finished = self._finished | {(file.device, file.inode)}
        successor = next_after(self._path, file.seen(), finished)
        if successor is None:
            return []
        lines = self._read(file)  # what came before the successor was seen
        if lines or not self.pause_s:
            return lines
        rest = _lines(file, file.cutter.rest())
        self._finished = finished
        self._log.info("source_rotated", how="renamed", next=str(successor))
        self._open(successor, 0)
        return rest

    def _read(self, file: _Opened) -> list[Line]:
        for _ in range(_MOST_BLOCKS):
            block = file.read()
            if not block:
                return []
            self.pause_s = 0.0
            cuts = file.cutter.feed(block)
            if cuts:
                return _lines(file, cuts)
        return []

    def _follow_truncated(self, file: _Opened) -> list[Line]:
        offset = file.cutter.offset
        copy = find(self._path, None, file.head, offset)
        if copy is not None:
            self._log.info("source_rotated", how="truncated", next=str(copy))
            self._open(copy, offset)
        else:
            self._log.warning("source_rotated", how="truncated", next=str(self._path), copy="not found")
            self._open(self._path, 0)
        self.pause_s = 0.0
        return []

    def _begin(self) -> None:
        saved = load(self._position_file)
        if saved is None or saved.path != str(self._path):
            self._open(self._path, 0)
            return
        seen = Seen(saved.device, saved.inode, saved.modified_ns)
        file = find(self._path, seen, saved.head_sha256, saved.offset, saved.head_bytes)
        if file is not None:
            self._open(file, saved.offset)
            return
        following = next_after(self._path, seen, set()) or self._path
        self._open(following, 0)
        self._log.warning("source_rotated", how="gone", next=str(following))

    def _open(self, path: Path, offset: int) -> None:
        opened = _Opened(path, self._number + 1, offset, self._max_line_bytes)
        if self._file is not None:
            self._file.close()
        self._number += 1
        self._file = opened
        self._unsettled[self._number] = opened

    def _save(self) -> None:
        place = self._acknowledged
        if place is None or place == self._saved:
            return
        position = self._unsettled[place.file].position(place.end, self._path)
        try:
            save(self._position_file, position)
        except OSError as error:
            self._not_saved = f"{self._position_file}: {error.strerror}"
            return
        self._not_saved = ""
        self._saved, self._saved_at = place, time.monotonic()
        for number in [number for number in self._unsettled if number < place.file]:
            del self._unsettled[number]


def _lines(file: _Opened, cuts: list[Cut]) -> list[Line]:
    return [Line(value, Place(file.number, offset, end)) for value, offset, end in cuts]
