"""What can go wrong, as a vocabulary, and the exit code that each kind ends a command with."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

DONE: Final = 0
ANSWER_IS_NO: Final = 1
USAGE: Final = 2
PROCESS_NOT_RUNNING: Final = 3
SUPERVISORD_UNREACHABLE: Final = 4
SERVICE_UNAVAILABLE: Final = 69
BUG: Final = 70
REFUSED: Final = 78
INTERRUPTED: Final = 130

EXIT_CODES: Final[Mapping[int, str]] = MappingProxyType(
    {
        DONE: "done; for a process: it was asked to stop, and did",
        ANSWER_IS_NO: "the answer is no: not ready, something differs, there is no such thing",
        USAGE: "the command line is not understood",
        PROCESS_NOT_RUNNING: "some process does not run",
        SUPERVISORD_UNREACHABLE: "no supervisord answers",
        SERVICE_UNAVAILABLE: "a service cannot be reached, or the store cannot be written now; one-shot verbs only",
        BUG: "a bug: the last lines on stderr or in the log say where",
        REFUSED: "the configuration, a file or a lock is refused: starting again does not help",
        INTERRUPTED: "interrupted",
    }
)
"""Each exit code, and what it says."""


class ZonerdError(Exception):
    """Something that zonerd names and answers with an exit code of its own."""

    exit_code = BUG


class Refused(ZonerdError):
    """A configuration, a file or a lock is not one that zonerd may work with."""

    exit_code = REFUSED


class ConfigurationRefused(Refused):
    """The configuration has errors; each is one line that names its key and never its value."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class LockHeld(Refused):
    """Another process holds the lock of this role over this data directory."""


class ServiceUnavailable(ZonerdError):
    """A service does not answer now and may answer later: wait and try again."""

    exit_code = SERVICE_UNAVAILABLE

    def __init__(self, service: str, reason: str) -> None:
        super().__init__(f"{service}: {reason}")
        self.service = service
        self.reason = reason


StoreTrouble = Literal["full", "locked", "read_only", "io", "damaged", "other"]


class StoreUnavailable(ServiceUnavailable):
    """The disk or the database is full, locked or read-only: nothing was written, and it may pass.

    `trouble` is None where nothing failed, as where a file is not there yet.
    """

    def __init__(self, reason: str, trouble: StoreTrouble | None = None) -> None:
        super().__init__("store", reason)
        self.trouble = trouble


class Overtaken(ZonerdError):
    """Another process moved what this write was fenced on: nothing was written; read it again."""
