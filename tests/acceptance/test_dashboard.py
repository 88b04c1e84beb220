"""The shipped dashboard and alerts, in a real Prometheus that scrapes a running zonerd over real Kafka and Valkey."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from services import alerts
from services.kafka import KafkaBroker, free_ports
from services.missing import required
from services.process import ZonerdProcess, wait_until
from services.prometheus import PrometheusServer, program, run
from services.valkey import ValkeyServer

WORDS = """
[store]
data_dir = "."
[kafka]
bootstrap_servers = "{broker}"
topic = "watched"
[redis]
url = "{redis}"
[producer]
source = "simulate"
simulate = {{ rate_per_s = 200.0 }}
[http]
port = {{ {ports} }}
"""
PROCESSES = ("watchdog", "producer", "aggregator", "consumer")
SUPERVISED = PROCESSES[1:]
"""Those whose state the watchdog tells."""
NO_EVENTS = '{"user_id": 1}\nno event\n[]\n'

DASHBOARD_IN_S = {"$__rate_interval": "10s", "$job": "zonerd", "$topic": ".*", "$process": ".*"}
ANSWER_WITHIN_S = 60.0

TOO_SOON = {"ZonerdDiskFilling"}
"""Three days cannot be told from seconds; its `for` waits for an hour of them."""


class Watched:
    """A `zonerd up` and the Prometheus that watches it."""

    def __init__(self, folder: Path, kafka: KafkaBroker, valkey: ValkeyServer) -> None:
        self.valkey = valkey
        self.config_file = folder / "zonerd.toml"
        self.ports = dict(zip(PROCESSES, free_ports(len(PROCESSES)), strict=True))
        ports = ", ".join(f"{process} = {port}" for process, port in self.ports.items())
        text = WORDS.format(broker=kafka.bootstrap_servers, redis=valkey.url, ports=ports)
        self.config_file.write_text(text, encoding="utf-8")
        self.up = ZonerdProcess(self.config_file, folder, "up")
        self.prometheus: PrometheusServer

    def close(self) -> None:
        self.up.signal(signal.SIGTERM)
        try:
            self.up.wait(45)
        finally:
            self.up.kill()

    def zonerd(self, *words: str, text: str = "", code: int = 0) -> str:
        command = [sys.executable, "-m", "zonerd", "-c", str(self.config_file), *words]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout

    def pid(self, process: str) -> int:
        return int(self.zonerd("ctl", "pid", process))

    def processes(self, alert: str) -> set[str]:
        """Give whom an alert's expression is about now."""
        found = self.prometheus.query(alerts.rules("alert")[alert]["expr"])
        return {sample.labels.get("process", "") for sample in found}

    def wait_for(self, alert: str, *processes: str) -> None:
        """Wait until an alert's expression is about exactly these processes."""
        wait_until(
            lambda: self.processes(alert) == set(processes),
            ANSWER_WITHIN_S,
            lambda: f"{alert} {processes}, not {self.processes(alert)}\n{self.up.story()}",
        )

    def as_targets(self) -> str:
        """Give the shipped configuration of Prometheus with our ports, each second."""
        config: dict[str, Any] = yaml.safe_load((alerts.PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(alerts.RULES)]
        del config["alerting"]
        for one in config["scrape_configs"][0]["static_configs"]:
            one["targets"] = [f"127.0.0.1:{self.ports[one['labels']['process']]}"]
        return yaml.safe_dump(config)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, kafka: KafkaBroker) -> Iterator[Watched]:
    """One pipeline for all: each test leaves it as it was."""
    with required():
        program("prometheus")
    kafka.create_topic("watched", 4)
    with (
        closing(ValkeyServer()) as valkey,
        closing(Watched(tmp_path_factory.mktemp("w"), kafka, valkey)) as one,
        closing(PrometheusServer(one.as_targets())) as one.prometheus,
    ):
        one.zonerd("send", "-", text=NO_EVENTS, code=1)
        wait_until(lambda: len(one.prometheus.query("up == 1")) == len(PROCESSES), ANSWER_WITHIN_S, one.up.story)
        wait_until(lambda: one.prometheus.query("min(zonerd_ready) == 1"), ANSWER_WITHIN_S, one.up.story)
        one.zonerd("verify", "--record")
        one.zonerd("backup", str(one.config_file.parent / "backup"))
        yield one
    kafka.delete_topic("watched")


def as_grafana_asks(expression: str) -> str:
    for name, value in DASHBOARD_IN_S.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def unanswered(prometheus: PrometheusServer, expressions: set[str]) -> set[str]:
    return {expression for expression in expressions if not prometheus.query(expression)}


def test_every_query_of_the_dashboard_has_an_answer(watched: Watched):
    queries = {as_grafana_asks(target["expr"]) for panel in alerts.panels() for target in panel["targets"]}
    wait_until(
        lambda: not unanswered(watched.prometheus, queries),
        ANSWER_WITHIN_S,
        lambda: "\n".join(unanswered(watched.prometheus, queries)),
    )


def test_every_choice_and_annotation_of_the_dashboard_can_be_asked(watched: Watched):
    for variable in alerts.dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
            found = watched.prometheus.get(f"label/{label}/values", **{"match[]": as_grafana_asks(series)})
            assert found, variable["name"]
    for annotation in alerts.dashboard()["annotations"]["list"]:
        if "expr" in annotation:
            watched.prometheus.query(as_grafana_asks(annotation["expr"]))


