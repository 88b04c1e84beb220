"""`zonerd watchdog`: the watchdog process, as supervisord runs it."""

import os
import sys
from pathlib import Path
from typing import TextIO

import click

from zonerd import supervise, watchdog
from zonerd.cli import Session
from zonerd.config import Config
from zonerd.supervise.listener import Listener
from zonerd.supervise.remote import Remote
from zonerd.watchdog.systemd import Systemd


@click.command(
    short_help="Watch all processes; start again what hangs or was given up.",
    epilog="Example: zonerd ctl tail -f watchdog stderr",
)
@click.pass_obj
def command(session: Session) -> None:
    """Watch all processes, start again what hangs or was given up, and tell systemd.

    supervisord runs it as an event listener, its protocol being on stdin and stdout. What it says is on stderr:
    `zonerd ctl tail watchdog stderr` shows it.
    """
    address = session.environment.get("SUPERVISOR_SERVER_URL")
    if address is None:
        raise click.UsageError("supervisord runs it, as an event listener; try: zonerd up")
    config = session.config
    listener = Listener(_events(), _protocol())
    log = session.process_log("watchdog")
    remote = Remote(_socket(address, config), watchdog.ASKED_WITHIN_S)
    systemd = Systemd(log, listens="NOTIFY_SOCKET" in session.environment)
    watchdog.run(config, log, session.shutdown(), listener, remote, systemd)


def _events() -> TextIO:
    """Give stdin as supervisord writes it: UTF-8 whatever the locale, lengths counting every character."""
    return os.fdopen(sys.stdin.fileno(), encoding="utf-8", newline="\n", closefd=False)


def _protocol() -> TextIO:
    """Give stdout for the protocol alone: from now on whoever else writes there writes to stderr."""
    protocol = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return protocol


def _socket(address: str, config: Config) -> Path:
    scheme, separator, path = address.partition("://")
    return Path(path) if separator and scheme == "unix" else supervise.socket_of(config)
