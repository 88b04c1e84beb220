"""zonerd.service and its companions, installed from the wheel, under a real systemd."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest
from deployment.load import Load

from services.docker import clone
from services.fixtures import MakeTopic
from services.kafka import KafkaBroker
from services.machine import CACHE, Machine
from services.missing import required
from services.process import wait_until
from services.valkey import ValkeyServer

UNITS = ("zonerd", "zonerd-verify", "zonerd-backup")
PROCESSES = ("aggregator", "consumer", "producer", "watchdog")
WHEELS = "PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels"
HISTORY = "/var/lib/zonerd"
SETTINGS = "/etc/zonerd/zonerd.toml"
EXPOSURE_AT_MOST = 1.5


class Installed(NamedTuple):
    """A machine with zonerd installed from its wheel, and the services that it is configured for."""

    machine: Machine
    kafka: KafkaBroker
    valkey: ValkeyServer

    def run(self, line: str, exit_code: int | None = 0) -> str:
        return self.machine.run(line, exit_code=exit_code)

    def show(self, name: str, unit: str = "zonerd") -> str:
        return self.run(f"systemctl show --value --property={name} {unit}").strip()

    @property
    def main_pid(self) -> int:
        return int(self.show("MainPID"))

    def pid_of(self, process: str) -> int:
        return int(self.run(f"supervisorctl pid {process}"))

    def rows(self, sql: str) -> list[dict[str, Any]]:
        answer = json.loads(self.run(f'zonerd sql "{sql}" --json'))
        return [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]

    def journal(self, words: str) -> str:
        return self.run(f"journalctl --no-pager --quiet {words}")

    @property
    def metrics(self) -> str:
        """What the watchdog answers Prometheus."""
        with urlopen("http://127.0.0.1:19300/metrics", timeout=10) as answer:
            said: str = answer.read().decode()
        return said

    def configure(self, **values: str) -> None:
        """Write the installed configuration anew, and these keys of it: `kafka__topic='"x"'`."""
        lines = self.run("cat /etc/zonerd/zonerd.toml.installed").splitlines()
        section = ""
        for number, line in enumerate(lines):
            section = line.strip("[]") if line.startswith("[") else section
            key = f"{section}__{line.partition(' = ')[0]}".replace(".", "__")
            if key in values:
                lines[number] = f"{line.partition(' = ')[0]} = {values.pop(key)}"
        assert not values, values
        (self.machine.root / SETTINGS.lstrip("/")).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def all_is_stored(self, load: Load) -> None:
        """Each event of a load is stored exactly once, and `verify` proves all else."""
        wait_until(lambda: self.rows(load.count)[0]["events"] >= load.sent, what="all is stored")
        assert self.rows(load.count) == [load.counted]
        wait_until(lambda: "not ready" not in self.run("zonerd health", exit_code=None), what="ready")
        self.run("zonerd verify")

    def some_is_stored(self, load: Load) -> None:
        wait_until(lambda: self.rows(load.count)[0]["events"], what="something is stored")


def build_wheel(source: Path, out: Path) -> str:
    """Build the wheel of a clone, and give its name."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(source / "build", ignore_errors=True)
    return max(out.glob("*.whl"), key=os.path.getmtime).name


def install(machine: Machine) -> None:
    """Type `make install` in a clone on this machine, for a wheel that is built there."""
    source = machine.root / "srv" / "zonerd"
    clone(source)
    shutil.copytree(CACHE / "wheels", machine.root / "wheels")
    name = build_wheel(source, source / "dist")
    machine.run(f"cd /srv/zonerd && {WHEELS} make install PACKAGE=dist/{name}")
    machine.run(f"cp {SETTINGS} {SETTINGS}.installed")


@pytest.fixture(scope="module")
def installed(kafka: KafkaBroker) -> Iterator[Installed]:
    """A machine with zonerd, and the services that it is configured for."""
    with required():
        machine = Machine()
    with machine, closing(ValkeyServer()) as valkey:
        install(machine)
        yield Installed(machine, kafka, valkey)


