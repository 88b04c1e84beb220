"""A clone of the repository, as an operator has it, but for its source: etc/ as it is, and a var/ of its own."""

import fcntl
import os
import pty
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from services.process import tail

CHECKOUT = Path(__file__).parents[2]
STOPPED_WITHIN_S = 45.0
COMMAND_WITHIN_S = 60.0
COLUMNS, ROWS = 120, 40


class Said(NamedTuple):
    """What a command said on a terminal, stdout and stderr being one, and its exit code."""

    exit_code: int
    text: str


class Clone:
    """Runs lines in bash from the clone's folder, with `zonerd` and `supervisorctl` on the PATH.

    Within a `with`: what runs in the first terminal is stopped at its end. `within` is a command that becomes the one
    behind it, such as one that enters a namespace first.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], within: Sequence[str] = ()) -> None:
        shutil.copytree(CHECKOUT / "etc", folder / "etc")
        self.folder = folder
        self.out = folder / "first-terminal.out"
        self.terminal: subprocess.Popen[bytes] | None = None
        self._within = within
        scripts = os.fspath(Path(sys.executable).parent)
        self.environment = {**os.environ, **environment, "COLUMNS": f"{COLUMNS}", "LINES": f"{ROWS}"}
        self.environment["PATH"] = f"{scripts}:{self.environment['PATH']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.terminal is not None and self.terminal.poll() is None:
            self.terminal.send_signal(signal.SIGTERM)
            try:
                self.terminal.wait(STOPPED_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.terminal.kill()
                self.terminal.wait()

    def run(self, line: str, terminal: str = "dumb") -> Said:
        """Run a line to its end, on a terminal of this kind; nobody types there."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        process = subprocess.Popen(
            self._command(line),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env={**self.environment, "TERM": terminal},
            start_new_session=True,
        )
        os.close(theirs)
        timer = threading.Timer(COMMAND_WITHIN_S, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        text = b"".join(iter(lambda: _read(ours), b"")).decode(errors="replace")
        timer.cancel()
        os.close(ours)
        return Said(process.wait(), text.replace("\r\n", "\n"))

    def run_in_first_terminal(self, line: str) -> None:
        """Start a line that goes on; what it says stands in `said`."""
        with self.out.open("wb") as out:
            self.terminal = subprocess.Popen(
                self._command(f"exec {line}"),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What was said in the first terminal so far."""
        return self.out.read_text(encoding="utf-8") if self.out.exists() else ""

    def ended(self) -> int:
        """Wait until the line in the first terminal ends, and give its exit code."""
        assert self.terminal is not None, "nothing runs in the first terminal"
        try:
            return self.terminal.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {STOPPED_WITHIN_S:g} s\n{tail(self.out)}") from None

    def _command(self, line: str) -> list[str]:
        return [*self._within, "bash", "-c", f"cd {shlex.quote(str(self.folder))} && {line}"]


def _read(terminal: int) -> bytes:
    """Read on; empty once nobody has the other side any more."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
