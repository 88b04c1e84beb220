"""Where the logs of partitions begin and end, asked again and again without ever waiting for an answer."""

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, NamedTuple

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from zonerd.kafka.connection import REQUEST_TIMEOUT_S

LOOK_EVERY_S: Final = 0.4
"""How often is asked: three small requests, 0.9 ms of CPU for 4 partitions and 1.9 ms for 32 (measured)."""

_QUESTIONS: Final = (
    (OffsetSpec.earliest(), IsolationLevel.READ_COMMITTED),  # type: ignore[no-untyped-call]
    (OffsetSpec.latest(), IsolationLevel.READ_COMMITTED),  # type: ignore[no-untyped-call]
    (OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED),  # type: ignore[no-untyped-call]
)


class Extent(NamedTuple):
    """Where a partition's log begins, the offset behind its last stable record, and the one behind its last."""

    low: int
    stable: int
    high: int

    def lag(self, next_offset: int) -> int:
        """Give how many stable offsets from this one on the log still has."""
        return max(0, self.stable - max(next_offset, self.low))


class Watch:
    """The extents of some partitions as the broker last told them; while it is away they stay.

    The reader's own notes are as old as its last fetch, and it fetches nothing while it has enough in
    advance, or nobody stores what it has.
    """

    def __init__(self, admin: AdminClient, topic: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.known: dict[int, Extent] = {}
        self._admin = admin
        self._topic = topic
        self._clock = clock
        self._asked: list[dict[TopicPartition, Future[Any]]] = []
        self._asked_at = -LOOK_EVERY_S

    def look(self, partitions: Collection[int]) -> bool:
        """Take in what was answered, and ask anew LOOK_EVERY_S after the last time; True when there was an answer."""
        if any(not future.done() for answers in self._asked for future in answers.values()):
            return False
        answered = self._take_in(partitions)
        if self._clock() - self._asked_at >= LOOK_EVERY_S:
            self._ask(partitions)
        return answered

    def forget(self) -> None:
        """Drop what is known, and what was asked: the topic of this name is another one."""
        self.known = {}
        self._asked = []

    def _ask(self, partitions: Collection[int]) -> None:
        self._asked_at = self._clock()
        places = [TopicPartition(self._topic, partition) for partition in partitions]
        with suppress(KafkaException):  # as no answer in time
            self._asked = [
                self._admin.list_offsets(
                    dict.fromkeys(places, where), isolation_level=level, request_timeout=REQUEST_TIMEOUT_S
                )
                for where, level in (_QUESTIONS if places else ())
            ]

    def _take_in(self, partitions: Collection[int]) -> bool:
        asked, self._asked = self._asked, []
        told: dict[int, Extent] = {}
        for place in asked[0] if asked else ():
            with suppress(KafkaException):
                low, stable, high = (answers[place].result().offset for answers in asked)
                told[place.partition] = Extent(low, stable, max(stable, high))
        self.known = {p: extent for p, extent in {**self.known, **told}.items() if p in partitions}
        return bool(told)
