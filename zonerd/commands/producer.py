"""`zonerd producer`: the producer process, as supervisord runs it."""

import click

from zonerd import producer
from zonerd.cli import Session


@click.command(
    short_help="Send the events of producer.source to the topic.",
    epilog="Example: zonerd -X producer.source=simulate producer",
)
@click.pass_obj
def command(session: Session) -> None:
    """Send the events of producer.source to the topic, each at least once.

    Waits, not ready, for whatever is missing. A file is followed as it grows and is rotated; how far it is sent
    is kept in the data directory.
    """
    producer.run(session.config, session.sasl_password, session.process_log("producer"), session.shutdown())
