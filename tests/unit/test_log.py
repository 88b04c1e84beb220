"""The log: one harmless line an event, counted; what repeats is limited; what takes no lines is left alone."""

import json
import os
import re
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Counter

from zonerd import config, log, metrics
from zonerd.log import Limited, Progress, outlets, text
from zonerd.log.outlets import Output, Rest

Lines = Callable[[], list[dict[str, object]]]


class Clock:
    """A clock that stands until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    """What was said so far, line by line."""
    path = tmp_path / "lines"
    with path.open("w", encoding="utf-8") as stream:
        log.configure("info", "json", stream)
        yield lambda: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def secret() -> Iterator[str]:
    """A password that this process has read from a file."""
    config.secrets_read.add("s3cret-Pa55")
    yield "s3cret-Pa55"
    config.secrets_read.discard("s3cret-Pa55")


def _counted(counter: Counter, **labels: str) -> float:
    (family,) = counter.collect()
    return next(one.value for one in family.samples if one.name.endswith("_total") and one.labels == labels)


def test_a_line_begins_with_moment_level_event_process_and_pid(lines: Lines) -> None:
    log.logger("consumer", 7).info("started", topic="t")
    (line,) = lines()
    assert list(line) == ["ts", "level", "event", "process", "pid", "topic"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("ts")))
    assert line == {"level": "info", "event": "started", "process": "consumer", "pid": 7, "topic": "t"}


def test_what_lies_below_the_level_is_not_said(lines: Lines) -> None:
    log.logger("consumer", 7).debug("batch_stored")
    assert lines() == []


def test_each_level_is_counted_and_all_are_there_from_the_start(lines: Lines) -> None:
    before = {level: _counted(metrics.LOG_LINES, level=level) for level in ("debug", "info", "warning", "error")}
    log.logger("consumer", 7).debug("batch_stored")
    log.logger("consumer", 7).warning("fenced")
    after = {level: _counted(metrics.LOG_LINES, level=level) for level in before}
    assert after == {**before, "warning": before["warning"] + 1}
    assert len(lines()) == 1


def test_a_long_or_many_lined_value_stays_one_short_line(lines: Lines) -> None:
    log.logger("consumer", 7).info("x", value="a\n" * 100_000)
    (line,) = lines()
    assert len(str(line["value"])) == text.MAX_CHARACTERS + 1


@given(st.text())
def test_no_character_of_a_value_is_one_that_a_terminal_obeys(value: str) -> None:
    assert str(text.fit(value)).isprintable()
    assert all(part.isprintable() for part in text.fit_lines(value).split("\n"))
    assert json.dumps(text.fit({value: [value]})).isprintable()


@pytest.mark.parametrize("value", ["\x1b[2J\x07", "\u202egnp.exe", "\udcff", "a\r\nb", "\x9b31m"])
def test_a_value_is_escaped_on_a_console_too(value: str, tmp_path: Path) -> None:
    path = tmp_path / "console"
    with path.open("w", encoding="utf-8") as stream:
        log.configure("info", "console", stream)
        log.logger("consumer", 7).info("started", value=value, several=[value], table={value: value})
        log.logger("consumer", 7).error("crashed", exc_info=ValueError(value))
    shown = path.read_bytes().decode().rstrip("\n")
    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown.count("\\") >= 4


def test_a_secret_that_was_read_is_hidden_wherever_it_turns_up(lines: Lines, secret: str) -> None:
    error = ValueError(f"AUTH {secret}")
    log.logger("consumer", 7).error("crashed", exc_info=error, several=[secret], table={secret: f"no {secret}"})
    long = "x" * (text.MAX_CHARACTERS - 4) + secret
    log.logger("consumer", 7).info("x", long=long)
    shown = json.dumps(lines())
    assert secret not in shown
    assert secret[:4] not in shown
    assert "AUTH ***" in shown


def test_a_traceback_on_a_console_shows_no_variable(tmp_path: Path) -> None:
    hidden = "only in a variable".upper()
    path = tmp_path / "console"
    with path.open("w", encoding="utf-8") as stream:
        log.configure("info", "console", stream)
        try:
            {}[len(hidden)]
        except KeyError:
            log.logger("consumer", 7).exception("crashed")
    shown = path.read_text(encoding="utf-8")
    assert "KeyError: 18" in shown
    assert hidden not in shown


def test_a_number_that_json_does_not_have_is_text(lines: Lines) -> None:
    log.logger("consumer", 7).info("x", lag=float("nan"), path=Path("/x"))
    (line,) = lines()
    assert (line["lag"], line["path"]) == ("nan", "/x")


def test_an_exception_keeps_its_whole_traceback(lines: Lines) -> None:
    try:
        {}["x" * 5000]
    except KeyError:
        log.logger("consumer", 7).exception("crashed")
    (line,) = lines()
    assert "x" * 5000 in str(line["exception"])
    assert "\n" in str(line["exception"])


def test_a_console_line_is_for_people(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with path.open("w", encoding="utf-8") as stream:
        log.configure("info", "console", stream)
        log.logger("consumer", 7).info("started")
    assert "started" in path.read_text(encoding="utf-8")
    assert not path.read_text(encoding="utf-8").startswith("{")


def test_a_closed_pipe_drops_lines_and_counts_them() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    before = _counted(metrics.LOG_LINES_DROPPED)
    for _ in range(3):
        Output(writer).write("a line")
    os.close(writer)
    assert _counted(metrics.LOG_LINES_DROPPED) - before == 3


def test_a_full_disk_drops_lines_and_counts_them() -> None:
    before = _counted(metrics.LOG_LINES_DROPPED)
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        Output(full.fileno()).write("a line")
    assert _counted(metrics.LOG_LINES_DROPPED) - before == 1


def test_a_pipe_that_nobody_reads_is_left_alone_after_a_moment_and_tried_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    clock = Clock()
    output = Output(writer)
    monkeypatch.setattr(output, "_rest", Rest(clock))
    polled = []
    poll = select.poll()
    poll.register(writer, select.POLLOUT)
    monkeypatch.setattr(output, "_poll", type("", (), {"poll": lambda _, ms: polled.append(ms) or poll.poll(0)})())
    before = _counted(metrics.LOG_LINES_DROPPED)
    while _counted(metrics.LOG_LINES_DROPPED) == before:
        output.write("x" * 10_000)
    tries = len(polled)
    output.write("not tried")
    assert len(polled) == tries
    os.read(reader, 1 << 20)
    clock.now += outlets.FIRST_REST_S
    output.write("whole")
    assert os.read(reader, 1 << 20) == b"\nwhole\n"  # the torn line ends first
    assert _counted(metrics.LOG_LINES_DROPPED) - before == 2
    os.close(reader)
    os.close(writer)


def test_the_longer_something_hangs_the_more_seldom_it_is_tried() -> None:
    clock = Clock()
    rest = Rest(clock)
    lengths = []
    for _ in range(8):
        rest.begin()
        began = clock.now
        while rest.lasts:
            clock.now += 1
        lengths.append(clock.now - began)
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60]
    rest.forget()
    rest.begin()
    clock.now += 1
    assert not rest.lasts


def test_a_repeated_warning_is_said_once_in_ten_seconds_and_the_next_one_counts_the_rest(lines: Lines) -> None:
    clock = Clock()
    limited = Limited(10.0, clock)
    for clock.now in (100, 101, 109.9, 110, 111):
        limited.warning(log.logger("c", 1), "commit_failed", "after 5 tries")
    assert [line.get("suppressed") for line in lines()] == [None, 2]


def test_another_event_or_reason_is_said_at_once_and_other_numbers_are_the_same_reason(lines: Lines) -> None:
    limited = Limited(10.0, Clock())
    for event, reason in (("a", "x 1"), ("a", "x 2"), ("b", "x 1"), ("a", "y 1")):
        limited.warning(log.logger("c", 1), event, reason)
    assert [(line["event"], line["reason"]) for line in lines()] == [("a", "x 1"), ("b", "x 1"), ("a", "y 1")]


def test_a_limited_line_keeps_its_level(lines: Lines) -> None:
    Limited().say("error", log.logger("c", 1), "kafka_client", "no broker")
    (line,) = lines()
    assert line["level"] == "error"


def test_reasons_without_end_take_no_memory_without_end(lines: Lines) -> None:
    limited = Limited(10.0, Clock())
    for number in range(3 * log.MAX_KINDS):
        limited.warning(log.logger("c", 1), "kafka_client", "".join(chr(97 + int(digit)) for digit in str(number)))
    assert len(limited._last) <= log.MAX_KINDS
    assert len(lines()) == 3 * log.MAX_KINDS


def test_progress_is_said_at_its_interval_and_only_then_asked_for(lines: Lines) -> None:
    clock = Clock()
    progress = Progress(log.logger("c", 1), 60, clock)
    asked = []
    for clock.now in (100, 159, 160, 161, 219, 220):
        progress.tick(lambda: asked.append(clock.now) or {"at": clock.now})  # type: ignore[func-returns-value]
    assert [line["at"] for line in lines()] == asked == [160, 220]
