"""Lines in a real systemd-journald, as `journalctl` finds them; an outage of it costs the process nothing but lines."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from services.fixtures import ConfigFile, MakeTopic, StartZonerd
from services.journald import UNIT, Journald
from services.kafka import KafkaBroker
from services.missing import required
from services.process import wait_until
from services.scrape import port_of, scrape
from zonerd import supervise

NOWHERE = {"kafka.bootstrap_servers": "127.0.0.1:1", "log.journal": "auto"}
SPEAKER = """
import sys
from zonerd import log, metrics
log.configure("info", "json", sys.stdout, journal=log.journal.opened(sys.argv[1], {}, sys.stdout.fileno()))
speaker = log.logger("consumer", 7)
for request in sys.stdin:
    speaker.info("progress", number=int(request))
    print("dropped", int(metrics.LOG_LINES_DROPPED.collect()[0].samples[0].value), flush=True)
"""


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    """A running journald that nobody else sees."""
    with required():
        server = Journald(tmp_path)
    server.start()
    yield server
    server.close()


class Speaker:
    """A process that says a line when it is asked to, and tells how many were dropped."""

    def __init__(self, journald: Journald) -> None:
        words = journald.command(sys.executable, "-c", SPEAKER, "on")
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: list[dict[str, Any]] = []
        self._number = 0

    def say(self) -> int:
        """Say a line; give how many lines were dropped so far."""
        self._number += 1
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self._number}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("dropped "):
                return int(line.split()[1])
            self.lines.append(json.loads(line))
        raise AssertionError("it ended")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Give what it wrote to stdout of this event."""
        return [line for line in self.lines if line["event"] == name]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def speaker(journald: Journald) -> Iterator[Speaker]:
    """A process that says a line when it is asked to."""
    one = Speaker(journald)
    yield one
    one.close()


def test_in_a_unit_lines_are_in_the_journal_with_their_fields_and_on_stdout_too(
    journald: Journald, zonerd: StartZonerd, config_file: ConfigFile
) -> None:
    process = zonerd(config_file(NOWHERE), "consumer", environment=UNIT, within=journald.command())
    line = process.wait_for("service_unavailable")
    (entry,) = wait_until(lambda: journald.ask("ZONERD_EVENT=service_unavailable", "-t", "zonerd-consumer"))
    assert entry["PRIORITY"] == "4"
    assert entry["_TRANSPORT"] == "journal"
    assert int(entry["_PID"]) == int(entry["ZONERD_PID"]) == process.pid
    assert (entry["ZONERD_CHECK"], entry["ZONERD_REASON"]) == (line["check"], line["reason"])
    assert entry["MESSAGE"] == (
        f"Kafka or Redis does not serve; it is tried again: {line['reason']} (check={line['check']})"
    )
    assert journald.shown("-p", "warning", "ZONERD_CHECK=kafka") == [entry["MESSAGE"]]
    assert not journald.ask("-p", "warning", "ZONERD_EVENT=started")
    process.terminate()
    wait_until(lambda: journald.ask("ZONERD_EVENT=stopped"))
    assert [one["ZONERD_EVENT"] for one in journald.ask("-t", "zonerd-consumer")] == [
        one["event"] for one in process.lines()
    ]


def test_one_partition_is_followed_by_its_field(
    journald: Journald, zonerd: StartZonerd, config_file: ConfigFile, kafka: KafkaBroker, make_topic: MakeTopic
) -> None:
    topic = make_topic(partitions=2)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for partition in (0, 1):
        producer.produce(topic, b"no\x1b[2Jthing", partition=partition)
    producer.flush()
    values = {"kafka.bootstrap_servers": kafka.bootstrap_servers, "kafka.topic": topic, "log.level": "debug"}
    values["log.journal"] = "auto"
    process = zonerd(config_file(values), "consumer", environment=UNIT, within=journald.command())
    process.wait_for("batch_stored", partition=1)
    process.wait_for("batch_stored", partition=0)
    process.terminate()
    found = journald.ask("ZONERD_PARTITION=1")
    assert all("1" in entry["ZONERD_PARTITION"] for entry in found)  # a list, where the line is about several
    assert {"partitions_assigned", "batch_stored"} <= {entry["ZONERD_EVENT"] for entry in found}
    assert not any(entry["ZONERD_PARTITION"] == "0" for entry in found)
    (letter,) = process.lines("dead_letter_stored")
    (entry,) = journald.ask("ZONERD_EVENT=dead_letter_stored")
    assert entry["ZONERD_DETAIL"] == letter["detail"]
    assert all(isinstance(entry["MESSAGE"], str) and entry["MESSAGE"].isprintable() for entry in journald.ask())


