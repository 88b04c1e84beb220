"""`zonerd aggregator`: the aggregator process, as supervisord runs it."""

import click

from zonerd import aggregator
from zonerd.cli import Session
from zonerd.config import read_secret


@click.command(
    short_help="Count every stored event exactly once; keep Redis up to date.",
    epilog="Example: zonerd aggregator --until-caught-up",
)
@click.option("--until-caught-up", is_flag=True, help="End once all that is stored is counted and published.")
@click.pass_obj
def command(session: Session, until_caught_up: bool) -> None:
    """Count every stored event exactly once and keep Redis up to date.

    Waits, not ready, for whatever is missing; with --until-caught-up it does not wait but ends with 69 or 78.
    """
    config = session.config
    password = read_secret(config.redis.password_file, "redis_password", session.environment)
    if until_caught_up:
        folded = aggregator.catch_up(config, password, session.command_log("aggregator"))
        click.echo(f"{folded} events counted" + (", Redis is up to date" if config.redis.enabled else ""))
        return
    aggregator.run(config, password, session.process_log("aggregator"), session.shutdown())
