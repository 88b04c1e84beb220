"""A followed file gives each line at least once, whatever is done to the file and to the process."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zonerd import log
from zonerd.errors import Refused
from zonerd.sources import Line
from zonerd.sources.followed import POSITION_FILE, FollowedFile

LIMIT = 1000
Follow = Callable[[], FollowedFile]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "events.jsonl"


@pytest.fixture
def follow(path: Path) -> Follow:
    return lambda: FollowedFile(str(path), path.parent / "data", LIMIT, log.logger("test", 1))


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def drained(source: FollowedFile) -> list[Line]:
    """Take until nothing more comes, twice in a row with nothing read."""
    lines: list[Line] = []
    quiet = 0
    while quiet < 2:
        taken = source.take()
        lines += taken
        quiet = 0 if taken or not source.pause_s else quiet + 1
    return lines


def told(source: FollowedFile) -> list[str]:
    return [(line.value or b"(too long)").decode() for line in drained(source)]


def stopped(follow: Follow) -> list[str]:
    """Start, take what is there, acknowledge it, stop."""
    with follow() as source:
        lines = drained(source)
        if lines:
            source.ack(lines[-1].place)
    return [(line.value or b"(too long)").decode() for line in lines]


def test_it_waits_for_a_file_that_is_not_there_yet(path: Path, follow: Follow) -> None:
    with follow() as source:
        assert told(source) == []
        assert "No such file" in source.waiting_for
        append(path, "a")
        assert told(source) == ["a"]
        assert source.waiting_for == ""


def test_a_position_that_cannot_be_saved_is_said_until_it_can(path: Path, follow: Follow) -> None:
    in_the_way = path.parent / "data" / POSITION_FILE.replace(".json", ".new")
    in_the_way.mkdir()
    append(path, "a")
    with follow() as source:
        place = drained(source)[-1].place
        source.ack(place)
        source.take()
        assert "Is a directory" in source.waiting_for
        in_the_way.rmdir()
        source.ack(place)
        source.take()
        assert source.waiting_for == ""
    assert stopped(follow) == []


def test_a_file_that_could_not_be_read_for_a_moment_is_no_trouble_any_more(path: Path, follow: Follow) -> None:
    append(path, "a")
    with follow() as source:
        assert told(source) == ["a"]
        path.parent.rename(away := path.parent.with_name("away"))
        source.take()
        assert "No such file" in source.waiting_for
        away.rename(path.parent)
        append(path, "b")
        assert told(source) == ["b"]
        assert source.waiting_for == ""


def test_it_follows_as_the_file_grows_and_waits_for_the_end_of_a_line(path: Path, follow: Follow) -> None:
    append(path, "a", "b")
    with follow() as source:
        assert told(source) == ["a", "b"]
        with path.open("a") as file:
            file.write("par")
        assert told(source) == []
        append(path, "tial", "c")
        assert told(source) == ["partial", "c"]


def test_a_restart_goes_on_behind_what_was_acknowledged(path: Path, follow: Follow) -> None:
    append(path, "a", "b", "c")
    with follow() as source:
        lines = drained(source)
        source.ack(lines[1].place)
    assert stopped(follow) == ["c"]
    append(path, "d")
    assert stopped(follow) == ["d"]
    assert stopped(follow) == []


def test_what_was_taken_but_never_acknowledged_is_given_again(path: Path, follow: Follow) -> None:
    append(path, "a", "b")
    with follow() as source:
        assert told(source) == ["a", "b"]
    assert stopped(follow) == ["a", "b"]


def test_a_partial_line_is_given_whole_after_a_restart(path: Path, follow: Follow) -> None:
    append(path, "a")
    with path.open("a") as file:
        file.write("par")
    assert stopped(follow) == ["a"]
    append(path, "tial")
    assert stopped(follow) == ["partial"]


def test_a_renamed_file_is_read_to_its_end_before_the_new_one(path: Path, follow: Follow) -> None:
    append(path, "a")
    with follow() as source:
        assert told(source) == ["a"]
        rotated = path.with_name("events.jsonl.1")
        path.rename(rotated)
        append(rotated, "b")
        assert told(source) == ["b"]
        path.touch()
        append(rotated, "c")
        assert told(source) == ["c"]
        append(rotated, "d")
        append(path, "e")
        assert told(source) == ["d", "e"]


def test_the_last_line_of_a_finished_file_needs_no_end(path: Path, follow: Follow) -> None:
    path.write_text("a\nb")
    with follow() as source:
        assert told(source) == ["a"]
        path.rename(path.with_name("events.jsonl.1"))
        append(path, "c")
        assert told(source) == ["b", "c"]


@pytest.mark.parametrize(
    "names", [("events.jsonl.2", "events.jsonl.1"), ("events-20260101.jsonl", "events-20260102.jsonl")]
)
def test_files_rotated_while_it_was_stopped_are_read_in_their_order(
    path: Path, follow: Follow, names: tuple[str, str]
) -> None:
    append(path, "a")
    assert stopped(follow) == ["a"]
    append(path, "b")
    path.rename(path.with_name(names[0]))
    _older(path.with_name(names[0]), 20)
    append(path, "c", "d")
    path.rename(path.with_name(names[1]))
    _older(path.with_name(names[1]), 10)
    append(path, "e")
    assert stopped(follow) == ["b", "c", "d", "e"]
    append(path, "f")
    assert stopped(follow) == ["f"]


def test_files_rotated_while_nothing_could_be_taken_are_read_in_their_order(path: Path, follow: Follow) -> None:
    append(path, "a")
    with follow() as source:
        assert told(source) == ["a"]
        path.rename(path.with_name("events.jsonl.2"))
        _older(path.with_name("events.jsonl.2"), 20)
        append(path, "b")
        path.rename(path.with_name("events.jsonl.1"))
        _older(path.with_name("events.jsonl.1"), 10)
        append(path, "c")
        assert told(source) == ["b", "c"]


def test_older_rotations_and_other_files_beside_it_are_left_alone(path: Path, follow: Follow) -> None:
    append(path.with_name("events.jsonl.1"), "old")
    _older(path.with_name("events.jsonl.1"), 60)
    append(path, "a")
    assert stopped(follow) == ["a"]
    path.with_name("events.jsonl.bak").write_text("copy\n")
    path.with_name("events.jsonl~").write_text("copy\n")
    path.with_name("events.jsonl.3.gz").write_bytes(b"\x1f\x8b\n")
    path.rename(path.with_name("events.jsonl.2"))
    append(path, "b")
    assert stopped(follow) == ["b"]


def test_a_truncated_file_is_begun_anew(path: Path, follow: Follow) -> None:
    append(path, "a long first line", "b")
    with follow() as source:
        assert told(source) == ["a long first line", "b"]
        os.truncate(path, 0)
        append(path, "c")
        assert told(source) == ["c"]


def test_a_file_that_was_truncated_and_grew_past_the_position_is_begun_anew(path: Path, follow: Follow) -> None:
    append(path, "a")
    with follow() as source:
        assert told(source) == ["a"]
        path.write_text("other\nlines\n")
        assert told(source) == ["other", "lines"]
        lines = drained(source)
    assert lines == []
    assert stopped(follow) == ["other", "lines"]
    path.write_text("again\nother\nlines\nand more of them\n")
    assert stopped(follow) == ["again", "other", "lines", "and more of them"]


@pytest.mark.parametrize("running", [True, False])
def test_the_rest_of_a_copied_and_truncated_file_is_read_from_the_copy(
    path: Path, follow: Follow, *, running: bool
) -> None:
    append(path, "a", "b")
    source = follow().__enter__()
    lines = drained(source)
    source.ack(lines[-1].place)
    if not running:
        source.__exit__(None, None, None)
        source = follow().__enter__()
    append(path, "c")
    path.with_name("events.jsonl.1").write_bytes(path.read_bytes())
    os.truncate(path, 0)
    append(path, "d")
    assert told(source) == ["c", "d"]
    source.__exit__(None, None, None)


def test_a_file_that_went_away_while_it_was_stopped_is_followed_by_the_present_one(path: Path, follow: Follow) -> None:
    append(path, "a")
    assert stopped(follow) == ["a"]
    path.unlink()
    append(path, "b")
    assert stopped(follow) == ["b"]


def test_another_path_in_the_configuration_begins_anew(path: Path, follow: Follow, tmp_path: Path) -> None:
    append(path, "a")
    assert stopped(follow) == ["a"]
    other = tmp_path / "other.jsonl"
    append(other, "b")
    source = FollowedFile(str(other), tmp_path / "data", LIMIT, log.logger("test", 1))
    assert stopped(lambda: source) == ["b"]


def test_a_line_above_the_limit_is_given_without_its_bytes(path: Path, follow: Follow) -> None:
    append(path, "a", "x" * (LIMIT + 1), "y" * 300_000, "b")
    with follow() as source:
        lines = drained(source)
    assert [line.value for line in lines] == [b"a", None, None, b"b"]
    assert lines[1].place.offset == 2
    assert stopped(follow) == ["a", "(too long)", "(too long)", "b"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"path":"x"}', "\x00"])
def test_a_position_file_that_is_none_is_refused_and_left_as_it_is(path: Path, follow: Follow, text: str) -> None:
    position = path.parent / "data" / POSITION_FILE
    position.write_text(text)
    with pytest.raises(Refused, match=POSITION_FILE):
        follow().__enter__()
    assert position.read_text() == text


def test_a_directory_or_a_pipe_is_refused(path: Path, follow: Follow) -> None:
    os.mkfifo(path)
    with follow() as source, pytest.raises(Refused, match="not a regular file"):
        source.take()


def test_the_position_names_the_file_by_its_first_bytes(path: Path, follow: Follow) -> None:
    append(path, "a", "b")
    stopped(follow)
    position = json.loads((path.parent / "data" / POSITION_FILE).read_text())
    assert position["offset"] == 4
    assert position["inode"] == path.stat().st_ino
    assert position["head_bytes"] == 4


def _older(path: Path, seconds: float) -> None:
    """Put a file's time back: a file's last line is older than the next file's, and a clock's tick is coarse."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
