"""A machine with a real systemd: Debian in a container of systemd-nspawn's, its network this machine's loopback."""

import os
import shutil
import signal
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from typing import Final, Self

from services.missing import Missing
from services.process import tail, wait_until

CACHE = Path(__file__).parents[2] / ".cache"
BOOTED_WITHIN_S = 60.0
COMMAND_WITHIN_S = 180.0
STARTED: Final = ("running", "degraded")
_NUMBERS: Final = count()
SHUT_DOWN: Final = signal.SIGRTMIN + 4
"""To the first process: power off."""


class Machine:
    """A machine that is up from construction on; `reboot` keeps its files, `close` removes them."""

    def __init__(self) -> None:
        nspawn = shutil.which("systemd-nspawn")
        image = CACHE / "images" / "machine.tar"
        if nspawn is None or not image.exists() or os.geteuid() != 0:
            raise Missing("a machine needs root, systemd-nspawn and its image: `make acceptance` sets them up")
        self._nspawn = nspawn
        self.folder = Path(tempfile.mkdtemp(prefix="zonerd-machine-"))
        self._number = next(_NUMBERS)
        self.root = self.folder / "root"
        self.log = self.folder / "console.log"
        self.root.mkdir()
        subprocess.run(["tar", "--extract", "--file", str(image), "--directory", str(self.root)], check=True)
        self.process: subprocess.Popen[bytes] | None = None
        self._init = 0
        try:
            self.boot()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def boot(self) -> None:
        """Start it, and wait until its systemd has started all that it wants."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self._nspawn, "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe",
                    f"--directory={self.root}", f"--machine=zonerd-{os.getpid()}-{self._number}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        said = lambda: f"the machine boots\n{tail(self.log)}"  # noqa: E731 - asked for only in the end
        self._init = wait_until(self._first_process, BOOTED_WITHIN_S, said)
        wait_until(lambda: self.run("systemctl is-system-running", exit_code=None).strip() in STARTED, BOOTED_WITHIN_S)

    def reboot(self) -> None:
        """Shut it down as its owner would, and start it again."""
        assert self.process is not None
        os.kill(self._init, SHUT_DOWN)
        self.process.wait(COMMAND_WITHIN_S)
        self.boot()

    def run(self, line: str, *, exit_code: int | None = 0) -> str:
        """Run a line in its shell, as its root, and give what it said; None takes any exit code."""
        done = subprocess.run(
            ["nsenter", f"--target={self._init}", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd",
             "/usr/bin/env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
             "LANG=C.UTF-8", "sh", "-c", line],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=COMMAND_WITHIN_S,
        )  # fmt: skip
        assert exit_code in (None, done.returncode), f"{line}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def close(self) -> None:
        """End it at once; its files go too."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _first_process(self) -> int:
        """Give the number of its systemd, 0 while there is none that can be entered."""
        assert self.process is not None
        assert self.process.poll() is None, f"ended with {self.process.returncode}\n{tail(self.log)}"
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="utf-8")
        for pid in children.split():
            if Path(f"/proc/{pid}/root", "run/systemd/private").exists():
                return int(pid)
        return 0
