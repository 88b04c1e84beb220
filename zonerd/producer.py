"""The producer: a source → Kafka, each line at least once."""

from typing import Final

from zonerd.config import Config
from zonerd.endpoint import Endpoint, Listening
from zonerd.errors import ServiceUnavailable
from zonerd.events import REASONS
from zonerd.health import Health
from zonerd.kafka import connection
from zonerd.kafka.cluster import Cluster, Incarnation
from zonerd.kafka.writer import MESSAGE_OVERHEAD_BYTES, Writer
from zonerd.kafka.writer import REASONS as ERRORS
from zonerd.log import Limited, Log, Progress
from zonerd.metrics import LOOP, LOOP_SECONDS, LOOP_STATES, PRODUCER_ERRORS, PRODUCER_INVALID, prepare
from zonerd.shutdown import Shutdown
from zonerd.sources import Line, Place, Source, open_source
from zonerd.sources.lines import is_blank, judge
from zonerd.store.lock import lock_when_free

CHECKS: Final = ("lock", "source", "kafka")
RETRY_S: Final = 1.0
STOP_BUDGET_S: Final = 5.0
STALLED_STOP_BUDGET_S: Final = 1.0


class Producer:
    """Moves lines from the source to the topic.

    The order of effects in a pass: take lines, hand them over, take the broker's acknowledgements, and only then tell
    the source which lines are settled. What was not settled at a stop or a crash is given again at the next start.
    """

    def __init__(
        self,
        config: Config,
        log: Log,
        source: Source,
        cluster: Cluster,
        writer: Writer[Place],
    ) -> None:
        self._config = config
        self._log = log
        self._source = source
        self._cluster = cluster
        self._writer = writer
        self._limited = Limited()
        self._topic: Incarnation | None = None
        self._connections_lost = 0

    def step(self) -> None:
        """Move the lines that are there now; raises ServiceUnavailable while the topic takes none."""
        self._look_for_topic()
        LOOP.end("wait")
        lines = self._source.take() if self._writer.has_room else []
        for line in lines:
            self._send(line)
        LOOP.end("decode")
        waiting = self._writer.pending
        self._writer.poll(0.0 if lines else self._source.pause_s)
        LOOP.end("store" if waiting else "wait")
        self._settle()
        LOOP.end("commit")
        self._judge_delivery()

    @property
    def stalled(self) -> bool:
        """True when messages wait and the broker has acknowledged none for some seconds."""
        return self._writer.stalled

    @property
    def on_trial(self) -> bool:
        """True after a failure until a message is taken again."""
        return self._writer.on_trial

    def finish(self) -> None:
        """Wait for what is on its way; the source learns of all that was acknowledged."""
        self._writer.flush(STALLED_STOP_BUDGET_S if self._writer.stalled else STOP_BUDGET_S)
        self._settle()

    def progress(self) -> dict[str, object]:
        """Give how many messages were delivered and refused since the start, and how many wait."""
        writer = self._writer
        return {
            "delivered": writer.delivered,
            "refused": writer.refused,
            "queued": writer.pending,
        }

    def report(self) -> None:
        """Log what the Kafka clients have told since the last call."""
        self._cluster.listen()
        for notes in (self._writer.notes, self._cluster.notes):
            for line in notes.taken():
                self._limited.say(line.level, self._log, "kafka_client", line.text)

    def _look_for_topic(self) -> None:
        if self._writer.notes.connections_lost != self._connections_lost and not self._writer.pending:
            self._connections_lost = self._writer.notes.connections_lost
            self._topic = None
        if self._topic is None:
            self._topic = self._cluster.found_or_made()
        if self._writer.broken:
            self._writer.renew()

    def _send(self, line: Line) -> None:
        if line.value is None:
            self._reject(line.place, "too_large", "longer than a message may be", sent=False)
            PRODUCER_INVALID.labels("too_large").inc()
            self._writer.skip(line.place)
        elif is_blank(line.value):
            self._writer.skip(line.place)
        else:
            key, letter = judge(line.value, self._config.consumer.max_event_bytes)
            if letter is not None:
                self._reject(line.place, letter.reason, letter.detail, sent=True)
                PRODUCER_INVALID.labels(letter.reason).inc()
            self._writer.send(line.value, key, line.place)

    def _settle(self) -> None:
        for place, reason, size_bytes in self._writer.refusals():
            self._reject(place, reason, f"{size_bytes} bytes: Kafka does not take it", sent=False)
        if self._writer.acknowledged is not None:
            self._source.ack(self._writer.acknowledged)

    def _reject(self, place: Place, reason: str, detail: str, *, sent: bool) -> None:
        length = place.end - place.offset
        self._limited.warning(
            self._log,
            "line_rejected",
            reason,
            detail=detail,
            path=self._source.path_of(place),
            offset=place.offset,
            bytes=length,
            sent=sent,
        )

    def _judge_delivery(self) -> None:
        writer = self._writer
        if writer.stalled and not writer.broken:
            self._ask_whether_topic_is_gone()
        if writer.broken:
            self._limited.warning(self._log, "delivery_failed", writer.broken, queued=writer.pending)
            self._topic = None
            raise ServiceUnavailable("kafka", f"messages are not taken: {writer.broken}")

    def _ask_whether_topic_is_gone(self) -> None:
        """Give up on a topic that was deleted: librdkafka waits for it a long time."""
        if self._topic is None:
            return
        self._cluster.ask(self._topic)
        try:
            answer = self._cluster.answer(self._topic)
        except ServiceUnavailable:
            return  # nobody answers: that is why it is stalled
        if answer is not None and (answer.topic_id, bool(answer.partitions)) != (self._topic.topic_id, True):
            self._writer.give_up("the topic was deleted")


