"""docs/from-zoner-mvp.md: its blocks, taken from the page, bring a prototype's table and topic along."""

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import pytest
from confluent_kafka import Consumer, Producer

from services.clone import CHECKOUT, Clone, Said
from services.fixtures import MakeTopic
from services.kafka import KafkaBroker
from services.process import wait_until
from services.valkey import ValkeyServer

PAGE = CHECKOUT / "docs" / "from-zoner-mvp.md"
NUMBER_ON_THE_PAGE: Final = "1700000000123"
SEND: Final = "| zonerd send -"
PARTS: Final = ("broker ", "history ", "answers ", "redis ")

Row: TypeAlias = tuple[object, object, object]


class Kept(NamedTuple):
    """What becomes of a row: this row of zonerd's view, or a dead letter with this reason."""

    row: Row | None
    reason: str | None = None


FIRST: Final = 1_700_000_000.1239993
"""A time that fifteen digits would put into the next millisecond."""
ROWS: Final[Sequence[tuple[Row, Kept]]] = [
    ((17, "sleep", FIRST), Kept((17, "sleep", 1_700_000_000.123))),
    ((17, "sleep", FIRST), Kept((17, "sleep", 1_700_000_000.123))),  # doubled
    (("042", "meal", 1_700_000_001), Kept((42, "meal", 1_700_000_001.0))),  # an integer in the old table already
    (("anna", "light_exposure", "1700000002.5"), Kept(("anna", "light_exposure", 1_700_000_002.5))),
    ((3, 5, 1_700_000_003.0), Kept((3, "5", 1_700_000_003.0))),
    ((4, 'a "quoted"\\, schöner Tag', 1_700_000_004), Kept((4, 'a "quoted"\\, schöner Tag', 1_700_000_004.0))),
    ((5, "meal", "2023-11-14T22:13:25.0019Z"), Kept((5, "meal", 1_700_000_005.001))),
    ((None, "sleep", 1_700_000_006.0), Kept(None, "wrong_type")),
    ((7, None, 1_700_000_007.0), Kept(None, "wrong_type")),
    ((8, "sleep", None), Kept(None, "wrong_type")),
    ((9, "sleep", "yesterday"), Kept(None, "wrong_type")),
    ((10.5, "sleep", 1_700_000_010.0), Kept(None, "wrong_type")),
    ((11, "sleep", 1_700_000_011_000), Kept(None, "looks_like_milliseconds")),
    ((12, "sleep", -1.0), Kept(None, "out_of_range")),
    ((13, "", 1_700_000_013.0), Kept(None, "out_of_range")),
    ((14, "two\nlines", 1_700_000_014.0), Kept(None, "out_of_range")),
    ((15, "sleep", float("inf")), Kept(None, "not_json")),
    ((16, "sleep", float("nan")), Kept(None, "wrong_type")),  # a null in the old table already
    ((2**63 - 1, "sleep", 1_700_000_017.9999999), Kept((2**63 - 1, "sleep", 1_700_000_018.0))),
]


class Migration:
    """A clone of zonerd beside a clone of the prototype, and the page between them."""

    def __init__(self, folder: Path, broker: KafkaBroker, valkey: ValkeyServer, topic: str) -> None:
        self.topic = topic
        self.valkey = valkey
        self.bootstrap = broker.bootstrap
        self.old = folder / "zoner-mvp" / "db" / "zoner.db"
        self.old.parent.mkdir(parents=True)
        environment = {
            "ZONERD_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap,
            "ZONERD_KAFKA__TOPIC": topic,
            "ZONERD_KAFKA__GROUP_ID": f"zoner_group-{topic}",  # one broker serves all tests
            "ZONERD_REDIS__URL": valkey.url,
            "ZONERD_HTTP__PORT": "{watchdog = 0, producer = 0, aggregator = 0, consumer = 0}",
        }
        self.clone = Clone(folder / "zonerd", environment)
        self._page = PAGE.read_text(encoding="utf-8")

    def insert(self, rows: Sequence[Row]) -> None:
        """Leave a table as the prototype made it: its statements, its commit after each row."""
        table = sqlite3.connect(self.old)
        table.execute("create table if not exists user_activity (user_id integer, activity text, timestamp real)")
        for row in rows:
            table.execute("insert into user_activity (user_id, activity, timestamp) values (?, ?, ?)", row)
            table.commit()
        table.close()

    def produce(self, rows: Sequence[Row]) -> None:
        """Send messages in the prototype's form."""
        producer = Producer({"bootstrap.servers": self.bootstrap})
        for user_id, activity, timestamp in rows:
            event = {"user_id": user_id, "activity": activity, "timestamp": timestamp}
            producer.produce(self.topic, key=str(user_id), value=json.dumps(event))
        assert producer.flush(30) == 0

    def block(self, language: str, containing: str) -> str:
        """Give the one block of the page in this language with this text in it."""
        blocks = re.findall(rf"^```{language}\n(.*?)\n```$", self._page, re.MULTILINE | re.DOTALL)
        (block,) = [block for block in blocks if containing in block]
        return str(block)

    def run(self, line: str, exit_code: int = 0) -> Said:
        said = self.clone.run(f"{{ set -o pipefail\n{line}\n}}")
        assert said.exit_code == exit_code, said.text
        return said

    def bring(self, statement: str | None = None, end: str = SEND, exit_code: int = 0) -> Said:
        """Run the page's pipeline over a copy of the table, with another select in it, or another end."""
        self.run(self.block("sh", "cp "))
        pipeline = self.block("sh", SEND)
        (own,) = re.findall(r'^    "(select .*)"$', pipeline, re.MULTILINE)
        return self.run(pipeline.replace(own, statement or own).replace(SEND, end), exit_code)

    def catch_up(self) -> None:
        self.run("zonerd consumer --until-caught-up && zonerd aggregator --until-caught-up")

    def view(self) -> list[Row]:
        history = self.clone.folder / "var" / "zonerd" / "events.db"
        connection = sqlite3.connect(f"file:{history}?mode=ro", uri=True)
        rows = connection.execute("select user_id, activity, timestamp from user_activity").fetchall()
        connection.close()
        return rows

    def dead_letters(self) -> list[str]:
        said = self.run("zonerd sql --json 'select reason from dead_letters'")
        return [reason for (reason,) in json.loads(said.text)["rows"]]

    def summary(self) -> dict[str, int]:
        """Give the summary as a reader of the prototype takes it from Redis."""
        return dict(json.loads(self.valkey.client.get("activity_summary")))

    def check(self) -> None:
        """What the page says to check with is content."""
        said = self.run(self.block("sh", "zonerd verify"))
        assert [line.split()[1] for line in said.text.splitlines() if line.startswith(PARTS)] == ["equal"] * len(PARTS)


