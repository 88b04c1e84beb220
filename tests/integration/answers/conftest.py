"""A world around a real Valkey, for the tests of the answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from answering import World

from services.valkey import ValkeyServer


@pytest.fixture
def world(data_dir: Path, valkey: ValkeyServer) -> Iterator[World]:
    """An empty history of two partitions, and an empty Redis."""
    world = World(data_dir, valkey)
    yield world
    world.close()
