"""The writer: idempotent, and a position is acknowledged only when everything before it is settled."""

import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from services.kafka import KafkaBroker
from zonerd import config
from zonerd.errors import ConfigurationRefused, ServiceUnavailable
from zonerd.kafka.cluster import Cluster
from zonerd.kafka.writer import MAX_PENDING, Writer

DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def _running_again(broker: KafkaBroker) -> Iterator[None]:
    """Whatever a test did to the broker, the next one finds it answering."""
    yield
    broker.resume()


@pytest.fixture
def settings(broker: KafkaBroker) -> config.Kafka:
    settings = config.Kafka(bootstrap_servers=broker.bootstrap_servers, topic=f"p-{uuid.uuid4().hex}")
    with Cluster(settings, None) as cluster:
        cluster.found_or_made()
    return settings


def opened(
    settings: config.Kafka, timeout_s: float = 0, max_event_bytes: int = 1_048_576, **properties: str
) -> Writer[int]:
    named = {name.replace("_", "."): value for name, value in properties.items()}
    wanted = config.Kafka(bootstrap_servers=settings.bootstrap_servers, topic=settings.topic, properties=named)
    return Writer(wanted, None, max_event_bytes, timeout_s)


def poll_until(writer: Writer[int], holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        writer.poll(0.05)


def test_the_producer_is_idempotent(settings: config.Kafka) -> None:
    with opened(settings, debug="eos") as writer:
        writer.send(b"a", None, 1)
        assert writer.flush(DEADLINE_S)
        assert any("Idempotent producer" in line.text or "PID{Id:" in line.text for line in writer.notes.lines)


def test_a_property_that_idempotence_excludes_is_refused(settings: config.Kafka) -> None:
    with pytest.raises(ConfigurationRefused):
        opened(settings, queuing_strategy="lifo")


def test_the_acknowledged_position_is_the_last_before_which_all_is_settled(settings: config.Kafka) -> None:
    with opened(settings) as writer:
        assert writer.acknowledged is None
        for position in range(1, 1001):
            writer.send(b"%d" % position, b"%d" % (position % 50), position)
        seen = [writer.acknowledged or 0]
        while writer.pending:
            writer.poll(0.01)
            seen.append(writer.acknowledged or 0)
            assert seen[-1] == 1000 - writer.pending
        assert seen == sorted(seen)
        assert (writer.acknowledged, writer.delivered) == (1000, 1000)


def test_a_skipped_position_waits_for_those_before_it(broker: KafkaBroker, settings: config.Kafka) -> None:
    with opened(settings) as writer:
        writer.skip(1)
        assert writer.acknowledged == 1
        writer.send(b"a", None, 2)
        assert writer.flush(DEADLINE_S)
        broker.pause()
        writer.send(b"b", None, 3)
        writer.skip(4)
        writer.poll(0.5)
        assert writer.acknowledged == 2
        broker.resume()
        assert writer.flush(DEADLINE_S)
        assert writer.acknowledged == 4


def test_a_refused_message_is_told_and_does_not_hold_up_the_others(settings: config.Kafka) -> None:
    with opened(settings) as writer:
        for position, value in enumerate([b"a", b"x" * 1_050_000, b"b", b"y" * 3_000_000, b"c"], 1):
            writer.send(value, None, position)
        assert writer.flush(DEADLINE_S)
        assert [(refusal.position, refusal.reason) for refusal in sorted(writer.refusals())] == [
            (2, "too_large"),
            (4, "too_large"),
        ]
        assert writer.refusals() == []
        assert (writer.delivered, writer.refused, writer.acknowledged) == (3, 2, 5)


def test_a_message_that_takes_too_long_breaks_the_writer_and_is_sent_again_when_it_is_renewed(
    broker: KafkaBroker,
    settings: config.Kafka,
) -> None:
    with opened(settings, timeout_s=1) as writer:

        def settled() -> bool:
            if writer.broken:  # a topic just made, a broker just thawed may take longer than the second they have
                writer.renew()
            return not writer.pending

        writer.send(b"a", None, 1)
        poll_until(writer, settled)
        broker.pause()
        writer.send(b"b", None, 2)
        writer.send(b"c", None, 3)
        poll_until(writer, lambda: writer.broken)
        assert not writer.may_be_renewed
        assert (writer.acknowledged, writer.pending) == (1, 2)
        broker.resume()
        poll_until(writer, settled)
        assert writer.acknowledged == 3


def test_without_a_timeout_a_frozen_broker_is_waited_for(broker: KafkaBroker, settings: config.Kafka) -> None:
    with opened(settings) as writer:
        writer.send(b"a", None, 1)
        assert writer.flush(DEADLINE_S)
        broker.pause()
        writer.send(b"b", None, 2)
        poll_until(writer, lambda: writer.stalled)
        assert not writer.broken
        broker.resume()
        assert writer.flush(DEADLINE_S)
        assert not writer.stalled


def test_closing_over_a_frozen_broker_takes_a_bounded_time(broker: KafkaBroker, settings: config.Kafka) -> None:
    with opened(settings) as writer:
        writer.send(b"a", None, 1)
        assert writer.flush(DEADLINE_S)
        broker.pause()
        writer.send(b"b", None, 2)
        assert not writer.flush(0.5)
        began = time.monotonic()
    del writer
    assert time.monotonic() - began < 5


def test_there_is_room_again_once_messages_are_settled(settings: config.Kafka) -> None:
    with opened(settings) as writer:
        for position in range(MAX_PENDING):
            assert writer.has_room
            writer.send(b"a", None, position)
        assert not writer.has_room
        assert writer.flush(DEADLINE_S)
        assert writer.has_room


def test_a_topic_that_is_missing_and_must_not_be_made_is_unavailable(settings: config.Kafka) -> None:
    missing = config.Kafka(
        bootstrap_servers=settings.bootstrap_servers, topic=f"{settings.topic}-not", create_topic=False
    )
    with Cluster(missing, None) as cluster:
        with pytest.raises(ServiceUnavailable, match="there is no topic"):
            cluster.found_or_made()
        assert cluster.incarnation() is None
