"""A backup: checked copies of the history and the answers in a folder named by the moment, whole or not there."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from zonerd.config import Config
from zonerd.errors import LockHeld, Refused, ServiceUnavailable, StoreUnavailable
from zonerd.store import outcomes
from zonerd.store.answers import Answers
from zonerd.store.copying import copy, needed_bytes
from zonerd.store.database import EVENTS, ROLLUPS, Kind
from zonerd.store.files import free_bytes, make_durable, size_bytes
from zonerd.store.history import History
from zonerd.store.identity import identity
from zonerd.store.lock import Lock, holder
from zonerd.unfolded import read_on

ORDER: Final = (ROLLUPS, EVENTS)
"""The answers first: so the history that they are restored with is never behind them, and folding goes on."""

PARTIAL: Final = ".partial"
SCHEMA: Final = 1
_MOMENT: Final = "%Y%m%dT%H%M%SZ"
_NAME: Final = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_BESIDE: Final = ("", "-wal", "-shm", "-journal")
_OURS: Final = frozenset(kind.name + ending for kind in ORDER for ending in _BESIDE)
_NEXT_NAME_S: Final = 0.05

Tell = Callable[[int], None]
"""Hears how many more bytes are copied."""


class Backup(NamedTuple):
    """A copy, what it holds, and which older ones went.

    `rebuild` tells why the answers will be counted anew after a restore; None: they go on from where they are.
    """

    path: Path
    store_id: str
    files: Mapping[str, int]
    positions: Mapping[str, int]
    rebuild: str | None
    took_s: float
    removed: tuple[Path, ...] = ()

    def as_object(self) -> dict[str, Any]:
        """Give it for programs; fields are only ever added."""
        texts = {"path": str(self.path), "removed": [str(path) for path in self.removed]}
        return {"schema": SCHEMA, **self._asdict(), **texts}


def total_bytes(data_dir: Path) -> int:
    """Give how much a backup takes; raises StoreUnavailable while there is no history, and Refused."""
    return sum(needed_bytes(data_dir, kind) for kind in _kinds(data_dir))


def back_up(config: Config, dest: Path, keep: int | None, tell: Tell = lambda _: None) -> Backup:
    """Make a copy below `dest`, and of this history's copies there keep only the `keep` newest.

    The order is the contract: copies are made and checked in a folder that says that it is partial, made durable,
    then that folder gets its name, then the success is recorded in the data directory, then older copies go. The
    originals are only read. Raises Refused for a damaged original and for a destination that cannot serve, LockHeld
    while another backup is made there, and StoreUnavailable; none of them leaves a copy that is not whole.
    """
    data_dir = config.data_dir
    needed = total_bytes(data_dir)
    _prepare(dest, data_dir)
    with _alone(dest), _named(dest):
        _remove_left_overs(dest)
        _refuse_too_little_space(config, dest, needed)
        made = _copied(data_dir, dest, tell)
        _record(data_dir, made)
        return made._replace(removed=tuple(_remove_old(dest, made, keep)))


def _kinds(data_dir: Path) -> list[Kind]:
    return [kind for kind in ORDER if kind is EVENTS or (data_dir / kind.name).exists()]


def _prepare(dest: Path, data_dir: Path) -> None:
    if dest.resolve() == data_dir.resolve():
        raise Refused(f"{dest}: is the data directory itself; name a folder for copies, such as {dest / 'backup'}")
    with _named(dest):
        dest.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(dest, os.W_OK | os.X_OK):
        raise Refused(f"{dest}: not writable for uid {os.geteuid()}, to whom the data belong")


@contextmanager
def _named(dest: Path) -> Iterator[None]:
    """Refuse a destination that fails; as root we are the owner of the data by now, which is not obvious."""
    try:
        yield
    except OSError as error:
        where = error.filename or dest
        raise Refused(f"{where}: {error.strerror} (as uid {os.geteuid()}, to whom the data belong)") from error


@contextmanager
def _alone(dest: Path) -> Iterator[None]:
    lock = Lock(dest, "backup")
    if not lock.take():
        raise LockHeld(f"{dest}: another backup is being made there: {holder(lock.path)}")
    try:
        yield
    finally:
        lock.release()


def _remove_left_overs(dest: Path) -> None:
    """Remove what a run that was killed has left, and nothing else."""
    for path in dest.iterdir():
        name, ending = path.name[: -len(PARTIAL)], path.name[-len(PARTIAL) :]
        if ending == PARTIAL and _NAME.fullmatch(name) and _holds_ours_only(path):
            shutil.rmtree(path)


def _refuse_too_little_space(config: Config, dest: Path, needed: int) -> None:
    """Refuse what would fill the disk; on the disk of the data the consumer's reserve stays free."""
    same = dest.stat().st_dev == config.data_dir.stat().st_dev
    reserve = config.store.min_free_bytes if same else 0
    free = free_bytes(dest)
    if free < needed + reserve:
        more = f" beside the {reserve:,} of store.min_free_bytes" if reserve else ""
        raise Refused(f"{dest}: the copy needs {needed:,} bytes{more}, and {free:,} are free; nothing was copied")


