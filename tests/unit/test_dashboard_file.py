"""The shipped dashboard as Grafana reads it: its form, its data source, its metrics."""

from itertools import combinations
from typing import Any

import pytest
import yaml

from services import alerts

ROWS = ["Overview", "Ingest", "Lag", "Store", "Answers", "Processes"]
UNITS = {"none", "short", "cps", "s", "bytes", "Bps", "percentunit", "dateTimeAsIso"}
"""Those of Grafana's units that are used: in base units, as the metrics are."""

WIDTH = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
PANELS = list(alerts.panels())
VARIABLES = alerts.dashboard()["templating"]["list"]


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def titled(panel: dict[str, Any]) -> str:
    return f"{panel['id']} {panel['title']}"


def test_the_rows_are_the_questions_of_an_operator_the_overview_first():
    assert [panel["title"] for panel in alerts.dashboard()["panels"] if panel["type"] == "row"] == ROWS


def test_no_two_panels_have_one_id_or_one_place():
    panels = alerts.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations(panels, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (titled(one), titled(other))
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= WIDTH for panel in panels)


@pytest.mark.parametrize("panel", PANELS, ids=titled)
def test_a_panel_says_what_it_shows_in_which_unit_and_asks_the_chosen_prometheus(panel: dict[str, Any]):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"] == DATASOURCE
    assert all(target["datasource"] == DATASOURCE for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("panel", PANELS, ids=titled)
def test_a_panel_shows_one_pipeline_and_metrics_that_zonerd_exposes(panel: dict[str, Any]):
    for target in panel["targets"]:
        named = alerts.metrics_in(target["expr"])
        assert named <= alerts.declared()
        assert target["expr"].count('job="$job"') >= max(1, len(named))


def test_every_metric_of_zonerd_is_shown_or_watched():
    rules = [*alerts.rules("alert").values(), *alerts.rules("record").values()]
    asked = [rule["expr"] for rule in rules] + [target["expr"] for panel in PANELS for target in panel["targets"]]
    named = {name for expression in asked for name in alerts.metrics_in(expression)}
    ours = {name for name in alerts.declared() if name.startswith("zonerd_") and not name.endswith(("_sum", "_count"))}
    assert ours - named == set()


def test_the_pipeline_the_topic_and_the_process_can_be_chosen_and_no_user():
    assert [variable["name"] for variable in VARIABLES] == ["datasource", "job", "topic", "process"]
    asked = str(VARIABLES) + str(PANELS)
    assert not any(word in asked for word in ("user_id", "activity="))


def test_grafana_finds_the_dashboard_and_prometheus_where_the_provisioning_files_say():
    folder = alerts.DASHBOARD.parents[1] / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "zonerd.yml").read_text(encoding="utf-8"))["datasources"]
    providers = yaml.safe_load((folder / "dashboards" / "zonerd.yml").read_text(encoding="utf-8"))["providers"]
    scraped = yaml.safe_load((alerts.PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))["global"]
    assert [(source["type"], source["jsonData"]["timeInterval"]) for source in sources] == [
        ("prometheus", scraped["scrape_interval"])
    ]
    assert [(one["type"], one["options"]["path"]) for one in providers] == [("file", "/etc/grafana/dashboards")]
