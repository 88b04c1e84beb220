"""Which topic this is: the cluster, its ids, its partitions and watermarks."""

import time
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic  # type: ignore[attr-defined]

from zonerd import config
from zonerd.errors import ServiceUnavailable
from zonerd.kafka.connection import FORBIDDEN, REQUEST_TIMEOUT_S, Notes, build, properties, unavailable
from zonerd.kafka.watch import Watch

MADE_WITHIN_S: Final = 1.0
"""How long a topic that was just made may take to be seen."""

EMBEDDED_CLUSTER: Final = "mockCluster"
"""How the cluster id of librdkafka's in-memory broker begins; it has no topic ids and no admin requests."""


class Incarnation(NamedTuple):
    """One life of a topic: made again, it is another one. `topic_id` is '' where the broker has none."""

    cluster_id: str
    topic: str
    topic_id: str
    partitions: tuple[int, ...]


class Watermarks(NamedTuple):
    """Where a partition's log begins, and the offset behind its last stable record."""

    low: int
    high: int


class Cluster:
    """Questions about one topic; each takes at most REQUEST_TIMEOUT_S and raises ServiceUnavailable.

    `watch` asks without waiting.
    """

    def __init__(self, kafka: config.Kafka, sasl_password: str | None) -> None:
        self.notes = Notes()
        self._kafka = kafka
        shared = properties(kafka, sasl_password, self.notes)
        self._admin = build(AdminClient, shared)
        self._consumer = build(
            Consumer, {**shared, "group.id": kafka.group_id, "enable.auto.commit": False, "check.crcs": True}
        )
        self._asked: Future[Any] | None = None
        self.watch = Watch(self._admin, kafka.topic)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def incarnation(self) -> Incarnation | None:
        """Give the topic's present life; None while there is no such topic."""
        found = self._listed()
        if found is None or self._has_no_ids(found.cluster_id):
            return found
        self._find_controller()
        try:
            description = self._describe().result(timeout=REQUEST_TIMEOUT_S + 1)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            raise unavailable(error) from None
        except TimeoutError:
            raise ServiceUnavailable("kafka", "the topic id could not be read in time") from None
        return found._replace(topic_id=_topic_id(description), partitions=_numbers(description))

    def found_or_made(self) -> Incarnation:
        """Give the topic's present life; a missing topic is made, if `kafka.create_topic` says so."""
        found, topic = self.incarnation(), self._kafka.topic
        if found is not None:
            return found
        if not self._kafka.create_topic:
            unseen = f"there is no topic {topic}, or no ACL lets this user see it"
            raise ServiceUnavailable("kafka", f"{unseen}; and kafka.create_topic is false")
        self.create_topic()
        deadline = time.monotonic() + MADE_WITHIN_S
        while (found := self.incarnation()) is None:
            if time.monotonic() > deadline:
                unseen = f"topic {topic} was made, but is not there yet, or no ACL lets this user see it"
                raise ServiceUnavailable("kafka", unseen)
            time.sleep(0.05)
        return found

    def ask(self, now: Incarnation) -> None:
        """Begin to ask for the topic's id and partitions, without waiting; `answer` tells."""
        if self._asked is None and not self._has_no_ids(now.cluster_id):
            self._asked = self._describe()

    def answer(self, now: Incarnation) -> Incarnation | None:
        """Give what has become of `now` if the question is answered: itself, or another life; else None.

        A question that failed is no answer: it is dropped, and raises ServiceUnavailable.
        """
        if self._has_no_ids(now.cluster_id):
            return self._listed() or now._replace(partitions=())
        if self._asked is None or not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        try:
            description = asked.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return now._replace(partitions=())
            raise unavailable(error) from None
        return now._replace(topic_id=_topic_id(description), partitions=_numbers(description))

    def forget(self) -> None:
        """Drop a question that is still open: its answer would be about a time before what comes now."""
        self._asked = None

    def listen(self) -> None:
        """Let the clients hand over what they have to tell to `notes`."""
        self._admin.poll(0)
        self._consumer.poll(0)

    def watermarks(self, partition: int) -> Watermarks:
        """Give where the log of one partition begins and ends now."""
        try:
            answer = self._consumer.get_watermark_offsets(
                TopicPartition(self._kafka.topic, partition), timeout=REQUEST_TIMEOUT_S
            )
        except KafkaException as error:
            raise unavailable(error) from None
        if answer is None:
            raise ServiceUnavailable("kafka", f"no watermarks of partition {partition} in time")
        return Watermarks(*answer)

    def committed(self, partitions: tuple[int, ...]) -> dict[int, int]:
        """Give the offsets committed under our group, for the partitions that have one."""
        wanted = [TopicPartition(self._kafka.topic, partition) for partition in partitions]
        try:
            answers = self._consumer.committed(wanted, timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            told = self._consumer.poll(0)  # why there is no coordinator comes as a message
            cause = unavailable(error if told is None else told.error())
            raise ServiceUnavailable("kafka", f"group {self._kafka.group_id}: {cause.reason}") from None
        return {one.partition: one.offset for one in answers if one.offset >= 0}

    def is_compacted(self) -> bool:
        """Whether the broker may remove single records of the topic; False where it cannot tell (the embedded one)."""
        if self._has_no_ids(self._cluster_id()):
            return False
        resource = ConfigResource(ConfigResource.Type.TOPIC, self._kafka.topic)
        try:
            answer = self._admin.describe_configs([resource], request_timeout=REQUEST_TIMEOUT_S)[resource]
            return "compact" in (answer.result(timeout=REQUEST_TIMEOUT_S + 1)["cleanup.policy"].value or "")
        except KafkaException as error:
            raise unavailable(error) from None
        except TimeoutError:
            raise ServiceUnavailable("kafka", "the topic's configuration could not be read in time") from None

    def create_topic(self) -> None:
        """Make the topic as configured; one that is there already is left as it is.

        Its records are stamped by the broker (LogAppendTime): a client's wrong clock must not reach the answers.
        """
        if self._has_no_ids(self._cluster_id()):
            self._make_by_asking()
            return
        self._find_controller()
        topic = NewTopic(
            self._kafka.topic,
            num_partitions=self._kafka.topic_partitions,
            replication_factor=self._kafka.topic_replication_factor,
            config={"message.timestamp.type": "LogAppendTime"},
        )
        try:
            for future in self._admin.create_topics([topic], request_timeout=REQUEST_TIMEOUT_S).values():
                future.result(timeout=REQUEST_TIMEOUT_S + 1)
        except KafkaException as error:
            if error.args[0].code() in FORBIDDEN:
                unseen = f"there is no topic {self._kafka.topic}, or no ACL lets this user see it"
                raise ServiceUnavailable("kafka", f"{unseen}; and none lets this user make it") from None
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise unavailable(error) from None
        except TimeoutError:
            raise ServiceUnavailable("kafka", "the topic could not be made in time") from None

    def _listed(self) -> Incarnation | None:
        """Look for the topic among all: asking for it by name could create it."""
        metadata = self._metadata()
        topic = metadata.topics.get(self._kafka.topic)
        if topic is None or not topic.partitions:
            return None
        return Incarnation(metadata.cluster_id or "", self._kafka.topic, "", tuple(sorted(topic.partitions)))

    def _cluster_id(self) -> str:
        return self._metadata().cluster_id or ""

    def _metadata(self) -> Any:  # noqa: ANN401 - librdkafka's, and it stays here
        try:
            metadata = self._consumer.list_topics(timeout=REQUEST_TIMEOUT_S)  # it learns of new partitions by this, too
        except KafkaException as error:
            self.listen()
            reason = f"{self._kafka.bootstrap_servers}: {self.notes.cause or unavailable(error).reason}"
            raise ServiceUnavailable("kafka", reason) from None
        self.notes.cause = ""
        return metadata

    def _find_controller(self) -> None:
        """Let the client know who answers such questions now: else it waits for the one that it knew, for minutes."""
        try:
            self._admin.list_topics(timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise unavailable(error) from None

    def _describe(self) -> "Future[Any]":
        wanted = TopicCollection([self._kafka.topic])
        future: Future[Any] = self._admin.describe_topics(wanted, request_timeout=REQUEST_TIMEOUT_S)[self._kafka.topic]
        return future

    def _make_by_asking(self) -> None:
        try:
            self._admin.list_topics(self._kafka.topic, timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise unavailable(error) from None

    @staticmethod
    def _has_no_ids(cluster_id: str) -> bool:
        return cluster_id.startswith(EMBEDDED_CLUSTER)


def _topic_id(description: Any) -> str:  # noqa: ANN401 - librdkafka's, and it stays here
    """Give the id as text; brokers before Metadata v10 answer with zeros, which is no id."""
    identity = description.topic_id
    if not (identity.get_most_significant_bits() or identity.get_least_significant_bits()):
        return ""
    return str(identity)


def _numbers(description: Any) -> tuple[int, ...]:  # noqa: ANN401 - librdkafka's, and it stays here
    return tuple(sorted(partition.id for partition in description.partitions))
