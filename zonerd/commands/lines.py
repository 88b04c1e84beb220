"""Rows and objects as the lines of a reading verb: aligned and harmless on a terminal, plain in a pipe."""

import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from zonerd.escaping import visible

Cells = Sequence[str]

_UNSAFE: Final = re.compile("[\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""What JSON may hold as it is, and what yet moves a cursor, turns a line around or is not seen."""


def on_terminal() -> bool:
    """Whether a person sees what is written to stdout."""
    return sys.stdout.isatty()


def write(lines: Iterable[str]) -> None:
    """Write lines to stdout in UTF-8, and make sure that they are out."""
    sys.stdout.buffer.writelines(f"{line}\n".encode(errors="backslashreplace") for line in lines)
    sys.stdout.buffer.flush()


def as_json(value: object) -> str:
    """Give a value as one line of JSON, as `harmless` has it."""
    return harmless(json.dumps(value, ensure_ascii=False))


def harmless(text: str) -> str:
    """Give JSON as it is for a program; on a terminal without a character that it could obey, and the same JSON."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if on_terminal() else text


def as_tsv(cells: Cells) -> str:
    """Give cells between tabs, their own tabs, line ends and other control characters escaped."""
    return "\t".join(visible(cell.replace("\\", "\\\\")) for cell in cells)


def as_csv(cells: Cells) -> str:
    """Give cells as a line of CSV (RFC 4180, with LF)."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([visible(cell) for cell in cells] if on_terminal() else cells)
    return text.getvalue()


def aligned(at_least: Sequence[int], *, right: Sequence[int] = ()) -> Callable[[Cells], str]:
    """Give what sets cells in columns of at least these widths, the last cut at the terminal's edge."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - only on a terminal

    edge = shutil.get_terminal_size().columns

    def fill(cells: Cells) -> str:
        padded = []
        for number, (cell, width) in enumerate(zip(map(visible, cells), at_least, strict=True)):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if number in right else cell + space)
        line = "  ".join(padded).rstrip()
        return line if cell_len(line) <= edge else set_cell_size(line, edge - 1) + "…"

    return fill


def table(header: Cells, rows: Sequence[Cells], *, right: Sequence[int] = ()) -> list[str]:
    """Give the lines of a table: aligned below a header on a terminal, else tabs and no header."""
    if not on_terminal():
        return [as_tsv(row) for row in rows]
    fill = aligned(widths((header, *rows)), right=right)
    return [fill(header), *map(fill, rows)]


def widths(rows: Sequence[Cells]) -> list[int]:
    """Give how wide each column is on a terminal."""
    from rich.cells import cell_len  # noqa: PLC0415 - only on a terminal

    return [max(map(cell_len, map(visible, column))) for column in zip(*rows, strict=True)]
