"""What one check of `zonerd doctor` found."""

from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One line: how bad, about what, and what to know or do."""

    level: Level
    what: str
    detail: str


def ok(what: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", what, detail)


def warn(what: str, detail: str) -> Finding:
    """It works, and may not for long."""
    return Finding("warn", what, detail)


def fail(what: str, detail: str) -> Finding:
    """Somebody must do something."""
    return Finding("fail", what, detail)