@pytest.fixture
def service(installed: Installed, make_topic: MakeTopic) -> Iterator[Installed]:
    """The service, running and ready, over a history and a topic of its own."""
    installed.run(f"systemctl stop zonerd; systemctl reset-failed zonerd; rm -rf {HISTORY}/*", exit_code=None)
    installed.valkey.client.flushall()
    installed.configure(
        kafka__bootstrap_servers=f'"{installed.kafka.bootstrap}"',
        kafka__topic=f'"{make_topic()}"',
        redis__url=f'"{installed.valkey.url}"',
    )
    installed.run("systemctl start zonerd")
    wait_until(lambda: installed.run("zonerd health", exit_code=None) == "watchdog: ready\n", what="zonerd is ready")
    yield installed
    installed.run("systemctl stop zonerd", exit_code=None)


@pytest.fixture
def load(service: Installed) -> Load:
    """Events into the topic of the service, as long as its `with` lasts."""
    settings = (service.machine.root / SETTINGS.lstrip("/")).read_text(encoding="utf-8")
    (topic,) = re.findall(r'^topic = "(.*)"', settings, re.MULTILINE)
    return Load(service.kafka.bootstrap, "load", topic)


def states(service: Installed) -> dict[str, str]:
    """Give what supervisorctl, typed bare, says of each process."""
    return dict(re.findall(r"^(\S+) +(\w+)", service.run("supervisorctl status", exit_code=None), re.MULTILINE))


def test_systemd_finds_no_fault_in_any_unit(installed: Installed):
    units = " ".join(path.name for path in (installed.machine.root / "etc/systemd/system").glob("zonerd*"))
    assert len(units.split()) == 5
    assert installed.run(f"cd /etc/systemd/system && systemd-analyze verify {units}") == ""


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_may_do_little(installed: Installed, unit: str):
    said = installed.run(f"systemd-analyze security --no-pager {unit}.service")
    (exposure,) = re.findall(r"Overall exposure level for .*: ([0-9.]+)", said)
    assert float(exposure) <= EXPOSURE_AT_MOST


def test_to_install_again_keeps_the_configuration(service: Installed):
    before = service.run(f"cat {SETTINGS}")
    said = service.run(f"cd /srv/zonerd && {WHEELS} make install PACKAGE=$(ls dist/*.whl | head -n 1)")
    assert f"kept {SETTINGS}" in said
    assert service.run(f"cat {SETTINGS}") == before
    assert service.run("zonerd health") == "watchdog: ready\n"


def test_what_is_installed_is_roots_and_what_is_kept_is_the_accounts(service: Installed):
    assert service.run("find /opt/zonerd /etc/zonerd ! -user root -o -perm /022 ! -type l") == ""
    owners = service.run(
        "stat --format='%U:%G %a %n' /var/lib/zonerd /var/lib/zonerd/events.db /run/zonerd /var/log/zonerd"
    )
    assert owners.splitlines() == [
        "zonerd:zonerd 700 /var/lib/zonerd",
        "zonerd:zonerd 600 /var/lib/zonerd/events.db",
        "zonerd:zonerd 750 /run/zonerd",
        "zonerd:zonerd 750 /var/log/zonerd",
    ]


def test_started_means_that_every_process_runs_whether_kafka_answers_or_not(installed: Installed):
    installed.run("systemctl stop zonerd")
    installed.configure(kafka__bootstrap_servers='"127.0.0.1:1"')
    installed.run("systemctl start zonerd")
    assert states(installed) == dict.fromkeys(PROCESSES, "RUNNING")
    wait_until(lambda: "not ready" in installed.run("zonerd health", exit_code=1), what="it says that it is not ready")
    wait_until(lambda: "4 of 4 processes run, " in installed.show("StatusText"), what="systemctl status says it too")
    installed.run("systemctl stop zonerd")


def test_no_process_has_a_right_of_roots(service: Installed):
    for process in ("main", *PROCESSES):
        pid = service.main_pid if process == "main" else service.pid_of(process)
        status = dict(re.findall(r"^(\w+):\s+(.*)$", service.run(f"cat /proc/{pid}/status"), re.MULTILINE))
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert "0" not in status["Uid"].split()
        assert status["NoNewPrivs"] == "1"


