"""What supervisord reads, and supervisorctl against its socket."""

# mypy: allow-subclassing-any

import os
from collections.abc import Sequence
from configparser import Error as ConfError
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final, NamedTuple, NoReturn

from supervisor import supervisorctl
from supervisor.options import ClientOptions, UnhosedConfigParser

from zonerd.config import Config
from zonerd.errors import DONE, Refused
from zonerd.store.files import chown_line

RESTARTING: Final = "zonerd-restarting"
"""The type of the remote communication that tells event listeners: the stop that follows is none."""


DEMO_CACHE: Final = "ZONERD_DEMO_CACHE"
"""The variable that tells a demo's supervisord how the demo's cache starts."""


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
    for folder in (config.run_dir, config.log_dir):
        _make_private(folder)
    programs = config.run_dir / "programs.conf"
    programs.write_text(render_programs(config.consumer.processes), encoding="utf-8")
    conf = config_file.resolve().parent / "supervisord.conf" if config_file is not None else None
    if conf is None or not _listens_at(conf, socket_of(config)):
        conf = config.run_dir / "supervisord.conf"
        conf.write_text(render_supervisord("%(here)s"), encoding="utf-8")
    return Place(conf, programs, config.log_dir)


def render_supervisord(run_dir: str) -> str:
    """Give a supervisord.conf for this run directory, written as supervisord expands it (`%(here)s/run`)."""
    return _template("supervisord.conf").substitute(run_dir=run_dir)


def render_programs(processes: int) -> str:
    """Give the programs of a configuration with so many consumer processes."""
    return _template("programs.conf").substitute(
        common=_COMMON, processes=processes, consumer="consumer" if processes == 1 else "consumer-%(process_num)d"
    )


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


class _ControlOptions(ClientOptions):
    """supervisorctl's options without a file: we know the socket."""

    def default_configfile(self) -> None:
        return None


_COMMON: Final = """\
stdout_logfile_maxbytes = 10MB
stdout_logfile_backups = 3
stderr_logfile_maxbytes = 10MB
stderr_logfile_backups = 3
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
        raise Refused(f"{folder}: not ours; try: {chown_line(folder)}")
