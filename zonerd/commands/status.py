"""`zonerd status`: how each process is, and what to type where one is not well."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from zonerd import status
from zonerd.cli import Session
from zonerd.errors import REFUSED
from zonerd.escaping import visible
from zonerd.health import NOT_TRIED
from zonerd.status import Figures, Standing, Status

if TYPE_CHECKING:
    from rich.console import Group

WATCH_EVERY_S: Final = 2.0
LAG_TOO_LONG_S: Final = 300.0
SUMMARY_TOO_OLD_S: Final = 60.0
LOW_DISK_TIMES: Final = 4
"""Free space below so many times store.min_free_bytes is named."""
MAX_REASON_CHARACTERS: Final = 300

COLUMNS: Final = ("process", "state", "pid", "uptime", "ready", "events/s", "lag", "dead letters")
TEXT_COLUMNS: Final = 2
"""The first columns, which are words; the others are figures, to the right."""

KIBI: Final = 1024
DAY_S, HOUR_S, MINUTE_S = 86_400, 3600, 60


class Problem(NamedTuple):
    """What is wrong, what to type next, and the page that says more."""

    says: str
    type_next: tuple[str, ...]
    runbook: str


@click.command(short_help="Show each process, and what is wrong.", epilog="Example: zonerd status --watch")
@click.option("--watch", is_flag=True, help="Look again every 2 s, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a look.")
@click.pass_obj
def command(session: Session, watch: bool, as_json: bool) -> int:
    """Show each process, what it does, and what to type where one is not well.

    events/s is what was counted within one second of the look: delivered, read, folded. lag is what waits for the
    consumer in Kafka, for the aggregator in the history. dead letters are those since the consumer's start.

    Exit codes: 0 all run and are ready, 1 some are not ready, 3 some do not run, 4 no supervisord answers.
    """
    if watch:
        _watch(session, as_json=as_json)
    found = status.look(session.config)
    if not as_json and sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only on a terminal

        Console().print(_drawn(session, found))
    else:
        click.echo(_written(session, found, as_json=as_json))
    return found.exit_code


def _watch(session: Session, *, as_json: bool) -> None:
    """Look again and again, until interrupted."""
    if not as_json and sys.stdout.isatty():
        from rich.live import Live  # noqa: PLC0415 - only on a terminal

        with Live(auto_refresh=False, screen=True) as live:
            for found in _looks(session):
                live.update(_drawn(session, found), refresh=True)
    for found in _looks(session):
        click.echo(_written(session, found, as_json=as_json) + ("" if as_json else "\n"))
        sys.stdout.flush()


def _looks(session: Session) -> Iterator[Status]:
    while True:
        due = time.monotonic() + WATCH_EVERY_S
        yield status.look(session.config)
        time.sleep(max(0.0, due - time.monotonic()))


def _written(session: Session, found: Status, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(found.as_object())
    rows = [COLUMNS, *map(_cells, found.processes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join([*(_aligned(row, widths) for row in rows), "", *_lines(session, found)])


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.ljust(width) if number < TEXT_COLUMNS else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _drawn(session: Session, found: Status) -> "Group":
    from rich.console import Group  # noqa: PLC0415 - only on a terminal
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*COLUMNS, box=None)
    for column in table.columns[TEXT_COLUMNS:]:
        column.justify = "right"
    for one in found.processes:
        table.add_row(*map(Text, _cells(one)), style="" if one.ready else "bold red")
    return Group(table, "", *(Text(line) for line in _lines(session, found)))


def _cells(one: Standing) -> tuple[str, ...]:
    figures = one.figures
    return (
        one.name,
        visible(one.state),
        str(one.pid or "-"),
        "-" if one.uptime_s is None else _duration(one.uptime_s),
        "?" if one.state == status.UNKNOWN else "yes" if one.ready else "NO",
        "-" if figures.events_per_s is None else f"{figures.events_per_s:,.1f}",
        _lag(one),
        "-" if figures.dead_letters is None else f"{figures.dead_letters:,}",
    )


def _lag(one: Standing) -> str:
    records, seconds = one.figures.lag_records, one.figures.lag_s
    if records is None:
        return "-"
    return f"{records:,} ({_duration(seconds)})" if records and seconds is not None else f"{records:,}"


def _duration(seconds: float) -> str:
    for unit_s, unit, below_s, below in ((DAY_S, "d", HOUR_S, "h"), (HOUR_S, "h", MINUTE_S, "min")):
        if seconds >= unit_s:
            return f"{seconds // unit_s:.0f} {unit} {seconds % unit_s // below_s:.0f} {below}"
    return f"{seconds // MINUTE_S:.0f} min" if seconds >= MINUTE_S else f"{seconds:.0f} s"


def _lines(session: Session, found: Status) -> Iterator[str]:
    """Give what stands below the table: the summary's age, the disk, and a line for each problem."""
    if session.config.redis.enabled:
        yield _summary(found)
    free = "unknown" if found.free_bytes is None else _bytes(found.free_bytes)
    yield f"disk: {free} free at {visible(str(found.data_dir))}; storing stops below {_bytes(found.min_free_bytes)}"
    for problem in _problems(found):
        yield _line(session, problem)


