"""`zonerd offsets`: where each partition stands, at the broker, in the history and in the answers."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import click

from zonerd.cli import Session
from zonerd.commands import lines
from zonerd.config import Config
from zonerd.errors import ANSWER_IS_NO, DONE, SERVICE_UNAVAILABLE, ServiceUnavailable, StoreUnavailable
from zonerd.kafka.cluster import Cluster, Incarnation, Watermarks
from zonerd.store.answers import Answers
from zonerd.store.history import Partition
from zonerd.store.records import Records

HEADER: Final = ("partition", "low", "first", "next", "committed", "high", "lag", "cursor", "gaps")


class Stored(NamedTuple):
    """What the two files say of one partition row; the cursor is None where nothing is folded of it."""

    row: Partition
    gaps: int
    cursor: int | None


class Broker(NamedTuple):
    """What Kafka says of the topic as it is now."""

    topic: Incarnation
    watermarks: dict[int, Watermarks]
    committed: dict[int, int]

    def has(self, row: Partition) -> bool:
        """Whether this row is of the topic as it is now."""
        known = (row.cluster_id, row.topic) == (self.topic.cluster_id, self.topic.topic)
        return row.open and known and row.topic_id in ("", self.topic.topic_id)


@click.command(short_help="Show where each partition stands.", epilog="Example: zonerd offsets --json")
@click.option("--all", "every", is_flag=True, help="Partitions of topics that were replaced, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(session: Session, every: bool, as_json: bool) -> int:
    """Show for each partition its offsets at the broker, in the history and in the answers.

    low, high: where the broker's log begins and where its last stable record ends; first, next: the history has all
    from first to below next; committed: the group's offset at the broker; lag: records from next to high; cursor: the
    answers count all below it; gaps: offsets at which there is no record. A dash: nobody can tell.

    Exits 1 while there is no topic or no history, and 69 when Kafka does not answer, having shown what is stored.
    """
    stored = _stored(session.config)
    code, broker, trouble = DONE, None, None
    try:
        broker = _broker(session)
        if broker is None:
            code, trouble = ANSWER_IS_NO, f"there is no topic {session.config.kafka.topic}"
    except ServiceUnavailable as error:
        code, trouble = SERVICE_UNAVAILABLE, str(error)
    rows = _rows(stored or [], broker, every=every)
    if as_json:
        lines.write([lines.as_json({"schema": 1, "partitions": rows, "kafka": trouble})])
    elif rows:
        lines.write(_table(rows, session.config.kafka.topic))
    for words in (trouble, f"no history yet at {session.config.data_dir}" if stored is None else None):
        if words:
            click.echo(f"zonerd: {words}", err=True)
    return code or (ANSWER_IS_NO if stored is None else DONE)


def _stored(config: Config) -> list[Stored] | None:
    """Read the answers before the history, and the broker last: so no position is ahead of what it follows."""
    cursors = _cursors(config)
    history = Records.open_if_there(config.data_dir)
    if history is None:
        return None
    with history:
        folded = cursors.get(history.store_id, {})
        return [Stored(row, history.gap_offsets(row.id), folded.get(row.id)) for row in history.partitions()]


def _cursors(config: Config) -> dict[str, dict[int, int]]:
    """Give how far each partition row is folded, by the history that it is of."""
    try:
        with Answers.open_reader(config.data_dir) as answers:
            snapshot = answers.read(0)
    except StoreUnavailable:
        return {}
    if snapshot is None:
        return {}
    return {snapshot.cursor.store_id: {id_: place.offset for id_, place in snapshot.cursor.places.items()}}


def _broker(session: Session) -> Broker | None:
    with Cluster(session.config.kafka, session.sasl_password) as cluster:
        topic = cluster.incarnation()
        if topic is None:
            return None
        committed = cluster.committed(topic.partitions)
        return Broker(topic, {number: cluster.watermarks(number) for number in topic.partitions}, committed)


def _rows(stored: Sequence[Stored], broker: Broker | None, *, every: bool) -> list[dict[str, object]]:
    shown = [one for one in stored if every or one.row.open]
    rows = [_row(one, broker if broker and broker.has(one.row) else None) for one in shown]
    if broker is not None:
        known = {one.row.partition for one in stored if broker.has(one.row)}
        rows += [_unread(number, broker) for number in broker.topic.partitions if number not in known]
    return rows


def _row(stored: Stored, broker: Broker | None) -> dict[str, object]:
    row = stored.row
    marks = broker.watermarks.get(row.partition) if broker else None
    return {
        **_identity(row.cluster_id, row.topic, row.topic_id, row.partition),
        "open": row.open,
        "low": marks and marks.low,
        "first": row.first_offset,
        "next": row.next_offset,
        "committed": broker.committed.get(row.partition) if broker else None,
        "high": marks and marks.high,
        "lag": marks and max(0, marks.high - max(row.next_offset, marks.low)),
        "cursor": stored.cursor,
        "gaps": stored.gaps,
    }


def _unread(partition: int, broker: Broker) -> dict[str, object]:
    topic, marks = broker.topic, broker.watermarks[partition]
    return {
        **_identity(topic.cluster_id, topic.topic, topic.topic_id, partition),
        "open": True,
        **dict.fromkeys(HEADER[1:]),
        "low": marks.low,
        "committed": broker.committed.get(partition),
        "high": marks.high,
    }


def _identity(cluster_id: str, topic: str, topic_id: str, partition: int) -> dict[str, object]:
    return {"topic": topic, "partition": partition, "topic_id": topic_id or None, "cluster_id": cluster_id}


def _table(rows: Sequence[dict[str, object]], topic: str) -> list[str]:
    cells = [[_name(row, topic), *(_cell(row[name]) for name in HEADER[1:])] for row in rows]
    return lines.table(HEADER, cells, right=range(1, len(HEADER)))


def _name(row: dict[str, object], topic: str) -> str:
    if row["topic"] == topic and row["open"]:
        return str(row["partition"])
    return f"{row['topic']}/{row['partition']}{'' if row['open'] else ' (closed)'}"


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