def test_whoever_is_in_the_group_may_use_supervisorctl_and_nobody_else(service: Installed):
    service.run("id alice 2>/dev/null || useradd --groups zonerd alice; id bob 2>/dev/null || useradd bob")
    assert "RUNNING" in service.run("runuser -u alice -- supervisorctl status")
    assert "RUNNING" not in service.run("runuser -u bob -- supervisorctl status", exit_code=None)


def test_the_journal_answers_as_documented(service: Installed):
    lines = ['{"user_id": 1, "activity": "meal", "timestamp": 1700000000}', "no event"]
    service.run(f"printf '%s\\n' '{lines[0]}' '{lines[1]}' | zonerd send -", exit_code=1)
    wait_until(lambda: service.rows("select count(*) as n from dead_letters") == [{"n": 1}], what="a dead letter")
    since = f"_SYSTEMD_INVOCATION_ID={service.show('InvocationID')}"
    assert "These partitions are read" in service.journal(f"-u zonerd {since}")
    (found,) = service.journal(f"ZONERD_EVENT=partitions_assigned ZONERD_PARTITION=3 {since} -o json").splitlines()
    entry = json.loads(found)
    assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"], entry["_SYSTEMD_UNIT"]) == (
        "zonerd-consumer", "6", "zonerd.service",
    )  # fmt: skip
    assert "not_json" in service.journal(f"-t zonerd-consumer -p warning {since}")
    assert service.journal(f"-p err {since}") == ""


def test_stop_drains_every_process_in_order(service: Installed, load: Load):
    with load:
        service.some_is_stored(load)
        invocation = service.show("InvocationID")
        service.run("systemctl stop zonerd")
    assert service.show("Result") == "success"
    assert service.show("ExecMainStatus") == "0"
    said = service.journal(f"-u zonerd ZONERD_EVENT=stopped _SYSTEMD_INVOCATION_ID={invocation} -o json").splitlines()
    assert [json.loads(line)["ZONERD_PROCESS"] for line in said] == ["producer", "consumer", "aggregator", "watchdog"]
    service.run("systemctl start zonerd")
    service.all_is_stored(load)


def test_a_killed_supervisord_is_started_again_and_leaves_no_orphan(service: Installed, load: Load):
    before = {service.main_pid, *(service.pid_of(process) for process in PROCESSES)}
    with load:
        service.some_is_stored(load)
        service.run("systemctl kill --signal=KILL --kill-who=main zonerd")
        wait_until(lambda: service.show("NRestarts") == "1" and states(service), what="started again")
    service.all_is_stored(load)
    assert service.run(f"ps -o pid= -p {','.join(map(str, before))}", exit_code=1) == ""


def test_a_killed_process_is_started_again_by_supervisord(service: Installed, load: Load):
    main, consumer = service.main_pid, service.pid_of("consumer")
    with load:
        service.some_is_stored(load)
        service.run(f"kill -KILL {consumer}")
        wait_until(lambda: service.pid_of("consumer") not in (0, consumer), what="another consumer")
    service.all_is_stored(load)
    assert service.main_pid == main


def test_a_process_that_hangs_is_ended_by_the_watchdog(service: Installed):
    service.run(f"sed -i 's/^stall_s = .*/stall_s = 2.0/' {SETTINGS} && systemctl restart zonerd")
    main, consumer = service.main_pid, service.pid_of("consumer")
    service.run(f"kill -STOP {consumer}")
    wait_until(lambda: service.pid_of("consumer") not in (0, consumer), what="another consumer")
    assert "consumer" in service.journal(
        f"ZONERD_EVENT=process_restarted _SYSTEMD_INVOCATION_ID={service.show('InvocationID')}"
    )
    assert service.main_pid == main


def test_a_supervisord_that_hangs_is_ended_by_systemd(service: Installed):
    service.run("mkdir -p /run/systemd/system/zonerd.service.d")
    service.run("printf '[Service]\\nWatchdogSec=12\\n' >/run/systemd/system/zonerd.service.d/soon.conf")
    service.run("systemctl daemon-reload && systemctl restart zonerd")
    try:
        service.run(f"kill -STOP {service.main_pid}")
        wait_until(lambda: service.show("NRestarts") == "1", 90, "started again")
        wait_until(lambda: states(service) == dict.fromkeys(PROCESSES, "RUNNING"), what="all run")
    finally:
        service.run("rm -r /run/systemd/system/zonerd.service.d && systemctl daemon-reload")


