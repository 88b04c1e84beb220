"""The log: one JSON object a line, cut where it is long; what repeats is limited and counted."""

import io
import json
import re
from collections.abc import Iterator

import pytest
import structlog

from zonerd import log
from zonerd.log import Limited, Progress


class Clock:
    """A clock that stands until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    yield stream
    structlog.reset_defaults()


def _read(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_names_moment_level_event_process_and_pid(lines: io.StringIO) -> None:
    log.logger("consumer", 7).info("started", topic="t")
    (line,) = _read(lines)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("ts")))
    assert line == {"level": "info", "event": "started", "process": "consumer", "pid": 7, "topic": "t"}


def test_what_lies_below_the_level_is_not_said(lines: io.StringIO) -> None:
    log.logger("consumer", 7).debug("batch_stored")
    assert _read(lines) == []


def test_a_long_or_many_lined_value_stays_one_short_line(lines: io.StringIO) -> None:
    log.logger("consumer", 7).info("x", value="a\n" * 100_000)
    (line,) = _read(lines)
    assert len(str(line["value"])) == log.MAX_VALUE_CHARACTERS + 1


def test_an_exception_keeps_its_whole_traceback(lines: io.StringIO) -> None:
    try:
        {}["x" * 5000]
    except KeyError:
        log.logger("consumer", 7).exception("crashed")
    (line,) = _read(lines)
    assert "x" * 5000 in str(line["exception"])


def test_a_console_line_is_for_people() -> None:
    stream = io.StringIO()
    log.configure("info", "console", stream)
    log.logger("consumer", 7).info("started")
    structlog.reset_defaults()
    assert not stream.getvalue().startswith("{")
    assert "started" in stream.getvalue()


def test_a_repeated_warning_is_said_once_in_ten_seconds_and_the_next_one_counts_the_rest(lines: io.StringIO) -> None:
    clock = Clock()
    limited = Limited(10.0, clock)
    for clock.now in (100, 101, 109.9, 110, 111):
        limited.warning(log.logger("c", 1), "commit_failed", "after 5 tries")
    assert [line.get("suppressed") for line in _read(lines)] == [None, 2]


def test_another_event_or_reason_is_said_at_once_and_other_numbers_are_the_same_reason(lines: io.StringIO) -> None:
    limited = Limited(10.0, Clock())
    for event, reason in (("a", "x 1"), ("a", "x 2"), ("b", "x 1"), ("a", "y 1")):
        limited.warning(log.logger("c", 1), event, reason)
    assert [(line["event"], line["reason"]) for line in _read(lines)] == [("a", "x 1"), ("b", "x 1"), ("a", "y 1")]


def test_progress_is_said_at_its_interval_and_only_then_asked_for(lines: io.StringIO) -> None:
    clock = Clock()
    progress = Progress(log.logger("c", 1), 60, clock)
    asked = []
    for clock.now in (100, 159, 160, 161, 219, 220):
        progress.tick(lambda: asked.append(clock.now) or {"at": clock.now})  # type: ignore[func-returns-value]
    assert [line["at"] for line in _read(lines)] == asked == [160, 220]
