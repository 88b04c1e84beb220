"""What a process of zonerd's exposes, as somebody outside reads it: over HTTP, with Prometheus' own parser."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.error import HTTPError
from urllib.request import urlopen

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from services.process import wait_until
from zonerd import ports

ANSWER_WITHIN_S = 10.0


class Scraped(NamedTuple):
    """One answer of /metrics."""

    families: dict[str, Metric]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Give what stands in this text; ValueError where it is not Prometheus' format."""
        return cls({family.name: family for family in text_string_to_metric_families(text)})

    def series(self, name: str, /, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Give the samples of this name that have these labels, by all their labels, sorted."""
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }

    def value(self, name: str, /, **labels: str) -> float:
        """Give the one sample of this name with these labels; NaN where there is none."""
        found = self.series(name, **labels)
        assert len(found) <= 1, f"{name} {labels} is not one series: {sorted(found)}"
        return next(iter(found.values()), math.nan)

    def total(self, name: str, /, **labels: str) -> float:
        """Give the sum of all samples of this name with these labels; 0 where there is none."""
        return sum(self.series(name, **labels).values())

    def label(self, name: str, label: str) -> set[str]:
        """Give the values that this label has in the samples of this name."""
        return {dict(labels)[label] for labels in self.series(name)}


def scrape(port: int) -> Scraped:
    """Give what /metrics at this port of 127.0.0.1 answers now."""
    return Scraped.parse(_get(port, "/metrics").decode())


def health(port: int, path: str = "/readyz") -> dict[str, Any]:
    """Give the JSON that /readyz or /healthz answers now, whatever its status."""
    report: dict[str, Any] = json.loads(_get(port, path))
    return report


def port_of(run_dir: Path, process: str, deadline_s: float = 30.0, pid: int | None = None) -> int:
    """Wait until ports.json tells where this process answers, and give that port.

    With a `pid`: until that very process answers there; an earlier one's port stands in the file until then.
    """

    def answering() -> int | None:
        port = ports.noted(run_dir).get(process)
        with suppress(OSError):
            if port and (pid is None or health(port, "/healthz")["pid"] == pid):
                return port
        return None

    return wait_until(answering, deadline_s, f"{process} has a port in {run_dir}") or 0


def _get(port: int, path: str) -> bytes:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_WITHIN_S) as answer:
            body: bytes = answer.read()
    except HTTPError as error:
        with error:
            body = error.read()
    return body
