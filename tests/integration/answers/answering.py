"""A history to append to, and aggregators between it and a real Valkey."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import apsw
import structlog

from services.valkey import ValkeyServer
from zonerd import config
from zonerd.aggregator import Aggregator
from zonerd.cache import Cache
from zonerd.events import Record, Standing, encode, sort_out
from zonerd.store.answers import Answers
from zonerd.store.history import History
from zonerd.tally import Tally

DEADLINE_S = 30.0
TOPIC = "user_activity"


class World:
    """One data directory with a history, a Redis, and what both must agree on."""

    def __init__(self, folder: Path, valkey: ValkeyServer, partitions: int = 2) -> None:
        self.folder = folder
        self.valkey = valkey
        self.redis: Any = valkey.client
        self.overrides = [f"store.data_dir={folder}", f"redis.url={valkey.url}", "http.port.aggregator=0"]
        self.history = History.open_writer(folder)
        self.meet("cluster", "topic-1", partitions)
        self._stack = ExitStack()

    def meet(self, cluster: str, topic_id: str, partitions: int) -> None:
        self.history.meet(
            cluster, TOPIC, topic_id, dict.fromkeys(range(partitions), 0), dict.fromkeys(range(partitions), 0)
        )

    @property
    def config(self) -> config.Config:
        return config.load(None, {}, self.overrides).config

    def append(
        self,
        activities: Sequence[str],
        partition: int = 0,
        *,
        bad: Sequence[int] = (),
        skip: int = 0,
        logged_ms: int = 1000,
    ) -> None:
        """Store one event each, behind `skip` missing offsets; those at the places `bad` are dead letters.

        Kafka's timestamps go from `logged_ms` on.
        """
        row = next(row for row in self.history.partitions() if row.partition == partition and row.open)
        records = [
            Record(
                partition,
                row.next_offset + skip + at,
                logged_ms + at,
                None,
                b"no" if at in bad else encode(at % 7, activity, at, {"at": at}),
            )
            for at, activity in enumerate(activities)
        ]
        slices = sort_out(records, {}, {partition: Standing(row.next_offset, 0)}, 1 << 20)
        assert self.history.append(slices, {partition: row.id}) == []

    def counted(self) -> Counter[str]:
        """Count the history afresh, past all of zonerd's own code."""
        connection = apsw.Connection(str(self.folder / "events.db"), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return Counter(
                dict(connection.execute("select activity, count(*) from events group by activity").fetchall())
            )
        finally:
            connection.close()

    def answered(self) -> Counter[str]:
        with Answers.open_reader(self.folder) as answers:
            snapshot = answers.read()
        assert snapshot is not None
        assert sum(dict(snapshot.rankings["total"]).values()) == snapshot.cursor.events
        return Counter(dict(snapshot.rankings["total"]))

    def shown(self) -> Counter[str]:
        """Give what Redis shows, which must be the same in both of its forms."""
        pipeline = self.redis.pipeline()
        pipeline.get("activity_summary").hgetall("zonerd:total").hmget("zonerd:as_of", "events", "state")
        text, total, (events, state) = pipeline.execute()
        pairs = json.loads(text or "[]")
        if state != "loading":
            assert dict(pairs) == {name: int(count) for name, count in total.items()}
            assert sum(count for _, count in pairs) == int(events or 0)
        return Counter(dict(pairs))

    def pairs(self) -> list[tuple[str, int]]:
        """Give the summary as it stands in Redis, whatever it says."""
        return [(name, count) for name, count in json.loads(self.redis.get("activity_summary") or "[]")]

    def as_of(self) -> dict[str, str]:
        return self.redis.hgetall("zonerd:as_of")

    def age_as_of(self) -> None:
        """Let what Redis shows look as if nobody had renewed it for a minute."""
        self.redis.hincrby("zonerd:as_of", "published_ms", -60_000)

    @contextmanager
    def aggregator(self, beat: Callable[[], None] = lambda: None) -> Iterator[Aggregator]:
        settings = self.config
        with (
            History.open_reader(self.folder) as history,
            Answers.open_writer(self.folder) as answers,
            Cache(settings.redis, None) as cache,
        ):
            yield Aggregator(settings, structlog.get_logger(), history, answers, cache, Tally(self.folder), beat)

    def catch_up(self) -> None:
        """Fold and publish everything, as a process that has just been started."""
        with self.aggregator() as aggregator:
            fold_all(aggregator)
            aggregator.publish()

    def command(self, *words: str, before: str = "") -> list[str]:
        """Give the command line of a verb; `before` is Python that runs first in its process."""
        options = [word for override in self.overrides for word in ("-X", override)]
        script = f"{before}\nfrom zonerd.cli import main\nmain()"
        return [sys.executable, "-c", script, *options, *words]

    def run(self, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words, before=before), capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )

    def start(self, *words: str, before: str = "") -> subprocess.Popen[str]:
        with (self.folder / "out.log").open("a") as out:
            process = subprocess.Popen(
                self.command(*words, before=before), stdout=out, stderr=subprocess.STDOUT, text=True
            )
        self._stack.callback(_end, process)
        return process

    def logged(self) -> str:
        return (self.folder / "out.log").read_text()

    def close(self) -> None:
        self._stack.close()
        self.history.__exit__(None, None, None)


def fold_all(aggregator: Aggregator) -> None:
    """Fold until nothing is left."""
    while aggregator.fold():
        pass


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
