"""`zonerd config`: check, show and begin a configuration."""

import json
from importlib.resources import files
from pathlib import Path

import click

from zonerd.cache import Cache
from zonerd.cli import Session
from zonerd.config import flatten
from zonerd.errors import Refused
from zonerd.kafka.cluster import Cluster


@click.group(epilog="Example: zonerd config show --origin")
def command() -> None:
    """Check, show and begin a configuration."""


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
