"""`zonerd dead-letters`: the records that are no events; look at them, and take them along."""

import codecs
import heapq
import re
import sys
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import click

from zonerd import moments
from zonerd.cli import Session
from zonerd.commands import lines
from zonerd.commands.progress import bar
from zonerd.errors import ANSWER_IS_NO, DONE
from zonerd.escaping import visible
from zonerd.events import REASONS
from zonerd.store.history import DeadLetterRow, Partition
from zonerd.store.records import BEGINNING_BYTES, Brief, Records

HEADER: Final = ("position", "time", "reason", "bytes", "detail", "payload")
MAX_DETAIL: Final = 60
LINE_BYTES: Final = 16
_POSITION: Final = re.compile(r"(?:([A-Za-z0-9._-]+)/)?(\d{1,10}):(\d{1,18})", re.ASCII)


class Filter(NamedTuple):
    """Which dead letters are meant; None: all."""

    reason: str | None
    since_ms: int | None

    def takes(self, reason: str, logged_ms: int) -> bool:
        """Whether one with this reason and Kafka timestamp is."""
        return self.reason in (None, reason) and (self.since_ms is None or logged_ms >= self.since_ms)


class Moment(click.ParamType[int]):
    """A moment as `zonerd.moments` reads it, in milliseconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; a usage error says what can be written."""
        try:
            return moments.milliseconds(str(value), time.time_ns() // 1_000_000)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Position(NamedTuple):
    """Where a record is; without a topic it is the configured one's."""

    topic: str | None
    partition: int
    offset: int


class Place(click.ParamType[Position]):
    """A position as it is listed."""

    name = "position"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Position:
        """Read it; a usage error says what can be written."""
        found = _POSITION.fullmatch(str(value))
        if found is None:
            self.fail("write it as PARTITION:OFFSET or TOPIC/PARTITION:OFFSET", param, ctx)
        return Position(found[1], int(found[2]), int(found[3]))


@click.group(short_help="Look at the records that are no events.", epilog="Example: zonerd dead-letters list")
def command() -> None:
    """List, show and export the dead letters: records that are no events, kept as they came."""


reason_option = click.option("--reason", type=click.Choice(REASONS), metavar="R", help=f"Only: {', '.join(REASONS)}.")
since_option = click.option(
    "--since", type=Moment(), metavar="T", help="Only since T by Kafka's timestamp (2h, 3d, …)."
)


@command.command("list", epilog="Example: zonerd dead-letters list --reason not_json --since 2h")
@reason_option
@since_option
@click.option("--limit", type=click.IntRange(0), default=50, metavar="N", help="The newest N [50]; 0: all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def list_(session: Session, reason: str | None, since: int | None, limit: int, as_json: bool) -> int:
    """List the dead letters, newest last, and how many there are of each reason. Exits 1 while there is no history."""
    history = _open(session)
    if history is None:
        return ANSWER_IS_NO
    counts: Counter[str] = Counter()
    with history:
        rows = {row.id: row for row in history.partitions()}
        found = _found(history, list(rows.values()), Filter(reason, since), counts)
        newest = sorted(heapq.nlargest(limit, found) if limit else found)
    more = counts.total() - len(newest)
    if as_json:
        letters = [_brief(rows[id_], brief) for _, id_, _, brief in newest]
        lines.write([lines.as_json({"schema": 1, "dead_letters": letters, "more": more, "reasons": dict(counts)})])
        return DONE
    cells = [_cells(session, rows[id_], brief) for _, id_, _, brief in newest]
    if cells:
        lines.write(lines.table(HEADER, cells, right=[3]))
    click.echo(_summary(counts, more), err=True)
    return DONE


@command.command(epilog="Example: zonerd dead-letters show 2:1047")
@click.argument("position", type=Place(), metavar="P:O")
@click.option("--raw", is_flag=True, help="The payload's bytes, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def show(session: Session, position: Position, raw: bool, as_json: bool) -> int:
    """Show all of one dead letter: the payload as text, or in hexadecimal digits where it is not UTF-8.

    Where several topics of one name have followed each other, each may have one there: --raw takes the newest.
    Exits 1 when there is none.
    """
    history = _open(session)
    if history is None:
        return ANSWER_IS_NO
    topic = position.topic or session.config.kafka.topic
    with history:
        rows = [row for row in history.partitions() if (row.topic, row.partition) == (topic, position.partition)]
        found = [(row, letter) for row in rows if (letter := history.dead_letter(row.id, position.offset))]
    if not found:
        click.echo(f"zonerd: no dead letter at {topic}/{position.partition}:{position.offset}", err=True)
        return ANSWER_IS_NO
    if raw:
        sys.stdout.buffer.write(found[-1][1][4] or b"")
        sys.stdout.buffer.flush()
    elif as_json:
        lines.write([lines.as_json({"schema": 1, "dead_letters": [_whole(*one) for one in found]})])
    else:
        for one in found:
            lines.write(_page(*one))
    return DONE


@command.command(epilog="Example: zonerd dead-letters export --since 3d > dead-letters.jsonl")
@reason_option
@since_option
@click.option("--json", is_flag=True, expose_value=False, help="As it is without: a JSON object a line.")
@click.pass_obj
def export(session: Session, reason: str | None, since: int | None) -> int:
    """Write every dead letter as a line of JSON, with key and payload in Base64. Exits 1 while there is no history."""
    history = _open(session)
    if history is None:
        return ANSWER_IS_NO
    wanted = Filter(reason, since)
    with history, bar(None, quiet=session.verbosity < 0 or lines.on_terminal()) as screen:
        for row in history.partitions():
            for letter in history.stored("dead_letters", row.id, row.first_offset, row.next_offset):
                if wanted.takes(letter[1], letter[5]):
                    line = lines.as_json({"schema": 1, **_whole(row, letter)})
                    lines.write([line])
                    screen.advance(len(line))
    return DONE


def _open(session: Session) -> Records | None:
    history = Records.open_if_there(session.config.data_dir)
    if history is None:
        click.echo(f"zonerd: no history yet at {session.config.data_dir}", err=True)
    return history


def _found(
    history: Records, rows: list[Partition], wanted: Filter, counts: Counter[str]
) -> Iterator[tuple[int, int, int, Brief]]:
    """Give what is wanted, as it is sorted by time, and count it."""
    for row in rows:
        for brief in history.briefs(row):
            if wanted.takes(brief.reason, brief.logged_ms):
                counts[brief.reason] += 1
                yield brief.logged_ms, row.id, brief.offset, brief


def _summary(counts: Counter[str], more: int) -> str:
    if not counts:
        return "no dead letters"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
    older = f"; {more:,} older are not shown (--limit 0 shows all)" if more else ""
    return f"{counts.total():,} dead letters: {reasons}{older}"


def _position(session: Session, row: Partition, offset: int) -> str:
    known = row.open and row.topic == session.config.kafka.topic
    return f"{'' if known else f'{row.topic}/'}{row.partition}:{offset}"


def _cells(session: Session, row: Partition, brief: Brief) -> list[str]:
    return [
        _position(session, row, brief.offset),
        moments.text(brief.logged_ms),
        brief.reason,
        "-" if brief.size_bytes is None else str(brief.size_bytes),
        brief.detail if len(brief.detail) <= MAX_DETAIL else f"{brief.detail[: MAX_DETAIL - 1]}…",
        _beginning(brief),
    ]


def _beginning(brief: Brief) -> str:
    """Give the payload's beginning as text, what is not UTF-8 escaped; a character that was cut is left out."""
    if brief.beginning is None or brief.size_bytes is None:
        return ""
    cut = brief.size_bytes > BEGINNING_BYTES
    text = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode(brief.beginning, final=not cut)
    return f"{text}…" if cut else text


def _identity(row: Partition, offset: int) -> dict[str, object]:
    return {
        "topic": row.topic,
        "partition": row.partition,
        "offset": offset,
        "topic_id": row.topic_id or None,
        "cluster_id": row.cluster_id,
        "open": row.open,
    }


def _brief(row: Partition, brief: Brief) -> dict[str, object]:
    return {
        **_identity(row, brief.offset),
        "reason": brief.reason,
        "detail": brief.detail,
        "logged_ms": brief.logged_ms,
        "size_bytes": brief.size_bytes,
        "beginning": None if brief.beginning is None else _beginning(brief),
    }


def _whole(row: Partition, letter: DeadLetterRow) -> dict[str, object]:
    offset, reason, detail, key, payload, logged_ms = letter
    return {
        **_identity(row, offset),
        "reason": reason,
        "detail": detail,
        "logged_ms": logged_ms,
        "key_base64": None if key is None else b64encode(key).decode(),
        "payload_base64": None if payload is None else b64encode(payload).decode(),
    }


def _page(row: Partition, letter: DeadLetterRow) -> Iterator[str]:
    """Give a dead letter for the eye, line by line."""
    offset, reason, detail, key, payload, logged_ms = letter
    yield f"position  {row.topic}/{row.partition}:{offset}"
    yield f"topic id  {row.topic_id or 'none'}{'' if row.open else ' (replaced since)'}"
    yield f"time      {moments.text(logged_ms)}"
    yield f"reason    {reason}: {visible(detail)}"
    yield f"key       {'none' if key is None else visible(key.decode(errors='backslashreplace'))}"
    yield f"payload   {'none (a tombstone)' if payload is None else f'{len(payload):,} bytes'}"
    if payload:
        yield ""
        yield from _payload(payload)


def _payload(payload: bytes) -> Iterator[str]:
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        yield from _dump(payload)
        return
    yield from map(visible, text.split("\n"))


def _dump(payload: bytes) -> Iterator[str]:
    for start in range(0, len(payload), LINE_BYTES):
        piece = payload[start : start + LINE_BYTES]
        text = "".join(one if one.isascii() and one.isprintable() else "." for one in piece.decode("latin-1"))
        yield f"{start:08x}  {piece.hex(' '):<{3 * LINE_BYTES - 1}}  {text}"
