"""Takes the pictures of docs/operations.md from a running zonerd, on a real Kafka and Valkey: `make pictures`."""

import io
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from services.clone import Clone
from services.kafka import KafkaBroker
from services.process import wait_until
from services.valkey import ValkeyServer

PICTURES: Final = Path(__file__).parent / "pictures"
READY_WITHIN_S: Final = 60.0

SOURCE: Final = {
    "ZONERD_PRODUCER__SOURCE": "simulate",
    "ZONERD_PRODUCER__SIMULATE": "{rate_per_s = 200.0}",
}


def main() -> None:
    """Start all of it, and take each picture."""
    broker, cache = KafkaBroker(), ValkeyServer()
    services = {"ZONERD_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap, "ZONERD_REDIS__URL": cache.url}
    with tempfile.TemporaryDirectory() as folder, Clone(Path(folder) / "c", {**services, **SOURCE}) as clone:
        clone.run_in_first_terminal("zonerd up")
        wait_until(lambda: clone.run("zonerd health").exit_code == 0, READY_WITHIN_S, lambda: clone.said)
        seen = {str(clone.folder): "/srv/zonerd", cache.url: "redis://localhost:6379/0"}
        seen[cache.url.removeprefix("redis://").removesuffix("/0")] = "localhost:6379"
        take(clone, seen, "supervisorctl", "supervisorctl status")
        take(clone, seen, "offsets", "zonerd offsets")
        cache.kill()
        wait_until(lambda: clone.run("zonerd health aggregator").exit_code == 1, READY_WITHIN_S)
        take(clone, seen, "status", "zonerd status")
    broker.close()


def take(clone: Clone, seen: Mapping[str, str], name: str, line: str) -> None:
    """Run a line, and keep what stands on the terminal then; `seen` is what stands there for what is here."""
    said = clone.run(line, terminal="xterm-256color").text
    for here, shown in seen.items():
        said = said.replace(here, shown)
    columns = max(map(len, Text.from_ansi(said).plain.splitlines()))
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(f"[bold]$ {line}[/bold]", highlight=False)
    console.print(Text.from_ansi(said.rstrip()))
    svg = console.export_svg(title="zonerd", unique_id=name)
    (PICTURES / f"{name}.svg").write_text(_self_contained(svg), encoding="utf-8")


def _self_contained(svg: str) -> str:
    """Leave out the fonts that would be fetched from elsewhere."""
    svg = re.sub(r"@font-face \{[^}]*\}\s*", "", svg)
    return re.sub(r"[ \t]+$", "", svg.replace("Fira Code", "ui-monospace"), flags=re.MULTILINE)


if __name__ == "__main__":
    main()
