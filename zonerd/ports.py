"""ports.json in the run directory: where each process answers HTTP."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NAME: Final = "ports.json"


def note(run_dir: Path, process: str, port: int | None) -> None:
    """Tell where this process answers; None: it has no port now. Raises OSError."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(run_dir):
        ports = {**noted(run_dir), process: port}
        path = run_dir / NAME
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(dict(sorted(ports.items())), indent=1) + "\n", encoding="utf-8")
        draft.replace(path)


def forget(run_dir: Path) -> None:
    """Drop what an earlier run has told."""
    (run_dir / NAME).unlink(missing_ok=True)


def noted(run_dir: Path) -> Mapping[str, int | None]:
    """Give the port of each process that has told: None, it has none now. Empty where nobody has told yet."""
    try:
        ports = json.loads((run_dir / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ports if isinstance(ports, dict) else {}


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    descriptor = os.open(run_dir / f"{NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
