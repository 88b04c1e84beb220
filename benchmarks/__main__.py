"""`make bench`: the consumer's CPU beside a loop that stores nothing, what metrics cost it, and memory."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.events import fill, lines
from benchmarks.memory import Memory, watch
from benchmarks.metering import meter
from benchmarks.runs import run
from services.kafka import KafkaBroker
from services.valkey import ValkeyServer

PARTITIONS = 4
TOPIC = "user_activity"
PARTS = ("work", "metrics", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="zonerd-bench-"))
    broker, valkey = KafkaBroker(), ValkeyServer()
    try:
        broker.create_topic(TOPIC, PARTITIONS)
        print(f"filling a topic of {PARTITIONS} partitions with {arguments.events} events …", flush=True)
        fill(broker.bootstrap, TOPIC, arguments.events)
        configuration = configure(folder, broker, valkey)
        if "work" in arguments.only:
            compare(folder, broker, configuration, arguments)
        if "metrics" in arguments.only:
            meter(folder, configuration, arguments.rounds)
        if "memory" in arguments.only:
            weigh(folder, broker, configuration, arguments.events)
    finally:
        valkey.close()
        broker.close()
        shutil.rmtree(folder)


def configure(folder: Path, broker: KafkaBroker, valkey: ValkeyServer) -> Path:
    path = folder / "zonerd.toml"
    path.write_text(
        f'[store]\ndata_dir = "data"\n[kafka]\nbootstrap_servers = "{broker.bootstrap}"\ntopic = "{TOPIC}"\n'
        f'[redis]\nurl = "{valkey.url}"\n[log]\nformat = "json"\n'
        "[http]\nport = { watchdog = 0, producer = 0, aggregator = 0, consumer = 0 }\n",
        encoding="utf-8",
    )
    return path


def compare(folder: Path, broker: KafkaBroker, configuration: Path, arguments: argparse.Namespace) -> None:
    """Run both in turn, and give the medians and their ratio."""
    loop = [sys.executable, "benchmarks/poll_loop.py", broker.bootstrap, TOPIC, str(PARTITIONS), str(arguments.events)]
    work = [sys.executable, "benchmarks/whole_work.py", str(configuration)]
    loops, works = [], []
    for number in range(arguments.rounds):
        loops.append(run(loop))
        shutil.rmtree(folder / "data", ignore_errors=True)
        works.append(run(work))
        ratio = works[-1].cpu_us / loops[-1].cpu_us
        print(
            f"round {number + 1}: poll() + json.loads {loops[-1].cpu_us:.2f} µs CPU an event, "
            f"whole work {works[-1].cpu_us:.2f}, ratio {ratio:.2f}",
            flush=True,
        )
    print("\nCPU an event (medians)           µs CPU   µs wall")
    for name, runs in (("poll() + json.loads, stores nothing", loops), ("consume, validate, store, fence", works)):
        print(f"{name:36}{median(r.cpu_us for r in runs):>6.2f}{median(r.wall_us for r in runs):>10.2f}")
    ratio = median(r.cpu_us for r in works) / median(r.cpu_us for r in loops)
    print(f"ratio of CPU an event: {ratio:.2f} (wanted: at most 0.75)\n", flush=True)


def weigh(folder: Path, broker: KafkaBroker, configuration: Path, events: int) -> None:
    """Let each process work on all events once, alone, and give its peak memory and whether it grew."""
    source = folder / "events.jsonl"
    with source.open("wb") as file:
        file.writelines(value + b"\n" for _, value in lines(events))
    broker.create_topic("copied", PARTITIONS)
    shutil.rmtree(folder / "data", ignore_errors=True)
    zonerd = [sys.executable, "-m", "zonerd", "-c", str(configuration)]
    copy = ["-X", "kafka.topic=copied", "-X", "producer.source=file", "-X", f"producer.path={source}"]
    print(f"resident memory over {events} events, MB     second quarter   last quarter   peak")
    for name, command, until in (
        ("producer", [*zonerd, *copy, "-X", "log.progress_s=1", "producer"], delivered(events)),
        ("consumer", [*zonerd, "consumer", "--until-caught-up"], None),
        ("aggregator", [*zonerd, "aggregator", "--until-caught-up"], None),
    ):
        report(name, watch(command, until))


def delivered(events: int) -> Callable[[str], bool]:
    """Give what tells, of a line of the producer's log, whether all events are delivered by then."""
    return lambda line: json.loads(line).get("delivered", 0) >= events


def report(name: str, memory: Memory) -> None:
    print(f"{name:38}{memory.second_mb:>15.0f}{memory.last_mb:>15.0f}{memory.peak_mb:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
