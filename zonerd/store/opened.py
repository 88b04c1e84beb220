"""What is said of a database: once which one was opened, and now and then that it fails."""

from zonerd.errors import StoreUnavailable
from zonerd.log import Limited, Log


class Opened:
    """The database of one process; opened again after a failure, it is said only if it is another one."""

    def __init__(self, log: Log, file: str) -> None:
        self._log = log
        self._file = file
        self._limited = Limited()
        self._store_id = ""

    def note(self, store_id: str) -> None:
        """Say which store was opened, unless it is the one that was."""
        if store_id != self._store_id:
            self._store_id = store_id
            self._log.info("store_opened", file=self._file, store_id=store_id)

    def failed(self, error: StoreUnavailable) -> None:
        """Say that it failed; a file that is not there yet has not."""
        if error.trouble is not None:
            self._limited.warning(self._log, "store_failed", error.reason, kind=error.trouble)
