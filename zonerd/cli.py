"""The command line: reads arguments, environment and configuration, and turns an end into an exit code."""

import faulthandler
import os
import pwd
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path

import click

from zonerd import __version__, config, errors, hints, log
from zonerd.shutdown import Shutdown

COMMANDS = (
    "demo",
    "up",
    "ctl",
    "producer",
    "consumer",
    "aggregator",
    "status",
    "health",
    "summary",
    "verify",
    "send",
    "topic",
    "config",
    "version",
    "completion",
)
"""The verbs, in the order in which help shows them; each is a module of `zonerd.commands`."""

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
        command: click.Command = import_module(f"zonerd.commands.{name}").command
        return command


class Ending:
    """Where the end of a process is said: in its own log, once it has one, else on stderr."""

    process_log: log.Log | None = None

    def say(self, event: str, error: BaseException) -> None:
        """Say why it ends."""
        if self.process_log is not None:
            self.process_log.error(event, reason=str(error), exc_info=event == "crashed")
        elif event == "crashed":
            traceback.print_exception(error)
        else:
            for line in str(error).splitlines():
                click.echo(f"zonerd: {line}", err=True)


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

    def process_log(self, process: str) -> log.Log:
        """Give the log of a process: lines on stdout, as the configuration says."""
        log.configure(self._level(self.config.log.level), self.config.log.format, sys.stdout)
        self.ending.process_log = log.logger(process, os.getpid())
        return self.ending.process_log

    def command_log(self, command: str, level: log.Level = "warning") -> log.Log:
        """Give the log of a one-shot verb: from this level up, on stderr."""
        log.configure(self._level(level), "auto", sys.stderr)
        return log.logger(command, os.getpid())

    def shutdown(self) -> Shutdown:
        """Take signals, and the end of the supervisor named in ZONERD_SUPERVISED, as requests to stop."""
        value = self.environment.get("ZONERD_SUPERVISED", "")
        supervisor_pid = os.getppid() if value == "1" else int(value) if value.isdigit() else None
        return Shutdown(supervisor_pid).install()

    def _level(self, configured: log.Level) -> log.Level:
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
    faulthandler.enable()
    os.umask(0o077)
    ending = Ending()
    sys.exit(_exit_code(lambda: zonerd.main(arguments, prog_name="zonerd", standalone_mode=False, obj=ending), ending))


def _exit_code(run: Callable[[], object], ending: Ending) -> int:  # noqa: PLR0911 - a return for each kind of end
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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.DONE
    except Exception as error:  # noqa: BLE001 - the one place where a bug becomes an exit code
        ending.say("crashed", error)
        return errors.BUG
    return result if isinstance(result, int) else errors.DONE
