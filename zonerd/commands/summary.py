"""`zonerd summary`: the answers, with the position that they are as of."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click

from zonerd import rollups
from zonerd.cache import Cache
from zonerd.cli import Session
from zonerd.errors import ANSWER_IS_NO, DONE, ServiceUnavailable
from zonerd.escaping import visible
from zonerd.rollups import AsOf, Keys, Ranking
from zonerd.store.answers import Answers
from zonerd.store.database import ROLLUPS

MAX_PLACES = 16
"""More partitions than this are not named one by one."""

STATES = {
    "loading": "Redis is being filled: these figures may be of several moments",
    "stopped": "the aggregator has stopped: nothing newer is counted until it runs again",
}


class Answer(NamedTuple):
    """Events by activity, and what they are as of; `age_s` is unknown where nothing says when."""

    ranking: Ranking
    as_of: AsOf
    age_s: float | None


@click.command(epilog="Example: zonerd summary --top 10 --json")
@click.option("--top", type=click.IntRange(0), default=20, help="So many activities; 0: all that are published [20].")
@click.option("--from", "source", type=click.Choice(["redis", "rollups"]), help="Where to read [redis, if enabled].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(session: Session, top: int, source: str | None, as_json: bool) -> int:
    """Show how many events there are of each activity.

    Exits 1 when nothing was published yet, and 69 when Redis does not answer (try --from rollups).
    """
    section = session.config.redis
    source = source or ("redis" if section.enabled else "rollups")
    if source == "redis":
        answer = _from_redis(Cache.of(section, session.environment))
    else:
        keys = Keys(section.prefix, section.summary_key)
        answer = _from_rollups(session.config.data_dir, keys, session.config.aggregator.max_activities)
    if answer is None:
        click.echo(f"zonerd: no answer yet in {'Redis' if source == 'redis' else ROLLUPS.name}", err=True)
        return ANSWER_IS_NO
    shown = answer.ranking[:top] if top else answer.ranking
    if as_json:
        click.echo(json.dumps(_as_object(answer, shown, source), ensure_ascii=False))
    else:
        _print(shown)
        click.echo(_position(answer, len(shown)), err=True)
    if warning := _warning(answer):
        click.echo(f"zonerd: {warning}", err=True)
    return DONE


def _from_redis(cache: Cache) -> Answer | None:
    try:
        with cache:
            published = cache.read()
    except ServiceUnavailable as error:
        raise ServiceUnavailable("redis", f"{error.reason.rstrip('.')}; try: zonerd summary --from rollups") from None
    if published is None:
        return None
    ranking = _pairs(published.values.get(cache.keys.summary_key, ""))
    return Answer(ranking, published.as_of, published.age_s)


def _from_rollups(data_dir: Path, keys: Keys, limit: int) -> Answer | None:
    if not (data_dir / ROLLUPS.name).exists():
        return None
    with Answers.open_reader(data_dir) as answers:
        snapshot = answers.read(limit + rollups.LOOK_AHEAD)
    if snapshot is None:
        return None
    ranking = _pairs(rollups.publication(snapshot, keys, limit)[keys.summary_key])
    return Answer(ranking, rollups.as_of(snapshot, "", "live", 0), None)


def _pairs(value: object) -> Ranking:
    try:
        return [(str(name), int(count)) for name, count in json.loads(str(value))]
    except (ValueError, TypeError):
        return []


def _as_object(answer: Answer, shown: Ranking, source: str) -> Mapping[str, object]:
    as_of = answer.as_of
    return {
        "schema": 1,
        "from": source,
        "activities": [{"activity": name, "count": count} for name, count in shown],
        "more": len(answer.ranking) - len(shown),
        "events": as_of.events,
        "as_of": {
            "store": as_of.store,
            "rollups": as_of.rollups,
            "fold": as_of.fold,
            "positions": dict(as_of.positions),
            "cluster": as_of.cluster,
            "topic_id": as_of.topic_id,
            "corrections": as_of.corrections,
            **(
                {}
                if answer.age_s is None
                else {"state": as_of.state, "published": _moment(as_of), "age_s": answer.age_s}
            ),
        },
    }


def _print(ranking: Ranking) -> None:
    if not sys.stdout.isatty():
        for name, count in ranking:
            click.echo(f"{name}\t{count}")
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("activity", "events", box=None)
    table.columns[1].justify = "right"
    for name, count in ranking:
        table.add_row(Text(visible(name)), f"{count:,}")
    Console().print(table)


def _position(answer: Answer, shown: int) -> str:
    as_of = answer.as_of
    places = ", ".join(f"{label} {offset}" for label, offset in sorted(as_of.positions.items(), key=_by_partition))
    if len(as_of.positions) > MAX_PLACES:
        places = f"{sum(as_of.positions.values()):,} offsets in {len(as_of.positions)} partitions (--json names them)"
    hidden = len(answer.ranking) - shown
    more = f"{hidden} more (--top 0 shows all); " if hidden else ""
    when = "" if answer.age_s is None else f"; published {answer.age_s:.1f} s ago ({_moment(as_of)})"
    return f"{more}{as_of.events:,} events, as of {places or 'no partition'}{when}"


def _by_partition(item: tuple[str, int]) -> tuple[str, int]:
    topic, _, partition = item[0].rpartition("/")
    return topic, int(partition) if partition.isdecimal() else -1


def _moment(as_of: AsOf) -> str:
    moment = datetime.fromtimestamp(as_of.published_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _warning(answer: Answer) -> str | None:
    if answer.age_s is None:
        return None
    if answer.as_of.state == "live" and answer.age_s > rollups.FOREIGN_S:
        return f"nothing was heard of the aggregator for {answer.age_s:.0f} s: newer events may be missing"
    return STATES.get(answer.as_of.state)
