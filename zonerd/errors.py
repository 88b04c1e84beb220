"""What can go wrong, as a vocabulary, and the exit code that each kind ends a command with."""

DONE = 0
ANSWER_IS_NO = 1
USAGE = 2
SERVICE_UNAVAILABLE = 69
BUG = 70
REFUSED = 78
INTERRUPTED = 130


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


class StoreUnavailable(ServiceUnavailable):
    """The disk or the database is full, locked or read-only: nothing was written, and it may pass."""

    def __init__(self, reason: str) -> None:
        super().__init__("store", reason)


class Overtaken(ZonerdError):
    """Another process moved what this write was fenced on: nothing was written; read it again."""
