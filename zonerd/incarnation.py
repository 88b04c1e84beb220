"""Which life of the topic this is: met, recognised at the anchor, and followed when it was replaced."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from zonerd import config
from zonerd.errors import ANSWER_IS_NO, ServiceUnavailable, ZonerdError
from zonerd.events import Event, EventRow, Record, anchor_of, decode, row_of
from zonerd.kafka.cluster import Cluster, Incarnation
from zonerd.kafka.reader import Reader
from zonerd.log import Log
from zonerd.store.history import DeadLetterRow, History, Partition

SHORTER_FOR_S: Final = 3.0
"""How long a log must end below our position before we believe it: a new leader's high watermark may lag."""

_BLOCK: Final = 1000
"""Rows a read while stored records are compared with a topic's."""

Mine = Callable[[int], bool]
"""Whether a partition number is among those that the caller takes."""


class Replaced(ZonerdError):
    """The topic of this name is not the one whose history is stored; `zonerd topic accept` goes on with it."""

    exit_code = ANSWER_IS_NO

    def __init__(self, topic: str, causes: Sequence[str]) -> None:
        super().__init__(
            f"topic {topic} is not the one stored here: {'; '.join(causes)}; `zonerd topic accept` goes on with it"
        )
        self.causes = tuple(causes)


class Verdict(NamedTuple):
    """What the broker has where our anchor is: `same`, `other` with the cause, or nothing left to compare."""

    same: bool
    other: str = ""


