"""What zonerd says while it works: one event a line, for people on a terminal, else as JSON."""

import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TextIO, TypeAlias

import structlog

from zonerd.log.events import EVENTS as EVENTS

Log: TypeAlias = structlog.typing.FilteringBoundLogger
Format = Literal["auto", "console", "json"]
Level = Literal["debug", "info", "warning", "error"]

_DIGITS = re.compile(r"[0-9]+")

MAX_VALUE_CHARACTERS = 1024
"""A longer text in a log line is cut here; what it cuts stands in the history, not in the log."""


def configure(level: Level, line_format: Format, stream: TextIO) -> None:
    """Send every line from `level` up to `stream`: coloured on a terminal, else one JSON object a line."""
    console = line_format == "console" or (line_format == "auto" and stream.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _stamp,
            structlog.processors.format_exc_info,
            _cut,
            structlog.dev.ConsoleRenderer(timestamp_key="ts", colors=stream.isatty())
            if console
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def logger(process: str, pid: int) -> Log:
    """Give the logger of one process; every line of it names the process and its pid."""
    log: Log = structlog.get_logger(process=process, pid=pid)
    return log


class Limited:
    """Says a repeated event at most once in `every_s` seconds and reason, numbers aside, and counts the rest."""

    def __init__(self, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last: dict[tuple[str, str], float] = {}
        self._suppressed: dict[tuple[str, str], int] = {}

    def warning(self, log: Log, event: str, reason: str, **fields: object) -> None:
        """Log this as a warning with its reason, or count it as suppressed."""
        kind = (event, _DIGITS.sub("", reason))
        now = self._clock()
        if kind in self._last and now - self._last[kind] < self._every_s:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return
        self._last[kind] = now
        suppressed = self._suppressed.pop(kind, 0)
        log.warning(event, reason=reason, **fields, **({"suppressed": suppressed} if suppressed else {}))


class Progress:
    """Says `progress` every so many seconds, with what the caller knows by then."""

    def __init__(self, log: Log, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._every_s = every_s
        self._clock = clock
        self._next = clock() + every_s

    def tick(self, fields: Callable[[], dict[str, object]]) -> None:
        """Log the line if it is due; only then are its fields asked for."""
        if self._clock() >= self._next:
            self._next = self._clock() + self._every_s
            self._log.info("progress", **fields())


def _stamp(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"ts": moment, **line}


def _cut(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for name, value in line.items():
        if isinstance(value, str) and len(value) > MAX_VALUE_CHARACTERS and name != "exception":
            line[name] = value[:MAX_VALUE_CHARACTERS] + "…"
    return line