@pytest.fixture
def migration(tmp_path: Path, kafka: KafkaBroker, valkey: ValkeyServer, make_topic: MakeTopic) -> Iterator[Migration]:
    migration = Migration(tmp_path, kafka, valkey, make_topic(partitions=1))
    with migration.clone:
        yield migration


def test_every_row_of_the_old_table_comes_along_or_is_a_dead_letter_with_the_reason_of_the_page(
    migration: Migration,
) -> None:
    migration.valkey.client.set("activity_summary", json.dumps([["sleep", 12345]]))
    migration.insert([row for row, _ in ROWS])
    assert "nothing sent" in migration.bring(end="| zonerd send --check", exit_code=1).text
    said = migration.bring(exit_code=1)
    bad = [(number, kept.reason) for number, (_, kept) in enumerate(ROWS, 1) if kept.reason]
    named = re.findall(r"^line (\d+): invalid: (\w+)", said.text, re.MULTILINE)
    assert [(int(number), reason) for number, reason in named] == bad
    assert f"sent {len(ROWS)}, invalid {len(bad)}, refused 0, empty 0" in said.text
    migration.catch_up()
    assert migration.view() == [kept.row for _, kept in ROWS if kept.row]
    assert migration.dead_letters() == [reason for _, reason in bad]
    assert migration.summary() == {"sleep": 3, "meal": 2, "light_exposure": 1, "5": 1, 'a "quoted"\\, schöner Tag': 1}
    migration.check()


def test_the_page_names_the_reasons_that_an_old_row_can_have() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("\n| the row has |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)` \|$", table, re.MULTILINE)) == {kept.reason for _, kept in ROWS if kept.reason}


def test_the_variant_without_doubles_brings_each_of_them_once(migration: Migration) -> None:
    rows: list[Row] = [(1, "sleep", 2.5), (2, "meal", 1.5), (1, "sleep", 2.5), (1, "sleep", 2.75), (2, "meal", 1.5)]
    migration.insert(rows)
    migration.bring(migration.block("sql", "group by"))
    migration.catch_up()
    assert migration.view() == [(1, "sleep", 2.5), (2, "meal", 1.5), (1, "sleep", 2.75)]
    migration.check()


def test_cut_off_in_the_middle_it_goes_on_from_the_line_that_is_given(migration: Migration) -> None:
    rows: list[Row] = [(number, "meal", 1.0 + number) for number in range(20)]
    migration.insert(rows)
    migration.bring(end="| sed -n 1,7p | zonerd send -")
    migration.bring(end="| zonerd send - --from-line 8")
    migration.catch_up()
    assert migration.view() == rows
    migration.check()


def test_the_prototypes_topic_is_read_as_it_is_and_only_what_kafka_no_longer_had_comes_from_the_table(
    migration: Migration,
) -> None:
    rows: list[Row] = [(number % 3, "sleep", FIRST + number) for number in range(20)]
    migration.insert([*rows[:15], *rows[10:15]])  # five of Kafka's ten were stored, twice
    migration.produce(rows[10:])
    _read_and_commit_as_the_prototype_did(migration)
    migration.catch_up()
    assert len(migration.view()) == 10
    migration.check()
    first_ms = migration.run(f"{migration.block('sh', 'min(timestamp_ms)')} | cat").text.strip()
    assert first_ms == "1700000010123"
    statement = migration.block("sql", "where cast")
    assert NUMBER_ON_THE_PAGE in statement
    said = migration.bring(statement.replace(NUMBER_ON_THE_PAGE, first_ms))
    assert "sent 10, " in said.text
    migration.catch_up()
    assert sorted(migration.view(), key=repr) == sorted(
        ((user_id, activity, 1_700_000_000.123 + number) for number, (user_id, activity, _) in enumerate(rows)),
        key=repr,
    )
    assert migration.summary() == {"sleep": 20}
    migration.check()


def test_of_an_empty_topic_there_is_no_first_event(migration: Migration) -> None:
    migration.catch_up()
    assert migration.run(f"{migration.block('sh', 'min(timestamp_ms)')} | cat").text.strip() == ""


def _read_and_commit_as_the_prototype_did(migration: Migration) -> None:
    group = migration.clone.environment["ZONERD_KAFKA__GROUP_ID"]
    consumer = Consumer({"bootstrap.servers": migration.bootstrap, "group.id": group, "auto.offset.reset": "earliest"})
    consumer.subscribe([migration.topic])
    read = [wait_until(lambda: consumer.poll(0.2)) for _ in range(5)]
    assert [message.error() for message in read] == [None] * 5
    consumer.close()  # which commits
