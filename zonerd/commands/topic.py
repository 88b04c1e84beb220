"""`zonerd topic`: which topic this is, make it, go on after it was replaced."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from zonerd.cli import Session
from zonerd.errors import ANSWER_IS_NO, StoreUnavailable
from zonerd.incarnation import Topic
from zonerd.kafka.cluster import Cluster, Incarnation
from zonerd.kafka.reader import Reader
from zonerd.store.history import History, Partition


@click.group(epilog="Example: zonerd topic show")
def command() -> None:
    """Show the topic, make it, or go on after it was replaced."""


@command.command(epilog="Example: zonerd topic show --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def show(session: Session, as_json: bool) -> int | None:
    """Show the topic's identity and, for each partition, its watermarks and how far it is stored.

    Exit code 1: there is no such topic.
    """
    with Cluster(session.config.kafka, session.sasl_password) as cluster:
        found = cluster.incarnation()
        if found is None:
            click.echo(f"there is no topic {session.config.kafka.topic}; `zonerd topic create` makes it", err=True)
            return ANSWER_IS_NO
        partitions = [_standing(cluster, partition, _next_offsets(session, found)) for partition in found.partitions]
    identity = {"topic": found.topic, "topic_id": found.topic_id or None, "cluster_id": found.cluster_id}
    if as_json:
        click.echo(json.dumps({"schema": 1, **identity, "partitions": partitions}))
        return None
    click.echo(f"topic {found.topic}, id {found.topic_id or 'none'}, cluster {found.cluster_id}")
    click.echo("partition         low        high      stored         lag")
    for one in partitions:
        cells = ("-" if one[name] is None else one[name] for name in ("low", "high", "next", "lag"))
        click.echo(f"{one['partition']:>9}" + "".join(f"{cell:>12}" for cell in cells))
    return None


@command.command(epilog="Example: zonerd topic create")
@click.pass_obj
def create(session: Session) -> None:
    """Make the topic; one that is there is left alone.

    It gets kafka.topic_partitions and kafka.topic_replication_factor, and its records the broker's time.
    """
    with Cluster(session.config.kafka, session.sasl_password) as cluster:
        if cluster.incarnation() is not None:
            click.echo(f"topic {session.config.kafka.topic} is there already")
            return
        cluster.create_topic()
        click.echo(f"topic {session.config.kafka.topic} made")


@command.command(epilog="Example: zonerd topic accept --dry-run")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def accept(session: Session, dry_run: bool, yes: bool) -> None:
    """Go on with a topic that was deleted and made again, or with another cluster.

    The history so far stays. What was stored of the new topic by mistake is taken back and read again.
    """
    with _topic(session) as topic:
        found, strangers = topic.replaced()
        if not strangers:
            click.echo(f"topic {found.topic} is the one stored here; nothing to do")
            return
        for row, cause in strangers.items():
            click.echo(f"partition {row.partition}, stored up to {row.next_offset}: {cause}")
        if dry_run:
            return
        if not yes and not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked here: say --yes, or --dry-run to look first")
        if not yes:
            click.confirm("Close these and read the topic as it is now, from its beginning?", abort=True, err=True)
        topic.take_over(found, strangers)
        click.echo(f"{len(strangers)} partitions go on with the topic as it is now")


@contextmanager
def _topic(session: Session) -> Iterator[Topic]:
    config, password = session.config, session.sasl_password
    with (
        History.open_writer(config.data_dir) as history,
        Cluster(config.kafka, password) as cluster,
        Reader(config.kafka, config.consumer.batch_bytes, password) as reader,
    ):
        yield Topic(history, cluster, reader, config.kafka, config.consumer, session.command_log("topic", "error"))


def _next_offsets(session: Session, found: Incarnation) -> dict[int, int]:
    try:
        with History.open_reader(session.config.data_dir) as history:
            rows = history.partitions(found.topic)
    except StoreUnavailable:
        return {}
    return {row.partition: row.next_offset for row in rows if _is_of(row, found)}


def _is_of(row: Partition, found: Incarnation) -> bool:
    return row.open and (row.cluster_id, row.topic_id) == (found.cluster_id, found.topic_id)


def _standing(cluster: Cluster, partition: int, next_offsets: dict[int, int]) -> dict[str, Any]:
    marks = cluster.watermarks(partition)
    next_offset = next_offsets.get(partition)
    lag = None if next_offset is None else max(0, marks.high - max(next_offset, marks.low))
    return {"partition": partition, "low": marks.low, "high": marks.high, "next": next_offset, "lag": lag}
