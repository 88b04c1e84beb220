"""Writes the pages of docs/reference from what the program itself declares: `make docs`."""

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from inspect import cleandoc
from pathlib import Path
from typing import Final, NamedTuple, get_args

import click
import msgspec
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from zonerd import cli, config, errors, events, meter, metrics, publisher, rollups, watchdog
from zonerd.kafka import writer
from zonerd.log.events import EVENTS, Event
from zonerd.store import outcomes
from zonerd.store.database import EVENTS as EVENTS_DB
from zonerd.store.database import ROLLUPS as ROLLUPS_DB
from zonerd.store.database import TROUBLES
from zonerd.supervise import remote

REFERENCE: Final = Path(__file__).parent / "reference"

ROLES: Final[tuple[metrics.Role, ...]] = get_args(metrics.Role)

COMMANDS: Final = """\
Data goes to stdout, messages to stderr; `--json` gives one object with `"schema": 1`, to which fields are only ever
added. [What an exit code says](exit-codes.md)."""

CONFIGURATION: Final = """\
Each key with its default and its meaning, as `zonerd config init` writes them. Order: defaults < file < environment <
`-X section.key=value`. In the environment a key is `ZONERD_SECTION__KEY`, such as `ZONERD_KAFKA__TOPIC`; one value of a
table is `ZONERD_PRODUCER__SIMULATE__USERS`, and in `ZONERD_KAFKA__PROPERTIES__SECURITY_PROTOCOL` each `_` of the
property is a dot. A relative path counts from the file's folder. A section names the process to restart after a change
in it, or the service. An unknown key, or a value that may not be, ends every command with exit code 78, and all errors
are named at once. `zonerd config show --origin` says which values hold and where each comes from."""

EXIT_CODES: Final = "Of every `zonerd` command. `zonerd ctl` has supervisorctl's own, which agree."

LOG_EVENTS: Final = """\
Each line of a log is one event: `ts`, `level`, `event`, `process` and `pid`, and the fields below. In the journal a
field has its name in capitals behind `ZONERD_` (`ZONERD_EVENT`, `ZONERD_REASON`), and `MESSAGE` is the sentence. A
*limited* event is said at most once in 10 s and reason; `suppressed` counts what was not said."""

METRICS: Final = """\
What `/metrics` of each process answers, in Prometheus' text format. A histogram has `_bucket`, `_sum` and `_count`
behind its name. Each process has Prometheus' own `process_…` too (CPU, memory, open files). The ports stand in
[the configuration](configuration.md#http), the alerts in [the runbooks](../runbooks)."""


def main() -> None:
    """Write every page."""
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Give each page of the reference, by the name of its file."""
    return {
        "commands.md": _page("Commands", COMMANDS, _commands()),
        "configuration.md": _page("Configuration", CONFIGURATION, _configuration()),
        "exit-codes.md": _page("Exit codes", EXIT_CODES, _exit_codes()),
        "log-events.md": _page("Log events", LOG_EVENTS, _log_events()),
        "metrics.md": _page("Metrics", METRICS, _metrics()),
    }


def _page(title: str, introduction: str, lines: Iterable[str]) -> str:
    origin = "<!-- Written by `make docs` from the code: an edit here is lost. -->"
    return "\n".join([origin, "", f"# {title}", "", introduction, "", *lines]).rstrip("\n") + "\n"


def _section(title: str, *lines: str) -> Iterator[str]:
    yield from (f"## {title}", "")
    yield from (*lines, "") if lines else ()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    for row in rows:
        yield "|".join(["", *(f" {cell} ".replace("|", "\\|") if cell else " " for cell in row), ""])
    yield ""


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# Commands


def _commands() -> Iterator[str]:
    yield from _command(cli.zonerd, click.Context(cli.zonerd, info_name="zonerd"))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from _section(context.command_path, f"    {usage}", "", *cleandoc(command.help or "").splitlines())
    options = [_option(one, context) for one in command.params if isinstance(one, click.Option)]
    yield from _table(("option", "does"), options) if options else ()
    yield from _example(command.epilog or "")
    if isinstance(command, click.Group):
        named = {name: command.get_command(context, name) for name in command.list_commands(context)}
        for name, inner in named.items():
            if inner is not None:
                yield from _command(inner, click.Context(inner, info_name=name, parent=context))


def _option(option: click.Option, context: click.Context) -> Sequence[str]:
    written, does = option.get_help_record(context) or ("", "")
    return f"`{written}`", does


def _example(epilog: str) -> Iterator[str]:
    """Give the example lines of a verb's help, as they are typed."""
    lines = epilog.replace("\b", "").partition(":")[2].splitlines()
    yield from (f"    {line.strip()}" for line in lines if line.strip())
    yield ""


# Configuration


class Key(NamedTuple):
    """A key as the reference file writes it."""

    name: str
    default: str
    meaning: str


