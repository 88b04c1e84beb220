"""`zonerd doctor`: everything around zonerd tried, a line each."""

import json
from collections.abc import Iterator

import click

from zonerd import doctor
from zonerd.cli import Session
from zonerd.doctor.finding import Finding
from zonerd.errors import ANSWER_IS_NO, DONE, REFUSED, ConfigurationRefused
from zonerd.escaping import visible

WORDS = {"ok": "ok", "warn": "warn", "fail": "FAIL"}
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(
    short_help="Try everything that zonerd needs.",
    epilog="Example: zonerd doctor --json | jq '.checks[] | select(.level != \"ok\")'",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(session: Session, as_json: bool) -> int:
    """Try everything that zonerd needs, with or without anything running; nothing is made or changed.

    Versions, directories and who may read them, disk, databases, passwords, Kafka and the topic, Redis and its
    clock, supervisord, ports, and whether what runs is what is installed and configured now.

    Exit codes: 0 nothing failed, 1 something did, 78 the configuration is refused.
    """
    try:
        settings = session.config
    except ConfigurationRefused as error:
        _tell(doctor.refused(error), as_json=as_json)
        return REFUSED
    found = _tell(doctor.examine(settings, session.loaded.path, session.environment), as_json=as_json)
    return ANSWER_IS_NO if any(one.level == "fail" for one in found) else DONE


def _tell(findings: Iterator[Finding], *, as_json: bool) -> list[Finding]:
    """Print each finding as it comes, or all of them as one object."""
    told = []
    for one in findings:
        told.append(one)
        if not as_json:
            word = click.style(f"{WORDS[one.level]:<4}", fg=COLOURS[one.level])
            click.echo(f"{word}  {one.what:<13}  {visible(one.detail)}")
    if as_json:
        good = all(one.level != "fail" for one in told)
        click.echo(json.dumps({"schema": 1, "ok": good, "checks": [one._asdict() for one in told]}))
    return told
