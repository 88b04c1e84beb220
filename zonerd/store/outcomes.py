"""What the last backup has left in the data directory."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from zonerd.errors import StoreUnavailable
from zonerd.store.files import put

BACKUP: Final = "backup.json"


def record(data_dir: Path, name: str, outcome: Mapping[str, Any]) -> None:
    """Put an outcome, with the moment, in the place of the last one. Raises StoreUnavailable."""
    file = data_dir / name
    try:
        put(file, msgspec.json.encode({**outcome, "ended_s": round(time.time(), 3)}) + b"\n")
    except OSError as error:
        raise StoreUnavailable(f"{file}: {error.strerror}", "io") from None
