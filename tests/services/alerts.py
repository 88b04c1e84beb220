"""The shipped rules, pages and dashboard, as the tests read them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml

from zonerd import metrics

CLONE = Path(__file__).parents[2]
PROMETHEUS = CLONE / "etc" / "prometheus"
RULES = PROMETHEUS / "rules" / "zonerd.yml"
CASES = sorted((CLONE / "tests" / "prometheus").glob("*.test.yml"))
RUNBOOKS = CLONE / "docs" / "runbooks"
DASHBOARD = CLONE / "etc" / "grafana" / "dashboards" / "zonerd.json"


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Give the shipped rules of a kind, `alert` or `record`, by name."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def dashboard() -> dict[str, Any]:
    """Give the shipped dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> Iterator[dict[str, Any]]:
    """Give each panel of the dashboard that shows something; a row is none."""
    for panel in dashboard()["panels"]:
        yield from panel.get("panels", ())
        if panel["type"] != "row":
            yield panel


def metrics_in(text: str) -> set[str]:
    """Give the names of zonerd's series, and of recorded ones, in an expression or a page."""
    return {name for name in re.findall(r"[a-zA-Z_][a-zA-Z0-9_:]*", text) if _is_ours(name)}


def selectors_in(expression: str) -> set[str]:
    """Give each selector of zonerd's series in an expression, with its labels: `zonerd_ready{check="kafka"}`."""
    return {
        found.group()
        for found in re.finditer(r"\bzonerd_[a-z_]+(\{[^}]*\})?", re.sub(r"job[a-z_]*:\S+", "", expression))
    }


def declared() -> set[str]:
    """Give the names of all series that zonerd exposes, `_total`, `_bucket` and so on included."""
    found: set[str] = set()
    for role in get_args(metrics.Role):
        for family in metrics.families(role):
            endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            found |= {family.name + ending for ending in endings}
    return found


def _is_ours(name: str) -> bool:
    return name.count(":") == 2 or re.fullmatch(r"zonerd_[a-z0-9_]*[a-z0-9]", name) is not None
