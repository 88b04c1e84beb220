"""supervisord, in the foreground of our own process."""

# mypy: allow-subclassing-any

import os
import shlex
import signal
import socket
import syslog
import time
from collections.abc import Callable, Sequence
from configparser import Error as ConfError
from contextlib import suppress
from typing import Any, Final, NoReturn

from supervisor import events, loggers
from supervisor.medusa import asyncore_25 as asyncore
from supervisor.options import ServerOptions, UnhosedConfigParser, decode_wait_status, signame
from supervisor.process import Subprocess
from supervisor.states import ProcessStates, SupervisorStates
from supervisor.supervisord import Supervisor
from supervisor.xmlrpc import Faults, RPCError

from zonerd import ports
from zonerd.errors import DONE, INTERRUPTED, Refused
from zonerd.shutdown import Shutdown
from zonerd.supervise import RESTARTING, Place

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
URGENT_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""The second of these kills at once; a terminal that goes sends SIGHUP more than once."""

ONE_REQUEST_S: Final = 0.2
"""Signals so close together are one request: timeout(1) and some launchers send each signal twice."""

_KILLED_WITHIN_S: Final = 2.0


def run(place: Place, command: Sequence[str], shutdown: Shutdown, again: Callable[[], Place] | None = None) -> int:
    """Be supervisord until asked to stop, `command` and a verb being how its programs start; give the exit code.

    SIGTERM, SIGINT and the end of `shutdown`'s supervisor stop the programs one after another; a second SIGTERM or
    SIGINT kills them at once. SIGHUP, and `supervisorctl reload`, ask `again` where to go on, and restart the programs
    in order; where it raises Refused, all goes on as before. Without `again` SIGHUP is a stop too. Raises Refused when
    its file or its socket cannot serve.
    """
    syslog.openlog("zonerd")  # what programs say on stderr goes there too
    options = _Options(place, command, again)
    while True:
        ports.forget(place.programs.parent)
        supervised = _Supervised(options, shutdown)
        try:
            with suppress(asyncore.ExitNow):
                supervised.main()
        finally:
            shutdown.install(hangup=again is None)
            options.close_httpservers()
            options.close_logger()
        if supervised.killed:
            return INTERRUPTED
        if options.mood < SupervisorStates.RESTARTING:
            return DONE
        shutdown.signalled |= options.stop_was_asked()
        options = options.following


class _Options(ServerOptions):
    """supervisord's options: the file's, with the programs of the configuration behind them."""

    def __init__(self, place: Place, command: Sequence[str], again: Callable[[], Place] | None = None) -> None:
        super().__init__()
        self.first = True
        self.test = False
        self.again = again
        self.following = self
        self._mood = SupervisorStates.RUNNING
        self._command = command
        self._place = place
        self.environ_expansions["ENV_ZONERD_COMMAND"] = shlex.join(command)
        # stdout_logfile is expanded twice
        self.environ_expansions["ENV_ZONERD_LOG_DIR"] = str(place.log_dir).replace("%", "%%")
        try:
            self.realize(["-c", str(place.conf), "-n"], doc="", progname="zonerd up")
        except ConfError as error:
            raise Refused(f"{place.conf}: {error}") from None

    @property
    def mood(self) -> int:
        """What supervisord is about to do."""
        return int(self._mood)

    @mood.setter
    def mood(self, mood: int) -> None:
        """Change it; a restart is refused with RPCError where the configuration is, and nothing has changed then."""
        if mood == SupervisorStates.RESTARTING:
            try:
                place = self.again() if self.again is not None else self._place
                self.following = _Options(place, self._command, self.again)
            except Refused as error:
                raise RPCError(Faults.FAILED, str(error)) from None
            events.notify(events.RemoteCommunicationEvent(RESTARTING, ""))
        self._mood = mood

    def stop_was_asked(self) -> bool:
        """Say whether a request to stop came too late to be looked at."""
        return any(number in STOP_SIGNALS for number in iter(self.get_signal, None))

    def usage(self, msg: object) -> NoReturn:
        raise Refused(f"{self._place.conf}: {msg}")

    def process_groups_from_parser(self, parser: Any) -> Any:  # noqa: ANN401 - supervisor's, and it stays here
        rendered = UnhosedConfigParser()
        rendered.read(str(self._place.programs))
        for section in rendered.sections():
            if not parser.has_section(section):
                parser.add_section(section)
            for option, value in rendered.items(section):
                if not parser.has_option(section, option):
                    parser.set(section, option, value)
        groups = super().process_groups_from_parser(parser)
        for group in groups:
            for program in group.process_configs:
                program.environment.setdefault("ZONERD_SUPERVISED", str(os.getpid()))
        return groups

    def set_uid_or_exit(self) -> None:
        if os.getuid() == 0 and self.uid is None:
            self.parse_warnings.append("running as root: an account of its own is safer")
        else:
            super().set_uid_or_exit()

    def make_logger(self) -> None:
        super().make_logger()
        for handler in self.logger.handlers:
            if isinstance(handler, loggers.StreamHandler):
                handler.handleError = _nothing  # a terminal that is gone must not end us

    def make_http_servers(self, supervisord: Supervisor) -> Any:  # noqa: ANN401 - supervisor's, and it stays here
        self.logger.critical = self.logger.debug  # it deplores a socket without a password; ours has mode 0700
        try:
            return super().make_http_servers(supervisord)
        finally:
            del self.logger.critical


class _Supervised(Supervisor):
    """supervisord, stopped by our rules."""

    def __init__(self, options: _Options, shutdown: Shutdown) -> None:
        super().__init__(options)
        self.killed = False
        self._shutdown = shutdown
        self._asked_at: float | None = None
        self._wake = _Wake()

    def run(self) -> None:
        previous = signal.set_wakeup_fd(self._wake.written, warn_on_full_buffer=False)
        self._wake.write()  # the programs start in the first pass, not a second later
        try:
            super().run()
        finally:
            signal.set_wakeup_fd(previous)
            self._wake.close()

    def get_process_map(self) -> dict[int, Any]:
        return {**super().get_process_map(), self._wake.read: self._wake}

    def handle_signal(self) -> None:
        while (number := self.options.get_signal()) is not None:
            if number in STOP_SIGNALS or (number == signal.SIGHUP and self.options.again is None):
                self._asked_to_stop(number)
            elif number == signal.SIGHUP:
                self._asked_to_restart()
            elif number == signal.SIGUSR2:
                self.options.reopenlogs()
                for group in self.process_groups.values():
                    group.reopenlogs()
        if self._shutdown.requested and self._asked_at is None:
            why = "who started us is gone" if self._shutdown.orphaned else "asked to stop while starting"
            self._stop(why)

    def reap(self, once: bool = False, recursionguard: int = 0) -> None:  # noqa: ARG002 - supervisor's words
        """Note how each child ended, that of one which ended too soon as well: supervisord forgets its exit code."""
        while (ended := self.options.waitpid())[0]:
            pid, status = ended
            process = self.options.pidhistory.pop(pid, None)
            if process is not None:
                process.finish(pid, status)
                _keep_exit_code(process, status)

    def _asked_to_restart(self) -> None:
        if self.options.mood < SupervisorStates.RUNNING:
            self._say("received SIGHUP while stopping or restarting: not heeded")
            return
        try:
            self.options.mood = SupervisorStates.RESTARTING
        except RPCError as error:
            for line in error.text.removeprefix("FAILED: ").splitlines():
                self._say(f"received SIGHUP, refused: {line}")
        else:
            self._say("received SIGHUP: restarting")

    def _asked_to_stop(self, number: int) -> None:
        if self._asked_at is None:
            self._stop(f"received {signame(number)}")
        elif number in URGENT_SIGNALS and time.monotonic() - self._asked_at > ONE_REQUEST_S:
            self._say(f"received {signame(number)} again: killing all")
            self._kill_all()

    def _stop(self, why: str) -> None:
        self._asked_at = time.monotonic()
        self._say(f"{why}: stopping")
        self.options.mood = SupervisorStates.SHUTDOWN

    def _say(self, line: str) -> None:
        self.options.logger.warn(line)  # noqa: G010 - supervisor's own logger

    def _kill_all(self) -> NoReturn:
        pids = [process.pid for group in self.process_groups.values() for process in group.processes.values()]
        for pid in filter(None, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # it may not have made its group yet
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        deadline = time.monotonic() + _KILLED_WITHIN_S
        while self.options.pidhistory and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.01)
        self.killed = True
        raise asyncore.ExitNow


class _Wake:
    """A pipe that a signal writes to, so that supervisord's poll, of up to a second, ends at once."""

    def __init__(self) -> None:
        left, right = socket.socketpair()
        for end in (left, right):
            end.settimeout(0)
        self._ends = (left, right)
        self.read, self.written = left.fileno(), right.fileno()

    def write(self) -> None:
        self._ends[1].send(b"\0")

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        with suppress(BlockingIOError):
            self._ends[0].recv(4096)

    def handle_error(self) -> None:
        """Nothing: the signal itself is noted elsewhere."""

    def close(self) -> None:
        for end in self._ends:
            end.close()


def _keep_exit_code(process: Subprocess, status: int) -> None:
    if process.state == ProcessStates.BACKOFF:
        process.exitstatus, how = decode_wait_status(status)
        process.spawnerr = f"Exited too quickly, {how} (process log may have details)"


def _nothing() -> None:
    pass