def test_a_reload_restarts_the_processes_and_nothing_else(service: Installed):
    main, consumer = service.main_pid, service.pid_of("consumer")
    service.run("systemctl reload zonerd")
    wait_until(lambda: states(service) == dict.fromkeys(PROCESSES, "RUNNING"), what="all run")
    wait_until(lambda: service.pid_of("consumer") not in (0, consumer), what="another consumer")
    assert (service.main_pid, service.show("ActiveState"), service.show("NRestarts")) == (main, "active", "0")


def test_it_comes_back_after_a_reboot_and_goes_on_where_it_was(service: Installed, load: Load):
    service.run("systemctl enable --quiet zonerd")
    with load:
        service.some_is_stored(load)
        service.machine.reboot()
        wait_until(lambda: service.show("ActiveState") == "active", what="started by itself")
    service.all_is_stored(load)
    service.run("systemctl disable --quiet zonerd")


def test_a_refused_configuration_ends_it_with_78_and_is_not_tried_again(service: Installed):
    service.run(f"sed -i 's/^stall_s = .*/stall_s = -1/' {SETTINGS}")
    service.run("systemctl restart zonerd", exit_code=1)
    assert service.show("ActiveState") == "failed"
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("78", "0")
    said = service.journal(f"-p err _SYSTEMD_INVOCATION_ID={service.show('InvocationID')}")
    assert "watchdog.stall_s: must be 1 to 86400" in said


def test_a_password_is_a_credential_that_only_the_service_reads(service: Installed):
    secret = service.machine.root / "etc/credstore/zonerd.redis_password"
    secret.parent.mkdir(mode=0o700, exist_ok=True)
    secret.write_text("s3cret-of-redis\n", encoding="utf-8")
    secret.chmod(0o600)
    service.valkey.client.config_set("requirepass", "s3cret-of-redis")
    try:
        service.run("systemctl restart zonerd")
        wait_until(lambda: service.run("zonerd health", exit_code=None) == "watchdog: ready\n", what="it is ready")
        assert "s3cret" not in service.journal("-u zonerd -o verbose")
        assert "s3cret" not in service.run(f"tr '\\0' ' ' </proc/{service.pid_of('aggregator')}/cmdline")
    finally:
        service.valkey.client.config_set("requirepass", "")
        secret.unlink()


def test_the_nightly_proof_and_copy_run_and_prometheus_sees_them(service: Installed, load: Load):
    with load:
        service.some_is_stored(load)
    service.all_is_stored(load)
    service.run("systemctl start zonerd-backup.service zonerd-verify.service")
    (copy,) = service.run("ls /var/lib/zonerd-backup | grep Z").split()
    copied = service.run(f'zonerd -X store.data_dir=/var/lib/zonerd-backup/{copy} sql "{load.count}" --json')
    assert json.loads(copied)["rows"] == [[load.sent, load.sent]]
    wait_until(lambda: "zonerd_verify_last_exit_code 0.0" in service.metrics, what="the proof's outcome")
    assert "zonerd_backup_last_success_timestamp_seconds 1" in service.metrics


def test_a_nightly_proof_that_finds_a_difference_is_a_failed_unit_and_a_metric(service: Installed, load: Load):
    with load:
        service.some_is_stored(load)
    service.all_is_stored(load)
    service.run("systemctl stop zonerd")
    lose = f"import apsw; apsw.Connection('{HISTORY}/events.db').execute('delete from events where offset = 0')"
    service.run(f'runuser -u zonerd -- /opt/zonerd/bin/python -c "{lose}"')
    service.run("systemctl start zonerd; systemctl start zonerd-verify.service", exit_code=1)
    assert service.show("ActiveState", "zonerd-verify.service") == "failed"
    wait_until(lambda: "zonerd_verify_last_exit_code 1.0" in service.metrics, what="the proof's outcome")
    service.run("systemctl reset-failed zonerd-verify")


