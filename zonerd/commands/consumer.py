"""`zonerd consumer`: one consumer process, as supervisord runs it."""

import click

from zonerd import consumer
from zonerd.cli import Session


@click.command(epilog="Example: zonerd consumer --until-caught-up")
@click.option("--process-number", "number", type=click.IntRange(0), default=0, help="Which of consumer.processes [0].")
@click.option("--until-caught-up", is_flag=True, help="End once all that the topic holds is stored.")
@click.pass_obj
def command(session: Session, number: int, until_caught_up: bool) -> None:
    """Read the topic and store every record exactly once.

    Waits, not ready, for whatever is missing; with --until-caught-up it does not wait but ends with 69 or 78.
    """
    config = session.config
    if number >= config.consumer.processes:
        raise click.BadParameter(f"consumer.processes is {config.consumer.processes}", param_hint="--process-number")
    if until_caught_up:
        stored = consumer.catch_up(config, session.sasl_password, session.command_log("consumer"), number)
        click.echo(f"{stored} events stored")
        return
    log = session.process_log(config.consumer_name(number))
    consumer.run(config, session.sasl_password, log, session.shutdown(), number)
