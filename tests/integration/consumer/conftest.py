"""A topic of its own for each test of the consumer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from consuming import Trial


@pytest.fixture
def trial(broker: Any, tmp_path: Path) -> Iterator[Trial]:  # noqa: ANN401 - whoever runs the broker
    """A topic's name, a data directory, and processes that are ended with the test."""
    trial = Trial(broker.bootstrap_servers, tmp_path)
    yield trial
    trial.close()
