"""Sending to the topic: idempotent, acknowledged by all replicas, in step with where each message came from."""

import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer

from zonerd import config
from zonerd.kafka.connection import FORBIDDEN, Notes, build, properties
from zonerd.metrics import PRODUCER_BYTES, PRODUCER_DELIVERED, PRODUCER_DELIVERY, PRODUCER_ERRORS, PRODUCER_QUEUED

P = TypeVar("P")

MAX_PENDING: Final = 30_000
"""Messages that wait for their acknowledgement; past it `has_room` is False."""
MAX_PENDING_BYTES: Final = 16 * 1024 * 1024
MESSAGE_OVERHEAD_BYTES: Final = 16 * 1024
"""What key, headers and batch may add to a value: `message.max.bytes` is that much above the largest event."""
BATCH_BYTES: Final = 1_000_000
"""librdkafka's default for a batch of more than one message."""

_QUEUE_MESSAGES: Final = 10_000_000
_QUEUE_KBYTES: Final = 2_097_151
_STALLED_AFTER_S: Final = 5.0
_REASONS: Final = {
    KafkaError.MSG_SIZE_TOO_LARGE: "too_large",
    KafkaError.INVALID_RECORD: "invalid_record",
    KafkaError._MSG_TIMED_OUT: "timed_out",  # noqa: SLF001 - librdkafka's name for it
    KafkaError.UNKNOWN_TOPIC_OR_PART: "unknown_topic",
    KafkaError._UNKNOWN_TOPIC: "unknown_topic",  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION: "unknown_topic",  # noqa: SLF001
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "not_authorized",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "not_authorized",
}
_MENDED_BY_RENEWAL: Final = (KafkaError._FATAL, KafkaError.MSG_SIZE_TOO_LARGE)  # noqa: SLF001
REASONS: Final = ("too_large", "invalid_record", "timed_out", "unknown_topic", "not_authorized", "other")
"""Why a message was not taken; the first two are about the message itself, and final."""


class Refusal(NamedTuple, Generic[P]):
    """A message that Kafka will never take, by the position it came from."""

    position: P
    reason: str
    size_bytes: int


class _Pending(Generic[P]):
    """One message on its way; `settled` once it is delivered or refused for good."""

    __slots__ = ("handed_over_at", "key", "position", "settled", "value")

    def __init__(self, value: bytes, key: bytes | None, position: P, settled: bool) -> None:
        self.handed_over_at = time.monotonic()
        self.value = value
        self.key = key
        self.position = position
        self.settled = settled


