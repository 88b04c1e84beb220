"""What a deployment needs: a real engine with stand-ins for the images that our Compose file names."""

from collections.abc import Iterator

import pytest

from services.docker import DockerEngine
from services.missing import required


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerEngine]:
    """A Docker engine of our own, with the stand-ins."""
    with required():
        engine = DockerEngine()
    with engine:
        engine.import_stand_ins()
        yield engine
