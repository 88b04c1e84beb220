"""What the producer exposes is what it did: compared with its file and with the topic, as an outsider reads both."""

from typing import TYPE_CHECKING

import pytest

from services.kafka import KafkaBroker
from services.process import wait_until
from services.scrape import Scraped, port_of, scrape
from zonerd import config
from zonerd.events import REASONS, encode
from zonerd.kafka.writer import REASONS as ERRORS
from zonerd.metrics import LOOP_STATES

if TYPE_CHECKING:
    from services.fixtures import ConfigFile, MakeTopic, StartZonerd

EVENTS = [encode(number, "sleep", number, {}) for number in range(1000)]
BAD = {
    "not_json": [b"nope", b'{"user_id": 1'],
    "not_object": [b"[1]"],
    "missing_field": [b'{"user_id": 1}'] * 3,
    "not_utf8": [b"\xff\xfe"],
    "looks_like_milliseconds": [encode(1, "sleep", 1.7e12, {})],
}
MAX_EVENT_BYTES = 10_000
TOO_LARGE = b"x" * 20_000
"""Above `consumer.max_event_bytes`, and sent all the same: a dead letter there."""
HUGE = b"y" * 40_000
"""Above what a message may be: not sent."""


class Following:
    """A producer that follows a file into a topic."""

    def __init__(self, zonerd: "StartZonerd", config_file: "ConfigFile", broker: KafkaBroker, topic: str) -> None:
        self.path = config_file().parent / "events.jsonl"
        self.path.touch()
        kafka = {"kafka.bootstrap_servers": broker.bootstrap_servers, "kafka.topic": topic}
        source = {"producer.source": "file", "producer.path": str(self.path)}
        file = config_file({**kafka, **source, "consumer.max_event_bytes": MAX_EVENT_BYTES})
        self.process = zonerd(file, "producer")
        self.process.wait_for("started")
        self._port = port_of(config.load(file, {}, []).config.run_dir, "producer")

    def write(self, *lines: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in lines))

    def scrape(self) -> Scraped:
        return scrape(self._port)

    def delivered(self) -> float:
        return self.scrape().value("zonerd_producer_events_delivered_total")


@pytest.fixture
def following(zonerd: "StartZonerd", config_file: "ConfigFile", kafka: KafkaBroker, topic: str) -> Following:
    """A producer process, started, with an empty file to follow."""
    return Following(zonerd, config_file, kafka, topic)


def test_every_reason_and_state_stands_at_0_before_anything_happened(following: Following) -> None:
    seen = following.scrape()
    assert seen.label("zonerd_producer_errors_total", "reason") == set(ERRORS)
    assert seen.label("zonerd_producer_lines_invalid_total", "reason") == set(REASONS)
    assert seen.label("zonerd_loop_seconds_total", "state") == set(LOOP_STATES)
    assert seen.total("zonerd_producer_errors_total") == seen.total("zonerd_producer_lines_invalid_total") == 0
    assert seen.value("zonerd_producer_events_delivered_total") == 0
    assert seen.value("zonerd_producer_delivery_seconds_count") == 0
    assert seen.value("zonerd_producer_queued_events") == 0


def test_what_it_counts_is_what_was_sent_delivered_and_rejected(following: Following) -> None:
    bad = [line for lines in BAD.values() for line in lines]
    following.write(*EVENTS, *bad, b"", TOO_LARGE, HUGE)
    sent = [*EVENTS, *bad, TOO_LARGE]
    wait_until(lambda: following.delivered() == len(sent))
    seen = following.scrape()
    assert seen.value("zonerd_producer_bytes_delivered_total") == sum(map(len, sent))
    assert seen.value("zonerd_producer_delivery_seconds_count") == len(sent)
    assert 0 < seen.value("zonerd_producer_delivery_seconds_sum") < 60 * len(sent)
    invalid = {reason: seen.value("zonerd_producer_lines_invalid_total", reason=reason) for reason in REASONS}
    assert invalid == dict.fromkeys(REASONS, 0) | {reason: len(lines) for reason, lines in BAD.items()} | {
        "too_large": 2
    }
    assert seen.total("zonerd_producer_errors_total") == 0
    assert seen.value("zonerd_producer_queued_events") == 0


def test_a_rejected_line_is_named_by_file_and_byte(following: Following) -> None:
    following.write(EVENTS[0], b"nope")
    line = following.process.wait_for("line_rejected")
    assert (line["path"], line["offset"], line["bytes"]) == (str(following.path), len(EVENTS[0]) + 1, 5)
    assert (line["reason"], line["sent"]) == ("not_json", True)


def test_what_kafka_refuses_is_an_error_by_reason_and_named(
    zonerd: "StartZonerd", config_file: "ConfigFile", kafka: KafkaBroker, make_topic: "MakeTopic"
) -> None:
    following = Following(zonerd, config_file, kafka, make_topic(config={"max.message.bytes": "5000"}))
    following.write(EVENTS[0], b'"' + b"x" * 9_000 + b'"', EVENTS[1])
    wait_until(lambda: following.scrape().value("zonerd_producer_errors_total", reason="too_large") >= 1)
    wait_until(lambda: following.delivered() >= 2)
    assert following.process.wait_for("line_rejected", sent=False)["path"] == str(following.path)


def test_what_waits_for_a_frozen_broker_is_queued_and_its_delivery_takes_as_long(
    following: Following, kafka: KafkaBroker
) -> None:
    following.write(EVENTS[0])
    wait_until(lambda: following.delivered() == 1)
    stored_s = following.scrape().value("zonerd_loop_seconds_total", state="store")
    kafka.pause()
    try:
        following.write(*EVENTS[1:11])
        wait_until(lambda: following.scrape().value("zonerd_producer_queued_events") == 10)
        following.process.wait_for("service_unavailable", check="kafka")
    finally:
        kafka.resume()
    wait_until(lambda: following.delivered() == 11)
    seen = following.scrape()
    assert seen.value("zonerd_producer_queued_events") == 0
    quick = seen.value("zonerd_producer_delivery_seconds_bucket", le="5.0")
    assert seen.value("zonerd_producer_delivery_seconds_count") - quick == 10
    assert seen.value("zonerd_loop_seconds_total", state="store") - stored_s > 4


def test_the_loops_time_adds_up_to_the_time_that_passed(following: Following) -> None:
    following.process.wait_for("ready")
    first = following.scrape()
    following.write(*EVENTS)
    wait_until(lambda: following.delivered() == len(EVENTS))
    wait_until(lambda: spent_s(following.scrape()) > spent_s(first) + 4)
    seen = following.scrape()
    states = {state: seen.value("zonerd_loop_seconds_total", state=state) for state in LOOP_STATES}
    assert all(seconds > 0 for seconds in states.values()), states
    passed_s = passed_at(seen) - passed_at(first)
    assert abs(spent_s(seen) - spent_s(first) - passed_s) < passed_s / 2


def spent_s(seen: Scraped) -> float:
    return seen.total("zonerd_loop_seconds_total")


def passed_at(seen: Scraped) -> float:
    return seen.value("zonerd_loop_last_pass_timestamp_seconds")
