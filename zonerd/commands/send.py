"""`zonerd send`: JSON lines from a file or a pipe into the topic, once."""

import os
import select
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import click

from zonerd import errors
from zonerd.cli import Session
from zonerd.commands.progress import Bar, bar
from zonerd.errors import ServiceUnavailable
from zonerd.kafka.cluster import Cluster
from zonerd.kafka.writer import MESSAGE_OVERHEAD_BYTES, Writer
from zonerd.shutdown import Shutdown
from zonerd.sources.lines import BLOCK_BYTES, Cutter, is_blank, judge

MOST_NAMED: Final = 20
"""So many invalid or refused lines are named; the rest is only counted."""
MESSAGE_TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 10.0
INTERRUPTED_FLUSH_S: Final = 5.0
_LOOK_S: Final = 0.1


class Interrupted(errors.ZonerdError):
    """The user stopped it."""

    exit_code = errors.INTERRUPTED


class Numbered(NamedTuple):
    """A line by its number, from 1, as an editor counts; None: too long to be kept."""

    number: int
    value: bytes | None


class Tally:
    """What became of the lines; names the first that are bad."""

    def __init__(self, screen: Bar) -> None:
        self.invalid = 0
        self.refused = 0
        self.empty = 0
        self._screen = screen
        self._named = 0
        self._too_large: set[int] = set()

    def note_invalid(self, number: int, reason: str, detail: str) -> None:
        """Count a line that is no event."""
        self.invalid += 1
        if reason == "too_large":
            self._too_large.add(number)
        self._name(f"line {number}: invalid: {reason}: {detail}")

    def note_refused(self, number: int, detail: str) -> None:
        """Count a line that Kafka does not take."""
        self.refused += 1
        if number in self._too_large:  # too large for an event, and for Kafka too: one line, counted once
            self.invalid -= 1
        self._name(f"line {number}: refused: {detail}")

    def _name(self, text: str) -> None:
        self._named += 1
        if self._named <= MOST_NAMED:
            self._screen.say(text)
        if self._named == MOST_NAMED:
            self._screen.say("further such lines are counted, not named")


class Input:
    """The lines to send, from `from_line` on; can be read more than once only from a file."""

    def __init__(self, stream: BinaryIO, from_line: int, max_line_bytes: int, stop: Shutdown) -> None:
        self._stream = stream
        self._from_line = from_line
        self._max_line_bytes = max_line_bytes
        self._stop = stop

    def blocks(self, screen: Bar) -> Iterator[list[Numbered] | None]:
        """Give the lines, block by block; None while the other end of a pipe is silent. Ends at a stop."""
        cutter, number = Cutter(self._max_line_bytes), 0
        while not self._stop.requested:
            if not select.select([self._stream], [], [], _LOOK_S)[0]:
                yield None
                continue
            block = os.read(self._stream.fileno(), BLOCK_BYTES)
            screen.advance(len(block))
            cuts = cutter.feed(block) if block else cutter.rest()
            if number + len(cuts) >= self._from_line:
                numbered = [Numbered(at, cut.value) for at, cut in enumerate(cuts, number + 1)]
                yield [line for line in numbered if line.number >= self._from_line]
            number += len(cuts)
            if not block:
                return


@click.command(
    short_help="Send the JSON lines of a file or a pipe to the topic.",
    epilog="""\b
Example: zonerd send events.jsonl
         git log --format='{"user_id":"%ae","activity":"commit","timestamp":%at}' | zonerd send -""",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), default="-")
@click.option("--from-line", type=click.IntRange(1), default=1, metavar="N", help="Begin with line N [1].")
@click.option("--check", is_flag=True, help="Read all first; send nothing when a line is invalid.")
@click.pass_obj
def command(session: Session, file: str, from_line: int, check: bool) -> int:
    """Send the JSON lines of FILE (- or nothing: standard input) to the topic.

    A line that is no event is named with its number and sent as it is: it becomes a dead letter. A line that is
    too large for Kafka is refused. Empty lines, the line ends (LF, CRLF) and a byte order mark at the beginning
    are not sent. Interrupted, it tells how to go on; what was on its way then may be sent twice.

    Exit: 0 all valid, 1 some line invalid or refused, 69 the broker or the topic is out of reach, 130 interrupted.
    """
    session.command_log("send")
    stop = session.shutdown()
    again = session.typed("send", file, *(["--check"] if check else []))
    with ExitStack() as stack:
        stream = stack.enter_context(_open(file, session, stop, again, from_line, spool=check))
        screen = stack.enter_context(bar(_size(stream), quiet=session.verbosity < 0 or stream.isatty()))
        limit = session.config.consumer.max_event_bytes + MESSAGE_OVERHEAD_BYTES
        lines = Input(stream, from_line, limit, stop)
        tally = Tally(screen)
        started = time.monotonic()
        if check and not _check(lines, session, tally, screen, stop):
            screen.close()
            click.echo(f"nothing sent: {_counts(0, tally, started)}")
            return errors.ANSWER_IS_NO
        if stop.requested:
            raise Interrupted(f"interrupted, nothing sent; again: {again} --from-line {from_line}")
        if check:
            stream.seek(0)
            tally = Tally(screen)
            screen.restart()
        return _deliver(lines, session, tally, screen, stop, from_line, again, started)


