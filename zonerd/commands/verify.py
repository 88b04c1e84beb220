"""`zonerd verify`: the proof that the history is the topic's, and the summary the history's."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from zonerd.cli import Session
from zonerd.errors import DONE, SERVICE_UNAVAILABLE, StoreUnavailable, ZonerdError
from zonerd.store import outcomes
from zonerd.verify import Report, Tell, verify


@click.command(
    short_help="Prove that all is stored once and that the answers agree.",
    epilog="Example: zonerd verify --json | jq .checks.history",
)
@click.option("--quick", is_flag=True, help="Sums, and only the newest 1,000 offsets of each partition at the broker.")
@click.option("--record", is_flag=True, help="Leave the outcome in the data directory, for the watchdog's /metrics.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(session: Session, quick: bool, record: bool, as_json: bool) -> int:
    """Prove that every record is stored exactly once, and that the answers and Redis say what is stored.

    Reads everything and writes nothing, but verify.json with --record, beside a live pipeline or a stopped one. A
    line each: the broker's records against the stored ones; every offset of the history once, and the file sound;
    every count anew; Redis against the counts. Then up to which offset of each partition this holds, and the first 20
    differences.

    Exits 0 if all is equal, 1 if anything differs, else 69 if something could not be reached. What can no longer
    be checked is a number, and no difference.
    """
    try:
        report = _verify(session, quick=quick)
    except ZonerdError as error:
        if record:
            _record(session, {"schema": 1, "quick": quick, "exit_code": error.exit_code, "reason": str(error)})
        raise
    if as_json:
        click.echo(json.dumps(report.as_object(), ensure_ascii=False))
    else:
        for line in report.lines():
            click.echo(line)
    recorded = not record or _record(session, report.as_object())
    return report.exit_code or (DONE if recorded else SERVICE_UNAVAILABLE)


def _verify(session: Session, *, quick: bool) -> Report:
    with _progress(show=sys.stderr.isatty() and session.verbosity >= 0) as tell:
        return verify(session.config, session.sasl_password, session.environment, quick=quick, tell=tell)


def _record(session: Session, outcome: Mapping[str, Any]) -> bool:
    """Leave the outcome for the watchdog; False, and said, where that cannot be written."""
    try:
        outcomes.record(session.config.data_dir, outcomes.VERIFY, outcome)
    except StoreUnavailable as error:
        click.echo(f"zonerd: not recorded: {error}", err=True)
        return False
    return True


@contextmanager
def _progress(*, show: bool) -> Iterator[Tell]:
    """Show on a terminal how far each check is; elsewhere nothing."""
    if not show:
        yield lambda _check, _done, _of: None
        return
    from rich.console import Console  # noqa: PLC0415 - slow, and only for a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, object] = {}

        def tell(check: str, done: int, of: int) -> None:
            task = tasks.setdefault(check, progress.add_task(check, total=of) if check not in tasks else None)
            progress.update(task, completed=done, total=of)  # type: ignore[arg-type]

        yield tell