def _summary(found: Status) -> str:
    if found.summary_age_s is not None:
        return f"summary: current {_duration(found.summary_age_s)} ago"
    told = any(one.name == "aggregator" and one.figures != Figures() for one in found.processes)
    return "summary: never published since the aggregator's start" if told else "summary: unknown, no aggregator tells"


def _line(session: Session, problem: Problem) -> str:
    says = visible(problem.says)
    if len(says) > MAX_REASON_CHARACTERS:
        says = says[:MAX_REASON_CHARACTERS] + "…"
    return f"! {says}\n    {session.typed(*problem.type_next)}    (runbook {problem.runbook})"


def _problems(found: Status) -> Iterator[Problem]:
    if found.supervisord is not None:
        yield _no_supervisord(found)
    for one in found.processes:
        yield from _problems_of(one)
    age = found.summary_age_s
    if age is not None and age > SUMMARY_TOO_OLD_S:
        yield Problem(f"the summary in Redis is {_duration(age)} old", ("ctl", "tail", "aggregator"), "SummaryStale")
    if found.free_bytes is not None and found.free_bytes < LOW_DISK_TIMES * found.min_free_bytes:
        yield Problem(f"only {_bytes(found.free_bytes)} are free", ("doctor",), "DiskFilling")


def _no_supervisord(found: Status) -> Problem:
    alone = [f"{one.name} (pid {one.pid})" for one in found.processes if one.pid]
    orphans = f"; still there: {', '.join(alone)}" if alone else ""
    service = "" if shutil.which("systemctl") is None else "; as a service: systemctl start zonerd"
    return Problem(f"supervisord: {found.supervisord}{orphans}{service}", ("up",), "ProcessDown")


def _problems_of(one: Standing) -> Iterator[Problem]:
    if one.state == status.UNKNOWN:
        return
    if not one.running:
        yield _not_running(one)
    if one.reasons:
        yield _failing(one)
    if (one.figures.lag_s or 0) > LAG_TOO_LONG_S:
        behind = f"{one.figures.lag_records:,} records, {_duration(one.figures.lag_s or 0)}"
        yield Problem(f"{one.name} is behind by {behind}", ("ctl", "tail", "-f", one.full_name), "LagGrowing")


def _not_running(one: Standing) -> Problem:
    ago = "" if one.since_s is None else f" {_duration(one.since_s)} ago"
    if one.state == status.MISSING:
        says = f"{one.name} is none of supervisord's programs, which are those of its start: it must start anew"
        return Problem(says, ("ctl", "shutdown"), "ProcessDown")
    if one.state == "STOPPED":
        return Problem(f"{one.name} was stopped by hand{ago}", ("ctl", "start", one.full_name), "ProcessStopped")
    code = "" if one.exit_code is None else f", exit code {one.exit_code}"
    refused = " (it refused its configuration or a file)" if one.exit_code == REFUSED else ""
    says = f"{one.name} is {one.state}: it ended{ago}{code}{refused}"
    return Problem(says, ("ctl", "tail", one.full_name), "ProcessDown")


def _failing(one: Standing) -> Problem:
    if reason := one.reasons.get(status.ANSWER):
        return Problem(f"{one.name}: {reason}", ("ctl", "restart", one.full_name), "TargetDown")
    if reason := one.reasons.get(status.LOOP):
        return Problem(f"{one.name}'s loop {reason}", ("ctl", "restart", one.full_name), "Stalled")
    tried_first = sorted(one.reasons.items(), key=lambda item: item[1] == NOT_TRIED)
    reasons = "; ".join(f"{check}: {reason}" for check, reason in tried_first)
    return Problem(f"{one.name} is not ready: {reasons}", ("ctl", "tail", "-f", one.full_name), "NotReady")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < KIBI:
            return f"{size:.1f} {unit}"
        size /= KIBI
    return f"{size:.1f} TiB"
