"""`zonerd sql`: a person's own select over the history."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import IO, Final

import click
import msgspec

from zonerd.cli import Session
from zonerd.commands import lines
from zonerd.errors import ANSWER_IS_NO, DONE
from zonerd.store.database import EVENTS
from zonerd.store.question import NoAnswer, Question, Row

IN_MEMORY_BYTES: Final = 8 * 1024 * 1024
MAX_ANSWER_BYTES: Final = 1024 * 1024 * 1024
MEASURED_ROWS: Final = 1000
"""A terminal's columns are as wide as these first rows want them."""
MAX_COLUMN: Final = 60
AT_ONCE: Final = 1000


class Answer:
    """The rows, kept aside until the database is free again: who reads them may take a day."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._bytes = 0
        self.columns: Sequence[str] = ()

    def take(self, _columns: Sequence[str], row: Row) -> None:
        """Keep a row; a blob as its hexadecimal digits. Raises NoAnswer when it is too much."""
        values = [value.hex() if value.__class__ is bytes else value for value in row]
        self._bytes += self._file.write(msgspec.json.encode(values) + b"\n")
        if self._bytes > MAX_ANSWER_BYTES:
            raise NoAnswer(f"more than {MAX_ANSWER_BYTES >> 30} GiB of rows; ask for fewer")

    def as_json(self) -> Iterator[str]:
        """Give the rows, in order, each as an array."""
        self._file.seek(0)
        for line in self._file:
            yield line.decode().rstrip("\n")

    def cells(self) -> Iterator[list[str]]:
        """Give the rows, in order, as text; null is empty."""
        for line in self.as_json():
            yield ["" if value is None else str(value) for value in msgspec.json.decode(line)]


@click.command(
    short_help="Ask the history a question of your own.",
    epilog="Example: zonerd sql 'select reason, count(*) from dead_letters group by 1'",
)
@click.argument("statement")
@click.option("--csv", "as_csv", is_flag=True, help="CSV, the columns' names first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, 86_400, min_open=True), default=10.0, metavar="S",
    help="Give up after so many seconds [10].",
)  # fmt: skip
@click.pass_obj
def command(session: Session, statement: str, as_csv: bool, as_json: bool, timeout_s: float) -> int:
    """Show the rows of one select over the history, and the answers as `rollups`; nothing can be changed.

    Tables: user_activity, events, dead_letters, gaps, partitions, changes; rollups.total and others. On a terminal a
    table; in a pipe tabs without a header. A blob is shown in hexadecimal digits, null as nothing.

    Exits 1 when there is no history yet, or no answer in time; 2 when it is no select or has an error. While it
    runs, what the pipeline writes stays in the WAL: ask a copy what takes minutes.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv or --json, not both")
    data_dir = session.config.data_dir
    if not (data_dir / EVENTS.name).exists():
        click.echo(f"zonerd: no history yet at {data_dir}", err=True)
        return ANSWER_IS_NO
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as file:
        answer = Answer(file)
        answer.columns = Question(data_dir).ask(statement, answer.take, timeout_s)
        _write(_object(answer) if as_json else _csv(answer) if as_csv else _plain(answer))
    return DONE


def _write(shown: Iterator[str]) -> None:
    while some := list(islice(shown, AT_ONCE)):
        lines.write(some)


def _object(answer: Answer) -> Iterator[str]:
    yield lines.as_json({"schema": 1, "columns": answer.columns, "rows": []})[:-2]
    before = ""
    for row in answer.as_json():
        yield before + lines.harmless(row)
        before = ","
    yield "]}"


def _csv(answer: Answer) -> Iterator[str]:
    yield lines.as_csv(answer.columns)
    yield from map(lines.as_csv, answer.cells())


def _plain(answer: Answer) -> Iterator[str]:
    if not lines.on_terminal():
        yield from map(lines.as_tsv, answer.cells())
        return
    measured = [list(map(_short, row)) for row in (answer.columns, *islice(answer.cells(), MEASURED_ROWS))]
    fill: Callable[[Sequence[str]], str] = lines.aligned(lines.widths(measured))
    yield fill(answer.columns)
    yield from (fill([_short(cell) for cell in row]) for row in answer.cells())


def _short(cell: str) -> str:
    return cell if len(cell) <= MAX_COLUMN else f"{cell[: MAX_COLUMN - 1]}…"
