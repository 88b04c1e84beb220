"""A backup is whole or not there, reads only, and removes nothing but its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import apsw
import pytest
import structlog

from services.process import wait_until
from zonerd import aggregator, backup, config
from zonerd.errors import DONE, INTERRUPTED, REFUSED, SERVICE_UNAVAILABLE, Refused, StoreUnavailable
from zonerd.events import Record, Standing, encode, sort_out
from zonerd.store import copying
from zonerd.store.database import Kind
from zonerd.store.history import History
from zonerd.store.lock import Lock

EVENTS = 500
SLOW = """
import time
from zonerd import backup
from zonerd.store import copying
copying._STEPS_A_LOOK = 1
def copy_slowly(folder, kind, to, tell):
    def hang(size_bytes):
        if (to / kind.name).exists():
            print("copying", flush=True)
            time.sleep(60)
    copying.copy(folder, kind, to, hang)
backup.copy = copy_slowly
from zonerd.cli import main
main()
"""
LITTLE_ROOM = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
from zonerd.cli import main
main()
"""


def append(history: History, count: int) -> None:
    row = history.partitions()[0]
    records = [
        Record(0, row.next_offset + n, 1000 + n, b"k", b"bad" if n % 7 == 3 else encode(n, f"a{n % 5}", n, {"n": n}))
        for n in range(count)
    ]
    slices = sort_out(records, {}, {0: Standing(row.next_offset, 0)}, 1 << 20)
    assert history.append(slices, {0: row.id}) == []


def settings(data_dir: Path, *overrides: str) -> config.Config:
    return config.load(None, {}, [f"store.data_dir={data_dir}", "redis.enabled=false", *overrides]).config


def fold(data_dir: Path) -> None:
    aggregator.catch_up(settings(data_dir), None, structlog.get_logger())


@pytest.fixture
def store(data_dir: Path) -> Path:
    """A stopped data directory with a history that is counted."""
    with History.open_writer(data_dir) as history:
        history.meet("cluster", "user_activity", "id", {0: 0}, {0: 0})
        append(history, EVENTS)
    fold(data_dir)
    return data_dir


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "copies" / "of-zonerd"


def command(data_dir: Path, *words: object, script: str = "from zonerd.cli import main; main()") -> list[str]:
    options = ["-X", f"store.data_dir={data_dir}", "-X", "redis.enabled=false"]
    return [sys.executable, "-c", script, *options, *map(str, words)]


def run(
    data_dir: Path, *words: object, script: str = "from zonerd.cli import main; main()"
) -> subprocess.CompletedProcess[str]:
    line = command(data_dir, *words, script=script)
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


