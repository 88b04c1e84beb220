"""The whole pipeline on an in-memory broker and a cache of its own, watched until it is stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Protocol

from zonerd.config import Config
from zonerd.demo.looks import Looks, Seen
from zonerd.demo.place import Place, Wanted, child_environment, find_cache_server, place_of, write
from zonerd.errors import DONE, INTERRUPTED, LockHeld, Refused, ServiceUnavailable
from zonerd.kafka.embedded import EmbeddedBroker
from zonerd.shutdown import Shutdown
from zonerd.store.lock import Lock
from zonerd.supervise.server import ONE_REQUEST_S

LOOK_EVERY_S: Final = 1.0
FIRST_LOOK_S: Final = 0.2
PREDECESSOR_STOPS_WITHIN_S: Final = 45.0
"""What supervisord takes for its stops, one after another, at worst."""
ORPHANS_STOP_WITHIN_S: Final = 12.0
KILLED_WITHIN_S: Final = 3.0


class Screen(Protocol):
    """Where a demo shows itself; `gone` once nobody can see it any more."""

    gone: bool

    def introduce(self, place: Place, settings: Config, found: int) -> None:
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
        if shutdown.requested:
            return DONE
        settings = write(place, broker.bootstrap_servers, wanted)
        looks = Looks(place, settings, broker, broker.make_topic(settings.kafka.topic))
        screen.introduce(place, settings, looks.look().stored)
        deadline = time.monotonic() + wanted.for_s if wanted.for_s is not None else None
        with _supervisord(place, wanted.overrides, child_environment(environment, cache_server, place)) as child:
            try:
                _watch(child, looks, deadline, shutdown, screen)
            finally:
                screen.close()
            code = _stop(child, shutdown, screen)
        if code == DONE:
            screen.say(f"stopped; {looks.look().stored:,} events are stored, and the next start goes on with them")
        return code


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
    screen.say("stopping: producer, consumer, aggregator, cache, watchdog")
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(ONE_REQUEST_S)
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
