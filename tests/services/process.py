"""A process of zonerd's: its log lines, its signals, its end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")


def wait_until(
    condition: Callable[[], Found], deadline_s: float = 60.0, what: str | Callable[[], str] = "what is waited for"
) -> Found:
    """Wait until the condition gives something true, and give that; past the deadline an AssertionError says `what`."""
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {deadline_s:g} s: {what() if callable(what) else what}")
        time.sleep(0.02)
    return found


def tail(path: Path, lines: int = 40) -> str:
    """Give the last lines of a file; empty without one."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


class ZonerdProcess:
    """`python -m zonerd -c CONFIG_FILE words…`, its stdout and stderr kept in files.

    `within` is a command that becomes the one behind it, such as one that enters a namespace first.
    """

    def __init__(
        self,
        config_file: Path,
        folder: Path,
        *words: str,
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        number = len(list(folder.glob("*.out")))
        name = next((word for word in words if word.isalpha()), "zonerd")
        self.out = folder / f"{number:03}-{name}.out"
        self.err = self.out.with_suffix(".err")
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "zonerd", "-c", str(config_file), *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self.process.poll() is None

    def lines(self, event: str | None = None, **fields: object) -> list[dict[str, Any]]:
        """Give the complete JSON log lines so far: of this event, with these fields."""
        whole = self.out.read_bytes().rpartition(b"\n")[0].splitlines()
        logged: list[dict[str, Any]] = [json.loads(line) for line in whole if line.startswith(b"{")]
        return [
            line
            for line in logged
            if event in (None, line.get("event")) and all(line.get(name) == value for name, value in fields.items())
        ]

    def wait_for(self, event: str, deadline_s: float = 30, *, count: int = 1, **fields: object) -> dict[str, Any]:
        """Wait for the `count`-th log line of this event with these fields; fails at once when the process ends."""

        def look() -> list[dict[str, Any]]:
            running = self.running
            found = self.lines(event, **fields)
            assert running or len(found) >= count, f"ended with {self.process.returncode}\n{self.story()}"
            return found if len(found) >= count else []

        return wait_until(look, deadline_s, lambda: f"{event} {fields or ''}\n{self.story()}")[count - 1]

    def wait(self, deadline_s: float = 15) -> int:
        """Wait for the end; gives the exit code (negative: the signal that killed it)."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s:g} s\n{self.story()}") from None

    def ends_with(self, code: int, deadline_s: float = 15) -> None:
        """Wait for the end, and want this exit code."""
        found = self.wait(deadline_s)
        assert found == code, f"exit code {found}, not {code}\n{self.story()}"

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def terminate(self, code: int = 0, deadline_s: float = 12) -> None:
        """SIGTERM; the process must end with this code within the deadline."""
        self.signal(signal.SIGTERM)
        self.ends_with(code, deadline_s)

    def kill(self) -> None:
        """SIGKILL, and wait for the end; nothing happens where it has ended."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def story(self) -> str:
        """Give the end of what it wrote to stdout and stderr."""
        return f"{tail(self.out)}\n--- stderr\n{tail(self.err)}"