def test_the_timers_wait_for_the_night_once_they_are_switched_on(installed: Installed):
    timers = ("zonerd-backup.timer", "zonerd-verify.timer")
    for timer in timers:
        assert installed.run(f"systemctl is-enabled {timer}", exit_code=1) == "disabled\n"
    installed.run(f"systemctl enable --quiet --now {' '.join(timers)}")
    listed = installed.run("systemctl list-timers --no-pager --no-legend 'zonerd*'")
    assert all(timer in listed for timer in timers), listed
    installed.run(f"systemctl disable --quiet --now {' '.join(timers)}")


def test_an_upgrade_goes_on_over_the_same_history(service: Installed, load: Load, tmp_path: Path):
    clone(tmp_path / "zonerd")
    module = tmp_path / "zonerd" / "zonerd" / "__init__.py"
    text = module.read_text(encoding="utf-8")
    (version,) = re.findall(r'__version__ = "(.*)"', text)
    module.write_text(text.replace(version, f"{version}.post1"), encoding="utf-8")
    name = build_wheel(tmp_path / "zonerd", service.machine.root / "srv" / "newer")
    with load:
        service.some_is_stored(load)
        service.run(f"cd /srv/zonerd && {WHEELS} make install PACKAGE=/srv/newer/{name} && systemctl restart zonerd")
    assert service.run("zonerd --version") == f"zonerd {version}.post1\n"
    service.all_is_stored(load)
    older = service.run("ls /srv/zonerd/dist/*.whl | head -n 1").strip()
    service.run(f"{WHEELS} /opt/zonerd/bin/pip install --quiet --no-deps {older}")


def test_a_history_moves_to_another_machine_in_the_middle_of_a_load(service: Installed, load: Load):
    with Machine() as machine, load:
        install(machine)
        service.some_is_stored(load)
        service.run("systemctl stop zonerd")
        for place in (HISTORY, SETTINGS):
            there = machine.root / place.lstrip("/")
            subprocess.run(
                ["cp", "--archive", "--no-target-directory", service.machine.root / place.lstrip("/"), there],
                check=True,
            )
        machine.run("chown -R zonerd: /var/lib/zonerd && systemctl start zonerd")
        other = service._replace(machine=machine)
        load.stop()
        other.all_is_stored(load)
        machine.run("systemctl stop zonerd")


def test_uninstall_leaves_the_data_and_nothing_that_runs(service: Installed):
    service.run("cd /srv/zonerd && make uninstall")
    try:
        left = service.run("ls -d /opt/zonerd /etc/systemd/system/zonerd* /usr/local/bin/zonerd 2>/dev/null; true")
        assert left == ""
        assert service.run(f"ls {HISTORY}/events.db {SETTINGS}").splitlines() == [SETTINGS, f"{HISTORY}/events.db"]
    finally:
        service.run(f"cd /srv/zonerd && {WHEELS} make install PACKAGE=$(ls dist/*.whl | head -n 1)")


def test_a_supervisord_that_is_there_already_takes_the_drop_in(service: Installed):
    service.run("systemctl stop zonerd")
    service.run("dpkg --install /debs/*.deb")
    try:
        service.run("ln -s /etc/zonerd/supervisor.d/zonerd.conf /etc/supervisor/conf.d/")
        service.run("sed -i 's/^chmod=.*/chmod=0770\\nchown=root:zonerd/' /etc/supervisor/supervisord.conf")
        service.run("systemctl restart supervisor")

        def running() -> list[str]:
            said = service.run("/usr/bin/supervisorctl status", exit_code=None)
            return re.findall(r"^(\w+) +RUNNING", said, re.MULTILINE)

        wait_until(lambda: running() == list(PROCESSES), what="all run")
        wait_until(lambda: service.run("zonerd health", exit_code=None) == "watchdog: ready\n", what="it is ready")
        for process in PROCESSES:
            assert service.run(f"ps -o user= -p $(/usr/bin/supervisorctl pid {process})") == "zonerd\n"
    finally:
        service.run("dpkg --purge supervisor")
