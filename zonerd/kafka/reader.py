"""The records of a topic, from positions that the store decides: no group membership."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from threading import Thread
from typing import Any, Final, NamedTuple, Self, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from zonerd import config
from zonerd.errors import ServiceUnavailable
from zonerd.events import Record
from zonerd.kafka.connection import REQUEST_TIMEOUT_S, Notes, build, properties, unavailable

_Message: TypeAlias = Any  # librdkafka's; its stubs call every part of it optional

CLOSE_WITHIN_S: Final = 2.0
COMMIT_INTERVAL_S: Final = 1.0
RECOMMIT_INTERVAL_S: Final = 3600.0
"""Committed offsets expire (after 7 days by default) when nobody commits them again."""

_BLOCK: Final = 500
"""Messages a call while single records are looked up."""

_DEFAULTS: Final = {
    "fetch.queue.backoff.ms": "10",  # 1000 by default, which stalls fetching (measured: 5.3 times slower)
    "queued.min.messages": "20000",
    "queued.max.messages.kbytes": "65536",
    "fetch.wait.max.ms": "100",  # a seek waits for the fetch under way
}
_PROMISES: Final = {
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "auto.offset.reset": "error",
    "enable.partition.eof": "true",
    "check.crcs": "true",  # without it damaged bytes are delivered as good
    "isolation.level": "read_committed",
    "statistics.interval.ms": "1000",  # they tell of connections that were lost without a line
}


class Taken(NamedTuple):
    """What one call brought: records in order, where logs ended behind them, and what went wrong where."""

    records: list[Record]
    ends: dict[int, int]
    out_of_range: set[int]
    troubled: dict[int, str]
    value_bytes: int = 0
    """All values of these records together."""


NOTHING_TAKEN: Final = Taken([], {}, set(), {})


class Reader:
    """Reads the partitions that it is told to, from the offsets that it is told; remembers nothing of its own.

    Methods raise ServiceUnavailable; whoever catches it must `assign` again, at the store's positions.
    """

    def __init__(self, kafka: config.Kafka, batch_bytes: int, sasl_password: str | None) -> None:
        self.notes = Notes()
        self.commit_errors: list[KafkaError] = []
        self._topic = kafka.topic
        self._batch_bytes = batch_bytes
        self._pending: list[_Message] = []
        self._uncommitted: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._committed_at = time.monotonic()
        self._unanswered = 0
        self._knows_leaders_of: set[int] = set()
        values = {**_DEFAULTS, **properties(kafka, sasl_password, self.notes), **_PROMISES}
        callbacks = {"on_commit": self._on_commit, "stats_cb": self.notes.on_statistics}
        self._values = {**values, **callbacks, "group.id": kafka.group_id}
        self._consumer = build(Consumer, self._values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # With its broker gone, librdkafka waits in here for an answer to the last commit, past any stop.
        closing = Thread(target=self._consumer.close, daemon=True)
        closing.start()
        closing.join(0 if self._unanswered else CLOSE_WITHIN_S)

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions, and no others, from these offsets on; what was taken in advance is dropped."""
        self._pending = []
        try:
            self._consumer.assign([TopicPartition(self._topic, *place) for place in offsets.items()])
            if not self._knows_leaders_of.issuperset(offsets):  # else records wait for a timer of librdkafka's
                self._consumer.list_topics(timeout=REQUEST_TIMEOUT_S)
                self._knows_leaders_of.update(offsets)
        except KafkaException as error:
            raise unavailable(error) from None

    def take(self, limit: int, wait_s: float) -> Taken:
        """Give up to `limit` records, of at most `batch_bytes` together, waiting up to `wait_s` for them."""
        try:
            messages = self._pending or self._consumer.consume(limit, wait_s)
        except KafkaException as error:
            self._pending = []
            raise unavailable(error) from None
        fitting, value_bytes = self._fitting(messages)
        self._pending = messages[fitting:]
        return _sorted(messages[:fitting], value_bytes, self.commit_errors)

    def low_watermark(self, partition: int) -> int:
        """Give where the partition's log began when it was fetched last; 0 while that is not known."""
        place = TopicPartition(self._topic, partition)
        answer: tuple[int, int] | None = self._consumer.get_watermark_offsets(place, cached=True)
        return max(0, answer[0]) if answer else 0

    def note_stored(self, offsets: Mapping[int, int]) -> None:
        """Note how far the store is; `commit` tells Kafka."""
        self._uncommitted.update(offsets)

    def commit(self) -> None:
        """Tell Kafka now and then, for lag tools, how far the store is; errors come to `commit_errors`.

        Call it in idle times too: what was told expires.
        """
        waited_s = time.monotonic() - self._committed_at
        if self._uncommitted and waited_s >= COMMIT_INTERVAL_S:
            self._commit_now()
        elif self._committed and waited_s >= RECOMMIT_INTERVAL_S:
            self._uncommitted = dict(self._committed)
            self._commit_now()

    def finish(self, wait_s: float) -> None:
        """Commit what is not committed yet, and wait so long for the answer; never raises."""
        with suppress(KafkaException):
            self._consumer.unassign()
            if self._uncommitted:
                self._commit_now()
            deadline = time.monotonic() + wait_s
            while self._unanswered and time.monotonic() < deadline:
                self._consumer.consume(1, 0.05)

    def records_at(self, offsets: Mapping[int, int]) -> dict[int, Record | int | None]:
        """Give for each partition the first record at this offset or above.

        Instead of a record: the end offset, where the log ends before one comes; None, out of range.
        Whatever was assigned is not any more.
        """
        answers: dict[int, Record | int | None] = {}
        self.assign(offsets)
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while len(answers) < len(offsets):
            taken = self.take(_BLOCK, 0.05)
            _note_first(taken, answers)
            if taken.troubled:
                raise ServiceUnavailable("kafka", _first_trouble(taken))
            if time.monotonic() > deadline:
                self._begin_anew()
                raise ServiceUnavailable("kafka", "the records at our anchors did not come in time")
            self._leave(offsets, answers)
        self.assign({})
        return answers

    def records_between(self, partition: int, first: int, end: int) -> Iterator[Record]:
        """Give the records of a partition at offsets from `first` up to below `end`, as far as its log reaches.

        Whatever was assigned is not any more. A first offset out of range gives nothing.
        """
        if first >= end:
            return
        self.assign({partition: first})
        quiet_since = time.monotonic()
        while True:
            taken = self.take(_BLOCK * 4, 0.05)
            for record in taken.records:
                if record.offset >= end:
                    return
                yield record
            if taken.ends or taken.out_of_range or (taken.records and taken.records[-1].offset + 1 >= end):
                return
            if taken.troubled:
                raise ServiceUnavailable("kafka", _first_trouble(taken))
            if taken.records:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > REQUEST_TIMEOUT_S:
                raise ServiceUnavailable("kafka", f"partition {partition} gave no record in time")

    def _fitting(self, messages: list[_Message]) -> tuple[int, int]:
        """Give how many of these messages, one at least, hold no more than `batch_bytes` together, and what they hold.

        That is the values, and where they come near the limit their keys count too.
        """
        value_bytes = sum(map(len, messages))
        if value_bytes <= self._batch_bytes // 2:  # without the keys, which are small
            return len(messages), value_bytes
        size = value_bytes = 0
        for number, message in enumerate(messages):
            size += len(message) + len(message.key() or b"")
            if size > self._batch_bytes and number:
                return number, value_bytes
            value_bytes += len(message)
        return len(messages), value_bytes

    def _begin_anew(self) -> None:
        """Forget all that the client knows: it never believes a leader whose epoch is below the last it saw.

        So it is for ever silent about a broker that was restored from an older copy.
        """
        self._consumer.close()
        self._unanswered = 0
        self._knows_leaders_of.clear()
        self._consumer = build(Consumer, self._values)

    def _leave(self, offsets: Mapping[int, int], answers: Mapping[int, object]) -> None:
        """Stop fetching the partitions that have answered, so that the others come through."""
        left = {partition: offset for partition, offset in offsets.items() if partition not in answers}
        done = [TopicPartition(self._topic, partition) for partition in offsets if partition not in left]
        assigned = {place.partition for place in self._consumer.assignment()}
        self._consumer.incremental_unassign([place for place in done if place.partition in assigned])

    def _commit_now(self) -> None:
        places = [TopicPartition(self._topic, *place) for place in self._uncommitted.items()]
        self._uncommitted = {}
        self._committed_at = time.monotonic()
        try:
            self._consumer.commit(offsets=places, asynchronous=True)
            self._unanswered += 1
        except KafkaException as error:
            self.commit_errors.append(error.args[0])

    def _on_commit(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        self._unanswered -= 1
        failed = error or next((place.error for place in places if place.error), None)
        if failed is not None:
            self.commit_errors.append(failed)
        else:
            self._committed.update({place.partition: place.offset for place in places})


def _sorted(messages: list[_Message], value_bytes: int, commit_errors: list[KafkaError]) -> Taken:
    """Sort messages, whose texts and values hold so many bytes, into records and what went wrong.

    That we may not use the group concerns commits only, which are advice.
    """
    records = [
        Record(message.partition(), message.offset(), message.timestamp()[1], message.key(), message.value())
        for message in messages
        if message.error() is None
    ]
    if len(records) == len(messages):
        return Taken(records, {}, set(), {}, value_bytes)
    errors = [(message, error) for message in messages if (error := message.error()) is not None]
    taken = Taken(records, {}, set(), {}, value_bytes - sum(len(message) for message, _ in errors))
    for message, error in errors:
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            commit_errors.append(error)
        else:
            _note_error(message, error, taken)
    return taken


def _note_error(message: _Message, error: KafkaError, taken: Taken) -> None:
    code, partition = error.code(), message.partition()
    if code == KafkaError._PARTITION_EOF:  # noqa: SLF001 - how librdkafka names its own errors
        taken.ends[partition] = message.offset()
    elif partition is None or partition < 0:
        taken.troubled[-1] = error.str()
    elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):  # noqa: SLF001
        taken.out_of_range.add(partition)
    else:
        taken.troubled[partition] = error.str()


def _note_first(taken: Taken, answers: dict[int, Any]) -> None:
    for record in taken.records:
        answers.setdefault(record.partition, record)
    for partition, end in taken.ends.items():
        answers.setdefault(partition, end)
    for partition in taken.out_of_range:
        answers.setdefault(partition, None)


def _first_trouble(taken: Taken) -> str:
    partition, cause = next(iter(taken.troubled.items()))
    return f"partition {partition}: {cause}" if partition >= 0 else cause