class Writer(Generic[P]):
    """Sends messages to one topic and tells up to which position all of them are settled.

    The order of effects: a message is kept here until the broker has acknowledged it (`acks=all`) or has refused it
    for good; only then `acknowledged` may pass its position. Any other failure sets `broken`: nothing is lost, and
    `renew` sends again what is not settled, which may then be in the topic twice. It sends at least once.

    `timeout_s` is how long a message may take; 0: for ever, a broker that is away is waited for. The caller must know
    that the topic exists: Kafka may make a missing one that is written to.
    """

    def __init__(self, kafka: config.Kafka, sasl_password: str | None, max_event_bytes: int, timeout_s: float) -> None:
        self.notes = Notes()
        self.max_message_bytes = max_event_bytes + MESSAGE_OVERHEAD_BYTES
        self.delivered = 0
        self.refused = 0
        self.broken = ""
        self.may_be_renewed = False
        """True where the failure is mended by beginning anew, at once."""
        self.acknowledged: P | None = None
        self._topic = kafka.topic
        self._batch_bytes = _own_batch_bytes(kafka)
        self._properties = {
            **properties(kafka, sasl_password, self.notes),
            **_promises(self.max_message_bytes, timeout_s),
        }
        self._properties.pop("delivery.timeout.ms", None)  # another name of message.timeout.ms
        self._pending: deque[_Pending[P]] = deque()
        self._pending_bytes = 0
        self._refusals: list[Refusal[P]] = []
        self._failures: Counter[str] = Counter()
        self._delivered_bytes = 0
        self._took_s: list[float] = []
        self._settled_at = time.monotonic()
        self._closing = False
        self._renewed = False
        self._client = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._abandon(0.0)

    @property
    def has_room(self) -> bool:
        """True while more may be sent without holding too much in memory."""
        return len(self._pending) < MAX_PENDING and self._pending_bytes < MAX_PENDING_BYTES

    @property
    def pending(self) -> int:
        """How many messages are not settled, or wait for one before them."""
        return len(self._pending)

    @property
    def stalled(self) -> bool:
        """True when messages wait and none was settled for some seconds."""
        return bool(self._pending) and time.monotonic() - self._settled_at > _STALLED_AFTER_S

    @property
    def on_trial(self) -> bool:
        """True from `renew` on until a message is settled: whether the failure has passed is not known yet."""
        return bool(self._pending) and self._renewed

    def send(self, value: bytes, key: bytes | None, position: P) -> None:
        """Hand over one message that came from this position."""
        if not self._pending:
            self._settled_at = time.monotonic()
        entry = _Pending(value, key, position, settled=False)
        self._pending.append(entry)
        self._pending_bytes += len(value)
        self._produce(entry)

    def skip(self, position: P) -> None:
        """Note a position at which nothing is to be sent."""
        self._pending.append(_Pending(b"", None, position, settled=True))
        self._sweep()

    def poll(self, timeout_s: float) -> None:
        """Take delivery reports, waiting so long for the first."""
        self._serve(self._client.poll, timeout_s)
        self._count()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is settled, but no longer than this, and not once something failed; True if it is."""
        deadline = time.monotonic() + timeout_s
        while self._pending and not self.broken and (left := deadline - time.monotonic()) > 0:
            self.poll(min(left, 0.1))
        return not self._pending

    def refusals(self) -> list[Refusal[P]]:
        """Give what was refused for good since this was asked last."""
        refusals, self._refusals = self._refusals, []
        return refusals

    def give_up(self, reason: str) -> None:
        """Take what waits for not deliverable as things are: `broken`, until `renew`."""
        self.broken = reason

    def renew(self) -> None:
        """After `broken`: begin anew with another client, and send again in order all that is not settled."""
        self._abandon(_STALLED_AFTER_S)
        self.broken = ""
        self._closing = False
        self._settled_at = time.monotonic()
        self._renewed = True
        self._client = self._connect()
        for entry in list(self._pending):
            if not entry.settled:
                self._produce(entry)

    def _connect(self) -> Any:  # noqa: ANN401 - librdkafka's, and it stays here
        return build(Producer, {**self._properties, "batch.size": self._batch_bytes})

    def _produce(self, entry: _Pending[P]) -> None:
        report = partial(self._report, entry)
        try:
            self._client.produce(self._topic, entry.value, entry.key, on_delivery=report)
        except KafkaException as error:
            self._report(entry, error.args[0], None)

    def _report(self, entry: _Pending[P], error: KafkaError | None, _message: object) -> None:
        """Note what became of a message: librdkafka calls this from within `poll`, so it must not raise."""
        if entry.settled:
            return
        if error is None:
            self._note_delivered(entry)
        elif not self._refuses(entry, error):
            self._fail(error)
            return
        entry.settled = True
        self._renewed = False
        self._settled_at = time.monotonic()
        if entry is self._pending[0]:
            self._sweep()

    def _note_delivered(self, entry: _Pending[P]) -> None:
        self.delivered += 1
        self._delivered_bytes += len(entry.value)
        self._took_s.append(time.monotonic() - entry.handed_over_at)

    def _refuses(self, entry: _Pending[P], error: KafkaError) -> bool:
        """Tell whether this message itself is refused, for good, and note it."""
        code = error.code()
        if code not in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD):
            return False
        size_bytes = len(entry.value) + len(entry.key or b"")
        if code == KafkaError.MSG_SIZE_TOO_LARGE and size_bytes <= self._batch_bytes:
            # It may have shared a batch: then the batch was too large, not each message in it. In smaller batches
            # this ends where a message that is refused was alone.
            return False
        self.refused += 1
        self._failures[_REASONS[code]] += 1
        self._refusals.append(Refusal(entry.position, _REASONS[code], size_bytes))
        return True

    def _serve(self, call: Callable[[float], int], timeout_s: float) -> None:
        """Let librdkafka call back; an error after which this client is of no more use comes as an exception."""
        try:
            call(timeout_s)
        except KafkaException as error:
            self.broken = ""  # a report may have come before it, which says less
            self._fail(error.args[0])

    def _fail(self, error: KafkaError) -> None:
        if self._closing:
            return
        self._failures[_REASONS.get(error.code(), "other")] += 1
        if not self.broken:
            forbidden = error.code() in FORBIDDEN
            self.broken = f"no ACL lets this user write to {self._topic}: {error.str()}" if forbidden else error.str()
            self.may_be_renewed = not forbidden and (error.fatal() or error.code() in _MENDED_BY_RENEWAL)
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                self._batch_bytes = max(self._batch_bytes // 4, 1)

    def _sweep(self) -> None:
        pending = self._pending
        while pending and pending[0].settled:
            entry = pending.popleft()
            self._pending_bytes -= len(entry.value)
            self.acknowledged = entry.position

    def _count(self) -> None:
        """Tell the metrics what the reports of one poll have brought: one by one it would cost a microsecond each."""
        PRODUCER_QUEUED.set(len(self._pending))
        if self._took_s:
            PRODUCER_DELIVERED.inc(len(self._took_s))
            PRODUCER_BYTES.inc(self._delivered_bytes)
            PRODUCER_DELIVERY.observe_all(self._took_s)
            self._took_s, self._delivered_bytes = [], 0
        while self._failures:
            reason, number = self._failures.popitem()
            PRODUCER_ERRORS.labels(reason).inc(number)

    def _abandon(self, patience_s: float) -> None:
        """Let the client go; what it still holds stays pending here.

        What may yet arrive is given some patience: sent again, it would be in the topic twice.
        """
        self._serve(self._client.flush, patience_s)
        self._closing = True
        self._client.purge()
        self._serve(self._client.flush, 1.0)
        self._count()


def _promises(max_message_bytes: int, timeout_s: float) -> dict[str, Any]:
    """Give the properties on which this module's promises rest; no configuration may change them."""
    return {
        "enable.idempotence": True,
        "acks": "all",
        "allow.auto.create.topics": False,
        "message.max.bytes": max_message_bytes,
        "message.timeout.ms": int(timeout_s * 1000),
        "queue.buffering.max.messages": _QUEUE_MESSAGES,  # the bound is MAX_PENDING: it counts what waits here too
        "queue.buffering.max.kbytes": _QUEUE_KBYTES,
    }


def _own_batch_bytes(kafka: config.Kafka) -> int:
    wanted = kafka.properties.get("batch.size", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else BATCH_BYTES
