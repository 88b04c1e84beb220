"""supervisord, in the foreground of our own process, and supervisorctl against its socket."""

# mypy: allow-subclassing-any

import os
import shlex
import signal
import socket
import time
from collections.abc import Sequence
from configparser import Error as ConfError
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final, NamedTuple, NoReturn

from supervisor import loggers, supervisorctl
from supervisor.medusa import asyncore_25 as asyncore
from supervisor.options import ClientOptions, ServerOptions, UnhosedConfigParser, signame
from supervisor.states import SupervisorStates
from supervisor.supervisord import Supervisor

from zonerd.config import Config
from zonerd.errors import DONE, INTERRUPTED, Refused
from zonerd.shutdown import Shutdown

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
URGENT_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""The second of these kills at once; a terminal that goes sends SIGHUP more than once."""

ONE_REQUEST_S: Final = 0.2
"""Signals so close together are one request: timeout(1) and some launchers send each signal twice."""

_KILLED_WITHIN_S: Final = 2.0


class Place(NamedTuple):
    """Where one supervisord has its files: what it reads, and where its programs' output goes."""

    conf: Path
    programs: Path
    log_dir: Path


def socket_of(config: Config) -> Path:
    """Give where the supervisord of this configuration listens."""
    return config.run_dir / "supervisor.sock"


def prepare(config: Config, config_file: Path | None) -> Place:
    """Make the run and log directories, for their owner alone, and write what supervisord reads.

    That is the supervisord.conf beside the configuration file when it listens where this configuration
    says, else one in the run directory. Raises Refused.
    """
    log_dir = config.data_dir / "log"
    for folder in (config.run_dir, log_dir):
        _make_private(folder)
    programs = config.run_dir / "programs.conf"
    programs.write_text(render_programs(config.consumer.processes), encoding="utf-8")
    conf = config_file.resolve().parent / "supervisord.conf" if config_file is not None else None
    if conf is None or not _listens_at(conf, socket_of(config)):
        conf = config.run_dir / "supervisord.conf"
        conf.write_text(render_supervisord("%(here)s"), encoding="utf-8")
    return Place(conf, programs, log_dir)


def render_supervisord(run_dir: str) -> str:
    """Give a supervisord.conf for this run directory, written as supervisord expands it (`%(here)s/run`)."""
    return _template("supervisord.conf").substitute(run_dir=run_dir)


def render_programs(processes: int) -> str:
    """Give the programs of a configuration with so many consumer processes."""
    return _template("programs.conf").substitute(
        common=_COMMON, processes=processes, consumer="consumer" if processes == 1 else "consumer-%(process_num)d"
    )


def run(place: Place, command: Sequence[str], shutdown: Shutdown) -> int:
    """Be supervisord until asked to stop, `command` and a verb being how its programs start; give the exit code.

    SIGTERM, SIGINT, SIGHUP and the end of `shutdown`'s supervisor stop the programs one after another; a
    second SIGTERM or SIGINT kills them at once. Raises Refused when its file or its socket cannot serve.
    """
    while True:
        options = _Options(place, command)
        supervised = _Supervised(options, shutdown)
        try:
            with suppress(asyncore.ExitNow):
                supervised.main()
        finally:
            options.close_httpservers()
            options.close_logger()
        if supervised.killed:
            return INTERRUPTED
        if options.mood < SupervisorStates.RESTARTING:
            return DONE


def control(config: Config, arguments: Sequence[str]) -> NoReturn:
    """Be supervisorctl with these arguments, against the socket of this configuration; ends with its exit code."""
    options = _ControlOptions()
    options.realize(["-s", f"unix://{socket_of(config)}", *arguments], doc=supervisorctl.__doc__, progname="zonerd ctl")
    options.prompt = "zonerd"
    controller = supervisorctl.Controller(options)
    if options.args:
        controller.onecmd(" ".join(options.args))
        raise SystemExit(controller.exitstatus)
    controller.exec_cmdloop(arguments, options)
    raise SystemExit(DONE)


class _Options(ServerOptions):
    """supervisord's options: the file's, with the programs of the configuration behind them."""

    def __init__(self, place: Place, command: Sequence[str]) -> None:
        super().__init__()
        self.first = True
        self.test = False
        self._place = place
        self.environ_expansions["ENV_ZONERD_COMMAND"] = shlex.join(command)
        # stdout_logfile is expanded twice
        self.environ_expansions["ENV_ZONERD_LOG_DIR"] = str(place.log_dir).replace("%", "%%")
        try:
            self.realize(["-c", str(place.conf), "-n"], doc="", progname="zonerd up")
        except ConfError as error:
            raise Refused(f"{place.conf}: {error}") from None

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


class _ControlOptions(ClientOptions):
    """supervisorctl's options without a file: we know the socket."""

    def default_configfile(self) -> None:
        return None


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
            if number in STOP_SIGNALS:
                self._asked_to_stop(number)
            elif number == signal.SIGUSR2:
                self.options.reopenlogs()
                for group in self.process_groups.values():
                    group.reopenlogs()
        if self._shutdown.requested and self._asked_at is None:
            why = "who started us is gone" if self._shutdown.orphaned else "asked to stop while starting"
            self._stop(why)

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


_COMMON: Final = """\
redirect_stderr = true
stdout_logfile_maxbytes = 10MB
stdout_logfile_backups = 3
autorestart = unexpected
exitcodes = 0,78
startsecs = 3
startretries = 5
stopsignal = TERM
killasgroup = true"""


def _template(name: str) -> Template:
    return Template(files("zonerd").joinpath(name).read_text(encoding="utf-8"))


def _listens_at(conf: Path, place: Path) -> bool:
    """Say whether this supervisord.conf is there and listens at this socket; raises Refused if it is unreadable."""
    if not conf.exists():
        return False
    parser = UnhosedConfigParser()
    try:
        parser.read_string(conf.read_text(encoding="utf-8"))
        named = parser.saneget("unix_http_server", "file", "", expansions={"here": str(conf.parent)})
    except (ConfError, OSError, ValueError) as error:
        raise Refused(f"{conf}: {error}") from None
    return bool(named) and os.path.realpath(named) == os.path.realpath(place)


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise Refused(f"{folder}: cannot be made: {error.strerror}") from None
    if status.st_uid != os.geteuid() or not os.access(folder, os.W_OK | os.X_OK):
        raise Refused(f"{folder}: not ours; try: chown -R {os.geteuid()}:{os.getegid()} {folder}")


def _nothing() -> None:
    pass
