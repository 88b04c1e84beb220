"""The services that the other tests stand on: they do what their names say."""

from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from services.kafka import KafkaBroker
from services.process import wait_until
from services.valkey import ValkeyServer


def _watermarks(consumer: Consumer, topic: str) -> tuple[int, int] | None:
    try:
        marks: tuple[int, int] | None = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    except KafkaException:
        return None
    return marks


def _values(broker: KafkaBroker, topic: str) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "look", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        _, end = wait_until(lambda: _watermarks(consumer, topic), 30, "the partition has its leader again")
        found: list[bytes | None] = []

        def all_read() -> bool:
            found.extend(message.value() for message in consumer.consume(100, 0.1) if not message.error())
            return len(found) >= end

        wait_until(all_read, 30, "all records read")
        return found
    finally:
        consumer.close()


def _produce(broker: KafkaBroker, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(topic, value, partition=0)
    assert producer.flush(30) == 0


def test_a_killed_and_a_restarted_broker_keep_their_records(kafka: KafkaBroker, topic: str) -> None:
    _produce(kafka, topic, b"one")
    kafka.restart()
    _produce(kafka, topic, b"two")
    kafka.kill()
    kafka.start()
    assert _values(kafka, topic) == [b"one", b"two"]


def test_a_paused_broker_answers_nothing_until_resumed(kafka: KafkaBroker, topic: str) -> None:
    kafka.pause()
    with pytest.raises(KafkaException):
        kafka.admin.list_topics(timeout=0.5)
    kafka.resume()
    wait_until(lambda: topic in kafka.topics(), 30, "the topic is listed again")


def test_a_topic_is_made_by_name_only_where_that_is_switched_on(kafka: KafkaBroker, tmp_path: Path) -> None:
    kafka.admin.list_topics("never-made", timeout=10)
    assert "never-made" not in kafka.topics()
    other = KafkaBroker(tmp_path / "kafka", auto_create_topics=True)
    try:
        other.admin.list_topics("made", timeout=10)
        wait_until(lambda: "made" in other.topics(), 30, "the topic is made")
    finally:
        other.close()


@pytest.mark.parametrize("unix_socket", [False, True])
def test_a_restored_valkey_has_what_the_snapshot_had(tmp_path: Path, unix_socket: bool) -> None:
    server = ValkeyServer(tmp_path / "valkey", unix_socket=unix_socket)
    try:
        server.client.set("key", "older")
        server.save_to(tmp_path / "snapshot")
        server.client.set("key", "newer")
        server.restore_from(tmp_path / "snapshot")
        assert server.client.get("key") == "older"
        server.restart()
        assert server.client.get("key") is None
    finally:
        server.close()


def test_a_persistent_valkey_keeps_its_keys_over_a_restart(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "valkey", persistent=True)
    try:
        server.client.set("key", "value")
        server.restart()
        assert server.client.get("key") == "value"
    finally:
        server.close()


def test_a_paused_valkey_answers_nothing_until_resumed(valkey: ValkeyServer) -> None:
    impatient = redis.Redis.from_url(valkey.url, socket_timeout=0.3, retry=None)
    valkey.pause()
    try:
        with pytest.raises(redis.TimeoutError):
            impatient.ping()
    finally:
        valkey.resume()
        impatient.close()
    assert valkey.client.ping()
