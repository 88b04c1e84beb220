"""`zonerd health`: whether a process, or all of them, is ready."""

import json

import click

from zonerd import inquiry
from zonerd.cli import Session
from zonerd.errors import ANSWER_IS_NO, DONE, ServiceUnavailable
from zonerd.escaping import visible
from zonerd.inquiry import Address, Liveness, Readiness

SUMS_UP = "watchdog"
"""Its readiness is that of all processes."""

ANSWER_WITHIN_S = 5.0


Answer = tuple[bool, str, dict[str, object]]
"""Whether it is good, as words, as fields."""


@click.command(short_help="Say in a line whether a process is ready.", epilog="Example: zonerd health consumer --live")
@click.argument("process", default=SUMS_UP, required=False)
@click.option("--live", is_flag=True, help="Ask whether its loop goes round, not whether it is ready.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(session: Session, process: str, live: bool, as_json: bool) -> int:
    """Say in a line whether PROCESS is ready; without PROCESS the watchdog answers for all of them.

    Exit codes: 0 ready (with --live: alive), 1 not, or nobody answers. Cheap enough for every 30 seconds.
    """
    config = session.config
    if process not in config.processes:
        raise click.BadParameter(f"there are {', '.join(config.processes)}", param_hint="PROCESS")
    try:
        ok, words, fields = (_alive if live else _ready)(inquiry.address_of(config, process))
    except ServiceUnavailable as error:
        ok, words, fields = False, error.reason, {"answered": False, "reason": error.reason}
    if as_json:
        click.echo(json.dumps({"schema": 1, "process": process, "ok": ok, **fields}))
    else:
        click.echo(f"{process}: {visible(words)}")
    return DONE if ok else ANSWER_IS_NO


def _ready(address: Address) -> Answer:
    said = inquiry.report(address, "/readyz", Readiness, ANSWER_WITHIN_S)
    failing = "; ".join(f"{name}: {reason}" for name, reason in said.reasons.items())
    checks = {name: {"ok": check.ok, "reason": check.reason} for name, check in said.checks.items()}
    words = "ready" if said.ready else f"not ready: {failing}"
    return said.ready, words, {"answered": True, "pid": said.pid, "checks": checks}


def _alive(address: Address) -> Answer:
    said = inquiry.report(address, "/healthz", Liveness, ANSWER_WITHIN_S)
    words = f"{'alive' if said.ok else 'hangs'}, its last pass ended {said.last_pass_age_s:.1f} s ago"
    return said.ok, words, {"answered": True, "pid": said.pid, "last_pass_age_s": said.last_pass_age_s}
