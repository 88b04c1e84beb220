"""The reference pages in docs/ say what the program declares."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from docs import generate
from zonerd import aggregator, cli, config, consumer, endpoint, errors, metrics, producer, watchdog
from zonerd.log import EVENTS

DOCS = generate.REFERENCE.parent
PAGES = generate.pages()
MET = {"topic", "partition", "name", "group", "check", "file", "version", "sqlite", "librdkafka", "python"}
"""Labels whose values follow from the configuration, from Kafka or from what is installed."""


def verbs(command: click.Command, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Give each verb with the words that call it."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from verbs(inner, *path, name)


def first_cells(page: str, section: str = "") -> set[str]:
    """Give what stands in backquotes in the first column of the tables of a page, or of one section of it."""
    text = (generate.REFERENCE / page).read_text(encoding="utf-8")
    if section:
        text = re.split(r"^## ", text.partition(f"\n## {section}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))


def leads_somewhere(page: Path, link: str) -> bool:
    """Say whether there is such a file, with such a heading."""
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not anchor:
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    return anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_what_the_code_gives(name: str) -> None:
    written = (generate.REFERENCE / name).read_text(encoding="utf-8")
    assert written == PAGES[name], f"docs/reference/{name} is not what the code says: `make docs` writes it anew"


def test_there_is_no_page_that_nothing_writes() -> None:
    assert {path.name for path in generate.REFERENCE.iterdir()} == PAGES.keys()


@pytest.mark.parametrize("role", generate.ROLES)
def test_every_metric_is_there_with_its_help(role: metrics.Role) -> None:
    ours = [family for family in metrics.families(role) if family.name.startswith("zonerd_")]
    counted = {f"{family.name}_total" if family.type == "counter" else family.name for family in ours}
    assert counted <= first_cells("metrics.md")
    assert [family.name for family in ours if not family.documentation.endswith(".")] == []


def test_a_label_is_a_name_that_is_met_or_has_every_value_that_it_may_have() -> None:
    text = (generate.REFERENCE / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| (.*?) ?\| (.*) \|$", text, re.MULTILINE)
    told = {(name, label) for name, labels, _ in rows for label in re.findall(r"`(\w+)`", labels)}
    closed = {(name, label) for name, labels in generate.CLOSED.items() for label in labels}
    assert closed <= told
    assert {label for _, label in told - closed} <= MET
    meanings = {name: meaning for name, _, meaning in rows}
    for name, labels in generate.CLOSED.items():
        assert all(f"{label}: {', '.join(values)}." in meanings[name] for label, values in labels.items())


def test_every_log_event_is_there() -> None:
    assert first_cells("log-events.md") == EVENTS.keys()


def test_every_key_is_there_with_its_meaning() -> None:
    sections = {key.partition(".")[0] for key in config.flatten(config.Config())}
    shown = {f"{section}.{key}" for section in sections for key in first_cells("configuration.md", section)}
    assert shown == config.flatten(config.Config()).keys()
    described = {f"{section}.{key.name}": key.meaning for section, keys in generate.described().items() for key in keys}
    assert [key for key, meaning in described.items() if not meaning] == []


def test_every_verb_and_option_is_there_with_its_help() -> None:
    for words, verb in verbs(cli.zonerd, "zonerd"):
        assert verb.help, words
        options = [one for one in verb.params if isinstance(one, click.Option)]
        shown = " ".join(first_cells("commands.md", words))
        assert [one.name for one in options if not one.help or not set(one.opts) <= set(re.split("[ ,]+", shown))] == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_names_only_what_there_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([^):]+)\)", text))
    assert [link for link in links if not leads_somewhere(page, link)] == []
    assert set(re.findall(r"ZONERD_EVENT=(\w+)", text)) <= EVENTS.keys()
    metrics_named = set(re.findall(r"(?<![:\w])zonerd_[a-z_]+[a-z]\b", text))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in metrics_named} <= first_cells("metrics.md")
    calls = set(re.findall(r"(?:`|\$ |^    )(zonerd [a-z][a-z-]*)", text, re.MULTILINE))
    assert calls <= {"zonerd " + words.split()[1] for words, _ in verbs(cli.zonerd, "zonerd") if " " in words}


def test_the_operations_page_names_every_check_of_readiness() -> None:
    checks = {*producer.CHECKS, *consumer.CHECKS, *aggregator.CHECKS, endpoint.CHECK, watchdog.CHECK}
    text = (DOCS / "operations.md").read_text(encoding="utf-8").partition("\n| check |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == checks


def test_every_exit_code_is_there() -> None:
    named = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert {int(code) for code in first_cells("exit-codes.md")} == named
