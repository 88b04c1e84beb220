"""librdkafka's own in-memory broker, held by this process: for the demo and for quick tests."""

from collections.abc import Sequence
from typing import Any, Final, Self

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from zonerd.kafka.connection import REQUEST_TIMEOUT_S, unavailable


class EmbeddedBroker:
    """A broker for other processes too, as long as this one lives; its port and cluster id are new each time.

    It keeps 5 MiB of a partition, and drops the oldest without a word.
    Raises ServiceUnavailable when it does not answer.
    """

    def __init__(self) -> None:
        self._producer = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        metadata = self._ask()
        broker = next(iter(metadata.brokers.values()))
        self.bootstrap_servers: Final = f"{broker.host}:{broker.port}"
        self.cluster_id: Final = str(metadata.cluster_id)
        self._consumer = Consumer(
            {"bootstrap.servers": self.bootstrap_servers, "group.id": "zonerd-demo", "log_level": 0}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def make_topic(self, topic: str) -> tuple[int, ...]:
        """Make a topic, of four partitions, if there is none; give the numbers of its partitions."""
        return tuple(sorted(self._ask(topic).topics[topic].partitions))

    def end_offsets(self, topic: str, partitions: Sequence[int]) -> dict[int, int]:
        """Give where each partition ends."""
        ends = {}
        for partition in partitions:
            try:
                _, ends[partition] = self._consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=REQUEST_TIMEOUT_S
                )
            except KafkaException as error:
                raise unavailable(error) from None
        return ends

    def _ask(self, topic: str | None = None) -> Any:  # noqa: ANN401 - librdkafka's, and it stays here
        wanted = {} if topic is None else {"topic": topic}
        try:
            return self._producer.list_topics(timeout=REQUEST_TIMEOUT_S, **wanted)
        except KafkaException as error:
            raise unavailable(error) from None
