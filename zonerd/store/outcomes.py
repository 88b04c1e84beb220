"""What the last `verify --record` and the last backup have left in the data directory, for the watchdog to tell."""

import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec

from zonerd.errors import StoreUnavailable
from zonerd.store.files import put

VERIFY: Final = "verify.json"
BACKUP: Final = "backup.json"

MAX_BYTES: Final = 1024 * 1024

Check = Literal["broker", "history", "answers", "redis"]
CHECKS: Final[tuple[Check, ...]] = get_args(Check)
"""What verify checks."""

Moment = Annotated[float, msgspec.Meta(ge=0, lt=1e11)]


class Checked(msgspec.Struct, frozen=True):
    """What became of one check."""

    result: str
    differing: int = 0


class Verified(msgspec.Struct, frozen=True):
    """A run of verify; of one that came to no report the `checks` are missing."""

    schema: Literal[1]
    ended_s: Moment
    exit_code: int
    checks: dict[Check, Checked] = {}


class BackedUp(msgspec.Struct, frozen=True):
    """A backup that succeeded."""

    schema: Literal[1]
    ended_s: Moment


Outcome = TypeVar("Outcome", Verified, BackedUp)


def record(data_dir: Path, name: str, outcome: Mapping[str, Any]) -> None:
    """Put an outcome, with the moment, in the place of the last one. Raises StoreUnavailable."""
    file = data_dir / name
    try:
        put(file, msgspec.json.encode({**outcome, "ended_s": round(time.time(), 3)}) + b"\n")
    except OSError as error:
        raise StoreUnavailable(f"{file}: {error.strerror}", "io") from None


def recorded(file: Path, kind: type[Outcome]) -> Outcome | None:
    """Give the outcome that stands in a file; None where there is none, or what no zonerd that we know has written."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            return None
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError):
        return None