def test_the_end_of_a_process_is_an_error_in_the_journal_with_its_traceback(
    journald: Journald, zonerd: StartZonerd, config_file: ConfigFile, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import zonerd.health\nzonerd.health.Health.beat = None\n")
    environment = {**UNIT, "PYTHONPATH": str(broken)}
    process = zonerd(config_file(NOWHERE), "consumer", environment=environment, within=journald.command())
    process.ends_with(70)
    (entry,) = wait_until(lambda: journald.ask("-p", "err", "ZONERD_EVENT=crashed"))
    assert entry["MESSAGE"].endswith(": TypeError: 'NoneType' object is not callable")
    assert entry["ZONERD_EXCEPTION"].startswith("Traceback (most recent call last):\n")
    assert entry["ZONERD_EXCEPTION"] == process.lines("crashed")[0]["exception"]


@pytest.mark.parametrize(("mode", "unit"), [("off", UNIT), ("auto", {})], ids=["off", "outside a unit"])
def test_without_the_wish_or_a_unit_nothing_goes_to_the_journal(
    journald: Journald, zonerd: StartZonerd, config_file: ConfigFile, mode: str, unit: dict[str, str]
) -> None:
    path = config_file({**NOWHERE, "log.journal": mode})
    within = journald.command(
        "env", "-u", "JOURNAL_STREAM", "-u", "INVOCATION_ID", *(f"{k}={v}" for k, v in unit.items())
    )
    process = zonerd(path, "consumer", within=within)
    process.wait_for("service_unavailable")
    process.terminate()
    assert not journald.ask("-t", "zonerd-consumer")


def test_stdout_that_is_the_journal_already_gets_no_line_twice(
    journald: Journald, config_file: ConfigFile, tmp_path: Path
) -> None:
    out = tmp_path / "stream"
    script = 'exec env JOURNAL_STREAM="$(stat -Lc %d:%i /proc/$$/fd/1)" "$@"'
    with out.open("wb") as stream:
        process = subprocess.Popen(
            journald.command("sh", "-c", script, "sh", sys.executable, "-m", "zonerd", "-c",
                             str(config_file(NOWHERE)), "consumer"),
            stdout=stream, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        wait_until(lambda: journald.ask("ZONERD_EVENT=service_unavailable"))
        assert out.read_bytes() == b""
        journald.stop()
        wait_until(lambda: b"journal_unavailable" in out.read_bytes())
    finally:
        process.kill()
        process.wait()


def test_journald_asked_for_and_not_there_is_said_once_and_each_line_counted(
    zonerd: StartZonerd, config_file: ConfigFile, journald: Journald, data_dir: Path
) -> None:
    journald.stop()
    path = config_file({**NOWHERE, "log.journal": "on"})
    process = zonerd(path, "consumer", within=journald.command())
    assert process.wait_for("journal_unavailable")["reason"] == "journald: No such file or directory"
    process.wait_for("service_unavailable")
    port = wait_until(lambda: port_of(data_dir / "run", "consumer"))
    wait_until(lambda: scrape(port).value("zonerd_log_lines_dropped_total") == len(process.lines()))
    assert len(process.lines("journal_unavailable")) == 1
    process.terminate()


def test_a_journald_that_comes_back_is_used_again_and_what_it_missed_is_counted(
    journald: Journald, speaker: Speaker
) -> None:
    assert speaker.say() == 0
    journald.stop()
    assert [speaker.say() for _ in range(3)] == [2, 3, 4]  # the first: a line, and that it was lost
    journald.start()
    assert speaker.say() == 4
    assert [line["dropped"] for line in speaker.events("journal_available")] == [4]
    assert len(speaker.events("progress")) == 5  # stdout has them all
    found = wait_until(lambda: journald.ask("ZONERD_NUMBER=5"))
    assert found[0]["MESSAGE"].endswith("(number=5)")


def test_a_journald_that_hangs_holds_up_the_process_for_a_moment_only(journald: Journald, speaker: Speaker) -> None:
    assert speaker.say() == 0
    journald.pause()
    wait_until(lambda: speaker.say() > 0)
    began = time.monotonic()
    for _ in range(50):
        speaker.say()
    held_up_s = time.monotonic() - began
    assert held_up_s < 2, "50 lines at 0.1 s each would be 5"
    assert len(speaker.events("journal_unavailable")) == 1
    journald.resume()
    wait_until(lambda: speaker.say() and speaker.events("journal_available"))


ABORTS = "import faulthandler, os; faulthandler.enable(); print('said before', flush=True); os.abort()"


def test_what_a_child_of_supervisord_says_as_it_aborts_or_cannot_be_imported_is_in_the_journal(
    journald: Journald, zonerd: StartZonerd, config_file: ConfigFile, data_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "aborts.py").write_text(ABORTS, encoding="utf-8")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "msgspec.py").write_text("raise ImportError('no such library here')\n", encoding="utf-8")
    written = config_file(NOWHERE)
    conf = supervise.render_supervisord(str(data_dir / "run"))
    conf += f"[program:producer]\ncommand = {sys.executable} {tmp_path}/aborts.py\n"
    conf += f'[program:consumer]\nenvironment = PYTHONPATH="{broken}"\n'
    (written.parent / "supervisord.conf").write_text(conf, encoding="utf-8")
    up = zonerd(written, "up", within=journald.command())

    def found(words: str) -> bool:
        return any(words in line for line in journald.shown("-t", "zonerd", "_TRANSPORT=syslog"))

    wait_until(lambda: found("producer Fatal Python error: Aborted"), 30, up.story)
    wait_until(lambda: found("consumer ImportError: no such library here"), 30, up.story)
    assert not found("said before")
    up.terminate(deadline_s=40)
