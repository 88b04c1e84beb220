"""`zonerd demo`: the whole pipeline, with nothing to set up."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zonerd import demo, hints
from zonerd.cli import Session, become_owner
from zonerd.config import Config
from zonerd.demo import Screen
from zonerd.demo.looks import Seen
from zonerd.demo.place import Place, Wanted
from zonerd.ports import NAME

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

LINE_EVERY_S = 5.0
QUIET_S = 10.0
SHOWN_ACTIVITIES = 10
GIT_LOG = """git log --format='{"user_id":"%ae","activity":"commit","timestamp":%at}'"""


@click.command(
    short_help="Run the whole pipeline here, on a broker and a cache of its own.",
    epilog="Example: zonerd demo --rate 1000 --for 30",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("var/demo"),
    show_default=True,
    metavar="DIR",
    help="Where it keeps its history; a second start goes on with it.",
)
@click.option(
    "--rate",
    "rate_per_s",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="N",
    help="Simulated events a second.",
)
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="End after so many seconds [when stopped].",
)
@click.pass_obj
def command(session: Session, folder: Path, rate_per_s: float, for_s: float | None) -> int:
    """Run everything over DIR, on an in-memory broker and a cache of its own, and show it.

    Ctrl-C or SIGTERM stops it in order, a second one at once. While it runs, every other command
    works from a second terminal, with -c DIR/zonerd.toml.
    """
    become_owner(folder)
    screen: Screen = TableScreen() if sys.stdout.isatty() else LineScreen()
    wanted = Wanted(folder, rate_per_s, for_s, session.overrides)
    return demo.run(wanted, session.environment, session.shutdown(), screen)


class LineScreen:
    """A line each 5 seconds, for a log or a pipe."""

    def __init__(self) -> None:
        self.gone = False
        self._program = hints.typed(sys.argv[0], Path.cwd())
        self._place: Place | None = None
        self._began_at = self._said_at = time.monotonic()
        self._flowing = False

    def introduce(self, place: Place, settings: Config, found: int) -> None:
        """Say where it runs, what it found and what to type next."""
        self._place = place
        for line in introduction(place, settings, found, self._program, Path.cwd()):
            self.say(line)

    def say(self, line: str) -> None:
        """Say one line; a reader that is gone is noted, not raised."""
        try:
            click.echo(line)
        except OSError:
            self._leave()

    def show(self, seen: Seen) -> None:
        """Show the first events at once, then a line each 5 seconds."""
        now = time.monotonic()
        first = bool(seen.summary) and not self._flowing
        if first or now - self._said_at >= LINE_EVERY_S:
            self._said_at, self._flowing = now, self._flowing or first
            self.say(f"{time.strftime('%H:%M:%S')} {as_line(seen)}{self._advice(seen)}")

    def close(self) -> None:
        """Nothing: every line stays."""

    def _advice(self, seen: Seen) -> str:
        """Say where to look when nothing flows."""
        if seen.summary or self._place is None or time.monotonic() - self._began_at < QUIET_S:
            return ""
        return f"; look at {hints.shown(self._place.log.parent, Path.cwd())}"

    def _leave(self) -> None:
        self.gone = True
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until this process ends


class TableScreen(LineScreen):
    """A table that keeps itself up to date, for a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._live: Live | None = None

    def show(self, seen: Seen) -> None:
        """Draw the table again."""
        from rich.live import Live  # noqa: PLC0415 - slow, and for a terminal only

        table = as_table(seen, time.monotonic() - self._began_at, self._advice(seen))
        try:
            if self._live is None:
                self._live = Live(table, auto_refresh=False)
                self._live.start()
            self._live.update(table, refresh=True)
        except OSError:
            self._leave()

    def close(self) -> None:
        """Leave the last table where it is."""
        if self._live is not None:
            live, self._live = self._live, None
            try:
                live.stop()
            except OSError:
                self._leave()


def introduction(place: Place, settings: Config, found: int, program: str, cwd: Path) -> list[str]:
    """Give what a person must know at the start: where, what was found, what to type next."""
    zonerd = hints.shell_line(program, ["-c", hints.shown(place.config_file, cwd)])
    port = settings.port_of(settings.consumer_name(0))
    noted = hints.shown(settings.run_dir / NAME, cwd)
    metrics = f"curl http://{settings.http.host}:{port}/metrics" if port else f"/metrics at the ports in {noted}"
    history = f"found {found:,} events, and goes on with them" if found else "begins a new history"
    return [
        f"zonerd demo over {hints.shown(place.folder, cwd)}: {history}",
        "",
        "from a second terminal",
        f"  look closer   {zonerd} summary",
        f"                {zonerd} verify",
        f"                {zonerd} status",
        f"                {metrics}",
        f"  send yours    {GIT_LOG} | {zonerd} send -",
        f"  stop          Ctrl-C here, or kill {os.getpid()}; a second time ends it at once",
        "",
        "This broker lives in memory only and keeps 5 MiB a partition; what is stored stays. With real services:",
        f"{program} config init FILE, set kafka.bootstrap_servers and redis.url there, then {program} -c FILE up",
        "",
    ]


def as_line(seen: Seen) -> str:
    """Give a look as one line."""
    summary = ", ".join(f"{name} {count:,}" for name, count in (seen.summary or ())[:SHOWN_ACTIVITIES])
    return (
        f"stored {seen.stored:,} events, {seen.per_s:,.1f}/s, dead letters {seen.dead_letters:,}, lag {seen.lag:,}; "
        f"summary: {summary or 'none yet'}"
    )


def as_table(seen: Seen, running_s: float, advice: str = "") -> "Table":
    """Give a look as a table."""
    from rich.table import Table  # noqa: PLC0415 - slow, and for a terminal only

    gaps = f", gaps {seen.gap_offsets:,}" if seen.gap_offsets else ""
    table = Table(
        title=f"{seen.stored:,} events stored, {seen.per_s:,.1f}/s",
        caption=f"dead letters {seen.dead_letters:,}{gaps}, lag {seen.lag:,}, running for {running_s:,.0f} s{advice}",
        min_width=48,
    )
    table.add_column("activity (summary in Redis)", overflow="fold")
    table.add_column("events", justify="right")
    for name, count in (seen.summary or ())[:SHOWN_ACTIVITIES]:
        table.add_row(_plain(name), f"{count:,}")
    more = len(seen.summary or ()) - SHOWN_ACTIVITIES
    if more > 0:
        table.add_row(f"… {more:,} more", "")
    if not seen.summary:
        table.add_row("none yet", "")
    return table


def _plain(name: str) -> str:
    from rich.markup import escape  # noqa: PLC0415

    return escape(name)
