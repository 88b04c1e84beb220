"""What is shipped for Prometheus and Alertmanager, held against promtool, amtool, the metrics and the runbooks."""

import re
from pathlib import Path

import pytest
import yaml

from services import alerts
from services.missing import required
from services.prometheus import program, run
from zonerd.cli import COMMANDS
from zonerd.config import Config

ALERTS = alerts.rules("alert")
SEVERITIES = ("page", "ticket")
HEADINGS = ["## Look", "## Do", "## It ends when", "## Try it"]


@pytest.fixture(autouse=True)
def _tools() -> None:
    with required():
        program("promtool")
        program("amtool")


def routed(**labels: str) -> str:
    words = [f"{name}={value}" for name, value in labels.items()]
    config = f"--config.file={alerts.PROMETHEUS / 'alertmanager.yml'}"
    code, said = run("amtool", "config", "routes", "test", config, *words)
    assert code == 0, said
    return said.splitlines()[-1].strip()


def cases(alert: str) -> list[bool]:
    """Give for each case that looks at this alert whether it ever expects it to fire."""
    found = []
    for file in alerts.CASES:
        for case in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            looks = [look for look in case["promql_expr_test"] if f'alertname="{alert}"' in look["expr"]]
            if looks:
                found.append(any(look.get("exp_samples") for look in looks))
    return found


def test_promtool_finds_no_fault_in_the_shipped_configuration():
    code, said = run("promtool", "check", "config", str(alerts.PROMETHEUS / "prometheus.yml"))
    assert code == 0, said
    assert "1 rule files found" in said


def test_promtool_finds_no_fault_in_the_configuration_of_the_containers(tmp_path: Path):
    shipped = alerts.PROMETHEUS.parent / "container" / "prometheus.yml"
    (tmp_path / "prometheus.yml").write_text(shipped.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "rules").symlink_to(alerts.RULES.parent)
    code, said = run("promtool", "check", "config", str(tmp_path / "prometheus.yml"))
    assert code == 0, said
    assert "1 rule files found" in said


def test_promtool_finds_no_fault_in_the_shipped_rules():
    code, said = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", str(alerts.RULES))
    assert code == 0, said


@pytest.mark.parametrize("file", alerts.CASES, ids=lambda file: file.name)
def test_every_alert_fires_and_does_not_fire_as_its_cases_say(file: Path):
    code, said = run("promtool", "test", "rules", str(file))
    assert code == 0, said


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str):
    assert set(cases(alert)) == {True, False}


@pytest.mark.parametrize(
    ("expression", "noticed"),
    [("vector(1) > 1", "got: nil"), ('label_replace(vector(1), "process", "consumer", "", "")', "exp: nil")],
    ids=["never fires", "always fires"],
)
def test_an_alert_with_another_expression_fails_its_cases(expression: str, noticed: str, tmp_path: Path):
    rules = yaml.safe_load(alerts.RULES.read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule |= {"expr": expression, "for": "0s"}
    (tmp_path / alerts.RULES.name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    for file in alerts.CASES:
        text = file.read_text(encoding="utf-8").replace("../../etc/prometheus/rules/", "")
        text = re.sub("evaluation_interval: .*", "evaluation_interval: 2m", text)
        (tmp_path / file.name).write_text(text, encoding="utf-8")
    code, said = run("promtool", "test", "rules", *(str(tmp_path / file.name) for file in alerts.CASES))
    assert code == 1
    failures = [failure for failure in said.split("expr: ") if noticed in failure]
    assert {name for failure in failures for name in re.findall(r"Zonerd\w+", failure)} == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_urgent_it_is_what_is_wrong_and_where_to_read_on(alert: str):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page = alerts.RUNBOOKS / rule["annotations"]["runbook_url"].removeprefix("https://zonerd.example/runbooks/")
    assert page == alerts.RUNBOOKS / f"{alert.removeprefix('Zonerd')}.md"
    assert page.is_file()


def test_every_page_belongs_to_an_alert_and_stands_in_the_index_under_its_urgency():
    pages = {page.stem for page in alerts.RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == {alert.removeprefix("Zonerd") for alert in ALERTS}
    index = (alerts.RUNBOOKS / "README.md").read_text(encoding="utf-8")
    _, woken, later = re.split(r"^## (?:Pages|Tickets).*$", index, flags=re.MULTILINE)
    for severity, part in zip(SEVERITIES, (woken, later), strict=True):
        wanted = {
            name.removeprefix("Zonerd") for name, rule in ALERTS.items() if rule["labels"]["severity"] == severity
        }
        assert set(re.findall(r"^\| \[(\w+)\]\(\1\.md\)", part, re.MULTILINE)) == wanted


@pytest.mark.parametrize("page", sorted(alerts.RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_names_only_what_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    code = " ".join(re.findall(r"`[^`]+`|^ {4,}.*$", text, re.MULTILINE))
    assert alerts.metrics_in(code) - alerts.declared() <= set(alerts.rules("record"))
    assert set(re.findall(r"(?:^ {4,}|`|\| )zonerd ([a-z][a-z-]+)", text, re.MULTILINE)) <= set(COMMANDS)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).is_file(), link
    for key in re.findall(r"`((?:store|kafka|producer|consumer|aggregator|redis|http|watchdog|log)\.\w+)", text):
        section, name = key.split(".")
        assert hasattr(getattr(Config(), section), name) or name in ("yml", "db"), key


@pytest.mark.parametrize(
    "page", sorted({*alerts.RUNBOOKS.glob("*.md")} - {alerts.RUNBOOKS / "README.md"}), ids=lambda p: p.stem
)
def test_a_page_says_who_is_hurt_where_to_look_what_to_do_how_it_ends_and_how_to_try_it(page: Path):
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {page.stem}\n")
    assert "**Who is hurt:**" in text
    assert re.findall(r"^## .*$", text, re.MULTILINE) == HEADINGS


def test_every_metric_of_the_rules_is_one_that_zonerd_exposes():
    recorded = alerts.rules("record")
    named = {name for rule in {**recorded, **ALERTS}.values() for name in alerts.metrics_in(rule["expr"])}
    assert named - set(recorded) <= alerts.declared()
    assert named >= set(recorded), "a recorded series that nobody reads"


def test_the_scrape_configuration_has_a_target_for_each_process_at_its_default_port():
    config = yaml.safe_load((alerts.PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    targets = {one["labels"]["process"]: one["targets"] for one in job["static_configs"]}
    assert targets == {process: [f"127.0.0.1:{Config().port_of(process)}"] for process in Config().processes}


def test_a_page_goes_to_the_pager_and_all_else_becomes_a_ticket():
    code, said = run("amtool", "check-config", str(alerts.PROMETHEUS / "alertmanager.yml"))
    assert code == 0, said
    assert [routed(alertname="ZonerdPaused", severity=severity) for severity in SEVERITIES] == ["pager", "tickets"]


def test_alertmanager_holds_back_only_alerts_that_there_are():
    text = (alerts.PROMETHEUS / "alertmanager.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"Zonerd\w+", text)) <= set(ALERTS)