def _deliver(  # noqa: PLR0913 - what a run needs to send, and to tell
    lines: Input,
    session: Session,
    tally: Tally,
    screen: Bar,
    stop: Shutdown,
    from_line: int,
    again: str,
    started: float,
) -> int:
    config = session.config
    writer = Writer[int](config.kafka, session.sasl_password, config.consumer.max_event_bytes, MESSAGE_TIMEOUT_S)
    failure: ServiceUnavailable | None = None
    with writer:
        try:
            _find_topic(session, stop)
            for block in lines.blocks(screen):
                _send(block, writer, config.consumer.max_event_bytes, tally)
                _make_room(writer, stop)
                _note_refusals(writer, tally)
            _finish(writer, stop)
        except ServiceUnavailable as error:
            failure = error
        _note_refusals(writer, tally)
        screen.close()
    click.echo(_counts(writer.delivered, tally, started))
    from_line = from_line if writer.acknowledged is None else writer.acknowledged + 1
    if failure is not None:
        raise ServiceUnavailable(failure.service, f"{failure.reason}; to go on: {again} --from-line {from_line}")
    if stop.requested:
        raise Interrupted(f"interrupted; to go on: {again} --from-line {from_line}")
    return errors.ANSWER_IS_NO if tally.invalid or tally.refused else errors.DONE


def _find_topic(session: Session, stop: Shutdown) -> None:
    """Wait for the topic as long as is reasonable for someone who looks on."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    with Cluster(session.config.kafka, session.sasl_password) as cluster:
        while not stop.requested:
            try:
                cluster.found_or_made()
            except ServiceUnavailable:
                if time.monotonic() > deadline or not session.config.kafka.create_topic:
                    raise
                stop.wait(0.5)
            else:
                return


def _send(block: list[Numbered] | None, writer: Writer[int], max_event_bytes: int, tally: Tally) -> None:
    for number, line in block or ():
        if line is None:
            tally.note_refused(number, f"longer than {writer.max_message_bytes} bytes")
            writer.skip(number)
        elif is_blank(line):
            tally.empty += 1
            writer.skip(number)
        else:
            key, letter = judge(line, max_event_bytes)
            if letter is not None:
                tally.note_invalid(number, letter.reason, letter.detail)
            writer.send(line, key, number)
    writer.poll(0.0)
    _raise_if_broken(writer)


def _make_room(writer: Writer[int], stop: Shutdown) -> None:
    while not writer.has_room and not stop.requested:
        writer.poll(_LOOK_S)
        _raise_if_broken(writer)


def _finish(writer: Writer[int], stop: Shutdown) -> None:
    """Wait for the last acknowledgements; once a stop is requested, no longer than INTERRUPTED_FLUSH_S."""
    while not stop.requested and not writer.flush(_LOOK_S):
        _raise_if_broken(writer)
    writer.flush(INTERRUPTED_FLUSH_S)
    _raise_if_broken(writer)


def _raise_if_broken(writer: Writer[int]) -> None:
    if not writer.broken:
        return
    if not writer.may_be_renewed:
        raise ServiceUnavailable("kafka", writer.broken)
    writer.renew()


def _note_refusals(writer: Writer[int], tally: Tally) -> None:
    for number, _reason, size_bytes in writer.refusals():
        tally.note_refused(number, f"{size_bytes} bytes: Kafka does not take it")


def _check(lines: Input, session: Session, tally: Tally, screen: Bar, stop: Shutdown) -> bool:
    """Tell whether every line is an event that may be sent; True too when a stop was requested."""
    for block in lines.blocks(screen):
        for number, line in block or ():
            if line is None:
                tally.note_refused(number, "longer than a message may be")
            elif is_blank(line):
                tally.empty += 1
            elif letter := judge(line, session.config.consumer.max_event_bytes)[1]:
                tally.note_invalid(number, letter.reason, letter.detail)
    return stop.requested or not (tally.invalid or tally.refused)


def _open(  # noqa: PLR0913 - and what to say when it is interrupted
    file: str, session: Session, stop: Shutdown, again: str, from_line: int, *, spool: bool
) -> BinaryIO:
    if file != "-":
        try:
            return Path(file).open("rb", buffering=0)  # raw: read by its descriptor
        except OSError as error:
            raise click.UsageError(f"{file}: {error.strerror}") from None
    if sys.stdin is None:
        raise click.UsageError("standard input is closed")
    if sys.stdin.isatty() and session.verbosity >= 0:
        click.echo("reading lines from the terminal; Ctrl-D ends them", err=True)
    if not spool:
        return sys.stdin.buffer
    copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the caller closes it
    while not stop.requested:
        if select.select([sys.stdin], [], [], _LOOK_S)[0]:
            block = os.read(sys.stdin.fileno(), BLOCK_BYTES)
            if not block:
                copy.seek(0)
                return copy
            copy.write(block)
    raise Interrupted(f"interrupted, nothing sent; again: {again} --from-line {from_line}")


def _size(stream: BinaryIO) -> int | None:
    status = os.fstat(stream.fileno())
    return status.st_size or None


def _counts(sent: int, tally: Tally, started: float) -> str:
    counts = f"sent {sent}, invalid {tally.invalid}, refused {tally.refused}, empty {tally.empty}"
    return f"{counts}; {time.monotonic() - started:.1f} s"
