"""The verbs that read, as programs: what they show is what is stored, and they hold nobody up."""

import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest
import structlog
from confluent_kafka import Consumer, Producer, TopicPartition

from services.fixtures import ConfigFile, MakeTopic, StartZonerd
from services.kafka import KafkaBroker
from services.process import wait_until
from zonerd import aggregator, config, consumer
from zonerd.errors import ANSWER_IS_NO, DONE, REFUSED, SERVICE_UNAVAILABLE, USAGE
from zonerd.events import Event, Gap, Record, Slice, Standing, decode, encode, sort_out
from zonerd.store.history import History

DEADLINE_S = 60.0
NOWHERE = "127.0.0.1:1"
HOSTILE = {
    "escapes": b"\x1b[2J\x1b]0;title\x07\x9b31m",
    "lines": b"one\r\ntwo\n\n\tthree",
    "nul": b"\x00\x00{}",
    "not UTF-8": b"\xff\xfe\x80abc",
    "turned around": '{"user_id": "\u202e", \u2028'.encode(),
    "empty": b"",
    "tombstone": None,
    "large": b"\xe2\x82\xac" * (1024 * 1024 // 3),
}


def run(config_file: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "zonerd", "-c", str(config_file), *words]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)


def read_json(config_file: Path, *words: str) -> dict[str, Any]:
    ended = run(config_file, *words, "--json")
    assert ended.returncode == DONE, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def on_terminal(config_file: Path, *words: str) -> bytes:
    """Run a verb on a terminal, and give all that the terminal was sent."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "zonerd", "-c", str(config_file), *words]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "100"}) as process:
        os.close(theirs)
        sent = b""
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    sent += os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
    os.close(ours)
    return sent


def store(data_dir: Path, partition: int, values: Sequence[bytes | None], *, first: int = 0, at_ms: int = 0) -> None:
    """Append records of these values, as the consumer would, the first at this offset, a millisecond apart."""
    records = [Record(partition, first + n, at_ms + n, b"k\x1b", value) for n, value in enumerate(values)]
    pieces = sort_out(records, {}, {partition: Standing(first, 0)}, 2**20)
    with History.open_writer(data_dir) as history:
        history.meet("cluster", "user_activity", "id", {0: 0, 1: 0}, {0: 0, 1: 0})
        ids = {row.partition: row.id for row in history.partitions() if row.open}
        assert history.append(pieces, ids) == []


def event(number: int) -> bytes:
    return encode(number, "walk", 1_700_000_000 + number / 1000, {"n": number})


@pytest.fixture
def alone(config_file: ConfigFile) -> Path:
    """A configuration without any service."""
    return config_file({"kafka.bootstrap_servers": NOWHERE})


# no history


@pytest.mark.parametrize(
    "line", ["tail", "sql pragma_table_list", "dead-letters list", "dead-letters show 0:0", "dead-letters export"]
)
def test_without_a_history_each_verb_says_so_and_makes_none(alone: Path, data_dir: Path, line: str) -> None:
    ended = run(alone, *line.split())
    assert (ended.returncode, ended.stdout) == (ANSWER_IS_NO, b"")
    assert ended.stderr.decode() == f"zonerd: no history yet at {data_dir}\n"
    assert not (data_dir / "events.db").exists()


# tail


def test_tail_shows_the_newest_of_all_partitions_by_kafkas_time(alone: Path, data_dir: Path) -> None:
    store(data_dir, 0, [event(n) for n in range(10)], at_ms=1000)
    store(data_dir, 1, [event(n) for n in range(10)], at_ms=1006)
    lines = [json.loads(line) for line in run(alone, "tail", "-n", "8", "--json").stdout.splitlines()]
    times = [line["logged_ms"] for line in lines]
    assert times == sorted(times)
    assert [(one["partition"], one["offset"]) for one in lines if one["partition"] == 0] == [(0, 9)]
    assert [one["offset"] for one in lines if one["partition"] == 1] == [3, 4, 5, 6, 7, 8, 9]


def test_tail_of_one_partition_shows_no_other(alone: Path, data_dir: Path) -> None:
    store(data_dir, 0, [event(n) for n in range(10)])
    store(data_dir, 1, [event(n) for n in range(10)], at_ms=5000)
    lines = [
        json.loads(line) for line in run(alone, "tail", "-n", "3", "--partition", "0", "--json").stdout.splitlines()
    ]
    assert [(one["partition"], one["offset"]) for one in lines] == [(0, 7), (0, 8), (0, 9)]


def test_what_tail_pipes_is_decoded_to_the_same_events(alone: Path, data_dir: Path) -> None:
    values = [
        encode(-(2**63), "a\u2028b", 0, {}),
        encode("é\u202e", '"quoted"\\', 1_700_000_000.123, {"deep": {"a": [1, None]}, "text": "\x1b\n"}),
        b'{"user_id": 1, "activity": "x", "timestamp": 99999999999.999, "big": %b, "e": 1e5}' % (b"7" * 5000),
        encode(1, "x", "9999-12-31T23:59:59.999Z", {}),
    ]
    store(data_dir, 0, values)
    shown = run(alone, "tail").stdout.splitlines()
    assert [decode(line, 2**20) for line in shown] == [decode(value, 2**20) for value in values]
    assert all(isinstance(decode(line, 2**20), Event) for line in shown)
    assert len(run(alone, "tail", "--json").stdout.splitlines()) == len(values)


@pytest.mark.parametrize(
    "words", [["tail", "-n", "20000"], ["sql", "select * from events"], ["dead-letters", "export"]]
)
def test_a_reader_who_has_seen_enough_is_no_failure(alone: Path, data_dir: Path, words: list[str]) -> None:
    store(data_dir, 0, [event(n) if n % 2 else b"bad" for n in range(20_000)])
    command = [sys.executable, "-m", "zonerd", "-c", str(alone), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(DEADLINE_S) == DONE


@pytest.mark.parametrize(
    "words", [["tail", "-n", "20000"], ["sql", "select * from events"], ["dead-letters", "export"]]
)
def test_a_slow_reader_holds_no_wal(alone: Path, data_dir: Path, words: list[str]) -> None:
    store(data_dir, 0, [event(n) if n % 2 else b"bad" for n in range(20_000)])
    command = [sys.executable, "-m", "zonerd", "-c", str(alone), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "it writes, and nobody reads on"
        store(data_dir, 0, [event(n) for n in range(100)], first=20_000)
        writer = apsw.Connection(str(data_dir / "events.db"))
        wait_until(lambda: writer.execute("pragma wal_checkpoint(truncate)").get[0] == 0, 20, "a reader is in the way")
        writer.close()
        process.stdout.close()


def test_following_shows_each_event_of_a_running_consumer_once_and_ctrl_c_is_its_end(
    broker: KafkaBroker, topic: str, config_file: ConfigFile, zonerd: StartZonerd, data_dir: Path
) -> None:
    place = config_file(
        {"kafka.bootstrap_servers": broker.bootstrap_servers, "kafka.topic": topic, "kafka.group_id": topic}
    )
    produce(broker, topic, [(n % 4, event(n)) for n in range(100)])
    zonerd(place, "consumer")
    wait_until(lambda: stored_events(data_dir) == 100)
    following = zonerd(place, "tail", "-f", "-n", "100", "--json")
    wait_until(lambda: len(following.out.read_bytes().splitlines()) == 100)
    for start in range(100, 2100, 500):
        produce(broker, topic, [(n % 4, event(n)) for n in range(start, start + 500)])
    wait_until(lambda: len(following.out.read_bytes().splitlines()) >= 2100)
    following.process.send_signal(signal.SIGINT)
    assert following.process.wait(DEADLINE_S) == DONE
    seen = [json.loads(line)["user_id"] for line in following.out.read_text().splitlines()]
    assert sorted(seen) == list(range(2100))


def test_following_shows_a_topic_that_took_anothers_place(alone: Path, data_dir: Path, zonerd: StartZonerd) -> None:
    store(data_dir, 0, [event(n) for n in range(5)])
    following = zonerd(alone, "tail", "-f", "-n", "1", "--json")
    wait_until(lambda: len(following.out.read_bytes().splitlines()) == 1)
    with History.open_writer(data_dir) as history:
        history.meet("cluster", "another", "id", {0: 0}, {0: 0})
        row = next(row for row in history.partitions() if row.topic == "another")
        history.append([Slice(0, 0, 2, [(0, 77, "new", 0, 0, None)], gaps=[Gap(1, 1, "skipped")])], {0: row.id})
    wait_until(lambda: b'"another"' in following.out.read_bytes())
    assert json.loads(following.out.read_text().splitlines()[-1])["user_id"] == 77


def test_following_ends_when_nobody_reads_any_more(alone: Path, data_dir: Path) -> None:
    store(data_dir, 0, [event(0)])
    command = [sys.executable, "-m", "zonerd", "-c", str(alone), "tail", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(DEADLINE_S) == DONE


# sql


@pytest.mark.parametrize(
    "statement",
    [
        "insert into store values ('x', 1)", "delete from events", "drop table events", "create temp table t (a)",
        "attach ':memory:' as other", "detach rollups", "pragma query_only = off", "pragma journal_mode = delete",
        "pragma wal_checkpoint(truncate)", "pragma user_version = 9", "select load_extension('x')", "vacuum",
        "vacuum into 'copy.db'", "begin", "savepoint a", "select 1; select 2", "select 1; delete from events",
        "select nothing", "selec", "", "/* only words */", "reindex", "select * from dead_letters where reason = ?",
        "analyze",
    ],
)  # fmt: skip
def test_sql_takes_nothing_but_one_select(alone: Path, data_dir: Path, statement: str) -> None:
    store(data_dir, 0, [event(0)])
    ended = run(alone, "sql", statement)
    assert ended.returncode == USAGE, (ended.stdout, ended.stderr)
    assert re.fullmatch(rb"zonerd: [^\n]+\n", ended.stderr), ended.stderr
    assert stored_events(data_dir) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n",
        "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n",
    ],
)
def test_sql_gives_up_in_time_and_shows_no_part(alone: Path, data_dir: Path, statement: str) -> None:
    store(data_dir, 0, [event(0)])
    ended = run(alone, "sql", statement, "--timeout", "0.2")
    assert (ended.returncode, ended.stdout) == (ANSWER_IS_NO, b"")
    assert b"no answer in 0.2 s" in ended.stderr


def test_sql_ends_at_ctrl_c(alone: Path, data_dir: Path, zonerd: StartZonerd) -> None:
    store(data_dir, 0, [event(0)])
    statement = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    process = zonerd(alone, "sql", statement, "--timeout", "600").process
    wait_until(lambda: (data_dir / "events.db-shm").exists() and cpu_ticks(process.pid) > 50)
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130


def test_sql_shows_the_same_rows_in_each_form(alone: Path, data_dir: Path) -> None:
    store(data_dir, 0, [event(0)])
    statement = (
        """select 1 as "a", null as "b", x'00ff' as "c", 'x' || char(9, 10, 27, 92) || '"é"' as "d", 2.5 as "e" """
    )
    assert run(alone, "sql", statement).stdout.decode() == '1\t\t00ff\tx\\t\\n\\x1b\\\\"é"\t2.5\n'
    rows = list(csv.reader(io.StringIO(run(alone, "sql", statement, "--csv").stdout.decode(), newline="")))
    assert rows == [["a", "b", "c", "d", "e"], ["1", "", "00ff", 'x\t\n\x1b\\"é"', "2.5"]]
    answer = read_json(alone, "sql", statement)
    assert answer == {"schema": 1, "columns": list("abcde"), "rows": [[1, None, "00ff", 'x\t\n\x1b\\"é"', 2.5]]}


def test_sql_names_the_columns_of_no_rows(alone: Path, data_dir: Path) -> None:
    store(data_dir, 0, [event(0)])
    answer = read_json(alone, "sql", "select user_id, activity from user_activity where 0")
    assert answer == {"schema": 1, "columns": ["user_id", "activity"], "rows": []}
    assert run(alone, "sql", "select 1 as a where 0", "--csv").stdout == b"a\n"


@pytest.mark.parametrize("words", [["tail"], ["sql", "select 1"], ["dead-letters", "list"], ["offsets"]])
def test_a_damaged_history_is_refused(alone: Path, data_dir: Path, words: list[str]) -> None:
    (data_dir / "events.db").write_bytes(b"no database" * 100)
    ended = run(alone, *words)
    assert (ended.returncode, ended.stdout) == (REFUSED, b"")
    assert b"not a database" in ended.stderr


# dead letters


def hostile(data_dir: Path) -> None:
    store(data_dir, 0, [event(0), *HOSTILE.values()], at_ms=1_700_000_000_000)


def test_the_list_has_a_line_for_each_dead_letter_whatever_it_holds(alone: Path, data_dir: Path) -> None:
    hostile(data_dir)
    ended = run(alone, "dead-letters", "list")
    rows = [line.split("\t") for line in ended.stdout.decode().splitlines()]
    assert [row[0] for row in rows] == [f"0:{n}" for n in range(1, len(HOSTILE) + 1)]
    assert [row[3] for row in rows] == ["-" if value is None else str(len(value)) for value in HOSTILE.values()]
    assert all(row[1].startswith("2023-11-14T22:13:20.") for row in rows)
    assert all(len(row[5]) < 1000 for row in rows)
    assert rows[-1][5] == "€" * 53 + "…", "a character that is cut is left out"
    assert f"{len(HOSTILE)} dead letters: ".encode() in ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["dead-letters", "list"], ["dead-letters", "list", "--json"], ["dead-letters", "export"], ["tail"],
        ["tail", "--json"], ["sql", "select payload, char(155, 27, 8238) from dead_letters"],
        ["sql", "--csv", "select char(155, 27, 8238)"], ["sql", "--json", "select char(155, 27, 8238)"],
        *(["dead-letters", "show", f"0:{n}"] for n in range(1, len(HOSTILE))),
    ],
)  # fmt: skip
def test_a_terminal_is_sent_nothing_that_it_could_obey(alone: Path, data_dir: Path, words: list[str]) -> None:
    hostile(data_dir)
    store(data_dir, 1, [encode("\u202eu\u009b", "a\u2028", 0, {"t": "\u009b\x1b\x7f"})])
    store(data_dir, 1, [encode("\u202eu", "a\u2028", 0, {"t": "\u009b31m\x1b\x7f"})], first=1)
    sent = on_terminal(alone, *words)
    assert len(sent) > 10
    text = sent.decode().replace("\r\n", "").replace("\n", "")
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u202e]", text), text[:500]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_raw_writes_exactly_the_payload(alone: Path, data_dir: Path, number: int) -> None:
    hostile(data_dir)
    ended = run(alone, "dead-letters", "show", f"0:{number + 1}", "--raw")
    assert (ended.returncode, ended.stdout) == (DONE, list(HOSTILE.values())[number] or b"")


def test_show_has_text_as_text_and_the_rest_in_hexadecimal(alone: Path, data_dir: Path) -> None:
    hostile(data_dir)
    assert run(alone, "dead-letters", "show", "0:2").stdout.decode().endswith("\n\none\\r\ntwo\n\n\\tthree\n")
    dump = run(alone, "dead-letters", "show", "user_activity/0:4").stdout.decode()
    assert "00000000  ff fe 80 61 62 63 " in dump
    assert "...abc" in dump
    assert run(alone, "dead-letters", "show", "0:0").returncode == ANSWER_IS_NO, "an event is no dead letter"
    assert run(alone, "dead-letters", "show", "0;1").returncode == USAGE


def test_export_has_every_byte_of_every_dead_letter(alone: Path, data_dir: Path) -> None:
    hostile(data_dir)
    lines = [json.loads(line) for line in run(alone, "dead-letters", "export").stdout.splitlines()]
    payloads = [line["payload_base64"] and b64decode(line["payload_base64"]) for line in lines]
    assert [payload or b"" for payload in payloads] == [value or b"" for value in HOSTILE.values()]
    assert payloads[list(HOSTILE).index("tombstone")] is None
    assert {line["key_base64"] for line in lines} == {"axs="}


def test_the_list_is_filtered_by_reason_and_time_and_says_how_many_more(alone: Path, data_dir: Path) -> None:
    store(data_dir, 0, [b"bad"] * 100, at_ms=(time.time_ns() // 1_000_000) - 7_200_000)
    store(data_dir, 1, [None] * 30, at_ms=(time.time_ns() // 1_000_000) - 60_000)
    all_ = read_json(alone, "dead-letters", "list")
    assert (len(all_["dead_letters"]), all_["more"]) == (50, 80)
    assert all_["reasons"] == {"not_json": 100, "tombstone": 30}
    assert [one["partition"] for one in all_["dead_letters"]] == [0] * 20 + [1] * 30, "the newest, newest last"
    assert len(read_json(alone, "dead-letters", "list", "--reason", "not_json", "--limit", "0")["dead_letters"]) == 100
    assert read_json(alone, "dead-letters", "list", "--since", "1h")["reasons"] == {"tombstone": 30}
    assert len(run(alone, "dead-letters", "export", "--since", "1h").stdout.splitlines()) == 30
    assert run(alone, "dead-letters", "list", "--since", "soon").returncode == USAGE
    assert run(alone, "dead-letters", "list", "--reason", "bad").returncode == USAGE


# offsets


def produce(broker: KafkaBroker, topic: str, values: Sequence[tuple[int, bytes]], *, committed: bool = False) -> None:
    settings = {"bootstrap.servers": broker.bootstrap_servers, "linger.ms": 5}
    producer = Producer({**settings, **({"transactional.id": uuid.uuid4().hex} if committed else {})})
    if committed:
        producer.init_transactions()
        producer.begin_transaction()
    for partition, value in values:
        producer.produce(topic, value, None, partition)
    assert producer.flush(DEADLINE_S) == 0
    if committed:
        producer.commit_transaction()


def stored_events(data_dir: Path) -> int:
    connection = apsw.Connection(str(data_dir / "events.db"))
    connection.set_busy_timeout(5000)
    try:
        return int(connection.execute("select count(*) from events").get)
    except apsw.SQLError:  # not there yet
        return 0
    finally:
        connection.close()


def cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


@pytest.fixture
def other(broker: KafkaBroker, topic: str) -> Iterator[Consumer]:
    """Another client of the same group."""
    client = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": topic})
    yield client
    client.close()


def test_offsets_are_those_of_another_client_and_of_both_files(
    broker: KafkaBroker, topic: str, config_file: ConfigFile, other: Consumer
) -> None:
    place = config_file(
        {"kafka.bootstrap_servers": broker.bootstrap_servers, "kafka.topic": topic, "kafka.group_id": topic}
    )
    unread = run(place, "offsets", "--json")
    assert unread.returncode == ANSWER_IS_NO, "no history yet"
    assert [one["high"] for one in json.loads(unread.stdout)["partitions"]] == [0, 0, 0, 0]
    produce(broker, topic, [(n % 3, event(n)) for n in range(300)])
    produce(broker, topic, [(0, event(n)) for n in range(5)], committed=True)
    loaded = config.load(place, {}, []).config
    consumer.catch_up(loaded, None, structlog.get_logger(), 0)
    aggregator.catch_up(loaded, None, structlog.get_logger())
    produce(broker, topic, [(1, event(n)) for n in range(7)])
    rows = read_json(place, "offsets")["partitions"]
    assert [row["partition"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        here = TopicPartition(topic, row["partition"])
        assert (row["low"], row["high"]) == other.get_watermark_offsets(here, timeout=10)
        assert row["committed"] == other.committed([here], timeout=10)[0].offset
        assert row["lag"] == row["high"] - row["next"]
    assert [row["next"] for row in rows] == [106, 100, 100, 0]
    assert [row["lag"] for row in rows] == [0, 7, 0, 0]
    assert [row["gaps"] for row in rows] == [1, 0, 0, 0], "the transaction's marker"
    assert [row["cursor"] for row in rows] == [106, 100, 100, 0]
    assert run(place, "offsets").stdout.splitlines()[1] == b"\t".join(b"1 0 0 100 100 107 7 100 0".split())


def test_without_kafka_offsets_shows_what_is_stored_and_exits_69(alone: Path, data_dir: Path) -> None:
    store(data_dir, 0, [event(n) for n in range(10)])
    began = time.monotonic()
    ended = run(alone, "offsets", "--json")
    assert time.monotonic() - began < 20
    assert ended.returncode == SERVICE_UNAVAILABLE
    first = json.loads(ended.stdout)["partitions"][0]
    assert (first["first"], first["next"], first["high"], first["lag"], first["cursor"]) == (0, 10, None, None, None)
    assert b"kafka: " in ended.stderr


def test_offsets_shows_replaced_topics_only_when_asked(
    broker: KafkaBroker, make_topic: MakeTopic, config_file: ConfigFile, data_dir: Path
) -> None:
    name = make_topic(1)
    place = config_file({"kafka.bootstrap_servers": broker.bootstrap_servers, "kafka.topic": name})
    with History.open_writer(data_dir) as history:
        history.meet("cluster", name, "an old id", {0: 0}, {0: 0})
        assert history.replace(history.partitions()[0], None, None)
    (shown,) = read_json(place, "offsets")["partitions"]
    assert (shown["topic_id"] != "an old id", shown["next"]) == (True, None)
    both = read_json(place, "offsets", "--all")["partitions"]
    assert [(one["topic_id"] == "an old id", one["open"], one["high"]) for one in both] == [
        (True, False, None),
        (False, True, 0),
    ]
