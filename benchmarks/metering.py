"""What metrics cost the consumer: the same work without them, with them, scraped each second, and in a crowd."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.runs import Run, run

CROWD = 50


class Way(NamedTuple):
    """One way to do the same work: the words of whole_work.py, and who asks meanwhile."""

    name: str
    words: tuple[str, ...]
    scrapers: int = 0
    pause_s: float = 1.0
    slow: int = 0


UNMETERED = Way("without metrics", ("unmetered",))
METERED = Way("with metrics", ())
ANSWERING = Way("with metrics, nobody asks", ("answering",))
SCRAPED = Way("scraped each second", ("answering",), 1)
CROWDED = Way(f"{CROWD} scrapers at once, {CROWD} slow-lorises", ("answering",), CROWD, 0.0, CROWD)
WAYS = (UNMETERED, METERED, ANSWERING, SCRAPED, CROWDED)


def meter(folder: Path, configuration: Path, rounds: int) -> None:
    """Do the work in each way in turn, and give the medians and their ratios."""
    costs: dict[Way, list[Run]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            shutil.rmtree(folder / "data", ignore_errors=True)
            with asked(folder / "data" / "run", way):
                costs[way].append(run([sys.executable, "benchmarks/whole_work.py", str(configuration), *way.words]))
    print("\nwhat metrics cost (medians)              µs CPU   µs wall")
    for way, runs in costs.items():
        print(f"{way.name:40}{median(r.cpu_us for r in runs):>6.2f}{median(r.wall_us for r in runs):>10.2f}")
    _compare("CPU an event, with metrics", [m.cpu_us / u.cpu_us for m, u in _pairs(costs, METERED, UNMETERED)], 1.02)
    _compare("CPU an event, scraped", [s.cpu_us / u.cpu_us for s, u in _pairs(costs, SCRAPED, UNMETERED)], 1.02)
    _compare("time an event, in a crowd", [c.wall_us / a.wall_us for c, a in _pairs(costs, CROWDED, ANSWERING)], 1.05)


def _pairs(costs: dict[Way, list[Run]], way: Way, other: Way) -> Iterator[tuple[Run, Run]]:
    """Give what two ways took in each round, in which they stood side by side."""
    return zip(costs[way], costs[other], strict=True)


def _compare(what: str, ratios: Sequence[float], wanted: float) -> None:
    print(f"ratio of {what}: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}; wanted: at most {wanted})")


@contextmanager
def asked(run_dir: Path, way: Way) -> Iterator[None]:
    """Let this way's crowd ask as long as the `with` lasts."""
    words = [str(run_dir), "consumer", str(way.scrapers), str(way.pause_s), str(way.slow)]
    crowd = way.scrapers and subprocess.Popen(
        [sys.executable, "benchmarks/scrapers.py", *words], stdout=subprocess.PIPE, text=True
    )
    try:
        yield
    finally:
        if crowd:
            crowd.terminate()
            print(f"{way.name}: {crowd.communicate()[0].strip()} answers", flush=True)
