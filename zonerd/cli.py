"""The command line: reads arguments, environment and configuration, and turns an end into an exit code."""

import errno
import faulthandler
import os
import pwd
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from zonerd import __version__, config, errors, hints, shutdown
from zonerd.config import Format, Level
from zonerd.shutdown import Shutdown

if TYPE_CHECKING:
    from zonerd.log import Journal, Log

COMMANDS = (
    "demo",
    "up",
    "ctl",
    "producer",
    "consumer",
    "aggregator",
    "watchdog",
    "status",
    "health",
    "doctor",
    "summary",
    "offsets",
    "tail",
    "sql",
    "dead-letters",
    "verify",
    "backup",
    "send",
    "topic",
    "config",
    "version",
    "completion",
)
"""The verbs, in the order in which help shows them; each is a module of `zonerd.commands`."""

SYSTEMD = ("JOURNAL_STREAM", "INVOCATION_ID")
"""What systemd puts into a unit's environment, and thereby into that of all its children."""

_ERROR = "<3>"
"""How a line begins that journald takes for an error."""

CONFIG_PLACES = (Path("etc/zonerd.toml"), Path("/etc/zonerd/zonerd.toml"))


class Verbs(click.Group):
    """The group whose verbs are loaded when they are asked for."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Give the names of all verbs."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """Load one verb; None if there is none of this name."""
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"zonerd.commands.{name.replace('-', '_')}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; who reads its output and has seen enough (`| head`) is no failure, as click has it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return errors.DONE


class Ending:
    """Where the end of a process is said: in its own log, once it has one, else on stderr."""

    process_log: "Log | None" = None

    def say(self, event: str, error: BaseException) -> None:
        """Say why it ends."""
        if self.process_log is not None:
            crashed = event == "crashed"
            reason = f"{type(error).__name__}: {error}" if crashed else str(error)
            self.process_log.error(event, reason=reason, exc_info=error if crashed else None)
        elif event == "crashed":
            traceback.print_exception(error)
        else:
            priority = _ERROR if _stderr_is_journal() else ""
            for line in str(error).splitlines():
                click.echo(f"{priority}zonerd: {line}", err=True)


class Session:
    """What every verb works with: the configuration, the options it came from, and the log."""

    def __init__(
        self, config_file: Path | None, overrides: Sequence[str], verbosity: int, ending: Ending | None = None
    ) -> None:
        self.ending = ending or Ending()
        self.config_file = config_file
        self.overrides = tuple(overrides)
        self.verbosity = verbosity
        self.environment = dict(os.environ)

    @cached_property
    def loaded(self) -> config.Loaded:
        """The configuration with its origins; raises ConfigurationRefused."""
        return config.load(self.config_file, self.environment, self.overrides)

    @cached_property
    def config(self) -> config.Config:
        """The configuration; as root over another owner's data directory, this process becomes that owner."""
        become_owner(self.loaded.config.data_dir)
        return self.loaded.config

    @cached_property
    def sasl_password(self) -> str | None:
        """The password for Kafka, from its file or from systemd's credential; None where there is neither."""
        return config.read_secret(self.config.kafka.sasl_password_file, "kafka_sasl_password", self.environment)

    def refuse_unreadable_secrets(self) -> None:
        """Read the passwords only to raise ConfigurationRefused where their files cannot be read."""
        config.read_secret(self.config.kafka.sasl_password_file, "kafka_sasl_password", self.environment)
        config.read_secret(self.config.redis.password_file, "redis_password", self.environment)

    def warn(self) -> None:
        """Say on stderr what the configuration allows and is yet not safe."""
        for warning in config.warnings(self.config):
            click.echo(f"zonerd: warning: {warning}", err=True)

    @property
    def arguments(self) -> list[str]:
        """The command line that runs a verb with this configuration, up to the verb."""
        options = ["-c", str(self.config_file.resolve())] if self.config_file else []
        for override in self.overrides:
            options += ["-X", override]
        return [sys.executable, "-m", "zonerd", *options]

    def typed(self, *words: str) -> str:
        """Give the line that a person can type to run these words with this configuration."""
        cwd = Path.cwd()
        options = ["-c", hints.shown(self.config_file, cwd)] if self.config_file else []
        for override in self.overrides:
            options += ["-X", override]
        return hints.shell_line(hints.typed(sys.argv[0], cwd), [*options, *words])

    def process_log(self, process: str) -> "Log":
        """Give the log of a process: lines on stdout, as the configuration says, and in the journal of its unit."""
        from zonerd.log import journal  # noqa: PLC0415 - who only asks a question does not pay for it

        section = self.config.log
        unit = {name: value for name, value in self.environment.items() if name in SYSTEMD}
        to = journal.opened(section.journal, unit, sys.stdout.fileno())
        self.ending.process_log = self._log(process, section.level, section.format, sys.stdout, to)
        return self.ending.process_log

    def command_log(self, command: str, level: Level = "warning") -> "Log":
        """Give the log of a one-shot verb: from this level up, on stderr."""
        return self._log(command, level, "auto", sys.stderr)

    def shutdown(self) -> Shutdown:
        """Take signals, and the end of the supervisor named in ZONERD_SUPERVISED, as requests to stop."""
        value = self.environment.get("ZONERD_SUPERVISED", "")
        supervisor_pid = os.getppid() if value == "1" else int(value) if value.isdigit() else None
        return Shutdown(supervisor_pid).install()

    @property
    def plain(self) -> bool:
        """Whether colours are unwanted, even on a terminal."""
        return bool(self.environment.get("NO_COLOR")) or self.environment.get("TERM") == "dumb"

    def _log(self, name: str, level: Level, line_format: Format, to: TextIO, journal: "Journal | None" = None) -> "Log":
        from zonerd import log  # noqa: PLC0415 - as above

        log.configure(self._level(level), line_format, to, colors=to.isatty() and not self.plain, journal=journal)
        return log.logger(name, os.getpid())

    def _level(self, configured: Level) -> Level:
        if self.verbosity > 0:
            return "debug"
        return "error" if self.verbosity < 0 else configured


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Try it: zonerd demo",
)
@click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration [$ZONERD_CONFIG; else ./etc/zonerd.toml, /etc/zonerd/zonerd.toml].",
)
@click.option("-X", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Set one key; wins over the file.")
@click.option("-v", "--verbose", count=True, help="Say more.")
@click.option("-q", "--quiet", count=True, help="Say less.")
@click.version_option(__version__, message="zonerd %(version)s")
@click.pass_context
def zonerd(ctx: click.Context, config_file: Path | None, overrides: tuple[str, ...], verbose: int, quiet: int) -> None:
    """Turn a stream of user-activity events into an exact history and an always-fresh summary."""
    ctx.obj = Session(config_file or _config_place(), overrides, verbose - quiet, ctx.obj)
    if ctx.obj.plain:
        ctx.color = False


def _config_place() -> Path | None:
    named = os.environ.get("ZONERD_CONFIG")
    if named:
        return Path(named)
    return next((place for place in CONFIG_PLACES if place.exists()), None)


def become_owner(data_dir: Path) -> None:
    """Drop root for the owner of the data directory: a file of root's there would lock the owner out."""
    if os.geteuid() != 0 or not data_dir.exists():
        return
    owner = data_dir.stat()
    if owner.st_uid == 0:
        return
    try:
        os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
    except KeyError:
        os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    _fill_missing_streams()
    faulthandler.enable()
    os.umask(0o077)
    _leave_the_unit_of_a_terminal()
    ending = Ending()
    code = _exit_code(lambda: zonerd.main(arguments, prog_name="zonerd", standalone_mode=False, obj=ending), ending)
    shutdown.keep_to_the_end()
    _let_go_of_a_terminal()
    sys.exit(code)


def _let_go_of_a_terminal() -> None:
    """Write what waits for stdout; of a terminal that is gone Python would make an exit code of its own, 120."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EIO:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stderr_is_journal() -> bool:
    """Say whether journald reads our stderr, and so the priority that a line may begin with (sd-daemon(3))."""
    status = os.fstat(sys.stderr.fileno())
    return os.environ.get(SYSTEMD[0]) == f"{status.st_dev}:{status.st_ino}"


def _fill_missing_streams() -> None:
    """Open /dev/null for each standard stream that is closed: else a database would get its number, and lines."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - it stays open


def _leave_the_unit_of_a_terminal() -> None:
    """Forget what systemd told the program whose window this is: what runs here is not a unit."""
    if any(os.isatty(stream.fileno()) for stream in (sys.stdin, sys.stdout, sys.stderr)):
        for name in SYSTEMD:
            os.environ.pop(name, None)


def _exit_code(run: Callable[[], object], ending: Ending) -> int:
    try:
        result = run()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return errors.INTERRUPTED
    except errors.ZonerdError as error:
        ending.say("refused", error)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the one place where a bug becomes an exit code
        ending.say("crashed", error)
        return errors.BUG
    return result if isinstance(result, int) else errors.DONE