def test_every_series_of_the_rules_is_there_with_the_labels_that_they_ask_for(watched: Watched):
    rules = [*alerts.rules("record").values(), *alerts.rules("alert").values()]
    selectors = {selector for rule in rules for selector in alerts.selectors_in(rule["expr"])}
    wait_until(
        lambda: not unanswered(watched.prometheus, selectors | set(alerts.rules("record"))),
        ANSWER_WITHIN_S,
        lambda: "\n".join(unanswered(watched.prometheus, selectors | set(alerts.rules("record")))),
    )


def test_no_alert_is_about_a_healthy_pipeline(watched: Watched):
    for alert in set(alerts.rules("alert")) - TOO_SOON:
        watched.wait_for(alert)
    for group in watched.prometheus.get("rules")["groups"]:
        assert {rule["name"]: rule.get("lastError", "") for rule in group["rules"] if rule["health"] != "ok"} == {}
    wait_until(lambda: not firing(watched.prometheus), ANSWER_WITHIN_S, lambda: str(firing(watched.prometheus)))


def firing(prometheus: PrometheusServer) -> list[dict[str, Any]]:
    """Give the alerts that fire, but for what another test has ended and `keep_firing_for` keeps up."""
    found = [one for one in prometheus.get("alerts")["alerts"] if one["state"] == "firing"]
    return [one for one in found if "keepFiringSince" not in one]


@pytest.mark.parametrize("process", PROCESSES)
def test_promtool_finds_no_fault_in_what_a_process_exposes(watched: Watched, process: str):
    with urlopen(f"http://127.0.0.1:{watched.ports[process]}/metrics", timeout=10) as answer:
        code, said = run("promtool", "check", "metrics", text=answer.read().decode())
    assert (code, said) == (0, "")


@pytest.mark.parametrize("process", SUPERVISED)
def test_a_process_that_somebody_stopped_is_told_as_stopped_and_pages_nobody_yet(watched: Watched, process: str):
    watched.wait_for("ZonerdProcessStopped")
    watched.zonerd("ctl", "stop", process)
    try:
        watched.wait_for("ZonerdProcessStopped", process)
        wait_until(lambda: watched.prometheus.query(f'up{{process="{process}"}} == 0'), ANSWER_WITHIN_S)
        watched.wait_for("ZonerdTargetDown")
        watched.wait_for("ZonerdProcessDown")
    finally:
        watched.zonerd("ctl", "start", process)
    watched.wait_for("ZonerdProcessStopped")


def test_a_watchdog_that_somebody_stopped_pages_for_nobody_else_would_tell(watched: Watched):
    watched.wait_for("ZonerdTargetDown")
    watched.zonerd("ctl", "stop", "watchdog")
    try:
        watched.wait_for("ZonerdTargetDown", "watchdog")
    finally:
        watched.zonerd("ctl", "start", "watchdog")
    watched.wait_for("ZonerdTargetDown")


@pytest.mark.parametrize("process", SUPERVISED)
def test_a_process_that_ended_by_itself_pages(watched: Watched, process: str):
    watched.wait_for("ZonerdProcessDown")
    os.kill(watched.pid(process), signal.SIGTERM)
    try:
        watched.wait_for("ZonerdProcessDown", process)
        watched.wait_for("ZonerdTargetDown", process)
        watched.wait_for("ZonerdProcessStopped")
    finally:
        watched.zonerd("ctl", "start", process)
    watched.wait_for("ZonerdProcessDown")


@pytest.mark.parametrize("process", PROCESSES)
def test_a_hung_process_pages_though_supervisord_sees_it_run(watched: Watched, process: str):
    watched.wait_for("ZonerdTargetDown")
    pid = watched.pid(process)
    os.kill(pid, signal.SIGSTOP)  # of the others the watchdog takes care, but not so soon
    try:
        watched.wait_for("ZonerdTargetDown", process)
    finally:
        os.kill(pid, signal.SIGCONT)
    watched.wait_for("ZonerdTargetDown")


def test_a_redis_that_hangs_is_named_by_the_check_that_fails(watched: Watched):
    watched.wait_for("ZonerdNotReady")
    watched.valkey.pause()
    try:
        watched.wait_for("ZonerdNotReady", "aggregator")
    finally:
        watched.valkey.resume()
    watched.wait_for("ZonerdNotReady")


def test_differences_that_verify_recorded_page_until_it_finds_none(watched: Watched):
    watched.wait_for("ZonerdVerifyFailed")
    watched.zonerd("ctl", "stop", "aggregator")
    try:
        watched.valkey.client.hset("zonerd:total", "nap", 1)
        watched.zonerd("verify", "--quick", "--record", code=1)
        watched.wait_for("ZonerdVerifyFailed", "")
        (sample,) = watched.prometheus.query('zonerd_verify_differences{check="redis"}')
        assert sample.value == 1
    finally:
        watched.valkey.client.delete("zonerd:as_of")
        watched.zonerd("ctl", "start", "aggregator")
    wait_until(lambda: watched.valkey.client.hget("zonerd:as_of", "state") == "live", ANSWER_WITHIN_S)
    watched.zonerd("verify", "--quick", "--record")
    watched.wait_for("ZonerdVerifyFailed")


def reading_commands() -> set[str]:
    """Give each command of zonerd's that the runbooks let somebody type to look, and that ends by itself."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(alerts.RUNBOOKS.glob("*.md")))
    typed = re.findall(r"^ {4,}zonerd ([^#\n]*[^#\s])", text, re.MULTILINE)
    return {words for words in typed if not re.search(r"--watch|-f |ctl (start|stop|restart)", words)}


def test_every_command_that_the_runbooks_let_somebody_type_to_look_is_understood(watched: Watched):
    commands = reading_commands()
    assert len(commands) > 10
    for words in commands:
        command = [sys.executable, "-m", "zonerd", "-c", str(watched.config_file), *shlex.split(words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 1, 3), (words, done.returncode, done.stderr)
