"""What zonerd says while it works: one event a line, for people on a terminal, else as JSON, and for journald."""

import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TextIO, TypeAlias

import structlog
from structlog.typing import EventDict, Processor

from zonerd import metrics
from zonerd.config import Format, Level
from zonerd.log.events import EVENTS as EVENTS
from zonerd.log.journal import Journal as Journal
from zonerd.log.outlets import Output
from zonerd.log.text import fit, fit_lines

Log: TypeAlias = structlog.typing.FilteringBoundLogger

MAX_KINDS: Final = 1000
"""So many kinds of a limited event are remembered."""

_DIGITS: Final = re.compile(r"[0-9]+")
_FIRST: Final = ("level", "event", "process", "pid")


def configure(
    level: Level, line_format: Format, stream: TextIO, *, colors: bool = False, journal: Journal | None = None
) -> None:
    """Send every line from `level` up to `stream`, as JSON unless that is a terminal, and to the journal."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _made_fit,
            *([_Sending(journal)] if journal is not None else []),
            _console(colors=colors)
            if line_format == "console" or (line_format == "auto" and stream.isatty())
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,
    )
    output = Output(stream.fileno())


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
        self.say("warning", log, event, reason, **fields)

    def say(self, level: Level, log: Log, event: str, reason: str, **fields: object) -> None:
        """Log this at this level with its reason, or count it as suppressed."""
        kind = (event, _DIGITS.sub("", reason))
        now = self._clock()
        if kind in self._last and now - self._last[kind] < self._every_s:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return
        self._forget_some()
        self._last[kind] = now
        suppressed = self._suppressed.pop(kind, 0)
        getattr(log, level)(event, reason=reason, **fields, **({"suppressed": suppressed} if suppressed else {}))

    def _forget_some(self) -> None:
        if len(self._last) >= MAX_KINDS:
            self._last.clear()
            self._suppressed.clear()


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


class _Sending:
    """Hands each line to journald."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __call__(self, _logger: object, _method: str, line: EventDict) -> EventDict:
        if self._journal.take(line) and self._journal.alone:
            raise structlog.DropEvent
        return line


def _made_fit(_logger: object, _method: str, line: EventDict) -> EventDict:
    """Count a line, give it its moment, the same order as every other, and values that can do no harm."""
    metrics.LOG_LINES.labels(line["level"]).inc()
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    made: EventDict = {"ts": moment}
    for name in (*_FIRST, *(name for name in line if name not in _FIRST)):
        made[name] = fit_lines(line[name]) if name == "exception" else fit(line[name])
    return made


def _console(*, colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        timestamp_key="ts",
        colors=colors,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,  # the other one shows variables, secrets too
    )
