"""What verify and backup have left becomes metrics of the watchdog; what is none of ours is as if it were not there."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.process import wait_until
from services.scrape import Scraped
from zonerd import metrics
from zonerd.errors import StoreUnavailable
from zonerd.store.outcomes import BACKUP, CHECKS, MAX_BYTES, VERIFY, Verified, record, recorded
from zonerd.verify.report import Part, Report
from zonerd.watchdog.recorded import Recorded, tell_backed_up, tell_verified

RUN = "zonerd_verify_last_run_timestamp_seconds"
EXIT_CODE = "zonerd_verify_last_exit_code"
DIFFERENCES = "zonerd_verify_differences"
SUCCESS = "zonerd_backup_last_success_timestamp_seconds"


@pytest.fixture(autouse=True)
def unset() -> Iterator[None]:
    yield
    tell_verified(None)
    tell_backed_up(None)


def exposed() -> dict[str, dict[str, float]]:
    """Give each series of ours that has a sample: by check, where it has one."""
    metrics._EXPOSED["watchdog"]._text_until = 0.0
    scraped = Scraped.parse(metrics.exposition("watchdog").decode())
    found = {name: scraped.series(name) for name in (RUN, EXIT_CODE, DIFFERENCES, SUCCESS)}
    return {
        name: {dict(labels).get("check", ""): value for labels, value in series.items()}
        for name, series in found.items()
        if series
    }


def outcome(exit_code: int = 1, **differing: int) -> dict[str, Any]:
    checks = {check: {"result": "different" if n else "equal", "differing": n} for check, n in differing.items()}
    return {"schema": 1, "quick": False, "exit_code": exit_code, "checks": checks}


def test_until_something_was_recorded_there_is_no_series(tmp_path: Path):
    Recorded(tmp_path).look()
    assert exposed() == {}


def test_a_recorded_run_and_a_backup_are_told_and_the_next_ones_too(tmp_path: Path):
    watched = Recorded(tmp_path)
    record(tmp_path, VERIFY, outcome(1, broker=0, redis=3))
    record(tmp_path, BACKUP, {"schema": 1})
    watched.look()
    found = exposed()
    assert found[DIFFERENCES] == {"broker": 0, "redis": 3}
    assert found[EXIT_CODE] == {"": 1}
    assert found[RUN][""] == json.loads((tmp_path / VERIFY).read_text())["ended_s"]
    assert found[SUCCESS][""] == json.loads((tmp_path / BACKUP).read_text())["ended_s"]
    record(tmp_path, VERIFY, outcome(0, broker=0, history=0))
    watched.look()
    assert exposed()[DIFFERENCES] == {"broker": 0, "history": 0}
    assert exposed()[EXIT_CODE] == {"": 0}


def test_what_a_report_says_is_what_is_read_back_and_a_check_that_was_not_made_has_no_number(tmp_path: Path):
    results = ("equal", "different", "unavailable", "disabled")
    parts = [
        Part(check, result, "", {}, (), int(result == "different"))
        for check, result in zip(CHECKS, results, strict=True)
    ]
    record(tmp_path, VERIFY, Report(False, {}, parts).as_object())
    run = recorded(tmp_path / VERIFY, Verified)
    assert run is not None
    assert {check: found.result for check, found in run.checks.items()} == dict(zip(CHECKS, results, strict=True))
    Recorded(tmp_path).look()
    assert exposed()[DIFFERENCES] == {CHECKS[0]: 0, CHECKS[1]: 1}


FOREIGN = {
    "empty": b"",
    "half": b'{"schema": 1, "ended_s": 17',
    "no object": b"[1]",
    "not UTF-8": b'{"schema": 1, "ended_s": 5, "exit_code": 1, "checks": {"\xff": {}}}',
    "of another version": b'{"schema": 2, "ended_s": 5, "exit_code": 1}',
    "of another program": b'{"name": "package", "version": "1.0"}',
    "an exit code that is none": b'{"schema": 1, "ended_s": 5, "exit_code": "1"}',
    "a moment that is none": b'{"schema": 1, "ended_s": -5, "exit_code": 1}',
    "a check that there is not": b'{"schema": 1, "ended_s": 5, "exit_code": 1, "checks": {"x": {"result": "equal"}}}',
    "nested": b"[" * 100_000,
    "too large": b'{"schema": 1, "ended_s": 5, "exit_code": 1}'.ljust(MAX_BYTES + 1),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=list(FOREIGN))
def test_a_broken_or_foreign_file_is_as_if_it_were_not_there(tmp_path: Path, content: bytes):
    watched = Recorded(tmp_path)
    record(tmp_path, VERIFY, outcome(1, redis=3))
    watched.look()
    assert exposed()
    (tmp_path / VERIFY).write_bytes(content)
    watched.look()
    assert exposed() == {}


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)], ids=["folder", "fifo", "loop"]
)
def test_what_is_no_file_holds_nobody_up(tmp_path: Path, make: Any):  # noqa: ANN401 - what makes it
    make(tmp_path / VERIFY)
    make(tmp_path / BACKUP)
    Recorded(tmp_path).look()
    assert exposed() == {}


def test_a_file_that_is_gone_is_told_no_more(tmp_path: Path):
    watched = Recorded(tmp_path)
    record(tmp_path, BACKUP, {"schema": 1})
    watched.look()
    (tmp_path / BACKUP).unlink()
    watched.look()
    assert exposed() == {}


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[Path] = []
    monkeypatch.setattr("zonerd.watchdog.recorded.recorded", lambda file, _kind: read.append(file))
    watched = Recorded(tmp_path)
    for _ in range(3):
        watched.look()
    record(tmp_path, VERIFY, outcome())
    for _ in range(3):
        watched.look()
    assert read == [tmp_path / VERIFY, tmp_path / BACKUP, tmp_path / VERIFY]


def test_while_its_with_lasts_it_looks_again_and_again_beside_the_loop(tmp_path: Path):
    with Recorded(tmp_path, every_s=0.01):
        record(tmp_path, BACKUP, {"schema": 1})
        wait_until(lambda: SUCCESS in exposed(), 10)
    wait_until(lambda: "recorded" not in [thread.name for thread in threading.enumerate()], 10)


def test_an_outcome_is_whole_or_the_last_one_and_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record(tmp_path, VERIFY, outcome(0))
    before = (tmp_path / VERIFY).read_bytes()
    assert (tmp_path / VERIFY).stat().st_mode & 0o777 == 0o600

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnavailable, match=r"verify\.json: No space left"):
        record(tmp_path, VERIFY, outcome(1))
    assert (tmp_path / VERIFY).read_bytes() == before