def run(config: Config, sasl_password: str | None, log: Log, shutdown: Shutdown) -> None:
    """Send until a stop is requested; a missing lock, source, broker or topic is waited for, not ready."""
    health = Health(log, CHECKS)
    prepare(LOOP_SECONDS, LOOP_STATES)
    prepare(PRODUCER_INVALID, REASONS)
    prepare(PRODUCER_ERRORS, ERRORS)
    log.info(
        "started",
        source=config.producer.source,
        path=config.producer.path or None,
        topic=config.kafka.topic,
    )
    max_event_bytes = config.consumer.max_event_bytes
    libraries = {"librdkafka": connection.library_version()}
    with (
        Endpoint(Listening.of(config, "producer"), health, libraries=libraries),
        lock_when_free(config.data_dir, "producer", health, shutdown) as locked,
    ):
        if locked:
            with (
                open_source(config, max_event_bytes + MESSAGE_OVERHEAD_BYTES, log) as source,
                Cluster(config.kafka, sasl_password) as cluster,
                Writer[Place](config.kafka, sasl_password, max_event_bytes, timeout_s=0) as writer,
            ):
                producer = Producer(config, log, source, cluster, writer)
                _produce(producer, source, health, shutdown, config, log)
    log.info("stopped", orphaned=shutdown.orphaned)


def _produce(  # noqa: PLR0913 - what one loop looks at
    producer: Producer,
    source: Source,
    health: Health,
    shutdown: Shutdown,
    config: Config,
    log: Log,
) -> None:
    progress = Progress(log, config.log.progress_s)
    if config.producer.source == "none":
        log.info(
            "idle",
            reason="producer.source is none: events come from elsewhere, as from `zonerd send`",
        )
    while not shutdown.requested:
        try:
            producer.step()
            _judge_source(source, health)  # first: else it were ready for a moment without a source
            if producer.stalled:
                health.fail("kafka", "messages are not acknowledged; they wait")
            elif not producer.on_trial:
                health.hold("kafka")
        except ServiceUnavailable as error:
            health.fail(error.service, error.reason)
            shutdown.wait(RETRY_S)
            _judge_source(source, health)
        producer.report()
        progress.tick(producer.progress)
        health.beat()
    log.info("stop_requested", queued=producer.progress()["queued"])
    producer.finish()


def _judge_source(source: Source, health: Health) -> None:
    if source.waiting_for:
        health.fail("source", source.waiting_for)
    else:
        health.hold("source")
