"""One pass over all events, as a process of its own that tells what it took."""

import json
import subprocess
from collections.abc import Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """One pass over all events."""

    events: int
    cpu_s: float
    wall_s: float

    @property
    def cpu_us(self) -> float:
        """CPU of an event, in microseconds, with all threads and without what starting up takes."""
        return self.cpu_s / self.events * 1e6

    @property
    def wall_us(self) -> float:
        """Time of an event, in microseconds."""
        return self.wall_s / self.events * 1e6


def run(command: Sequence[str]) -> Run:
    """Run a command whose last line tells its Run, and give that."""
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Run(**json.loads(answer.splitlines()[-1]))
