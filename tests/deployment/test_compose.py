"""docker-compose.yml, on a real Docker engine, as its user would."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from deployment.load import Load

from services.docker import DockerEngine, Project
from services.process import wait_until

PORTS = {19300, 19301, 19302, 19310}
NAMES = ("aggregator", "consumer", "producer", "watchdog")
PIPELINE = ("zonerd", "prometheus")
OF_THE_PROFILE = ("zonerd-zookeeper", "kafka-zookeeper", "valkey-zookeeper", "zookeeper")
UID = 10001


@pytest.fixture(scope="module")
def project(engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The clone with its images built and nothing started."""
    project = Project(engine, tmp_path_factory.mktemp("clone"), {"ZONERD_SIMULATED_PER_S": "50"})
    project.compose("build", "--quiet", "zonerd")
    yield project
    project.compose("--profile", "zookeeper", "down", "--volumes", "--timeout", "60")


@pytest.fixture
def pipeline(project: Project) -> Project:
    """All is up and healthy, whatever another test has stopped."""
    project.up(*PIPELINE)
    return project


def rows(project: Project, sql: str, service: str = "zonerd") -> list[dict[str, Any]]:
    """Give what the history of a pipeline answers."""
    answer = json.loads(project.inside(service, "zonerd", "sql", sql, "--json"))
    return [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]


def all_is_stored(project: Project, load: Load, service: str = "zonerd") -> None:
    """Each event of a load is in the history exactly once, and `verify` proves all else."""
    wait_until(lambda: rows(project, load.count, service)[0]["events"] >= load.sent, what="all is stored")
    assert rows(project, load.count, service) == [load.counted]
    ready = "watchdog: ready\n"
    wait_until(lambda: project.inside(service, "zonerd", "health", exit_code=None) == ready, what="it is ready")
    proof = project.inside(service, "zonerd", "verify")
    assert re.search(r"^broker +equal", proof, re.MULTILINE), proof
    assert re.search(r"^redis +equal", proof, re.MULTILINE), proof


def some_is_stored(project: Project, load: Load, service: str = "zonerd") -> None:
    """The load has begun to arrive."""
    wait_until(lambda: rows(project, load.count, service)[0]["events"], what="something is stored")


def kafka_of(project: Project, name: str = "KAFKA_PORT") -> str:
    return f"127.0.0.1:{project.ports[name]}"


def pids_of(project: Project, service: str = "zonerd") -> list[int]:
    """Give the processes of a container by their numbers on the machine."""
    identity = project.container(service)["Id"]
    lines = project.engine.docker("top", identity, "-eo", "pid").splitlines()
    return [int(line) for line in lines if line.strip().isdigit()]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def listening_ports(pid: int) -> set[int]:
    """Give the TCP ports at which somebody listens in the network namespace of a process, but for docker's resolver."""
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, port = local.partition(":")
            if state == "0A" and address != "0B00007F":  # 127.0.0.11
                ports.add(int(port, 16))
    return ports


def test_a_first_up_shows_simulated_events_summarised(pipeline: Project):
    def activities() -> set[str]:
        return {name for name, _ in json.loads(pipeline.inside("valkey", "valkey-cli", "get", "activity_summary"))}

    wait_until(lambda: activities() >= {"sleep", "meal", "light_exposure"}, what="all three simulated activities")
    assert "events, as of user_activity/0" in pipeline.inside("zonerd", "zonerd", "summary")


def test_every_command_of_the_page_that_asks_or_copies_works(pipeline: Project):
    page = (pipeline.folder / "docs" / "deploy.md").read_text(encoding="utf-8")
    section = page.partition("\n## Containers\n")[2].partition("\n**Kafka with ZooKeeper**")[0]
    lines = re.findall(r"(?:^\$ |`)(docker compose (?:exec|cp) [^`\n]+)", section, re.MULTILINE)
    assert len(lines) > 5
    (pipeline.folder / "events.jsonl").write_text('{"user_id": "page", "activity": "read", "timestamp": 1700000000}\n')
    for line in lines:
        pipeline.engine.run(["bash", "-c", line], pipeline.folder, within_s=60)
    assert (pipeline.folder / "backup").is_dir()


def test_a_copy_that_is_put_back_as_the_page_says_catches_up(pipeline: Project):
    page = (pipeline.folder / "docs" / "deploy.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```console restore\n(.*?)```", page, re.DOTALL)
    with Load(kafka_of(pipeline), "restored") as load:
        some_is_stored(pipeline, load)
        pipeline.inside("zonerd", "zonerd", "backup", "/var/lib/zonerd/backup")
        for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            pipeline.engine.run(["bash", "-c", line], pipeline.folder, within_s=120)
    all_is_stored(pipeline, load)


