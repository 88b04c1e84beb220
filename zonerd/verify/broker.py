"""The history against the broker: record by record the same, nothing missing, nothing else."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from zonerd.errors import ServiceUnavailable
from zonerd.events import DeadLetter, EventRow, Gap, Record, decode, row_of
from zonerd.incarnation import SHORTER_FOR_S, equals
from zonerd.kafka.cluster import Cluster, Incarnation, Watermarks
from zonerd.kafka.reader import Reader
from zonerd.store.audit import Audit
from zonerd.store.history import DeadLetterRow, Partition
from zonerd.verify.noted import Moved, Noted, Tell
from zonerd.verify.report import Findings, Part

NEWEST_OFFSETS: Final = 1000
"""So many offsets of each partition are compared by a quick check."""

_ANOTHER: Final = "another topic (`zonerd topic accept` goes on with it)"
_ASK_BELOW: Final = 1000
"""Past so many differences retention is not asked about each hole any more."""
_TELL_EVERY: Final = 5000
_EVENT_FIELDS: Final = ("offset", "user_id", "activity", "timestamp_ms", "logged_ms", "properties")
_TOLD_FIELDS: Final = ("activity", "timestamp_ms", "logged_ms")
_TOLD_CHARACTERS: Final = 60
_LETTER_FIELDS: Final = ("key", "payload", "logged_ms")
_NO_RECORD: Final = ("not_delivered", "expired")
"""Reasons of a gap that say: the broker has no record there."""

Row = EventRow | DeadLetterRow


class Compared:
    """How many records were compared, and how many stored ones can no longer be."""

    def __init__(self) -> None:
        self.events = 0
        self.dead_letters = 0
        self.in_gaps = 0
        """Records of the broker that stand in a gap made by hand: skipped, dropped or forgotten."""
        self.expired = 0
        self.compacted = 0
        self.closed = 0
        self.not_stored = 0
        self.passed = 0
        self.total = 0


class Broker(NamedTuple):
    """What the broker is asked with."""

    cluster: Cluster
    reader: Reader
    topic: str


def check_broker(audit: Audit, broker: Broker, noted: Noted, *, quick: bool, tell: Tell) -> Part:
    """Read what the broker has of each open partition, and compare it with what is stored, up to the noted offsets.

    `quick` reads the newest records only. Raises ServiceUnavailable where the topic cannot be read, unless something
    was found to differ before, and Moved if it became another one meanwhile.
    """
    findings, compared = Findings("broker"), Compared()
    try:
        found = _find(broker)
        rows = _ours(found, noted.partitions, findings)
        _compare_all(audit, broker, rows, findings, compared, quick=quick, tell=tell)
        others = (row for row in noted.partitions if row not in rows)
        compared.closed = sum(_stored_between(audit, row, row.first_offset, row.next_offset) for row in others)
        compared.not_stored = _not_stored(broker.cluster, found, {row.partition: row for row in rows})
        committed = _check_committed(audit, broker.cluster, rows, findings)
        if _find(broker) != found:
            raise Moved
    except ServiceUnavailable as error:
        if not findings.total:
            raise
        return findings.part(f"not compared to the end: {error}", {})
    return _part(findings, compared, found, committed, quick=quick)


def _compare_all(  # noqa: PLR0913 - what is compared, and where to say so
    audit: Audit,
    broker: Broker,
    rows: Sequence[Partition],
    findings: Findings,
    compared: Compared,
    *,
    quick: bool,
    tell: Tell,
) -> None:
    marks = {row.id: _watermarks(broker.cluster, row) for row in rows}
    starts = {row.id: _start(row, marks[row.id], quick=quick) for row in rows}
    compared.total = sum(max(0, row.next_offset - starts[row.id]) for row in rows)
    for row in rows:
        low, high = marks[row.id]
        compared.expired += _stored_between(audit, row, row.first_offset, min(low, row.next_offset))
        if high < row.next_offset:
            findings.differ(f"the broker's log ends at {high}, below the {row.next_offset} stored", row)
        Comparison(audit, broker, row, findings, compared, tell).run(starts[row.id], min(high, row.next_offset))


def _find(broker: Broker) -> Incarnation:
    found = broker.cluster.incarnation()
    if found is None:
        raise ServiceUnavailable("kafka", f"there is no topic {broker.topic}")
    return found


def _ours(found: Incarnation, partitions: Sequence[Partition], findings: Findings) -> list[Partition]:
    """Give the open rows of this very topic; an open row of another life of it is a difference."""
    ours = []
    for row in partitions:
        if not row.open or row.topic != found.topic:
            continue
        if row.cluster_id != found.cluster_id:
            findings.differ(f"the cluster id is {found.cluster_id}, was {row.cluster_id}: {_ANOTHER}", row)
        elif row.topic_id not in (found.topic_id, ""):
            findings.differ(f"the topic id is {found.topic_id}, was {row.topic_id}: {_ANOTHER}", row)
        elif row.partition not in found.partitions:
            findings.differ("the broker has no such partition", row)
        else:
            ours.append(row)
    return ours


def _watermarks(cluster: Cluster, row: Partition) -> Watermarks:
    """Give where the log begins and ends; one that ends too soon is asked for some time: a new leader may lag."""
    deadline = time.monotonic() + SHORTER_FOR_S
    while (marks := cluster.watermarks(row.partition)).high < row.next_offset and time.monotonic() < deadline:
        time.sleep(0.2)
    return marks


def _start(row: Partition, marks: Watermarks, *, quick: bool) -> int:
    first = max(row.first_offset, marks.low)
    return max(first, row.next_offset - NEWEST_OFFSETS) if quick else first


def _stored_between(audit: Audit, row: Partition, first: int, end: int) -> int:
    return audit.count("events", row.id, first, end) + audit.count("dead_letters", row.id, first, end)


def _not_stored(cluster: Cluster, found: Incarnation, rows: dict[int, Partition]) -> int:
    """Count the offsets behind the noted ones; a partition that was never met counts from its beginning."""
    behind = 0
    for partition in found.partitions:
        low, high = cluster.watermarks(partition)
        behind += max(0, high - max(low, rows[partition].next_offset if partition in rows else low))
    return behind


def _check_committed(audit: Audit, cluster: Cluster, rows: Sequence[Partition], findings: Findings) -> int:
    """Compare the offsets committed to Kafka with what is stored; one too high is looked at for some time.

    Kafka is asked first: what is told to it was stored before.
    """
    deadline = time.monotonic() + SHORTER_FOR_S
    while True:
        committed = cluster.committed(tuple(row.partition for row in rows)) if rows else {}
        stored = {row.id: row.next_offset for row in audit.partitions()}
        ahead = [row for row in rows if committed.get(row.partition, 0) > stored.get(row.id, 0)]
        if not ahead or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    for row in ahead:
        what = f"committed to Kafka up to {committed[row.partition]}, stored up to {stored[row.id]}"
        findings.differ(f"{what}: by another program, or another data directory, under our group?", row)
    return len(committed)


class Comparison:
    """Compares one partition, holding a block of rows and a batch of records at a time."""

    def __init__(  # noqa: PLR0913 - what is compared, and where to say so
        self, audit: Audit, broker: Broker, row: Partition, findings: Findings, compared: Compared, tell: Tell
    ) -> None:
        self._audit = audit
        self._broker = broker
        self._row = row
        self._findings = findings
        self._compared = compared
        self._tell = tell
        self._gap: Gap | None = None
        self._compaction: bool | None = None

    def run(self, start: int, end: int) -> None:
        """Compare all from `start` to below `end`; what retention takes meanwhile is counted as expired."""
        stored = self._stored(start, end)
        ours = next(stored, None)
        position = start
        while True:
            for record in self._broker.reader.records_between(self._row.partition, position, end):
                offset = position = record.offset
                if ours is not None and ours[0] < offset:
                    ours = self._pass_over(ours, stored, offset)
                if ours is None or ours[0] > offset:
                    self._not_there(record)
                else:
                    self._compare(record, ours)
                    ours = self._pass_twice(next(stored, None), stored, offset)
                position += 1
            low = self._low()
            if position >= end or low <= position:
                break
            position = low
        if ours is not None:
            self._pass_over(ours, stored, end)
        self._tell("broker", self._compared.passed, self._compared.total)

    def _stored(self, start: int, end: int) -> Iterator[Row]:
        """Give the rows from `start` to below `end`, events and dead letters merged by offset."""
        letters = self._audit.stored("dead_letters", self._row.id, start, end)
        letter = next(letters, None)
        for event in self._audit.stored("events", self._row.id, start, end):
            while letter is not None and letter[0] <= event[0]:
                yield letter
                letter = next(letters, None)
            yield event
        if letter is not None:
            yield letter
        yield from letters

    def _compare(self, record: Record, ours: Row) -> None:
        compared = self._compared
        compared.passed += 1
        if compared.passed % _TELL_EVERY == 0:
            self._tell("broker", compared.passed, compared.total)
        if _is_event(ours):
            compared.events += 1
        else:
            compared.dead_letters += 1
        if not equals(record, ours) or ours[1].__class__ is float:  # 42.0 equals 42, and is none of ours
            self._findings.differ(what_differs(record, ours), self._row, record.offset)

    def _pass_twice(self, ours: Row | None, stored: Iterator[Row], offset: int) -> Row | None:
        while ours is not None and ours[0] == offset:
            self._findings.differ("stored as an event and as a dead letter", self._row, offset)
            ours = next(stored, None)
        return ours

    def _not_there(self, record: Record) -> None:
        """Judge a record that is not stored: it may stand in a gap that was made by hand."""
        self._compared.passed += 1
        gap = self._gap
        if gap is None or not gap.first_offset <= record.offset <= gap.last_offset:
            gap = self._gap = self._audit.gap_at(self._row.id, record.offset)
        if gap is None:
            self._findings.differ("the broker has a record, the history has none", self._row, record.offset)
        elif gap.reason in _NO_RECORD:
            what = f"a gap ({gap.reason}) stands where the broker has a record"
            self._findings.differ(what, self._row, record.offset)
        else:
            self._compared.in_gaps += 1

    def _pass_over(self, ours: Row | None, stored: Iterator[Row], end: int) -> Row | None:
        """Step over rows below `end` of which the broker gave no record, and judge each."""
        low = self._low() if self._findings.total < _ASK_BELOW else 0  # asked now: behind what was read
        while ours is not None and ours[0] < end:
            self._compared.passed += 1
            if ours[0] < low:
                self._compared.expired += 1
            elif self._is_compacted():
                self._compared.compacted += 1
            else:
                self._findings.differ("stored, but the broker has no record there", self._row, ours[0])
            ours = next(stored, None)
        return ours

    def _low(self) -> int:
        return self._broker.cluster.watermarks(self._row.partition).low

    def _is_compacted(self) -> bool:
        """Whether the broker may remove single records, so that one that is missing proves nothing."""
        if self._compaction is None:
            self._compaction = self._broker.cluster.is_compacted()
        return self._compaction


def what_differs(record: Record, ours: Row) -> str:
    """Say in which fields a stored row is not what the record makes of it; values are told of small fields only."""
    if not _is_event(ours):
        theirs: tuple[object, ...] = (record.key, record.value, record.timestamp_ms)
        fields = [name for name, a, b in zip(_LETTER_FIELDS, ours[3:], theirs, strict=True) if a != b]
        return f"the dead letter is not the record: {', '.join(fields)}"
    verdict = decode(record.value, sys.maxsize)
    if isinstance(verdict, DeadLetter):
        return f"stored as an event, but the record is none: {verdict.reason}"
    row = row_of(record, verdict)
    fields = [
        f"{name} {_told(a)} instead of {_told(b)}" if name in _TOLD_FIELDS else name
        for name, a, b in zip(_EVENT_FIELDS, ours, row, strict=True)
        if a != b or a.__class__ is not b.__class__
    ]
    return f"the event is not the record: {', '.join(fields)}"


def _told(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _TOLD_CHARACTERS else text[:_TOLD_CHARACTERS] + "…"


def _is_event(row: Row) -> bool:
    return isinstance(row[3], int)


def _part(findings: Findings, compared: Compared, found: Incarnation, committed: int, *, quick: bool) -> Part:
    figures = {
        "cluster_id": found.cluster_id,
        "topic": found.topic,
        "topic_id": found.topic_id or None,
        "events": compared.events,
        "dead_letters": compared.dead_letters,
        "in_gaps_by_hand": compared.in_gaps,
        "committed_partitions": committed,
        "not_stored_yet": compared.not_stored,
        "not_checkable": {
            "expired": compared.expired, "compacted": compared.compacted, "other_incarnations": compared.closed
        },
    }  # fmt: skip
    words = [f"{compared.events:,} events and {compared.dead_letters:,} dead letters compared"]
    words += [f"only the newest {NEWEST_OFFSETS:,} offsets a partition"] if quick else []
    words += [f"{committed} committed offsets, none ahead"] if committed and not findings.total else []
    words += [f"{compared.in_gaps:,} stepped over by hand"] if compared.in_gaps else []
    words += [f"{compared.not_stored:,} not stored yet"] if compared.not_stored else []
    words.append(_not_checkable(compared))
    return findings.part(" · ".join(words), figures)


def _not_checkable(compared: Compared) -> str:
    """Say how many stored records the broker does not have any more."""
    kinds = {
        "below the broker's low watermark": compared.expired,
        "compacted away": compared.compacted,
        "of earlier incarnations or other topics": compared.closed,
    }
    causes = [f"{number:,} {kind}" for kind, number in kinds.items() if number]
    total = sum(kinds.values())
    return f"{total:,} can no longer be checked" + (f" ({', '.join(causes)})" if causes else "")
