"""The progress bar of a one-shot verb: on a terminal, on stderr; elsewhere nothing."""

import sys
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """Shows how many bytes are done, and lines of text above; without a terminal only the text."""

    def __init__(self, progress: "Progress | None", total: int | None) -> None:
        self._progress = progress
        self._total = total
        if progress is not None:
            progress.start()
            self._task = progress.add_task("", total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, number: int) -> None:
        """Note that so many more bytes are done."""
        if self._progress is not None:
            self._progress.advance(self._task, number)

    def restart(self) -> None:
        """Begin again at nothing."""
        if self._progress is not None:
            self._progress.reset(self._task, total=self._total)

    def say(self, text: str) -> None:
        """Show a line of text on stderr."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text, err=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()


def bar(total_bytes: int | None, *, quiet: bool) -> Bar:
    """Give a bar for so many bytes (None: nobody knows)."""
    if quiet or not sys.stderr.isatty():
        return Bar(None, total_bytes)
    from rich.console import Console  # noqa: PLC0415 - slow, and only for a terminal
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeElapsedColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    return Bar(Progress(*columns, console=Console(stderr=True), transient=True), total_bytes)
