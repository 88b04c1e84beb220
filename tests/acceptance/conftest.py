"""What the whole program needs of its surroundings."""

from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name: the path of a supervisord's socket may have some 100 bytes."""
    return tmp_path_factory.mktemp("t")