class Topic:
    """The topic as this history knows it: the one place that decides which rows its partitions have.

    `mine` limits which partitions are looked after; rows are opened for all of them.
    """

    def __init__(  # noqa: PLR0913 - what it needs to ask, to keep, and to say
        self,
        history: History,
        cluster: Cluster,
        reader: Reader,
        kafka: config.Kafka,
        consumer: config.Consumer,
        log: Log,
        mine: Mine = lambda _: True,
    ) -> None:
        self._history = history
        self._cluster = cluster
        self._reader = reader
        self._kafka = kafka
        self._consumer = consumer
        self._log = log
        self._mine = mine

    def recognise(self) -> tuple[Incarnation, dict[int, Partition]]:
        """Find the topic, or make it, and give its present life with our open row for each partition.

        Order: its ids, then the rows of partitions that have none, then the anchors. Raises
        ServiceUnavailable while it cannot be told, and Replaced where it is another topic and
        `consumer.on_topic_recreated` is `stop`; with `follow` the replaced rows are taken over first.
        """
        found = self._find()
        strangers = self.strangers(found)
        if strangers:
            self._take_over_or_stop(found, strangers)
        self._meet(found)
        rows = self._rows(found)
        strangers = self._check_anchors(rows)
        if strangers:
            self._take_over_or_stop(found, strangers)
            rows = self._rows(found)
        return found, {row.partition: row for row in rows}

    def strangers(self, found: Incarnation) -> dict[Partition, str]:
        """Give our open rows that are of another life of the topic, each with the cause.

        A row from before the broker had topic ids is upgraded in place, if its anchor agrees.
        """
        rows = [row for row in self._history.partitions(found.topic) if row.open and self._mine(row.partition)]
        nameless = [row for row in rows if found.topic_id and row.cluster_id == found.cluster_id and not row.topic_id]
        others = self._check_anchors(nameless)
        self._history.give_topic_id([row.id for row in nameless if row not in others], found.topic_id)
        for row in rows:
            if row.cluster_id != found.cluster_id:
                others[row] = f"the cluster id is {found.cluster_id}, was {row.cluster_id}"
            elif row.topic_id != found.topic_id and row not in nameless:
                others[row] = f"the topic id is {found.topic_id}, was {row.topic_id}"
        return others

    def replaced(self) -> tuple[Incarnation, dict[Partition, str]]:
        """Find the topic and give all our open rows that are not of it, by id or by anchor, with the cause."""
        found = self._find()
        strangers = self.strangers(found)
        known = [row for row in self._rows(found) if row not in strangers]
        return found, {**strangers, **self._check_anchors(known)}

    def take_over(self, found: Incarnation, strangers: dict[Partition, str]) -> None:
        """Close these rows and open rows of the topic as it is now, one transaction a partition.

        What was stored of the new topic under the old row, from the first row at or above its
        confirmed offset that the new topic has there too, is taken back: it is read again as the new one's.
        """
        for row, cause in strangers.items():
            successor = self._successor(row, found)
            first_common = self._first_common(row, found)
            if self._history.replace(row, first_common, successor):
                taken_back = 0 if first_common is None else row.next_offset - first_common
                self._log.warning(
                    "topic_recreated", partition=row.partition, cause=cause, taken_back=taken_back, next=row.next_offset
                )

    def _take_over_or_stop(self, found: Incarnation, strangers: dict[Partition, str]) -> None:
        if self._consumer.on_topic_recreated == "stop":
            raise Replaced(found.topic, sorted({*strangers.values()}))
        self.take_over(found, strangers)

    def _find(self) -> Incarnation:
        found, topic = self._cluster.incarnation(), self._kafka.topic
        if found is not None:
            return found
        if self._consumer.on_topic_recreated == "stop" and any(row.open for row in self._history.partitions(topic)):
            way_on = "`zonerd topic create` makes it anew, `zonerd topic accept` goes on with it"
            raise ServiceUnavailable("kafka", f"topic {topic}, whose history is stored here, is gone; {way_on}")
        return self._cluster.found_or_made()

    def _rows(self, found: Incarnation) -> list[Partition]:
        return [
            row
            for row in self._history.partitions(found.topic)
            if row.open
            and (row.cluster_id, row.topic_id) == (found.cluster_id, found.topic_id)
            and self._mine(row.partition)
        ]

    def _meet(self, found: Incarnation) -> None:
        """Open the rows of all partitions that have none, ours or not: `start_from` is decided once."""
        present = {
            row.partition
            for row in self._history.partitions(found.topic)
            if row.open  # even of another life: whoever looks after that partition replaces it
        }
        new = [partition for partition in found.partitions if partition not in present]
        if not new:
            return
        watermarks = {partition: self._cluster.watermarks(partition) for partition in new}
        earliest = {partition: marks.low for partition, marks in watermarks.items()}
        latest = {partition: marks.high for partition, marks in watermarks.items()}
        first = earliest if self._consumer.start_from == "earliest" else latest
        self._history.meet(found.cluster_id, found.topic, found.topic_id, first, earliest)

    def _check_anchors(self, rows: Sequence[Partition]) -> dict[Partition, str]:
        """Give the rows that the broker contradicts, at their anchor or by ending below them, each with the cause."""
        anchors = {row.partition: row.anchor.offset for row in rows if row.anchor is not None}
        answers = self._reader.records_at(anchors) if anchors else {}
        others = {}
        deadline = time.monotonic() + SHORTER_FOR_S
        for row in rows:
            if row.next_offset == 0:
                continue  # nothing to compare, and no log ends below it
            verdict = self._judge(row, answers.get(row.partition), deadline)
            if verdict.other:
                others[row] = verdict.other
            elif not verdict.same:
                self._log.debug("anchor_expired", partition=row.partition, offset=row.anchor and row.anchor.offset)
        return others

    def _judge(self, row: Partition, answer: Record | int | None, deadline: float = 0.0) -> Verdict:
        place = f"partition {row.partition}"
        if isinstance(answer, Record) and row.anchor is not None and answer.offset == row.anchor.offset:
            if anchor_of(answer) == row.anchor:
                return Verdict(same=True)
            return Verdict(same=False, other=f"{place} has another record at offset {answer.offset}")
        while (end := self._cluster.watermarks(row.partition).high) < row.next_offset:
            if time.monotonic() >= deadline:
                return Verdict(same=False, other=f"{place} ends at {end}, below our {row.next_offset}")
            time.sleep(0.2)
        return Verdict(same=False)

    def _successor(self, row: Partition, found: Incarnation) -> Partition | None:
        """Give the row to go on with: an earlier row of this very life, if its anchor agrees, else a new one."""
        if row.partition not in found.partitions:
            return None
        for earlier in reversed(self._history.partitions(found.topic)):
            same_life = (earlier.cluster_id, earlier.topic_id) == (found.cluster_id, found.topic_id)
            if same_life and not earlier.open and earlier.partition == row.partition and self._agrees(earlier):
                return earlier
        low = self._cluster.watermarks(row.partition).low
        return Partition(0, found.cluster_id, found.topic, found.topic_id, row.partition, low, low, low, None, None)

    def _agrees(self, row: Partition) -> bool:
        if row.anchor is None:
            return False
        return self._judge(row, self._reader.records_at({row.partition: row.anchor.offset})[row.partition]).same

    def _first_common(self, row: Partition, found: Incarnation) -> int | None:
        """Give the first offset, at or above the confirmed one, at which the row and the topic have the same record."""
        if row.partition not in found.partitions:
            return None
        stored = self._stored(row)
        ours = next(stored, None)
        first = max(row.confirmed_offset, self._cluster.watermarks(row.partition).low)
        for record in self._reader.records_between(row.partition, first, row.next_offset):
            while ours is not None and ours[0] < record.offset:
                ours = next(stored, None)
            if ours is None:
                return None
            if ours[0] == record.offset and equals(record, ours):
                return record.offset
        return None

    def _stored(self, row: Partition) -> Iterator[EventRow | DeadLetterRow]:
        """Give the rows from the confirmed offset on, events and dead letters merged by offset."""
        offset = row.confirmed_offset
        while True:
            events = self._history.events_from(row.id, offset, _BLOCK)
            letters = self._history.dead_letters_from(row.id, offset, _BLOCK)
            full = [rows[-1][0] for rows in (events, letters) if len(rows) == _BLOCK]
            until = min(full, default=row.next_offset)
            merged: list[EventRow | DeadLetterRow] = [*events, *letters]
            yield from sorted((one for one in merged if one[0] <= until), key=lambda one: one[0])
            if not full:
                return
            offset = until + 1


def equals(record: Record, stored: EventRow | DeadLetterRow) -> bool:
    """Whether this record is what the stored row was made of.

    An event row must equal the record as decoded without a limit of size, which may have been another
    one then; a dead letter must have its key, bytes and Kafka timestamp.
    """
    verdict = decode(record.value, sys.maxsize)
    if isinstance(verdict, Event) and stored == row_of(record, verdict):
        return True
    return (stored[0], *stored[3:]) == (record.offset, record.key, record.value, record.timestamp_ms)
