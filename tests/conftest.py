"""What every test may ask for: real services, a fresh topic, a data directory, the program as a process."""

import json
import random
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from services.fixtures import ConfigFile, MakeTopic, StartZonerd
from services.kafka import KafkaBroker
from services.missing import required
from services.process import ZonerdProcess
from services.valkey import ValkeyServer

TESTS = Path(__file__).parent
KINDS = ("unit", "integration", "acceptance", "deployment")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the seed of whatever a test makes up."""
    parser.addoption("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="Seed of made-up data.")


def pytest_report_header(config: pytest.Config) -> str:
    """Say how to get the same made-up data again."""
    return f"made-up data: --seed={config.getoption('seed')}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the folder that it stands in."""
    for item in items:
        kind = item.path.relative_to(TESTS).parts[0]
        if kind in KINDS:
            item.add_marker(kind)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of what this test makes up; the header of the report says it."""
    seed: int = request.config.getoption("seed")
    return seed


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaBroker]:
    """One real broker for the whole session; a test that stops it starts it again."""
    with required():
        broker = KafkaBroker()
    yield broker
    broker.close()


@pytest.fixture(scope="session")
def broker(kafka: KafkaBroker) -> KafkaBroker:
    """The same broker, for a test whose words say "broker"."""
    return kafka


@pytest.fixture(scope="session")
def _valkey() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    yield server
    server.close()


@pytest.fixture
def valkey(_valkey: ValkeyServer) -> ValkeyServer:
    """One real Valkey for the whole session, running, and empty at the start of each test."""
    if _valkey.process is None:
        _valkey.start()
    _valkey.resume()
    _valkey.client.flushall()
    return _valkey


@pytest.fixture
def make_topic(kafka: KafkaBroker) -> MakeTopic:
    """Create a topic of a fresh name: `make_topic(partitions=4, config={})` gives the name."""

    def make(partitions: int = 4, config: Mapping[str, str] | None = None) -> str:
        name = f"t-{uuid.uuid4().hex[:12]}"
        kafka.create_topic(name, partitions, config)
        return name

    return make


@pytest.fixture
def topic(make_topic: MakeTopic) -> str:
    """The name of a fresh topic of four partitions."""
    return make_topic()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data directory."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def config_file(tmp_path: Path, data_dir: Path) -> ConfigFile:
    """Write a configuration: `config_file({"kafka.topic": …}, name="zonerd.toml")` gives its path.

    Without other words: this test's data directory, JSON lines in the log, none in a journal, any ports (ports.json
    tells them), and no Redis unless `redis.url` is given.
    """

    def write(overrides: Mapping[str, object] | None = None, name: str = "zonerd.toml") -> Path:
        values: dict[str, object] = {
            "store.data_dir": str(data_dir),
            "store.run_dir": str(data_dir / "run"),  # by default it has another place where the path is long
            "log.format": "json",
            "log.journal": "off",
        }
        values |= overrides or {}
        values.setdefault("redis.enabled", "redis.url" in values)
        for process in ("watchdog", "producer", "aggregator", "consumer"):
            values.setdefault(f"http.port.{process}", 0)
        path = tmp_path / name
        path.write_text("\n".join(_toml(values)) + "\n", encoding="utf-8")
        return path

    return write


def _toml(values: Mapping[str, object]) -> Iterator[str]:
    for section in sorted({key.partition(".")[0] for key in values}):
        yield f"[{section}]"
        for key, value in values.items():
            if key.startswith(f"{section}."):
                table, separator, name = key.removeprefix(f"{section}.").partition(".")
                yield f"{table}{separator}{json.dumps(name) if name else ''} = {json.dumps(value)}"


@pytest.fixture
def zonerd(tmp_path: Path) -> Iterator[StartZonerd]:
    """Start the program: `zonerd(config_file, "consumer", …)` gives its process, killed at the end."""
    started: list[ZonerdProcess] = []
    folder = tmp_path / "processes"
    folder.mkdir()

    def start(
        config: Path, *words: str, environment: Mapping[str, str] | None = None, within: Sequence[str] = ()
    ) -> ZonerdProcess:
        started.append(ZonerdProcess(config, folder, *words, environment=environment, within=within))
        return started[-1]

    yield start
    for process in started:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
