"""`zonerd up`: all processes, under supervisord in the foreground."""

import os

import click

from zonerd import __version__, supervise
from zonerd.cli import Session
from zonerd.config import Config
from zonerd.store.lock import Lock

LOCK_WAIT_S = 1.5
"""For a predecessor that is just about to end; who is refused shall know within 2 seconds."""


@click.command(
    short_help="Run all processes under supervisord, in the foreground.",
    epilog="Example: zonerd -c etc/zonerd.toml up",
)
@click.pass_obj
def command(session: Session) -> int:
    """Run producer, consumer and aggregator under supervisord, in the foreground.

    Ctrl-C or SIGTERM stops them in order, a second one at once. From a second terminal `zonerd ctl`
    starts, stops and shows them. A changed number of consumers, or another place, wants a new start.
    """
    config = session.config
    session.refuse_unreadable_secrets()
    session.warn()
    shutdown = session.shutdown()
    with Lock(config.data_dir, "supervisor", LOCK_WAIT_S):
        place = supervise.prepare(config, session.config_file)
        click.echo(_announcement(session, config, place))
        return supervise.run(place, session.arguments, shutdown)


def _announcement(session: Session, config: Config, place: supervise.Place) -> str:
    zonerd = session.typed()
    consumer = "consumer" if config.consumer.processes == 1 else "consumer:consumer-0"
    producer = "idle (producer.source = none)" if config.producer.source == "none" else config.producer.source
    lines = [
        f"zonerd {__version__} on {config.data_dir}",
        f"  source       {producer}",
        f"  broker       {config.kafka.bootstrap_servers}, topic {config.kafka.topic}",
        f"  redis        {config.redis.url if config.redis.enabled else 'none (redis.enabled = false)'}",
        f"  supervisord  {place.conf}",
        f"  look closer  {zonerd} ctl status | ctl tail -f {consumer} | summary | verify",
        f"  stop         Ctrl-C, or kill {os.getpid()}; a second time kills at once",
    ]
    return "\n".join(lines)