def test_the_log_of_a_container_is_json_lines_of_all_processes(pipeline: Project):
    lines = pipeline.compose("logs", "--no-log-prefix", "zonerd").splitlines()
    said = [json.loads(line) for line in lines if line.startswith("{")]
    assert {line["process"] for line in said if line["event"] == "started"} == set(NAMES)


def test_supervisorctl_answers_stops_and_starts_bare(pipeline: Project):
    status = pipeline.inside("zonerd", "supervisorctl", "status")
    assert re.findall(r"^(\w+) +RUNNING", status, re.MULTILINE) == list(NAMES)
    assert pipeline.inside("zonerd", "supervisorctl", "stop", "consumer") == "consumer: stopped\n"
    assert "STOPPED" in pipeline.inside("zonerd", "supervisorctl", "status", "consumer", exit_code=3)
    assert pipeline.inside("zonerd", "supervisorctl", "start", "consumer") == "consumer: started\n"


def test_prometheus_scrapes_every_process_and_knows_the_rules(pipeline: Project):
    def asked(what: str) -> Any:  # noqa: ANN401 - JSON
        with urlopen(f"http://127.0.0.1:{pipeline.ports['PROMETHEUS_PORT']}/api/v1/{what}", timeout=10) as answer:
            return json.load(answer)["data"]

    def up() -> set[str]:
        return {target["labels"]["process"] for target in asked("targets")["activeTargets"] if target["health"] == "up"}

    wait_until(lambda: up() == set(NAMES), what="every target is up")
    assert any(rule["name"] == "ZonerdLagGrowing" for group in asked("rules")["groups"] for rule in group["rules"])


def test_it_runs_as_an_account_without_rights(pipeline: Project):
    for pid in pids_of(pipeline):
        status = status_of(pid)
        assert status["Uid"].split() == [str(UID)] * 4, status["Name"]
        assert status["Gid"].split() == [str(UID)] * 4, status["Name"]
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status["Name"]
        assert status["NoNewPrivs"] == "1", status["Name"]


@pytest.mark.parametrize("folder", ["/", "/opt/zonerd", "/etc/zonerd"])
def test_its_root_cannot_be_written(pipeline: Project, folder: str):
    assert "Read-only file system" in pipeline.inside("zonerd", "touch", f"{folder}/x", exit_code=1)


def test_it_needs_no_shell(project: Project):
    engine = project.engine
    masked = [f"--volume=/dev/null:/usr/bin/{shell}:ro" for shell in ("dash", "bash")]
    container = engine.docker("run", "--detach", "--tmpfs=/run/zonerd:uid=10001,mode=0700", *masked, "zonerd").strip()
    try:
        assert "exec failed" in engine.docker("exec", container, "sh", "-c", "true", exit_code=None)
        asked = ("exec", container, "zonerd", "health", "consumer", "--live")
        wait_until(lambda: "alive" in engine.docker(*asked, exit_code=None), what="it lives")
    finally:
        engine.docker("rm", "--force", "--volumes", container)


def test_what_it_keeps_is_for_its_account_alone(pipeline: Project):
    listed = pipeline.inside("zonerd", "stat", "--format=%a %u %n", "/var/lib/zonerd", "/var/lib/zonerd/events.db")
    assert listed.split("\n")[:2] == [f"700 {UID} /var/lib/zonerd", f"600 {UID} /var/lib/zonerd/events.db"]


