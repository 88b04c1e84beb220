"""`zonerd up`: all processes, under supervisord in the foreground."""

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click

from zonerd import __version__, supervise
from zonerd.cli import Session
from zonerd.config import Config
from zonerd.errors import ConfigurationRefused
from zonerd.ports import NAME
from zonerd.store.lock import Lock
from zonerd.supervise import server

LOCK_WAIT_S = 1.5
"""For a predecessor that is just about to end; who is refused shall know within 2 seconds."""


@click.command(
    short_help="Run all processes under supervisord, in the foreground.",
    epilog="Example: zonerd -c etc/zonerd.toml up",
)
@click.pass_obj
def command(session: Session) -> int:
    """Run producer, consumer, aggregator and their watchdog under supervisord, in the foreground.

    Ctrl-C or SIGTERM stops them in order, a second one at once. From a second terminal `zonerd ctl`
    starts, stops and shows them. SIGHUP reads the configuration anew and restarts them in order, unless
    it is refused; where there is a terminal, it means that the terminal has gone, and stops them.
    """
    config = session.config
    session.refuse_unreadable_secrets()
    session.warn()
    hangup_stops = _has_terminal() or supervise.DEMO_CACHE in session.environment
    shutdown = session.shutdown().install(hangup=hangup_stops)
    with Lock(config.data_dir, "supervisor", LOCK_WAIT_S):
        place = supervise.prepare(config, session.config_file)
        click.echo(_announcement(session, config, place))
        again = None if hangup_stops else partial(_read_again, session)
        return server.run(place, session.arguments, shutdown, again)


def _read_again(session: Session) -> supervise.Place:
    """Check the configuration as it is now, and prepare what supervisord reads; raises Refused."""
    fresh = Session(session.config_file, session.overrides, session.verbosity, session.ending)
    fresh.refuse_unreadable_secrets()
    config = fresh.config
    moved = [key for key in ("data_dir", "run_dir") if getattr(config, key) != getattr(session.config, key)]
    if moved:
        raise ConfigurationRefused([f"store.{key}: another place wants a new start of zonerd up" for key in moved])
    fresh.warn()
    place = supervise.prepare(config, fresh.config_file)
    click.echo(_announcement(fresh, config, place))
    return place


def _has_terminal() -> bool:
    """Say whether a terminal controls this process, and sends SIGHUP when it goes."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _announcement(session: Session, config: Config, place: supervise.Place) -> str:
    zonerd = session.typed()
    consumer = "consumer" if config.consumer.processes == 1 else "consumer:consumer-0"
    producer = "idle (producer.source = none)" if config.producer.source == "none" else config.producer.source
    lines = [
        f"zonerd {__version__} on {config.data_dir}",
        f"  source       {producer}",
        f"  broker       {config.kafka.bootstrap_servers}, topic {config.kafka.topic}",
        f"  redis        {config.redis.url if config.redis.enabled else 'none (redis.enabled = false)'}",
        f"  http         {config.http.host}: {_ports(config)}",
        f"  supervisord  {place.conf}",
        f"  look closer  {zonerd} status | ctl tail -f {consumer} | summary | verify",
        f"  stop         {_how_to_stop(session.environment)}",
    ]
    return "\n".join(lines)


def _how_to_stop(environment: Mapping[str, str]) -> str:
    """Give what a person does: a unit, or a container, that is only killed is started again."""
    if "INVOCATION_ID" in environment:
        return f"systemctl stop {_unit() or 'this unit'}"
    if os.getpid() == 1:
        return "stop this container: docker compose stop, docker stop"
    return f"Ctrl-C, or kill {os.getpid()}; a second time kills at once"


def _unit() -> str:
    """Give the name of the systemd unit that this process is in; '' in none."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"/([^/\n]+)\.service$", groups, re.MULTILINE)
    return found.group(1) if found else ""


def _ports(config: Config) -> str:
    """Give the port of each process, the first and the last of several consumers."""
    told: dict[str, list[int]] = {}
    for name in config.processes:
        told.setdefault(name.partition("-")[0], []).append(config.port_of(name))
    spans = {role: str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}" for role, found in told.items()}
    said = ", ".join(f"{role} {span if told[role][0] else 'any'}" for role, span in spans.items())
    return said if all(config.port_of(name) for name in config.processes) else f"{said}; see {config.run_dir / NAME}"
