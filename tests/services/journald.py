"""A real systemd-journald, in a mount namespace of its own: nothing of it is seen outside, nothing is left behind."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.missing import Missing
from services.process import tail, wait_until

BINARY = Path("/lib/systemd/systemd-journald")
START_DEADLINE_S = 20.0

_NAMESPACE = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal /run/systemd/journald.conf.d
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nAudit=no\\nRateLimitIntervalSec=0\\n' \
    >/run/systemd/journald.conf.d/test.conf
mkdir /run/dev /run/dev/shm
for device in null zero full random urandom; do
    touch /run/dev/$device
    mount --bind /dev/$device /run/dev/$device
done
mount --rbind /dev/shm /run/dev/shm
ln -s /run/systemd/journal/dev-log /run/dev/log
ln -s /proc/self/fd /run/dev/fd
mount --rbind /run/dev /dev
touch /run/made
exec sleep infinity
"""

_AS_ROOT = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]


class Journald:
    """A journald with a /run and a /dev/log of its own; `command` is how to start a program that sees it."""

    def __init__(self, folder: Path) -> None:
        if not BINARY.exists() or shutil.which("journalctl") is None:
            raise Missing("systemd-journald is not installed: tests/services/setup/packages systemd")
        self._log = folder / "journald.log"
        self.process: subprocess.Popen[bytes] | None = None
        with self._log.open("ab") as log:
            words = ["unshare", *_AS_ROOT, "--mount", "--propagation", "private", "sh", "-c", _NAMESPACE]
            self._holder = subprocess.Popen(words, stdout=log, stderr=log)
        wait_until(self._is_made, START_DEADLINE_S)

    def _is_made(self) -> bool:
        if self._holder.poll() is not None:
            raise Missing(f"a mount namespace cannot be made: {tail(self._log)}")
        return self._runs("test", "-e", "/run/made")

    def command(self, *words: str) -> list[str]:
        """Give the command line that runs these words where this journald is."""
        user = ["--user", "--preserve-credentials"] if _AS_ROOT else []
        return ["nsenter", f"--target={self._holder.pid}", *user, "--mount", f"--wd={Path.cwd()}", "--", *words]

    def start(self) -> None:
        """Start it, and wait for its socket."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self.command(str(BINARY)), stdout=log, stderr=log)
        wait_until(
            lambda: self._runs("journalctl", "--sync"), START_DEADLINE_S, lambda: f"journald answers\n{tail(self._log)}"
        )

    def stop(self) -> None:
        """End it; its socket goes too."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(20)
        self.process = None
        self._runs("rm", "-f", "/run/systemd/journal/socket")

    def pause(self) -> None:
        """SIGSTOP: its socket takes some lines, then none."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(signal.SIGCONT)

    def ask(self, *matches: str) -> list[dict[str, Any]]:
        """Give what `journalctl` finds with these words, each line with all its fields."""
        return [json.loads(line) for line in self._ctl(*matches, "-o", "json").splitlines()]

    def shown(self, *matches: str) -> list[str]:
        """Give what a person sees."""
        return self._ctl(*matches, "-o", "cat").splitlines()

    def close(self) -> None:
        """End it for good."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        self._holder.kill()
        self._holder.wait()

    def _ctl(self, *words: str) -> str:
        words = ("--directory=/run/log/journal", "--no-pager", "--quiet", *words)
        done = subprocess.run(self.command("journalctl", *words), capture_output=True, check=False, text=True)
        return done.stdout

    def _runs(self, *words: str) -> bool:
        return subprocess.run(self.command(*words), capture_output=True, check=False).returncode == 0


UNIT: Mapping[str, str] = {"JOURNAL_STREAM": "8:1", "INVOCATION_ID": "0" * 32}
"""What systemd puts into the environment of a unit."""
