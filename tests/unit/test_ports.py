"""ports.json: several processes tell in one file, and whoever reads it never sees half of it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zonerd import ports


def test_each_process_tells_its_own_port(tmp_path: Path) -> None:
    ports.note(tmp_path, "consumer", 4711)
    ports.note(tmp_path, "producer", None)
    assert json.loads((tmp_path / ports.NAME).read_text(encoding="utf-8")) == {"consumer": 4711, "producer": None}


def test_processes_that_tell_at_once_do_not_lose_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: ports.note(tmp_path, f"consumer-{number}", number), range(200)))
    assert ports.noted(tmp_path) == {f"consumer-{number}": number for number in range(200)}


def test_a_missing_or_broken_file_tells_nothing(tmp_path: Path) -> None:
    assert ports.noted(tmp_path) == {}
    for text in ("{", "[]", ""):
        (tmp_path / ports.NAME).write_text(text, encoding="utf-8")
        assert ports.noted(tmp_path) == {}
    ports.note(tmp_path, "consumer", 1)
    assert ports.noted(tmp_path) == {"consumer": 1}


def test_what_an_earlier_run_told_can_be_forgotten(tmp_path: Path) -> None:
    ports.note(tmp_path, "consumer", 1)
    ports.forget(tmp_path)
    ports.forget(tmp_path)
    assert ports.noted(tmp_path) == {}
