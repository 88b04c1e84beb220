"""How far a followed file is settled, on the disk."""

import hashlib
from pathlib import Path

import msgspec

from zonerd.errors import Refused
from zonerd.store.files import put


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file, by device, inode and its first bytes, and the first byte of it that is not settled."""

    path: str
    device: int
    inode: int
    offset: int
    head_bytes: int
    head_sha256: str
    modified_ns: int
    schema: int = 1


def fingerprint(head: bytes) -> str:
    """Give what a file's first bytes are recognised by."""
    return hashlib.sha256(head).hexdigest()


def load(file: Path) -> Position | None:
    """Read a position; None where none was saved. Raises Refused for a file that is none; it is left as it is."""
    try:
        position = msgspec.json.decode(file.read_bytes(), type=Position)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{file}: not a position that can be read ({error}); remove it to begin anew") from None
    if position.schema != 1:
        raise Refused(f"{file}: written by a newer zonerd")
    return position


def save(file: Path, position: Position) -> None:
    """Put a position in the place of the last one: whatever happens, one of the two is there, whole."""
    put(file, msgspec.json.encode(position))