def _copied(data_dir: Path, dest: Path, tell: Tell) -> Backup:
    began = time.monotonic()
    path = _free_name(dest)
    partial = path.with_name(path.name + PARTIAL)
    partial.mkdir(mode=0o700)
    try:
        for kind in _kinds(data_dir):
            copy(data_dir, kind, partial, _Growth(tell).to)
        made = _looked_at(partial)
        make_durable(partial)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    make_durable(dest)
    return made._replace(path=path, took_s=round(time.monotonic() - began, 3))


class _Growth:
    """Turns the size of a file that grows into steps."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._size = 0

    def to(self, size: int) -> None:
        """Tell what was added since the last time."""
        if size > self._size:
            self._tell(size - self._size)
            self._size = size


def _free_name(dest: Path) -> Path:
    """Give the folder of this moment; a second that has one is over soon."""
    while (path := dest / datetime.now(UTC).strftime(_MOMENT)).exists():
        time.sleep(_NEXT_NAME_S)
    return path


def _looked_at(folder: Path) -> Backup:
    """Open a copy as a start would, and tell what is in it."""
    with History.open_reader(folder) as history:
        positions = {f"{row.topic}/{row.partition}": row.next_offset for row in history.partitions() if row.open}
        rebuild = _rebuild(folder, history)
        sizes = {kind.name: size_bytes(folder / kind.name) for kind in _kinds(folder)}
        return Backup(folder, history.store_id, sizes, positions, rebuild, 0.0)


def _rebuild(folder: Path, history: History) -> str | None:
    if not (folder / ROLLUPS.name).exists():
        return "no answers"
    with Answers.open_reader(folder) as answers:
        return read_on(history, answers.work().cursor).trouble


def _record(data_dir: Path, made: Backup) -> None:
    try:
        outcomes.record(data_dir, outcomes.BACKUP, made.as_object())
    except StoreUnavailable as error:
        raise StoreUnavailable(f"the copy is whole, at {made.path}, and not recorded: {error.reason}") from error


def _remove_old(dest: Path, made: Backup, keep: int | None) -> Iterator[Path]:
    """Remove the copies of this history beyond the newest, oldest first; one that is being removed has no name."""
    copies = sorted(path for path in dest.iterdir() if path != made.path and _is_copy(path, made.store_id))
    for path in copies[: len(copies) + 1 - keep] if keep else []:
        doomed = path.with_name(path.name + PARTIAL)
        path.rename(doomed)
        shutil.rmtree(doomed)
        yield path


def _is_copy(path: Path, store_id: str) -> bool:
    if not _NAME.fullmatch(path.name) or not _holds_ours_only(path):
        return False
    try:
        return identity(path).store_id == store_id
    except (Refused, ServiceUnavailable):
        return False


def _holds_ours_only(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and {one.name for one in path.iterdir()} <= _OURS
