"""What verify and backup have left in the data directory, told in the watchdog's metrics."""

from pathlib import Path
from threading import Event, Thread
from typing import Final, Self

from zonerd import metrics
from zonerd.store.outcomes import BACKUP, VERIFY, BackedUp, Verified, recorded

EVERY_S: Final = 5.0
MADE: Final = ("equal", "different")
"""Results of a check that came to an end."""

Stamp = tuple[int, int, int] | None


class Recorded:
    """Looks at both files while its `with` lasts, in a thread: a disk that hangs holds up no watchdog."""

    def __init__(self, data_dir: Path, every_s: float = EVERY_S) -> None:
        self._verify = data_dir / VERIFY
        self._backup = data_dir / BACKUP
        self._stamps: dict[Path, Stamp] = {}
        self._every_s = every_s
        self._ended = Event()
        self._thread = Thread(target=self._go_on, name="recorded", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def look(self) -> None:
        """Read what has changed since the last look; what is gone, broken or foreign is absent from the metrics."""
        if self._changed(self._verify):
            tell_verified(recorded(self._verify, Verified))
        if self._changed(self._backup):
            tell_backed_up(recorded(self._backup, BackedUp))

    def _changed(self, file: Path) -> bool:
        stamp = _stamp(file)
        changed = file not in self._stamps or self._stamps[file] != stamp
        self._stamps[file] = stamp
        return changed

    def _go_on(self) -> None:
        self.look()
        while not self._ended.wait(self._every_s):
            self.look()


def tell_verified(run: Verified | None) -> None:
    """Show the last run of verify; None: nothing."""
    metrics.VERIFY_LAST_RUN.set(run.ended_s if run else None)
    metrics.VERIFY_LAST_EXIT_CODE.set(run.exit_code if run else None)
    metrics.VERIFY_DIFFERENCES.clear()
    for check, found in run.checks.items() if run else ():
        if found.result in MADE:
            metrics.VERIFY_DIFFERENCES.labels(check).set(found.differing)


def tell_backed_up(made: BackedUp | None) -> None:
    """Show the last backup that succeeded; None: nothing."""
    metrics.BACKUP_LAST_SUCCESS.set(made.ended_s if made else None)


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
