"""`zonerd send` and the producer process against a real Kafka: nothing lost, nothing silent, nothing half said."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from services.kafka import KafkaBroker
from services.process import wait_until

DEADLINE_S = 60.0


class Trial:
    """One topic, one data directory, and zonerd on both."""

    def __init__(self, broker: KafkaBroker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.topic = f"p-{uuid.uuid4().hex}"
        self.admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        self.options = [
            "-X", f"kafka.bootstrap_servers={broker.bootstrap_servers}",
            "-X", f"kafka.topic={self.topic}",
            "-X", f"store.data_dir={folder / 'data'}",
            "-X", "http.port.producer=0",
        ]  # fmt: skip

    def start(self, *words: str, **keywords: Any) -> subprocess.Popen[str]:  # noqa: ANN401 - Popen's own
        command = [sys.executable, "-m", "zonerd", *self.options, *words]
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords)
        self.started.append(process)
        return process

    def end(self) -> None:
        """End whatever a test that failed has left."""
        for process in self.started:
            process.kill()
            process.communicate()

    def run(self, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zonerd", *self.options, *words]
        done = subprocess.run(command, input=stdin or b"", capture_output=True, timeout=DEADLINE_S, check=False)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    def file(self, *lines: bytes, name: str = "events.jsonl") -> Path:
        path = self.folder / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    def create_topic(self, partitions: int = 4, **settings: str) -> None:
        topic = NewTopic(self.topic, partitions, 1, config={name.replace("_", "."): v for name, v in settings.items()})
        self.admin.create_topics([topic])[self.topic].result()
        wait_until(self.exists)

    def exists(self) -> bool:
        return self.topic in self.admin.list_topics(timeout=10).topics

    def records(self) -> list[tuple[int | None, bytes | None, bytes | None]]:
        """Give (partition, key, value) of all records, in the order of each partition."""
        consumer = Consumer(
            {"bootstrap.servers": self.broker.bootstrap_servers, "group.id": "p-look", "enable.auto.commit": False}
        )
        places = [TopicPartition(self.topic, number, 0) for number in self.partitions()]
        wait_until(lambda: all(self._led(consumer, place) for place in places))
        wanted = sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
        consumer.assign(places)
        found: list[tuple[int | None, bytes | None, bytes | None]] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(found) < wanted:
            assert time.monotonic() < deadline
            for message in consumer.consume(min(10_000, wanted - len(found)), 0.2):
                assert not message.error(), message.error()
                found.append((message.partition(), message.key(), message.value()))
        consumer.close()
        return found

    @staticmethod
    def _led(consumer: Consumer, place: TopicPartition) -> bool:
        """Tell whether a partition, just made, has its leader by now."""
        try:
            return consumer.get_watermark_offsets(place, timeout=10) is not None
        except KafkaException:
            return False

    def partitions(self) -> list[int]:
        return sorted(self.admin.list_topics(timeout=10).topics[self.topic].partitions)

    def values(self) -> Counter[bytes | None]:
        return Counter(value for _, _, value in self.records()) if self.exists() else Counter()


def event(number: int, user: object = None) -> bytes:
    who = json.dumps(f"u{number % 50}" if user is None else user)
    return f'{{"user_id": {who}, "activity":"a{number % 7}","timestamp":{1_700_000_000 + number}}}'.encode()


def _saved_offset(trial: Trial) -> int:
    offset: int = json.loads((trial.folder / "data" / "producer-position.json").read_bytes())["offset"]
    return offset


@pytest.fixture(autouse=True)
def _running_again(broker: KafkaBroker) -> Iterator[None]:
    """Whatever a test did to the broker, the next one finds it answering."""
    yield
    broker.resume()


@pytest.fixture
def trial(broker: KafkaBroker, tmp_path: Path) -> Iterator[Trial]:
    trial = Trial(broker, tmp_path)
    yield trial
    trial.end()


@contextmanager
def producing(
    trial: Trial, *words: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], list[dict[str, Any]]]]]:
    """Run the producer process; gives it, and a function that gives its log lines of one event so far."""
    log = trial.folder / f"log-{uuid.uuid4().hex}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "zonerd", *trial.options, *words, "producer"], stdout=output, stderr=output
        )

    def said(name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    try:
        yield process, said
    finally:
        process.kill()
        process.wait()


def follow(path: Path) -> list[str]:
    return ["-X", "producer.source=file", "-X", f"producer.path={path}"]


def test_every_line_arrives_once_in_order_under_its_user_as_key(trial: Trial) -> None:
    lines = [event(number) for number in range(20_000)]
    done = trial.run("send", str(trial.file(*lines)))
    assert done.returncode == 0, done.stderr
    assert "sent 20000, invalid 0, refused 0, empty 0" in done.stdout
    records = trial.records()
    at: dict[bytes | None, int] = {line: number for number, line in enumerate(lines)}
    assert Counter(value for _, _, value in records) == Counter(lines)
    for partition in range(4):
        mine = [value for number, _, value in records if number == partition]
        assert mine == sorted(mine, key=at.__getitem__)
    assert all(key == json.loads(value or b"")["user_id"].encode() for _, key, value in records)


def test_a_user_is_one_key_as_number_or_text(trial: Trial) -> None:
    trial.run("send", str(trial.file(event(1, 42), event(2, "42"), event(3, "042"))))
    assert Counter(key for _, key, _ in trial.records()) == {b"42": 2, b"042": 1}


def test_invalid_lines_are_named_and_sent_as_they_are(trial: Trial) -> None:
    lines = [event(1), b"nope", b"", b'{"user_id":1}', b"\xff\xfe", event(2)]
    done = trial.run("send", "-", stdin=b"\n".join(lines))
    assert done.returncode == 1
    assert "sent 5, invalid 3, refused 0, empty 1" in done.stdout
    assert re.findall(r"line (\d+): invalid: (\w+)", done.stderr) == [
        ("2", "not_json"),
        ("4", "missing_field"),
        ("5", "not_utf8"),
    ]
    assert trial.values() == Counter(line for line in lines if line)
    assert {key for _, key, value in trial.records() if value == b"nope"} == {None}


def test_after_twenty_named_lines_the_rest_is_counted(trial: Trial) -> None:
    done = trial.run("send", str(trial.file(*[b"nope"] * 50)))
    assert done.stderr.count(": invalid: ") == 20
    assert "invalid 50" in done.stdout


def test_line_ends_and_a_byte_order_mark_are_not_sent(trial: Trial) -> None:
    done = trial.run("send", stdin=b"\xef\xbb\xbf" + event(1) + b"\r\n\r\n" + event(2))
    assert (done.returncode, trial.values()) == (0, Counter([event(1), event(2)]))


def test_a_line_too_large_for_kafka_is_refused_and_its_neighbours_arrive(trial: Trial) -> None:
    large, huge = b"x" * 1_048_700, b"y" * 2_000_000
    done = trial.run("send", str(trial.file(event(1), large, event(2), huge, event(3))))
    assert Counter(len(value or b"") for value in trial.values()) == Counter([len(event(1))] * 3), done.stdout
    assert trial.values() == Counter([event(1), event(2), event(3)])
    assert done.returncode == 1
    assert "sent 3, invalid 0, refused 2" in done.stdout
    assert set(re.findall(r"line (\d+): refused", done.stderr)) == {"2", "4"}


def test_where_the_topic_takes_less_than_a_batch_only_what_is_too_large_itself_is_refused(trial: Trial) -> None:
    trial.create_topic(max_message_bytes="20000")
    lines = [event(number) for number in range(20_000)]
    done = trial.run("send", str(trial.file(*lines[:10_000], b'"' + b"x" * 30_000 + b'"', *lines[10_000:])))
    assert "refused 1" in done.stdout, done.stderr
    assert "line 10001: refused" in done.stderr
    assert set(trial.values()) == set(lines)


@pytest.mark.parametrize("through", ["file", "pipe"])
def test_with_check_nothing_is_sent_when_a_line_is_invalid(trial: Trial, through: str) -> None:
    path = trial.file(event(1), b"nope")
    words = [str(path)] if through == "file" else ["-"]
    done = trial.run("send", "--check", *words, stdin=path.read_bytes())
    assert done.returncode == 1
    assert "line 2: invalid: not_json" in done.stderr
    assert "nothing sent" in done.stdout
    assert not trial.exists()
    good = trial.file(event(1), event(2))
    done = trial.run("send", "--check", *words, stdin=good.read_bytes())
    assert done.returncode == 0
    assert trial.values() == Counter([event(1), event(2)])


def test_from_line_leaves_out_the_lines_before(trial: Trial) -> None:
    lines = [event(number) for number in range(5000)]
    assert trial.run("send", "--from-line", "4000", str(trial.file(*lines))).returncode == 0
    assert trial.values() == Counter(lines[3999:])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_tells_how_to_go_on_and_nothing_before_is_lost(trial: Trial, number: signal.Signals) -> None:
    trial.create_topic()
    lines = [event(number) for number in range(400_000)]
    path = trial.file(*lines)
    process = trial.start("send", str(path))
    wait_until(trial.values)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    command = shlex.split(stderr.split("to go on: ")[1])
    from_line = int(command[-1])
    assert 1 < from_line <= len(lines), "the interruption came too late to test anything"
    arrived = trial.values()
    assert all(line in arrived for line in lines[: from_line - 1])
    done = subprocess.run(command, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0
    assert set(trial.values()) == set(lines)


def test_interrupted_while_a_pipe_is_silent_it_ends_at_once(trial: Trial) -> None:
    process = trial.start("send", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(event(1).decode() + "\n" + event(2).decode()[:10])
    process.stdin.flush()
    wait_until(trial.values)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    stdout, stderr = process.communicate()
    assert "sent 1" in stdout
    assert stderr.rstrip().endswith("send - --from-line 2")


def test_without_a_broker_it_ends_with_69_after_a_bounded_time(trial: Trial) -> None:
    began = time.monotonic()
    done = trial.run("-X", "kafka.bootstrap_servers=127.0.0.1:9", "send", str(trial.file(event(1))))
    assert done.returncode == 69
    assert done.stderr.rstrip().endswith("--from-line 1")
    assert time.monotonic() - began < 30


def test_a_missing_file_is_a_usage_error(trial: Trial) -> None:
    assert trial.run("send", str(trial.folder / "none")).returncode == 2
    assert trial.run("send", str(trial.folder)).returncode == 2


def test_a_missing_topic_is_made_as_configured(trial: Trial) -> None:
    assert trial.run("-X", "kafka.topic_partitions=3", "send", str(trial.file(event(1)))).returncode == 0
    assert trial.partitions() == [0, 1, 2]
    resource = ConfigResource(ConfigResource.Type.TOPIC, trial.topic)
    settings = trial.admin.describe_configs([resource])[resource].result()
    assert settings["message.timestamp.type"].value == "LogAppendTime"


def test_a_missing_topic_that_must_not_be_made_is_an_answer_for_send_and_awaited_by_the_producer(trial: Trial) -> None:
    path = trial.file(event(1))
    done = trial.run("-X", "kafka.create_topic=false", "send", str(path))
    assert done.returncode == 69
    assert f"there is no topic {trial.topic}" in done.stderr
    with producing(trial, "-X", "kafka.create_topic=false", *follow(path)) as (process, said):
        wait_until(lambda: said("service_unavailable"))
        assert not trial.exists()
        trial.create_topic()
        wait_until(lambda: trial.values() == Counter([event(1)]))
        assert len(said("service_unavailable")) == 1
        assert process.poll() is None


def test_the_producer_delivers_a_file_and_what_is_appended_and_ends_with_0(trial: Trial) -> None:
    path = trial.file(event(1), b"nope", b"")
    with producing(trial, *follow(path)) as (process, said):
        wait_until(lambda: said("ready"))
        with path.open("ab") as file:
            file.write(event(2) + b"\n" + event(3))
        wait_until(lambda: trial.values() == Counter([event(1), b"nope", event(2)]))
        assert [(line["reason"], line["offset"], line["sent"]) for line in said("line_rejected")] == [
            ("not_json", len(event(1)) + 1, True)
        ]
        process.terminate()
        assert process.wait(timeout=10) == 0
        assert said("stopped")
    with producing(trial, *follow(path)), path.open("ab") as file:
        file.write(b"\n")
        file.flush()
        wait_until(lambda: event(3) in trial.values())
    assert trial.values() == Counter([event(1), b"nope", event(2), event(3)])


def test_a_file_that_is_rotated_under_load_arrives_whole(trial: Trial) -> None:
    path = trial.folder / "events.jsonl"
    lines = [event(number) for number in range(3000)]
    with producing(trial, *follow(path)) as (_, said):
        wait_until(lambda: said("not_ready"))
        for turn in range(3):
            if turn == 1:
                wait_until(trial.values)
            if turn:
                if turn == 2:
                    (trial.folder / "events.jsonl.1").rename(trial.folder / "events.jsonl.2")
                path.rename(trial.folder / "events.jsonl.1")
            for line in lines[turn * 1000 : (turn + 1) * 1000]:
                with path.open("ab") as file:
                    file.write(line + b"\n")
        wait_until(lambda: set(trial.values()) == set(lines))
        assert said("ready")


def test_killed_again_and_again_the_producer_sends_every_line_at_least_once(trial: Trial) -> None:
    trial.create_topic()
    path = trial.folder / "events.jsonl"
    lines = [event(number) for number in range(300_000)]
    path.write_bytes(b"\n".join(lines[:150_000]) + b"\n")
    for turn in range(4):
        with producing(trial, *follow(path)) as (process, said):
            wait_until(lambda: said("ready"))
            wait_until(lambda: said("progress") or time.monotonic(), 1)
            time.sleep(0.2 + 0.4 * turn)  # the moment of the kill: any will do, another each time
            process.kill()
        with path.open("ab") as file:
            file.write(b"\n".join(lines[150_000 + turn * 37_500 : 150_000 + (turn + 1) * 37_500]) + b"\n")
    with producing(trial, *follow(path)) as (process, _):
        wait_until((trial.folder / "data" / "producer-position.json").exists)
        wait_until(lambda: _saved_offset(trial) == path.stat().st_size)
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert set(trial.values()) == set(lines)


def test_while_the_broker_is_frozen_nothing_is_lost_and_a_stop_takes_under_ten_seconds(trial: Trial) -> None:
    trial.create_topic()
    lines = [event(number) for number in range(100)]
    path = trial.file(*lines[:50])
    with producing(trial, *follow(path)) as (process, said):
        wait_until(lambda: set(trial.values()) == set(lines[:50]))
        trial.broker.pause()
        with path.open("ab") as file:
            file.write(b"\n".join(lines[50:60]) + b"\n")
        wait_until(lambda: said("service_unavailable"))
        trial.broker.resume()
        wait_until(lambda: set(trial.values()) == set(lines[:60]))
        wait_until(lambda: said("service_available"))
        trial.broker.pause()
        with path.open("ab") as file:
            file.write(b"\n".join(lines[60:]) + b"\n")
        wait_until(lambda: len(said("service_unavailable")) == 2)
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert _saved_offset(trial) <= len(b"\n".join(lines[:60])) + 1
    trial.broker.resume()
    with producing(trial, *follow(path)):
        wait_until(lambda: set(trial.values()) == set(lines))


def test_a_broker_that_is_frozen_for_a_while_costs_send_nothing(trial: Trial) -> None:
    trial.create_topic()
    lines = [event(number) for number in range(300_000)]
    process = trial.start("send", str(trial.file(*lines)))
    wait_until(trial.values)
    trial.broker.pause()
    frozen_until = time.monotonic() + 3
    wait_until(lambda: time.monotonic() > frozen_until)
    trial.broker.resume()
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    assert "sent 300000" in stdout
    assert set(trial.values()) == set(lines)


def test_a_topic_that_is_deleted_meanwhile_is_made_again_and_what_follows_arrives(trial: Trial) -> None:
    path = trial.file(event(1))
    with producing(trial, *follow(path)) as (_, said):
        wait_until(lambda: trial.values() == Counter([event(1)]))
        trial.admin.delete_topics([trial.topic])[trial.topic].result()
        wait_until(lambda: not trial.exists())
        with path.open("ab") as file:
            file.write(event(2) + b"\n" + event(3) + b"\n")
        wait_until(lambda: set(trial.values()) == {event(2), event(3)})
        assert said("delivery_failed")


def test_the_simulation_sends_at_its_rate_and_repeats_itself_with_the_same_seed(trial: Trial) -> None:
    def pairs() -> list[tuple[int, str]]:
        records = [json.loads(value or b"") for _, _, value in trial.records()]
        return [(record["user_id"], record["activity"]) for record in sorted(records, key=lambda r: r["timestamp"])]

    trial.create_topic(partitions=1)
    options = ["-X", "producer.source=simulate", "-X", "producer.simulate.rate_per_s=100"]
    for _ in range(2):
        already = len(trial.records())
        with producing(trial, *options) as (process, said):
            wait_until(lambda wanted=already + 100: len(trial.records()) >= wanted)  # type: ignore[misc]
            process.terminate()
            assert process.wait(timeout=10) == 0
            assert not said("delivery_failed")
    everything = pairs()
    assert everything[:100] == everything[already : already + 100]


def test_a_second_producer_waits_for_the_first_with_one_line(trial: Trial) -> None:
    path = trial.file(event(1))
    with producing(trial, *follow(path)) as (first, said):
        wait_until(lambda: said("ready"))
        with producing(trial, *follow(path)) as (second, said_by_second):
            wait_until(lambda: said_by_second("not_ready"))
            assert str(first.pid) in said_by_second("not_ready")[0]["reason"]
            first.terminate()
            assert first.wait(timeout=10) == 0
            wait_until(lambda: said_by_second("ready"))
            assert len(said_by_second("not_ready")) == 1
            second.terminate()
            assert second.wait(timeout=10) == 0


def test_a_position_file_that_is_none_ends_the_producer_with_78(trial: Trial) -> None:
    (trial.folder / "data").mkdir()
    (trial.folder / "data" / "producer-position.json").write_text("{}")
    done = trial.run(*follow(trial.file(event(1))), "producer")
    assert done.returncode == 78


def test_the_memory_of_send_stays_flat(trial: Trial) -> None:
    trial.create_topic()
    path = trial.folder / "events.jsonl"
    block = b"".join(event(number) + b"\n" for number in range(100_000))
    with path.open("wb") as file:
        for _ in range(5):
            file.write(block)
    process = trial.start("send", str(path))
    peak_kb = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        peak_kb = int(found.group(1)) if found else peak_kb
        time.sleep(0.02)
    process.communicate()
    assert process.returncode == 0
    assert 0 < peak_kb < 150 * 1024
