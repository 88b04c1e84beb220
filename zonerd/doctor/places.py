"""Where data are kept: who owns it, who may read it, on what disk, and whether the databases are sound at a glance."""

import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zonerd.config import Config
from zonerd.doctor.finding import Finding, fail, ok, warn
from zonerd.errors import Refused, StoreUnavailable
from zonerd.store.database import EVENTS, ROLLUPS, Kind
from zonerd.store.files import chown_line
from zonerd.store.inspection import inspect
from zonerd.store.lock import SHARED_FILE_SYSTEMS, file_system

LOW_DISK_TIMES: Final = 4
MIB: Final = 1_048_576


def examine(config: Config) -> Iterator[Finding]:
    """Look at the directories, their disk and what lies in them."""
    yield from _folder("data_dir", config.data_dir)
    yield from _folder("run_dir", config.run_dir)
    yield from _folder("log_dir", config.log_dir)
    yield from _files(config.data_dir)
    standing = _standing_part_of(config.data_dir)
    yield _kind_of_disk(standing)
    yield _free(standing, config.store.min_free_bytes)
    for kind in (EVENTS, ROLLUPS):
        yield _database(config, kind)


def readable(key: str, file: str) -> Finding | None:
    """Say who else may read a file of a password; None where there is none."""
    if not file or not Path(file).exists():
        return None
    mode = Path(file).stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return warn("secrets", f"{key}: {file} may be read by others ({_mode(mode)}); try: chmod 600 {file}")
    return ok("secrets", f"{key}: {file} is readable for its owner alone")


def _folder(key: str, folder: Path) -> Iterator[Finding]:
    if not folder.exists():
        parent = _standing_part_of(folder)
        if os.access(parent, os.W_OK | os.X_OK):
            yield ok(key, f"{folder}: not there yet; the first start makes it")
        else:
            yield fail(key, f"{folder}: cannot be made, {parent} is not writable for {_name(os.geteuid())}")
        return
    status = folder.stat()
    who = f"{folder}: of {_name(status.st_uid)}, mode {_mode(status.st_mode)}"
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield fail(key, f"{who}; {_name(os.geteuid())} may not write it; try: {chown_line(folder)}")
    elif status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield warn(key, f"{who}; others may look inside; try: chmod 700 {folder}")
    else:
        yield ok(key, who)


def _files(data_dir: Path) -> Iterator[Finding]:
    """Find the files that lock their own writer out, and those that others may read."""
    if not os.access(data_dir, os.R_OK | os.X_OK):
        return
    owner = data_dir.stat().st_uid
    for path in [*sorted(data_dir.glob("*.db*")), *sorted(data_dir.glob("lock/*.lock"))]:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # a WAL goes with its last connection
        if status.st_uid != owner:
            command = f"chown {_name(owner)} {path}"
            yield fail("files", f"{path}: of {_name(status.st_uid)}, not of {_name(owner)}; try: {command}")
        elif status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield warn("files", f"{path}: mode {_mode(status.st_mode)}, others may read it; try: chmod 600 {path}")


def _kind_of_disk(folder: Path) -> Finding:
    kind = file_system(folder.resolve())
    if kind.startswith(SHARED_FILE_SYSTEMS):
        return fail("file system", f"{folder} lies on {kind}; SQLite's WAL needs a disk of this machine")
    return ok("file system", kind or "unknown")


def _free(folder: Path, min_free_bytes: int) -> Finding:
    free = shutil.disk_usage(folder).free
    said = f"{free // MIB:,} MiB free; storing stops below {min_free_bytes // MIB:,} MiB (store.min_free_bytes)"
    if free < min_free_bytes:
        return fail("disk", said)
    return (warn if free < LOW_DISK_TIMES * min_free_bytes else ok)("disk", said)


def _database(config: Config, kind: Kind) -> Finding:
    try:
        found = inspect(config.data_dir, kind)
    except Refused as error:
        return fail(kind.name, str(error))
    except StoreUnavailable as error:
        return (warn if (config.data_dir / kind.name).exists() else ok)(kind.name, error.reason)
    said = f"schema {found.version}, {found.file_bytes // MIB:,} MiB, its WAL {found.wal_bytes // MIB:,} MiB"
    if found.missing:
        return fail(kind.name, f"{said}; without {', '.join(found.missing)}: restore a copy, or move it away")
    if found.wal_bytes > config.store.max_wal_bytes:
        return warn(kind.name, f"{said}, above store.max_wal_bytes: a long reader holds it, or the writer stands still")
    return ok(kind.name, said)


def _standing_part_of(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _mode(mode: int) -> str:
    return f"{stat.S_IMODE(mode):04o}"
