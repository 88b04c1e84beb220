"""The reader on a real Kafka: a lost connection is known, in two ways."""

from pathlib import Path

import pytest

from services.cutting import CutProxy
from services.kafka import KafkaBroker
from services.process import wait_until
from zonerd.config import Kafka
from zonerd.kafka.connection import Notes
from zonerd.kafka.reader import Reader


@pytest.mark.parametrize("deaf_to", ["emit", "on_statistics"])
def test_a_lost_connection_is_known_by_its_line_and_without_one(
    deaf_to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Notes, deaf_to, lambda *_: None)
    with CutProxy() as way:
        listener = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{way.port}"}
        broker = KafkaBroker(tmp_path / "kafka", properties=listener)
        try:
            way.target = broker.port
            broker.create_topic("cut")
            with Reader(Kafka(bootstrap_servers=broker.bootstrap, topic="cut"), 2**20, None) as reader:
                reader.assign({0: 0})
                wait_until(lambda: (reader.take(10, 0.05), deaf_to == "on_statistics" or reader.notes._connections)[1])
                assert reader.notes.connections_lost == 0
                way.cut()
                wait_until(lambda: (reader.take(10, 0.05), reader.notes.connections_lost)[1])
        finally:
            broker.close()
