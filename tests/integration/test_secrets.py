"""No password turns up anywhere: lines, librdkafka's own lines, tracebacks, command lines, `config show`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.fixtures import ConfigFile, StartZonerd
from services.kafka import KafkaBroker
from services.process import ZonerdProcess, wait_until
from services.valkey import ValkeyServer
from zonerd.store.history import History

SASL = "Sasl-Pa55-wrong"
REDIS = "Redis-Pa55-wrong"
LEAKY = """
import zonerd.cache
def check(self):
    raise RuntimeError(f"AUTH {self._password}")
zonerd.cache.Cache.check = check
"""


@pytest.fixture
def guarded() -> Iterator[ValkeyServer]:
    """A server that wants another password than ours."""
    server = ValkeyServer()
    server.client.config_set("requirepass", "the right one")
    yield server
    server.close()


@pytest.fixture
def guarded_config(
    config_file: ConfigFile, kafka: KafkaBroker, guarded: ValkeyServer, tmp_path: Path, data_dir: Path
) -> Path:
    """A history, and a configuration with a wrong password for Redis, and one for a broker that knows no SASL."""
    with History.open_writer(data_dir):
        pass
    (tmp_path / "sasl").write_text(SASL + "\n")
    (tmp_path / "redis").write_text(REDIS + "\n")
    return config_file(
        {
            "kafka.bootstrap_servers": kafka.bootstrap_servers,
            "kafka.sasl_password_file": str(tmp_path / "sasl"),
            "kafka.properties.security.protocol": "sasl_plaintext",
            "kafka.properties.sasl.mechanism": "PLAIN",
            "kafka.properties.sasl.username": "zonerd",
            "kafka.properties.debug": "all",
            "redis.url": guarded.url,
            "redis.password_file": str(tmp_path / "redis"),
            "log.level": "debug",
        }
    )


def _shown(process: ZonerdProcess) -> bytes:
    """Give all that others on the machine can see of a process."""
    return process.out.read_bytes() + process.err.read_bytes()


def _run(path: Path, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zonerd", "-c", str(path), *words],
        capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("line_format", ["json", "console"])
def test_a_password_that_redis_refuses_is_not_in_its_lines(
    guarded_config: Path, zonerd: StartZonerd, line_format: str
) -> None:
    process = zonerd(guarded_config, "-X", f"log.format={line_format}", "-v", "aggregator")
    wait_until(lambda: b"invalid username-password" in process.out.read_bytes(), what=process.story)
    cmdline = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.kill()
    assert REDIS.encode() not in _shown(process) + cmdline


@pytest.mark.parametrize("verb", ["consumer", "producer"])
def test_a_password_for_kafka_is_not_in_the_lines_of_librdkafka(
    guarded_config: Path, zonerd: StartZonerd, verb: str
) -> None:
    process = zonerd(guarded_config, "-X", "producer.source=simulate", verb)
    line = process.wait_for("kafka_client")
    process.wait_for("service_unavailable")
    cmdline = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.kill()
    assert line["reason"]
    assert SASL.encode() not in _shown(process) + cmdline


def test_a_password_in_the_message_of_an_error_is_hidden_in_its_traceback(
    guarded_config: Path, zonerd: StartZonerd, tmp_path: Path
) -> None:
    leaky = tmp_path / "leaky"
    leaky.mkdir()
    (leaky / "sitecustomize.py").write_text(LEAKY)
    process = zonerd(guarded_config, "aggregator", environment={"PYTHONPATH": str(leaky)})
    process.ends_with(70, 30)
    (line,) = process.lines("crashed")
    assert line["reason"] == "RuntimeError: AUTH ***"
    assert line["exception"].endswith("RuntimeError: AUTH ***")
    assert REDIS.encode() not in _shown(process)


@pytest.mark.parametrize("words", [("config", "show", "--origin"), ("config", "show", "--json"), ("config", "check")])
def test_the_configuration_is_shown_without_a_password(guarded_config: Path, words: tuple[str, ...]) -> None:
    done = _run(guarded_config, *words)
    assert done.returncode == 0
    assert SASL not in done.stdout + done.stderr
    assert REDIS not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (("-X", "redis.url=redis://:Url-Pa55@localhost/0"), {}),
        ((), {"ZONERD_REDIS__URL": "redis://u:Url-Pa55@localhost:x/0"}),
        ((), {"ZONERD_REDIS__URL": "unix:///run/redis.sock?password=Url-Pa55"}),
        (("-X", "kafka.properties.sasl.password=Url-Pa55"), {}),
        (("-X", "kafka.properties.ssl.key.password=Url-Pa55"), {}),
        (("-X", "kafka.properties=Url-Pa55"), {}),
        ((), {"ZONERD_REDIS__PASSWORD": "Url-Pa55"}),
    ],
)
def test_a_password_where_it_does_not_belong_is_refused_and_not_repeated(
    guarded_config: Path, words: tuple[str, ...], environment: dict[str, str]
) -> None:
    for verb in (("aggregator",), ("config", "show")):
        done = _run(guarded_config, *words, *verb, environment=environment)
        assert done.returncode == 78
        assert "Url-Pa55" not in done.stdout + done.stderr
