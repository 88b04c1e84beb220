"""`zonerd tail`: the newest stored events, and those that come."""

import json
import math
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

import click

from zonerd import moments
from zonerd.cli import Session
from zonerd.commands import lines
from zonerd.errors import ANSWER_IS_NO, DONE
from zonerd.events import MAX_TIMESTAMP_S, EventRow
from zonerd.store.history import Partition
from zonerd.store.records import Records

LOOK_MS: Final = 250
AT_ONCE: Final = 1000
SHOWN_CHARACTERS: Final = 1000
"""More of an event's properties is on no terminal's line."""

Line = Callable[[Partition, EventRow], str]


@click.command(short_help="Show the newest stored events.", epilog="Example: zonerd tail -f --partition 0")
@click.option("-n", "count", type=click.IntRange(0), default=10, metavar="N", help="So many events [10].")
@click.option("-f", "follow", is_flag=True, help="Go on with the events that come, until Ctrl-C.")
@click.option("--partition", type=click.IntRange(0), metavar="P", help="Of this partition only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the event's position.")
@click.pass_obj
def command(session: Session, count: int, follow: bool, partition: int | None, as_json: bool) -> int:
    """Show the newest stored events by Kafka's timestamp, newest last.

    On a terminal: position, the event's time, user, activity, properties. In a pipe: a line an event, as `zonerd
    send` takes it.

    Exits 1 while there is no history; Ctrl-C ends -f with 0.
    """
    history = Records.open_if_there(session.config.data_dir)
    if history is None:
        click.echo(f"zonerd: no history yet at {session.config.data_dir}", err=True)
        return ANSWER_IS_NO
    line = _object if as_json else _aligned() if lines.on_terminal() else _message
    try:
        with history:
            rows = _rows(history, partition)
            _show(history, rows, history.newest(list(rows.values()), count), line)
            if follow:
                _follow(history, rows, partition, line)
    except KeyboardInterrupt:
        if not follow:
            raise
    return DONE


def _rows(history: Records, partition: int | None) -> dict[int, Partition]:
    return {row.id: row for row in history.partitions() if partition in (None, row.partition)}


def _show(history: Records, rows: Mapping[int, Partition], start: Mapping[int, int], line: Line) -> None:
    grown = [row for row in rows.values() if start[row.id] < row.next_offset]
    for some in _some(line(rows[id_], event) for id_, event in history.events_of(grown, start)):
        lines.write(some)


def _some(shown: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(shown)
    while some := list(islice(iterator, AT_ONCE)):
        yield some


def _follow(history: Records, rows: Mapping[int, Partition], partition: int | None, line: Line) -> None:
    """Show what each partition has got since, those that are new from their beginning; only an exception ends it.

    Raises BrokenPipeError as soon as nobody reads any more, also while there is nothing to write.
    """
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)
    while True:
        if reader.poll(LOOK_MS):
            raise BrokenPipeError
        ends = {id_: row.next_offset for id_, row in rows.items()}
        rows = _rows(history, partition)
        _show(history, rows, {row.id: ends.get(row.id, row.first_offset) for row in rows.values()}, line)


def _message(_row: Partition, event: EventRow) -> str:
    """Give the event as a message that is decoded to the same one."""
    _, user_id, activity, timestamp_ms, _, properties = event
    message = {"user_id": user_id, "activity": activity, "timestamp": _timestamp(timestamp_ms)}
    text = json.dumps(message, ensure_ascii=False)
    return _with(text, f", {properties[1:-1]}") if properties else text


def _timestamp(at_ms: int) -> float | str:
    """Give a moment in seconds; as text where `decode` would take the number for another one, or for none."""
    if at_ms >= MAX_TIMESTAMP_S * 1000 or math.floor(at_ms / 1000 * 1000 + 0.0005) != at_ms:
        return moments.text(at_ms)
    return at_ms / 1000 if at_ms % 1000 else at_ms // 1000


def _object(row: Partition, event: EventRow) -> str:
    offset, user_id, activity, timestamp_ms, logged_ms, properties = event
    shown = {
        "schema": 1,
        "topic": row.topic,
        "topic_id": row.topic_id or None,
        "partition": row.partition,
        "offset": offset,
        "logged_ms": logged_ms,
        "timestamp_ms": timestamp_ms,
        "user_id": user_id,
        "activity": activity,
    }
    return lines.harmless(_with(json.dumps(shown, ensure_ascii=False), f', "properties": {properties or "{}"}'))


def _with(text: str, more: str) -> str:
    """Put more JSON, as it was stored, into an object's text: a number there may have more digits than Python reads."""
    return f"{text[:-1]}{more}}}"


def _aligned() -> Line:
    fill = lines.aligned((10, 24, 12, 16, 0))

    def line(row: Partition, event: EventRow) -> str:
        offset, user_id, activity, timestamp_ms, _, properties = event
        return fill(
            (
                f"{row.partition}:{offset}",
                moments.text(timestamp_ms),
                str(user_id),
                activity,
                (properties or "")[:SHOWN_CHARACTERS],
            )
        )

    return line
