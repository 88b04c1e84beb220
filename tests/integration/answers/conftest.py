"""A real Valkey and a world around it, for the tests of the answers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from answering import Valkey, World, until


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    valkey = Valkey(tmp_path_factory.mktemp("valkey"))
    yield valkey
    valkey.stop()


@pytest.fixture
def valkey(_server: Valkey) -> Iterator[Valkey]:
    """A Valkey that is running and empty."""
    _server.client.flushall()
    yield _server
    if _server.process.poll() is not None:
        _server.start()
    _server.go_on()


@pytest.fixture
def world(tmp_path: Path, valkey: Valkey) -> Iterator[World]:
    """An empty history of two partitions, and an empty Redis."""
    folder = tmp_path / "data"
    folder.mkdir()
    world = World(folder, valkey)
    yield world
    world.close()


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Wait for a condition, with a deadline."""
    return until
