"""The programs of docs/deploy.md that send from an application, run as they stand there, against a real Kafka."""

import os
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

from services.fixtures import ConfigFile
from services.kafka import LIBS, KafkaBroker
from services.kafka_tools import make_tools
from services.pages import blocks, replaced
from services.verbs import does

HEADING = "Send from an application"
(PYTHON,) = blocks("deploy.md", HEADING, "python")
(JAVA,) = blocks("deploy.md", HEADING, "java")
ZONERD, CONSOLE = blocks("deploy.md", HEADING, "sh")
KINDS = ("python", "java", "zonerd", "console")
WRITTEN = {"zonerd": 1769846400.0, "console": 1700000000.0}
"""The times that stand in the page; the other programs send that of now."""


@pytest.fixture
def here(kafka: KafkaBroker, topic: str) -> dict[str, str]:
    """What stands here for the page's names."""
    return {"kafka.example.com:9092": kafka.bootstrap, "user_activity": topic}


@pytest.fixture
def config(config_file: ConfigFile, kafka: KafkaBroker, topic: str) -> Path:
    return config_file(
        {
            "kafka.bootstrap_servers": kafka.bootstrap,
            "kafka.topic": topic,
            "kafka.properties.partitioner": "murmur2_random",
        }
    )


def in_shell(line: str, config: Path, tools: Path) -> None:
    """Run a line with `zonerd` and Kafka's tools on the PATH."""
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}:{scripts}:{os.environ['PATH']}", "ZONERD_CONFIG": f"{config}"}
    run(["sh", "-e", "-c", line], environment)


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a program that must end with 0."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def send(kind: str, here: dict[str, str], config: Path, folder: Path) -> None:
    """Let one of the page's programs send its event."""
    if kind == "python":
        run([sys.executable, "-c", replaced(PYTHON, here)])
    elif kind == "java":
        program = folder / "Send.java"
        program.write_text(replaced(JAVA, here))
        run(["java", "-XX:TieredStopAtLevel=1", "-cp", f"{LIBS}/*", str(program)])
    else:
        line = ZONERD if kind == "zonerd" else replaced(CONSOLE, here)
        in_shell(line, config, make_tools(folder / "bin"))


def stored(config: Path) -> list[tuple[int, object, str, float]]:
    """Store what the topic holds, and give partition, user, activity and time of each event."""
    does(config, "consumer", "--until-caught-up")
    connection = apsw.Connection(str(config.parent / "data" / "events.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        columns = "partition, user_id, activity, timestamp_ms / 1000.0"
        return connection.execute(f"select {columns} from events join partitions on id = partition_id").fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_event_of_each_program_is_stored(kind: str, here: dict[str, str], config: Path, tmp_path: Path) -> None:
    began = time.time()
    send(kind, here, config, tmp_path)
    ((_, user_id, activity, moment),) = stored(config)
    assert (user_id, activity) == (42, "sleep")
    assert moment == WRITTEN[kind] if kind in WRITTEN else int(began) <= moment <= time.time()


def test_all_put_one_user_on_one_partition(here: dict[str, str], config: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        send(kind, here, config, tmp_path)
    found = stored(config)
    assert len(found) == 4
    assert len({partition for partition, *_ in found}) == 1
