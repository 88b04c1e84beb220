"""`zonerd version`: what runs here."""

import json
import platform

import apsw
import click
import confluent_kafka
import redis
import supervisor.options

from zonerd import __version__


@click.command(epilog="Example: zonerd version --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> None:
    """Show the versions of zonerd and of what it stands on."""
    versions = {
        "zonerd": __version__,
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "librdkafka": confluent_kafka.libversion()[0],
        "redis-py": redis.__version__,
        "supervisor": supervisor.options.VERSION,
    }
    if as_json:
        click.echo(json.dumps({"schema": 1, **versions}))
    else:
        click.echo("\n".join(f"{name} {version}" for name, version in versions.items()))
