"""What systemd is told of all processes, where systemd started us."""

from typing import Final, Self

from sdnotify import SystemdNotifier

from zonerd.log import Limited, Log

TAKEN_WITHIN_S: Final = 0.5


class Systemd:
    """Tells systemd, without ever waiting for it long; silent where nobody listens."""

    def __init__(self, log: Log, *, listens: bool) -> None:
        self._log = log
        self._listens = listens
        self._limited = Limited()
        self._notifier: SystemdNotifier | None = None
        self._status = ""
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()

    def ready(self) -> None:
        """Say, once, that all is started."""
        if not self._ready:
            self._ready = self._tell("READY=1")

    def status(self, line: str) -> None:
        """Say in one line how it goes, where that has changed."""
        if line != self._status and self._tell(f"STATUS={_plain(line)}"):
            self._status = line

    def alive(self) -> None:
        """Say that supervisord lives."""
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that supervisord stops."""
        self._tell("STOPPING=1")

    def _tell(self, words: str) -> bool:
        if not self._listens:
            return True
        try:
            if self._notifier is None:
                self._notifier = SystemdNotifier(debug=True)
                self._notifier.socket.settimeout(TAKEN_WITHIN_S)
            self._notifier.notify(words)
        except OSError as error:
            self._hang_up()
            self._limited.warning(self._log, "systemd_notify_failed", error.strerror or type(error).__name__)
            return False
        return True

    def _hang_up(self) -> None:
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None


def _plain(line: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in line)
