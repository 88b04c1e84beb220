"""A topic on a real Kafka, consumers as processes, and a ledger of what the topic holds, to judge them by."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from services.process import wait_until
from services.scrape import Scraped, port_of, scrape

DEADLINE_S = 60.0
HERE = Path(__file__).parent


def event(number: int, size_bytes: int = 0) -> bytes:
    """Give the bytes of an event that no other number has."""
    fields = {"user_id": number % 97, "activity": f"a{number % 5}", "timestamp": 1_700_000_000 + number, "n": number}
    if size_bytes:
        fields["fill"] = "x" * (size_bytes - len(json.dumps({**fields, "fill": ""})))
    return json.dumps(fields).encode()


class Verdict(NamedTuple):
    """What a comparison of the history with the ledger found; exact when all but `records` is 0."""

    records: int
    missing: int = 0
    duplicates: int = 0
    wrong: int = 0
    phantoms: int = 0
    misplaced: int = 0

    @property
    def exact(self) -> bool:
        return not any(self[1:])


class Running:
    """One consumer process and what it logs."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        self.started = time.monotonic()
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )

    def said(self, name: str) -> list[dict[str, Any]]:
        """Give the lines of this event so far."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in map(json.loads, lines) if line["event"] == name]

    def wait_for(self, name: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """Wait until an event was logged so often with these fields, and give its last line."""

        def found() -> list[dict[str, Any]]:
            lines = [line for line in self.said(name) if fields.items() <= line.items()]
            if len(lines) < count:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
            return lines if len(lines) >= count else []

        try:
            return wait_until(found)[-1]  # type: ignore[no-any-return]
        except AssertionError:
            raise AssertionError(f"no {name} {fields}:\n{self.log.read_text()[-3000:]}") from None

    def kill(self) -> int:
        self.process.kill()
        return self.process.wait()

    def stop(self, within_s: float = 10.0) -> int:
        """Ask it to stop, once, and give its exit code."""
        self.process.terminate()
        return self.process.wait(within_s)

    def end(self, within_s: float = DEADLINE_S) -> int:
        """Wait until it ends by itself, and give its exit code."""
        return self.process.wait(within_s)

    @property
    def state(self) -> str:
        """What the kernel says that it does; T: stopped."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: self.state == "T")

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class Trial:
    """One topic, one data directory, and the processes over both."""

    def __init__(self, bootstrap_servers: str, folder: Path) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.folder = folder
        self.data = folder / "data"
        self.run_dir = folder / "run"
        self.topic = f"c-{uuid.uuid4().hex[:12]}"
        self.admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        self.producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": "5"})
        self.started: list[Running] = []
        self.numbers = 0

    # The topic

    def create_topic(self, partitions: int = 4, **settings: str) -> None:
        values = {"message.timestamp.type": "LogAppendTime", **{k.replace("_", "."): v for k, v in settings.items()}}
        wait_until(lambda: self._create(partitions, values))
        wait_until(lambda: len(self._known_partitions()) == partitions)

    def _create(self, partitions: int, values: dict[str, str]) -> bool:
        future = self.admin.create_topics([NewTopic(self.topic, partitions, 1, config=values)])[self.topic]
        return future.exception() is None  # a deleted one may linger for a moment

    def delete_topic(self) -> None:
        self.admin.delete_topics([self.topic])[self.topic].result()
        wait_until(lambda: not self._known_partitions())

    def add_partitions(self, total: int) -> None:
        self.admin.create_partitions([NewPartitions(self.topic, total)])[self.topic].result()
        wait_until(lambda: len(self._known_partitions()) == total)
        self.producer = Producer({"bootstrap.servers": self.bootstrap_servers, "linger.ms": "5"})

    def expire_below(self, offsets: dict[int, int]) -> None:
        places = [TopicPartition(self.topic, *place) for place in offsets.items()]
        for future in self.admin.delete_records(places).values():
            future.result()

    def _known_partitions(self) -> dict[int, Any]:
        topic = self.admin.list_topics(timeout=10).topics.get(self.topic)
        return {} if topic is None or topic.error else topic.partitions  # type: ignore[no-any-return]

    def produce(self, values: Iterable[bytes | None], partition: int | None = None) -> None:
        """Send these and wait until all are acknowledged; without a partition spread over those there are."""
        failed: list[KafkaError] = []
        partitions = sorted(self._known_partitions()) if partition is None else [partition]
        for number, value in enumerate(values):
            place = partitions[number // 100 % len(partitions)]
            while True:
                try:
                    self.producer.produce(
                        self.topic, value, partition=place, on_delivery=lambda e, _: e and failed.append(e)
                    )
                    break
                except BufferError:
                    self.producer.poll(0.1)
            self.producer.poll(0)
        assert self.producer.flush(DEADLINE_S) == 0
        assert not failed, failed[0]

    def produce_events(self, count: int, partition: int | None = None) -> None:
        """Send so many events, none like another."""
        first, self.numbers = self.numbers, self.numbers + count
        self.produce((event(number) for number in range(first, first + count)), partition)

    @contextmanager
    def transaction(
        self, *, abort: bool = False, transactional_id: str = "t"
    ) -> Iterator[Callable[[int, bytes], None]]:
        """Send what is given inside in one transaction, which ends in a marker."""
        producer = Producer(
            {"bootstrap.servers": self.bootstrap_servers, "transactional.id": self.topic + transactional_id}
        )
        producer.init_transactions(30)
        producer.begin_transaction()

        def send(partition: int, value: bytes) -> None:
            producer.produce(self.topic, value, partition=partition)
            assert producer.flush(30) == 0

        yield send
        if abort:
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
        wait_until(lambda: self.ends() == self.ends("read_uncommitted"))  # the markers are written behind our back

    def ledger(self) -> dict[tuple[int, int], bytes | None]:
        """Read all that the topic holds with a plain consumer: (partition, offset) → its bytes."""
        reader = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": uuid.uuid4().hex,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.queue.backoff.ms": 10,
            }
        )
        left = set(self._known_partitions())
        reader.assign([TopicPartition(self.topic, partition, 0) for partition in left])
        held: dict[tuple[int, int], bytes | None] = {}
        while left:
            for message in reader.consume(5000, 1.0):
                error = message.error()
                if error is None:
                    held[message.partition(), message.offset()] = message.value()  # type: ignore[index]
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error.str()
                    left.discard(message.partition())  # type: ignore[arg-type]
        reader.close()
        return held

    def ends(self, isolation: str = "read_committed") -> dict[int, int]:
        """Give where each partition's log ends, as the broker says."""
        reader = Consumer(
            {"bootstrap.servers": self.bootstrap_servers, "group.id": uuid.uuid4().hex, "isolation.level": isolation}
        )
        places = [TopicPartition(self.topic, partition) for partition in self._known_partitions()]
        ends = {place.partition: reader.get_watermark_offsets(place, timeout=10)[1] for place in places}  # type: ignore[index]
        reader.close()
        return ends

    def committed(self) -> dict[int, int]:
        """Give the offsets committed under our group."""
        reader = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": self.topic})
        places = [TopicPartition(self.topic, partition) for partition in self._known_partitions()]
        offsets = {place.partition: place.offset for place in reader.committed(places, timeout=10)}
        reader.close()
        return offsets

    # The processes

    def options(self, **overrides: object) -> list[str]:
        values = {
            "kafka.bootstrap_servers": self.bootstrap_servers,
            "kafka.topic": self.topic,
            "kafka.group_id": self.topic,
            "store.data_dir": self.data,
            "store.run_dir": self.run_dir,
            "store.min_free_bytes": 1,
            "http.port.consumer": 0,
            "log.format": "json",
            "log.level": "debug",
            **{name.replace("__", "."): value for name, value in overrides.items()},
        }
        return [word for name, value in values.items() for word in ("-X", f"{name}={value}")]

    def start(
        self,
        *words: str,
        number: int = 0,
        changed: str = "",
        environment: dict[str, str] | None = None,
        **overrides: object,
    ) -> Running:
        """Start a consumer process; `changed` names a function of `changes` that alters it first."""
        program = [str(HERE / "changes.py"), changed] if changed else ["-m", "zonerd"]
        verb = ["consumer", "--process-number", str(number), *words]
        log = self.folder / f"consumer-{len(self.started)}.log"
        self.started.append(
            Running([sys.executable, *program, *self.options(**overrides), *verb], log, environment or {})
        )
        return self.started[-1]

    def scrape(self, running: Running) -> Scraped:
        """Give what this process exposes now."""
        return scrape(self.port(running))

    def port(self, running: Running) -> int:
        """Wait until this process answers HTTP, and give its port."""
        return port_of(self.run_dir, "consumer", pid=running.process.pid)

    def run(self, *words: str, **overrides: object) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        command = [sys.executable, "-m", "zonerd", *self.options(**overrides), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    def catch_up(self, **overrides: object) -> None:
        """Store what the topic holds, with a process that ends by itself."""
        done = self.run("consumer", "--until-caught-up", **overrides)
        assert done.returncode == 0, done.stderr + done.stdout

    def close(self) -> None:
        for running in self.started:
            if running.process.poll() is None:
                running.kill()

    # The history

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Read the history with SQLite alone."""
        connection = apsw.Connection(str(self.data / "events.db"), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(5000)
        connection.execute("pragma query_only = on")
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def write(self, sql: str) -> None:
        """Alter the history from outside."""
        connection = apsw.Connection(str(self.data / "events.db"))
        connection.execute(sql)
        connection.close()

    def next_offsets(self) -> dict[int, int]:
        try:
            return dict(self.rows("select partition, next_offset from partitions where closed_ms is null"))
        except (apsw.CantOpenError, apsw.SQLError):
            return {}

    def stored(self) -> int:
        try:
            return int(self.rows("select (select count(*) from events) + (select count(*) from dead_letters)")[0][0])
        except (apsw.CantOpenError, apsw.SQLError):
            return 0

    def wait_until_stored(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait until the history stands at the end of the topic."""
        ends = self.ends()
        wait_until(lambda: self.next_offsets() == ends, deadline_s)

    def gaps(self) -> list[tuple[int, int, int, str]]:
        return self.rows(
            "select partition, g.first_offset, last_offset, reason from gaps g join partitions p on p.id = partition_id"
            " order by 1, 2"
        )

    def verdict(self) -> Verdict:
        """Compare the open rows of the history with the ledger, record by record."""
        ledger = self.ledger()
        opened = {
            row[0]: row[1:]
            for row in self.rows(
                "select id, partition, first_offset, next_offset from partitions where closed_ms is null"
            )
        }
        found: Counter[tuple[int, int]] = Counter()
        wrong = misplaced = 0
        for id_, offset, *row in self.rows(
            "select partition_id, offset, user_id, activity, timestamp_ms, properties from events"
        ):
            if id_ in opened:
                place = (opened[id_][0], offset)
                found[place] += 1
                wrong += place in ledger and _facts(ledger[place]) != (*row[:3], json.loads(row[3] or "{}"))
                misplaced += not opened[id_][1] <= offset < opened[id_][2]
        for id_, offset, payload in self.rows("select partition_id, offset, payload from dead_letters"):
            if id_ in opened:
                place = (opened[id_][0], offset)
                found[place] += 1
                wrong += place in ledger and _sha256(ledger[place]) != _sha256(payload)
                misplaced += not opened[id_][1] <= offset < opened[id_][2]
        phantoms = 0  # offsets that are called a gap, though a record is there
        absent = 0
        for partition, first, last, _ in self.gaps():
            phantoms += sum((partition, offset) in ledger for offset in range(first, last + 1))
            absent += last - first + 1
        covered = len(found) + absent
        span = sum(next_offset - first_offset for _, first_offset, next_offset in opened.values())
        return Verdict(
            records=len(ledger),
            missing=len(ledger.keys() - found.keys()),
            duplicates=found.total() - len(found),
            wrong=wrong + len(found.keys() - ledger.keys()),
            phantoms=phantoms,
            misplaced=misplaced + abs(span - covered),
        )

    def assert_exact(self) -> Verdict:
        verdict = self.verdict()
        assert verdict.exact, verdict
        assert self.next_offsets() == self.ends()
        assert self.rows("pragma integrity_check") == [("ok",)]
        return verdict


def _facts(value: bytes | None) -> tuple[Any, ...]:
    """Read an event with nothing of zonerd's: what its row must say."""
    fields = json.loads(value or b"")
    return fields.pop("user_id"), fields.pop("activity"), int(fields.pop("timestamp") * 1000), fields


def _sha256(value: bytes | None) -> bytes | None:
    return None if value is None else hashlib.sha256(value).digest()
