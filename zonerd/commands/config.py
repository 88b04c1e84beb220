"""`zonerd config`: check, show and begin a configuration; make a copy of the data another store."""

import json
import sys
from importlib.resources import files
from pathlib import Path

import click

from zonerd.cache import Cache
from zonerd.cli import Session, become_owner
from zonerd.config import flatten
from zonerd.errors import Refused
from zonerd.kafka.cluster import Cluster
from zonerd.store.database import EVENTS
from zonerd.store.identity import Identity, identity, renew
from zonerd.store.lock import all_locks

ROLES = ("supervisor", "producer", "consumer-0", "aggregator")

MUST_DIFFER = """\
Before it runs beside the original its configuration must differ in
  redis.prefix, and then redis.summary_key, or redis.url: else the later one waits, not ready, for the other to end
  kafka.group_id: else tools that show lag take both for one reader
  http.port, and store.run_dir where it is set: else it has no ports, or the other's
  producer.source: with "file" or "simulate" it would send what the original sends, to the same topic"""


@click.group(
    short_help="Check, show and begin a configuration; part a copy.", epilog="Example: zonerd config show --origin"
)
def command() -> None:
    """Check, show and begin a configuration; make a copy of the data another store."""


@command.command(epilog="Example: zonerd -c etc/zonerd.toml config check")
@click.pass_obj
def check(session: Session) -> None:
    """Check the configuration; each error is one line, and the exit code is 78.

    Files of passwords are read and Kafka's properties tried, but no service is asked anything.
    """
    config = session.config
    with Cluster(config.kafka, session.sasl_password):
        Cache.of(config.redis, session.environment)
    session.warn()
    click.echo(f"{session.loaded.path or 'the defaults'}: good")


@command.command(epilog="Example: zonerd config show --origin")
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def show(session: Session, origin: bool, as_json: bool) -> None:
    """Show every key with its value, as merged from defaults, file, environment and -X."""
    values = flatten(session.loaded.config)
    origins = {key: session.loaded.origins.get(key, "default") for key in values}
    if as_json:
        click.echo(json.dumps({"schema": 1, "values": values, **({"origins": origins} if origin else {})}))
        return
    for key, value in values.items():
        click.echo(f"{key} = {json.dumps(value)}" + (f"  # {origins[key]}" if origin else ""))


@command.command(epilog="Example: zonerd config init /etc/zonerd/zonerd.toml")
@click.argument("file", type=click.Path(path_type=Path), required=False)
def init(file: Path | None) -> None:
    """Write the reference configuration, every key with its default, to FILE or stdout."""
    text = files("zonerd").joinpath("reference.toml").read_text(encoding="utf-8")
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise Refused(f"{file} exists already; it was left as it is") from None
    except OSError as error:
        raise Refused(f"{file}: {error.strerror}") from None


@command.command("new-identity", epilog="Example: zonerd config new-identity /srv/staging --dry-run")
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def new_identity(directory: Path, dry_run: bool, yes: bool) -> None:
    """Give the copy of a data directory in DIR an identity of its own, so that it can run beside the original.

    History and answers stay as they are and go on from where they are; only their ids change, and everything is sent
    to Redis anew. Nothing may run over DIR: else the exit code is 78, and who runs is named. The configuration is not
    asked: DIR counts. What else must differ is said at the end.
    """
    become_owner(directory)
    if not (directory / EVENTS.name).exists():
        raise Refused(f"{directory}: no data directory: there is no {EVENTS.name}")
    with all_locks(directory, ROLES):
        was = identity(directory)
        click.echo(f"{directory}: {_who(was)}")
        if dry_run:
            click.echo("would get an identity of its own; nothing was written")
            return
        if not yes and not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked here: say --yes, or --dry-run to look first")
        if not yes:
            click.confirm("Make it another store? Not the original, if Redis shows it.", abort=True, err=True)
        now = renew(directory, was)
    click.echo(f"is now: {_who(now)}")
    click.echo(MUST_DIFFER)


def _who(one: Identity) -> str:
    return f"store {one.store_id}, " + (f"answers {one.rollups_id}" if one.rollups_id else "no answers")