def _configuration() -> Iterator[str]:
    sections = {field.name: field.type for field in msgspec.structs.fields(config.Config)}
    for section, keys in described().items():
        yield from _section(section, f"{sections[section].__doc__}")
        yield from _table(("key", "default", "meaning"), (_key(section, key) for key in keys))
        if section == "kafka":
            yield f"Refused in `properties`: {_names(sorted(config.REFUSED_PROPERTIES))}, `test.…`."
            yield f"As secrets, which belong in files: {_names(sorted(config.SECRETS))}."
            yield ""


def described() -> dict[str, list[Key]]:
    """Give the keys of the reference file by section; a table of its own (`[kafka.properties]`) is a key."""
    sections: dict[str, list[Key]] = {}
    for line in files("zonerd").joinpath("reference.toml").read_text(encoding="utf-8").splitlines():
        if table := re.match(r"\[(\w+)(?:\.(\w+))?\]\s*(?:# (.*))?", line):
            section, inner, meaning = table.groups()
            keys = sections.setdefault(section, [])
            keys += [Key(inner, "{}", meaning or "")] if inner else []
        elif key := re.match(r"(\w+) = (.*?)\s*(?:# (.*))?$", line):
            keys.append(Key(key[1], key[2], key[3] or ""))
    return sections


def _key(section: str, key: Key) -> Sequence[str]:
    rules = [rule for name, _, rule in config.CHECKS if name == f"{section}.{key.name}"]
    return f"`{key.name}`", f"`{key.default}`", "; ".join(filter(None, (key.meaning, *rules)))


# Exit codes


def _exit_codes() -> Iterator[str]:
    yield from _table(("code", "says"), ((f"`{code}`", says) for code, says in errors.EXIT_CODES.items()))


# Log events


def _log_events() -> Iterator[str]:
    yield from _table(("event", "says", "fields"), (_event(name, event) for name, event in EVENTS.items()))


def _event(name: str, event: Event) -> Sequence[str]:
    return f"`{name}`", f"{event.help} (*limited*)" if event.limited else event.help, _names(event.fields)


# Metrics


def _metrics() -> Iterator[str]:
    exposed = {role: {family.name: family for family in metrics.families(role)} for role in ROLES}
    groups: dict[tuple[str, ...], list[Metric]] = {}
    for name, family in {name: one for of_role in exposed.values() for name, one in of_role.items()}.items():
        if name.startswith("zonerd_"):
            groups.setdefault(tuple(role for role in ROLES if name in exposed[role]), []).append(family)
    for roles, members in sorted(groups.items(), key=lambda group: -len(group[0])):
        yield from _section("Every process" if roles == ROLES else " and ".join(roles))
        yield from _table(("name", "type", "labels", "meaning"), map(_metric, members))


def _metric(family: Metric) -> Sequence[str]:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = _LABELS.get(family.name) or {label for one in family.samples for label in one.labels if label != "le"}
    closed = (f"{label}: {', '.join(values)}." for label, values in CLOSED.get(name, {}).items())
    return f"`{name}`", family.type, _names(labels), " ".join((family.documentation, *closed))


_STORE: Final[dict[str, Sequence[str]]] = {"file": (EVENTS_DB.name, ROLLUPS_DB.name), "kind": TROUBLES}

CLOSED: Final[dict[str, dict[str, Sequence[str]]]] = {
    "zonerd_loop_seconds_total": {"state": metrics.LOOP_STATES},
    "zonerd_log_lines_total": {"level": get_args(config.Level)},
    "zonerd_end_to_end_seconds": {"stage": ("stored", "published")},
    "zonerd_store_errors_total": _STORE,
    "zonerd_producer_errors_total": {"reason": writer.REASONS},
    "zonerd_producer_lines_invalid_total": {"reason": events.REASONS},
    "zonerd_consumer_dead_letters_total": {"reason": events.REASONS},
    "zonerd_consumer_gap_offsets_total": {"reason": events.GAP_REASONS},
    "zonerd_consumer_paused": {"reason": meter.PAUSES},
    "zonerd_consumer_batch_seconds": {"stage": metrics.LOOP_STATES},
    "zonerd_consumer_commit_errors_total": {"reason": meter.COMMIT_ERRORS},
    "zonerd_aggregator_publishes_total": {"result": publisher.RESULTS},
    "zonerd_aggregator_full_pushes_total": {"reason": rollups.FULL_REASONS},
    "zonerd_process_state": {"state": remote.STATES},
    "zonerd_process_exits_total": {"expected": ("true", "false")},
    "zonerd_watchdog_restarts_total": {"reason": watchdog.RESTARTS},
    "zonerd_verify_differences": {"check": outcomes.CHECKS},
}
"""The values that a label has, all of them there from the start, where these are known."""

_LABELS: Final[dict[str, Sequence[str]]] = {
    family.name: metric._labelnames  # noqa: SLF001 - it has no public name
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for family in metric.describe()
}


if __name__ == "__main__":
    main()