def dump(folder: Path, file: str) -> list[object]:
    connection = apsw.Connection(str(folder / file), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        tables = [list(connection.execute(f"select * from {name}")) for name in sorted(names)]
        schema = list(connection.execute("select type, name, sql from sqlite_master order by name"))
        return [schema, *tables, connection.pragma("application_id"), connection.pragma("page_size")]
    finally:
        connection.close()


def copies(dest: Path) -> list[str]:
    return sorted(path.name for path in dest.iterdir() if path.name != "lock") if dest.exists() else []


def stamps(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Give all of a folder's databases and their WALs; -shm is memory."""
    files = [path for path in folder.glob("*.db*") if path.suffix != ".db-shm"]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def test_a_copy_holds_every_row_for_its_owner_alone_and_its_place_is_all_that_stdout_says(store: Path, dest: Path):
    ended = run(store, "backup", dest)
    assert ended.returncode == DONE, ended.stderr
    (name,) = copies(dest)
    assert ended.stdout == f"{dest / name}\n"
    assert backup._NAME.fullmatch(name)
    assert sorted(path.name for path in (dest / name).iterdir()) == ["events.db", "rollups.db"]
    for file in ("events.db", "rollups.db"):
        assert dump(dest / name, file) == dump(store, file)
        assert (dest / name / file).stat().st_mode & 0o777 == 0o600
    assert dest.stat().st_mode & 0o777 == (dest / name).stat().st_mode & 0o777 == 0o700


def test_as_json_it_says_what_is_in_it_and_the_success_is_left_in_the_data_directory(store: Path, dest: Path):
    said = json.loads(run(store, "backup", dest, "--json").stdout)
    (name,) = copies(dest)
    assert (said["schema"], said["path"], said["rebuild"], said["removed"]) == (1, str(dest / name), None, [])
    assert said["positions"] == {"user_activity/0": EVENTS}
    assert said["files"] == {file: (dest / name / file).stat().st_size for file in ("rollups.db", "events.db")}
    left = json.loads((store / "backup.json").read_text())
    assert left.pop("ended_s") > 0
    assert left == said
    assert (store / "backup.json").stat().st_mode & 0o777 == 0o600


def test_the_originals_of_a_stopped_store_stay_as_they_are(store: Path, dest: Path):
    before = stamps(store)
    assert sorted(before) == ["events.db", "rollups.db"]
    assert run(store, "backup", dest).returncode == DONE
    assert stamps(store) == before
    assert sorted(path.name for path in store.iterdir()) == ["backup.json", "events.db", "lock", "rollups.db"]


def test_the_wal_that_a_killed_writer_left_is_copied_and_stays_as_it_is(store: Path, dest: Path, tmp_path: Path):
    killed = tmp_path / "killed"
    with History.open_writer(store) as history:
        append(history, 100)
        shutil.copytree(store, killed)
    before = stamps(killed)
    assert before["events.db-wal"][0]
    assert run(killed, "backup", dest).returncode == DONE
    assert stamps(killed) == before
    with History.open_reader(dest / copies(dest)[0]) as copied:
        assert copied.partitions()[0].next_offset == EVENTS + 100


def test_without_answers_the_history_is_copied_and_that_is_said(store: Path, dest: Path):
    (store / "rollups.db").unlink()
    ended = run(store, "backup", dest)
    assert ended.returncode == DONE
    assert "without rollups.db" in ended.stderr
    assert [path.name for path in (dest / copies(dest)[0]).iterdir()] == ["events.db"]


def test_while_there_is_no_history_it_exits_69_and_makes_nothing(data_dir: Path, dest: Path, tmp_path: Path):
    for folder in (data_dir, tmp_path / "none"):
        assert run(folder, "backup", dest).returncode == SERVICE_UNAVAILABLE
    assert not dest.parent.exists()
    assert not (tmp_path / "none").exists()
    assert list(data_dir.iterdir()) == []


def test_the_answers_are_copied_first_so_that_they_go_on_after_a_restore(
    store: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
):
    def copy_and_go_on(folder: Path, kind: Kind, to: Path, tell: Callable[[int], None]) -> None:
        copying.copy(folder, kind, to, tell)
        with History.open_writer(store) as history:
            append(history, 100)
        fold(store)

    monkeypatch.setattr(backup, "copy", copy_and_go_on)
    made = backup.back_up(settings(store), dest, None)
    assert made.rebuild is None
    assert made.positions == {"user_activity/0": EVENTS + 100}
    monkeypatch.setattr(backup, "ORDER", backup.ORDER[::-1])
    assert backup.back_up(settings(store), dest, None).rebuild == "another_history"


def nonsense(folder: Path, file: str = "events.db", *, page: int = -2) -> None:
    path = folder / file
    pages = path.stat().st_size // 16384
    with path.open("r+b") as target:
        target.seek((page % pages) * 16384)
        target.write(b"\x55" * 16384)


def without_its_last_row(folder: Path) -> None:
    connection = apsw.Connection(str(folder / "events.db"))
    connection.execute("delete from events where offset = (select max(offset) from events)")
    connection.close()


def out_of_order(folder: Path) -> None:
    """Give a row the offset of another: SQLite copies that, and only a check sees it."""
    path = folder / "events.db"
    content = bytearray(path.read_bytes())
    at = content.index(bytes([401 >> 8, 401 & 255]) * 2)  # its offset, and its user, who has the same number
    content[at : at + 2] = bytes([300 >> 8, 300 & 255])
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a page of nonsense": (nonsense, "events.db: damaged"),
    "a page of nonsense in the answers": (lambda folder: nonsense(folder, "rollups.db", page=4), "rollups.db: damaged"),
    "cut short": (lambda folder: os.truncate(folder / "events.db", 32768), "events.db: cut short"),
    "no database": (lambda folder: (folder / "events.db").write_bytes(b"x" * 5000), "events.db: not a database"),
    "rows out of order": (out_of_order, "events.db: its copy is not sound: "),
    "nothing at its position": (without_its_last_row, "nothing stands at its user_activity/0 up to 500"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_and_named_and_leaves_no_copy(store: Path, dest: Path, damage: str):
    make, words = DAMAGES[damage]
    make(store)
    ended = run(store, "backup", dest, "--keep", 1)
    assert (ended.returncode, ended.stdout) == (REFUSED, ""), ended.stderr
    assert words in ended.stderr
    assert copies(dest) == []
    assert not (store / "backup.json").exists()


def begun(store: Path, dest: Path) -> subprocess.Popen[str]:
    """Begin a backup that hangs in the middle of its copy."""
    process = subprocess.Popen(command(store, "backup", dest, script=SLOW), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    return process


def test_killed_it_leaves_no_copy_under_a_name_and_the_next_one_clears_up(store: Path, dest: Path):
    with begun(store, dest) as process:
        process.kill()
    (left,) = copies(dest)
    assert left.endswith(".partial")
    assert list((dest / left).iterdir())
    assert run(store, "backup", dest).returncode == DONE
    (name,) = copies(dest)
    assert backup._NAME.fullmatch(name)


def test_interrupted_it_leaves_nothing(store: Path, dest: Path):
    with begun(store, dest) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == INTERRUPTED
    assert copies(dest) == []


def test_a_second_one_at_the_same_place_is_refused_and_names_the_first(store: Path, dest: Path):
    with begun(store, dest) as process:
        ended = run(store, "backup", dest)
        assert ended.returncode == REFUSED
        assert f"another backup is being made there: pid {process.pid}" in ended.stderr
        assert len(copies(dest)) == 1
        process.kill()


def test_a_disk_that_gets_full_meanwhile_ends_it_with_69_and_nothing_is_left(store: Path, dest: Path):
    ended = run(store, "backup", dest, script=LITTLE_ROOM)
    assert ended.returncode == SERVICE_UNAVAILABLE, ended.stderr
    assert f"{dest}/2" in ended.stderr
    assert copies(dest) == []


def test_too_little_room_is_refused_beforehand_and_says_how_much_is_needed(
    store: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
):
    needed = backup.total_bytes(store)
    assert needed == sum((store / file).stat().st_size for file in ("events.db", "rollups.db"))
    monkeypatch.setattr(backup, "free_bytes", lambda _: needed + 999)
    assert backup.back_up(settings(store, "store.min_free_bytes=999"), dest, None).positions
    before = copies(dest)
    with pytest.raises(Refused, match=rf"needs {needed:,} bytes beside the 1,000 of .* {needed + 999:,} are free"):
        backup.back_up(settings(store, "store.min_free_bytes=1000"), dest, None)
    assert copies(dest) == before


def test_it_may_lie_in_the_data_directory_and_is_not_that(store: Path):
    assert run(store, "backup", store / "backup").returncode == DONE
    ended = run(store, "backup", store)
    assert ended.returncode == REFUSED
    assert "is the data directory itself" in ended.stderr


@pytest.mark.parametrize("inner", ["", "/inner"])
def test_a_destination_that_is_a_file_or_below_one_is_refused(store: Path, dest: Path, inner: str):
    dest.parent.mkdir()
    dest.write_text("mine")
    ended = run(store, "backup", f"{dest}{inner}")
    assert ended.returncode == REFUSED
    assert str(dest) in ended.stderr
    assert dest.read_text() == "mine"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each copy have a name of its own without a second between them."""
    numbers = iter(range(100))
    monkeypatch.setattr(backup, "_free_name", lambda dest: dest / f"20261125T0210{next(numbers):02}Z")


def named(numbers: Sequence[int]) -> list[str]:
    return [f"20261125T0210{number:02}Z" for number in numbers]


@pytest.mark.usefixtures("quick")
def test_the_newest_are_kept_and_all_are_without_the_option(store: Path, dest: Path):
    for _ in range(3):
        assert backup.back_up(settings(store), dest, 7).removed == ()
    assert backup.back_up(settings(store), dest, None).removed == ()
    assert copies(dest) == named(range(4))
    made = backup.back_up(settings(store), dest, 2)
    assert [path.name for path in made.removed] == named([0, 1, 2])
    assert copies(dest) == named([3, 4])
    backup.back_up(settings(store), dest, 1)
    assert copies(dest) == named([5])


@pytest.mark.usefixtures("quick")
def test_what_is_no_copy_of_this_history_is_never_removed(store: Path, dest: Path, tmp_path: Path):
    for _ in range(4):
        backup.back_up(settings(store), dest, None)
    shutil.copytree(dest / named([0])[0], dest / "20250101T000000Z")  # another history's
    connection = apsw.Connection(str(dest / "20250101T000000Z" / "events.db"))
    connection.execute("update store set id = 'another'")
    connection.close()
    shutil.copytree(dest / named([0])[0], dest / "before-the-upgrade")
    shutil.copytree(dest / named([0])[0], dest / "20250102T000000Z.bak")
    shutil.copytree(dest / named([0])[0], tmp_path / "elsewhere")
    (dest / "20250103T000000Z").symlink_to(tmp_path / "elsewhere")
    (dest / "20250104T000000Z").mkdir()
    (dest / "20250105T000000Z").write_text("a file")
    (dest / "20250106T000000Z.partial").mkdir()
    (dest / "20250106T000000Z.partial" / "diary.txt").write_text("mine")
    (dest / named([1])[0] / "notes.txt").write_text("why I keep this one")
    (dest / named([2])[0] / "events.db").write_bytes(b"damaged")
    mine = copies(dest)
    made = backup.back_up(settings(store), dest, 1)
    assert [path.name for path in made.removed] == named([0, 3])
    assert copies(dest) == sorted({*mine, *named([4])} - {*named([0, 3])})
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


def test_a_failure_removes_no_older_copy(store: Path, dest: Path):
    assert run(store, "backup", dest).returncode == DONE
    nonsense(store)
    assert run(store, "backup", dest, "--keep", 1).returncode == REFUSED
    assert len(copies(dest)) == 1


def test_a_success_that_cannot_be_recorded_is_said_and_exits_69(store: Path, dest: Path):
    (store / "backup.json").mkdir()
    with pytest.raises(StoreUnavailable, match=r"the copy is whole, at .*Z, and not recorded: .*backup\.json"):
        backup.back_up(settings(store), dest, None)
    assert len(copies(dest)) == 1


def test_the_progress_adds_up_to_what_was_copied(store: Path, dest: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(copying, "_STEPS_A_LOOK", 10)
    steps: list[int] = []
    made = backup.back_up(settings(store), dest, None, steps.append)
    assert sum(steps) == sum(made.files.values()) == backup.total_bytes(store)


def test_the_lock_at_the_place_is_free_again(store: Path, dest: Path):
    for _ in range(2):
        backup.back_up(settings(store), dest, None)
    lock = Lock(dest, "backup")
    wait_until(lock.take, 1)
    lock.release()