def test_it_listens_at_its_four_ports_only(pipeline: Project):
    (main,) = (pid for pid in pids_of(pipeline) if "up" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
    assert listening_ports(main) == PORTS


def test_no_port_is_published_beyond_this_machine(pipeline: Project):
    for service in ("zonerd", "kafka", "valkey", "prometheus"):
        bindings = pipeline.container(service)["NetworkSettings"]["Ports"].values()
        assert {one["HostIp"] for found in filter(None, bindings) for one in found} == {"127.0.0.1"}, service


def test_stop_ends_every_process_in_order_and_well(pipeline: Project):
    with Load(kafka_of(pipeline), "stopped") as load:
        some_is_stored(pipeline, load)
        pipeline.compose("stop", "zonerd")
        state = pipeline.container("zonerd")["State"]
        said = pipeline.compose("logs", "--no-log-prefix", "zonerd")
        pipeline.up(*PIPELINE)
    assert state["ExitCode"] == 0
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    stopped = [line["process"] for line in lines if line["event"] == "stopped"]
    assert stopped[-4:] == ["producer", "consumer", "aggregator", "watchdog"]
    all_is_stored(pipeline, load)


def test_down_and_up_in_the_middle_of_a_load_loses_and_doubles_nothing(pipeline: Project):
    with Load(kafka_of(pipeline), "downed") as load:
        some_is_stored(pipeline, load)
        pipeline.compose("down")
        assert pipeline.compose("ps", "--all", "--quiet") == ""
        pipeline.up(*PIPELINE)
    all_is_stored(pipeline, load)


def test_a_container_that_is_killed_under_load_goes_on_where_it_was(pipeline: Project):
    with Load(kafka_of(pipeline), "killed") as load:
        some_is_stored(pipeline, load)
        pipeline.compose("kill", "zonerd")
        assert pipeline.container("zonerd")["State"]["ExitCode"] == 128 + signal.SIGKILL
        pipeline.up(*PIPELINE)
    all_is_stored(pipeline, load)


def test_a_crash_of_its_first_process_is_restarted_by_the_engine(pipeline: Project):
    before = pipeline.container("zonerd")
    with Load(kafka_of(pipeline), "crashed") as load:
        some_is_stored(pipeline, load)
        os.kill(before["State"]["Pid"], signal.SIGKILL)
        wait_until(lambda: pipeline.container("zonerd")["RestartCount"] > before["RestartCount"], what="restarted")
        pipeline.up(*PIPELINE)
    all_is_stored(pipeline, load)


def test_a_second_container_on_one_volume_is_refused_and_told_who_holds_it(pipeline: Project):
    said = pipeline.compose("run", "--rm", "--no-deps", "--no-TTY", "zonerd", exit_code=78)
    host = pipeline.container("zonerd")["Config"]["Hostname"]
    assert f"the supervisor is already running: pid 1 on {host}, since " in said


def test_a_mounted_folder_of_another_owner_is_refused_with_the_line_that_mends_it(project: Project, tmp_path: Path):
    folder = tmp_path / "history"
    folder.mkdir()
    run = ("run", "--rm", "--no-deps", "--no-TTY", "--volume", f"{folder}:/var/lib/zonerd", "zonerd")
    said = project.compose(*run, exit_code=78)
    (line,) = re.findall(r"/var/lib/zonerd: not writable; try: (chown -R \S+) (\S+) \(from outside a container", said)
    assert line == ("chown -R 10001:10001", "/var/lib/zonerd")
    subprocess.run([*line[0].split(), str(folder)], check=True)
    said = project.compose(*run, "zonerd", "doctor", "--json", exit_code=None)
    assert "not writable" not in said


def test_the_same_pipeline_runs_on_kafka_3_9_with_zookeeper(project: Project):
    project.compose("--profile", "zookeeper", "build", "--quiet", "zonerd-zookeeper")
    project.up("zonerd-zookeeper")
    with Load(kafka_of(project, "KAFKA_ZOOKEEPER_PORT"), "zookeeper") as load:
        some_is_stored(project, load, "zonerd-zookeeper")
        project.compose("kill", "zonerd-zookeeper")
        project.up("zonerd-zookeeper")
        project.compose("--profile", "zookeeper", "stop", "zonerd-zookeeper", "kafka-zookeeper", "zookeeper")
        project.up("zonerd-zookeeper")
    all_is_stored(project, load, "zonerd-zookeeper")
    project.compose("--profile", "zookeeper", "rm", "--stop", "--force", *OF_THE_PROFILE)


def test_a_password_for_redis_is_a_file_that_nothing_shows(project: Project):
    page = (project.folder / "docs" / "deploy.md").read_text(encoding="utf-8")
    override = project.folder / "docker-compose.override.yml"
    override.write_text(re.findall(r"```yaml\n(services:.*?)```", page, re.DOTALL)[0], encoding="utf-8")
    secret = project.folder / "redis_password.txt"
    secret.write_text("s3cret-of-redis\n", encoding="utf-8")
    os.chown(secret, UID, UID)
    secret.chmod(0o400)
    try:
        project.up(*PIPELINE)
        assert "NOAUTH" in project.inside("valkey", "valkey-cli", "get", "activity_summary", exit_code=None)
        assert "events, as of" in project.inside("zonerd", "zonerd", "summary")
        for service in ("zonerd", "valkey"):
            container = project.container(service)
            shown = [project.compose("logs", service), project.engine.docker("top", container["Id"], "-eo", "pid,args")]
            assert "s3cret" not in "".join([*shown, json.dumps(container)]), service
    finally:
        override.unlink()
