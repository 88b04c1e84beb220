"""docs/operations.md, its commands run in their order on a real Kafka and a real Valkey.

A block marked `console` is run: a line behind `$` must end with 0, or as its comment says (`# exit 1`), and say what is
shown below it, `…` being anything, in the middle of a line or as lines of its own. Where nothing is shown, anything may
be said. Behind `console` may stand: `again`, asked until it says so; `first-terminal`, it goes on running meanwhile;
`journal`, only where a journald can be run.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from services.clone import CHECKOUT, Clone
from services.journald import UNIT, Journald
from services.kafka import KafkaBroker, free_ports
from services.missing import Missing
from services.process import wait_until
from services.valkey import ValkeyServer

PAGE = CHECKOUT / "docs" / "operations.md"
AGAIN_FOR_S = 60.0
PORTS = {"watchdog": 19300, "producer": 19301, "aggregator": 19302, "consumer": 19310}


class Command(NamedTuple):
    """A command of the page, and what it must do."""

    line_number: int
    words: frozenset[str]
    line: str
    exit_code: int
    shown: list[str]


def commands(text: str) -> Iterator[Command]:
    """Give the commands of all blocks that are run."""
    for block in re.finditer(r"^```console(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE):
        first = text.count("\n", 0, block.start()) + 2
        found: list[Command] = []
        for number, line in enumerate(block[2].splitlines(), first):
            if line.startswith("$ "):
                wanted = re.search(r"\s+# exit (\d+)$", line)
                words = frozenset(block[1].split())
                found.append(Command(number, words, line[2:], int(wanted[1]) if wanted else 0, []))
            else:
                assert found, f"{PAGE.name}:{number}: output of no command"
                found[-1].shown.append(line)
        yield from found


def says(shown: list[str], said: str) -> bool:
    """Say whether this is what is shown; empty lines apart, and any number of spaces is one."""
    lines = [r"(?:.*\n)*" if line == "…\n" else _pattern(line) for line in _squeezed("\n".join(shown))]
    return not shown or re.fullmatch("".join(lines), "".join(_squeezed(said))) is not None


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split("…"))


def _squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) + "\n" for line in text.splitlines() if line.strip()]


class Tour:
    """The page, walked from top to bottom."""

    def __init__(self, clone: Clone, replaced: dict[str, str], able: set[str]) -> None:
        self.clone = clone
        self._able = {"again", "first-terminal", *able}
        self._replaced = replaced
        self._pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in replaced))

    def walk(self, command: Command) -> None:
        if not command.words <= self._able:
            return
        line, shown = self._here(command.line), [self._here(one) for one in command.shown]
        if "first-terminal" in command.words:
            self._in_first_terminal(command, line, shown)
            return
        deadline = time.monotonic() + (AGAIN_FOR_S if "again" in command.words else 0)
        while True:
            said = self.clone.run(line)
            if said.exit_code == command.exit_code and says(shown, said.text):
                return
            assert time.monotonic() < deadline, self._story(command, shown, said.text, said.exit_code)

    def _in_first_terminal(self, command: Command, line: str, shown: list[str]) -> None:
        if self.clone.terminal is not None:
            assert self.clone.ended() == 0
        self.clone.run_in_first_terminal(line)
        wait_until(
            lambda: says([*shown, "…"], self.clone.said),
            AGAIN_FOR_S,
            lambda: self._story(command, shown, "", None),
        )

    def _here(self, text: str) -> str:
        return self._pattern.sub(lambda found: self._replaced[found[0]], text)

    def _story(self, command: Command, shown: list[str], said: str, code: int | None) -> str:
        place = f"{PAGE.name}:{command.line_number}: $ {command.line}"
        wanted = f"--- wanted, with exit code {command.exit_code}\n" + "\n".join(shown)
        return f"{place}\n{wanted}\n--- said, with exit code {code}\n{said}\n--- zonerd up\n{self.clone.said}"


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald | None]:
    """A journald of this test's own; None where none can be run."""
    try:
        server = Journald(tmp_path)
    except Missing:
        yield None
        return
    server.start()
    yield server
    server.close()


@pytest.fixture
def tour(
    tmp_path: Path, kafka: KafkaBroker, valkey: ValkeyServer, topic: str, journald: Journald | None
) -> Iterator[Tour]:
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = {
        "ZONERD_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "ZONERD_KAFKA__TOPIC": topic,
        "ZONERD_REDIS__URL": valkey.url,
        "ZONERD_HTTP__PORT": "{" + ", ".join(f"{process} = {port}" for process, port in ports.items()) + "}",
        "PATH": f"{_with_journalctl(tmp_path)}:{os.environ['PATH']}",
        **(UNIT if journald else {}),
    }
    replaced = {str(PORTS[process]): str(port) for process, port in ports.items()}
    with Clone(tmp_path / "c", environment, journald.command() if journald else ()) as clone:
        yield Tour(clone, replaced, {"journal"} if journald else set())


def _with_journalctl(tmp_path: Path) -> Path:
    """Make a folder with a journalctl that finds the journal of a machine without a name."""
    script = tmp_path / "bin" / "journalctl"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nexec /usr/bin/journalctl --directory=/run/log/journal --no-pager "$@"\n')
    script.chmod(0o700)
    return script.parent


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks with curl")
@pytest.mark.timeout(600)
def test_every_command_of_the_page_does_what_is_shown(tour: Tour) -> None:
    found = list(commands(PAGE.read_text(encoding="utf-8")))
    assert len(found) > 30
    for command in found:
        tour.walk(command)
    assert tour.clone.ended() == 0
