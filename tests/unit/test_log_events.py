"""The list of events is what the program says: none is missing, none is left over, each reads as a sentence."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import zonerd
from zonerd import log
from zonerd.log.journal import entry, sentence

LEVELS = {"debug", "info", "warning", "error", "exception"}
PACKAGE = Path(zonerd.__file__).parent


def events_in(source: str) -> Iterator[str]:
    """Give the events that this source says: what is handed to a logger, `Limited`, or `Ending.say`."""
    tree = ast.parse(source)
    values = _assigned(tree)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            yield from _events_of(call, values)


def _assigned(tree: ast.AST) -> dict[str, list[ast.expr]]:
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    values.setdefault(target.id, []).append(node.value)
    return values


def _events_of(call: ast.Call, values: dict[str, list[ast.expr]]) -> Iterator[str]:
    words = [ast.unparse(argument) for argument in call.args]
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    owner = ast.unparse(call.func.value).lower() if isinstance(call.func, ast.Attribute) else ""
    if name.startswith("getattr(") and "log, level)" in name:
        owner, name = "log", "info"
    if "limited" in owner:
        position = next(number for number, word in enumerate(words) if word.endswith("log")) + 1
    elif (name in LEVELS and owner.endswith("log")) or (name == "say" and (not owner or owner == "ending")):
        position = 0
    else:
        return
    yield from _strings(call.args[position], values)


def _strings(node: ast.expr, values: dict[str, list[ast.expr]]) -> Iterator[str]:
    """Give the texts that an expression may be: a name is all that it is ever set to."""
    match node:
        case ast.Constant(str(value)):
            yield value
        case ast.IfExp(body=one, orelse=other):
            yield from (*_strings(one, values), *_strings(other, values))
        case ast.Name(name):
            for value in values.get(name, ()):
                yield from _strings(value, values)
        case ast.Subscript(value=table):
            yield from _strings(table, values)
        case ast.Dict(values=entries) | ast.Tuple(entries):
            for value in entries:
                yield from _strings(value, values)


def test_the_list_of_events_is_what_the_program_says() -> None:
    said = {event for path in PACKAGE.rglob("*.py") for event in events_in(path.read_text(encoding="utf-8"))}
    assert said - set(log.EVENTS) == set(), "said, and not in log.EVENTS"
    assert set(log.EVENTS) - said == set(), "in log.EVENTS, and never said"


@pytest.mark.parametrize(
    ("source", "events"),
    [
        ("self._log.info('a', x=1)", {"a"}),
        ("limited.warning(log, 'a', 'reason')", {"a"}),
        ("self._limited.say(line.level, self._log, 'a', line.text)", {"a"}),
        ("event = 'a' if x else 'b'\nself._log.warning(event)", {"a", "b"}),
        ("TABLE = {'k': ('a', 'b')}\nlog.info(TABLE[k][0])", {"a", "b"}),
        ("say = log.info\nsay('a')", {"a"}),
        ("getattr(self._log, level)('a')", {"a"}),
        ("ending.say('a', error)", {"a"}),
        ("math.log(2); client.info('cluster')", set()),
    ],
)
def test_an_event_is_found_however_it_is_said(source: str, events: set[str]) -> None:
    assert set(events_in(source)) == events


@pytest.mark.parametrize("name", log.EVENTS)
def test_the_sentence_of_an_event_names_its_reason_and_its_fields(name: str) -> None:
    event = log.EVENTS[name]
    line = {"level": "info", "event": name, "process": "consumer", "pid": 7, **dict.fromkeys(event.fields, "v")}
    shown = sentence(line)
    assert shown.startswith(event.help)
    assert not event.help.endswith((".", ":"))
    assert all(f"{field}=v" in shown for field in event.fields if field not in ("reason", "exception"))
    assert ("reason" not in event.fields) or ": v" in shown


def test_a_line_for_the_journal_has_each_field_under_a_name_of_ours() -> None:
    line = {
        "ts": "…", "level": "warning", "event": "fenced", "process": "consumer-1", "pid": 7, "partition": 3,
        "expected": 9, "next": {"3": 9}, "copy": None,
    }  # fmt: skip
    assert dict(entry(line)) == {
        "PRIORITY": 4,
        "SYSLOG_IDENTIFIER": "zonerd-consumer-1",
        "MESSAGE": "Another process had stored these records first; its word stands (partition=3, expected=9)",
        "ZONERD_EVENT": "fenced",
        "ZONERD_PROCESS": "consumer-1",
        "ZONERD_PID": "7",
        "ZONERD_PARTITION": "3",
        "ZONERD_EXPECTED": "9",
        "ZONERD_NEXT": '{"3": 9}',
    }
