"""How much memory a process holds while it works."""

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

SAMPLE_S = 0.05


class Memory(NamedTuple):
    """Resident memory in MB: the median of the second and of the last quarter of the run, and the most."""

    second_mb: float
    last_mb: float
    peak_mb: float


def watch(command: Sequence[str], done: Callable[[str], bool] | None = None) -> Memory:
    """Run a command to its end, or until `done` says so of a line of its output, and sample its memory."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    threading.Thread(target=_stop_when, args=(process, done), daemon=True).start()
    samples = []
    while process.poll() is None:
        samples.append(_resident_mb(process.pid))
        time.sleep(SAMPLE_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    quarter = max(1, len(samples) // 4)
    return Memory(median(samples[quarter : 2 * quarter]), median(samples[-quarter:]), max(samples))


def _stop_when(process: "subprocess.Popen[str]", done: Callable[[str], bool] | None) -> None:
    for line in process.stdout or ():
        if done is not None and done(line):
            process.terminate()


def _resident_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)
