"""`zonerd up` and `zonerd ctl`, with a broker in this process's memory and no Redis."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zonerd import config, ports
from zonerd.kafka.embedded import EmbeddedBroker

ZONERD = [sys.executable, "-m", "zonerd"]
CLONE = Path(__file__).parents[2]


class Supervised:
    """One `zonerd up` and what it started."""

    def __init__(self, folder: Path, broker: EmbeddedBroker, *overrides: str) -> None:
        self.folder = folder
        self.out = folder / "up.out"
        self.config_file = folder / "zonerd.toml"
        self.config_file.write_text(
            f'[store]\ndata_dir = "."\n[kafka]\nbootstrap_servers = "{broker.bootstrap_servers}"\n'
            '[redis]\nenabled = false\n[producer]\nsource = "simulate"\n'
            "[http]\nport = { watchdog = 0, producer = 0, aggregator = 0, consumer = 0 }\n",
            encoding="utf-8",
        )
        self.overrides = overrides
        self.command = [*ZONERD, "-c", str(self.config_file), *(f"-X{override}" for override in overrides)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [*self.command, "up"],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def run_dir(self) -> Path:
        return config.load(self.config_file, {}, self.overrides).config.run_dir

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def ended(self, within_s: float = 40) -> int:
        assert self.process is not None
        return self.process.wait(within_s)

    def ctl(self, *arguments: str) -> tuple[int, str]:
        result = subprocess.run([*self.command, "ctl", *arguments], capture_output=True, text=True, timeout=60)
        return result.returncode, result.stdout

    def states(self) -> dict[str, str]:
        return dict(re.findall(r"^(\S+)\s+([A-Z]+)", self.ctl("status")[1], re.MULTILINE))

    def pids(self) -> dict[str, int]:
        found = re.findall(r"^(\S+)\s+RUNNING\s+pid (\d+)", self.ctl("status")[1], re.MULTILINE)
        return {name: int(pid) for name, pid in found}

    def wait_until_running(self, count: int = 4) -> None:
        wait_for(lambda: list(self.states().values()) == ["RUNNING"] * count, self.out)
        wait_for(lambda: len(ports.noted(self.run_dir)) == count, self.out)  # a stop would be heard by now


def wait_for(condition: Callable[[], object], said: Path, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, said.read_text(encoding="utf-8")
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        broker.make_topic("user_activity")
        yield broker


@pytest.fixture
def up(tmp_path: Path, broker: EmbeddedBroker) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def make(*overrides: str, folder: str = "data") -> Supervised:
        (tmp_path / folder).mkdir(exist_ok=True)
        started.append(Supervised(tmp_path / folder, broker, *overrides))
        return started[-1]

    yield make
    for one in started:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_it_says_where_it_stands_runs_all_three_and_stops_them_in_order_with_exit_0(up: Callable[..., Supervised]):
    one = up(folder="with space 50%")
    one.start()
    one.wait_until_running()
    pids = one.pids()
    os.kill(one.pid, signal.SIGTERM)
    assert one.ended() == 0
    said = one.out.read_text(encoding="utf-8")
    assert str(one.folder) in said
    assert "127.0.0.1:" in said
    assert re.findall(r"stopped: (\w+) \(exit status 0\)", said) == ["producer", "consumer", "aggregator", "watchdog"]
    assert not any(map(alive, pids.values()))
    assert not (one.folder / "run" / "supervisor.sock").exists()


def test_ctl_has_supervisorctls_verbs_and_exit_codes(up: Callable[..., Supervised]):
    one = up()
    assert one.ctl("status")[0] == 4
    one.start()
    one.wait_until_running()
    assert one.ctl("status")[0] == 0
    before = one.pids()
    assert one.ctl("stop", "consumer") == (0, "consumer: stopped\n")
    assert one.ctl("status")[0] == 3
    assert one.states()["consumer"] == "STOPPED"
    assert one.ctl("start", "consumer") == (0, "consumer: started\n")
    assert one.ctl("restart", "aggregator")[0] == 0
    after = one.pids()
    assert after["producer"] == before["producer"]
    assert after["consumer"] != before["consumer"]
    assert after["aggregator"] != before["aggregator"]
    code, tail = one.ctl("tail", "consumer")
    assert code == 0
    assert '"event": "started"' in tail


def test_plain_supervisorctl_works_with_a_clones_conf(tmp_path: Path, broker: EmbeddedBroker):
    (tmp_path / "etc").mkdir()
    (tmp_path / "var" / "zonerd").mkdir(parents=True)
    conf = tmp_path / "etc" / "supervisord.conf"
    conf.write_bytes((CLONE / "etc" / "supervisord.conf").read_bytes())
    one = Supervised(tmp_path / "etc", broker, "store.data_dir=../var/zonerd", "store.run_dir=../var/zonerd/run")
    one.start()
    try:
        one.wait_until_running()
        plain = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(conf)]
        result = subprocess.run([*plain, "status"], capture_output=True, text=True, timeout=30)
        assert result.returncode == 0
        assert result.stdout.count("RUNNING") == 4
        for verb in ("stop", "start", "restart", "tail"):
            assert subprocess.run([*plain, verb, "aggregator"], capture_output=True, timeout=60).returncode == 0
        assert subprocess.run([*plain, "shutdown"], capture_output=True, timeout=30).returncode == 0
        assert one.ended() == 0
    finally:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()


def test_several_consumers_run_under_numbered_names(up: Callable[..., Supervised]):
    one = up("consumer.processes=2")
    one.start()
    one.wait_until_running(5)
    plain = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(one.folder / "run" / "supervisord.conf")]
    stopped = subprocess.run([*plain, "restart", "consumer:consumer-0"], capture_output=True, text=True, timeout=60)
    assert stopped.stdout == "consumer:consumer-0: stopped\nconsumer:consumer-0: started\n"
    assert '"event": "started"' in one.ctl("tail", "consumer:consumer-1")[1]
    assert one.ctl("start", "consumer:*")[0] == 0
    assert one.ctl("stop", "consumer:*")[0] == 0
    states = one.states()
    assert states["consumer:consumer-0"] == states["consumer:consumer-1"] == "STOPPED"
    os.kill(one.pid, signal.SIGINT)
    assert one.ended() == 0


def test_a_second_up_over_the_same_directory_is_refused_naming_the_holder(up: Callable[..., Supervised]):
    one = up()
    one.start()
    one.wait_until_running()
    began = time.monotonic()
    second = subprocess.run([*one.command, "up"], capture_output=True, text=True, timeout=30)
    assert time.monotonic() - began < 2 + 1  # a second for Python itself
    assert second.returncode == 78
    assert f"pid {one.pid}" in second.stderr


def test_a_bad_configuration_is_refused_before_anything_is_made(tmp_path: Path):
    command = [*ZONERD, "-X", f"store.data_dir={tmp_path / 'never'}", "-X", "consumer.processes=none", "up"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 78
    assert "consumer.processes" in result.stderr
    assert not (tmp_path / "never").exists()


def test_a_second_ctrl_c_kills_at_once_even_what_hangs(up: Callable[..., Supervised]):
    one = up()
    one.start()
    one.wait_until_running()
    pids = one.pids()
    os.kill(pids["producer"], signal.SIGSTOP)
    os.kill(one.pid, signal.SIGINT)
    wait_for(lambda: "waiting for" in one.out.read_text(encoding="utf-8"), one.out)
    time.sleep(0.3)  # closer together they are one request
    os.kill(one.pid, signal.SIGINT)
    assert one.ended(3) == 130
    assert not any(map(alive, pids.values()))


def test_two_signals_at_the_same_moment_are_one_request(up: Callable[..., Supervised]):
    one = up()
    one.start()
    one.wait_until_running()
    os.kill(one.pid, signal.SIGTERM)
    os.kill(one.pid, signal.SIGINT)
    assert one.ended() == 0


def test_a_killed_supervisord_leaves_no_orphan(up: Callable[..., Supervised]):
    one = up()
    one.start()
    one.wait_until_running()
    pids = one.pids()
    os.kill(one.pid, signal.SIGKILL)
    one.ended()
    wait_for(lambda: not any(map(alive, pids.values())), one.out, within_s=15)
    one.start()
    one.wait_until_running()
    os.kill(one.pid, signal.SIGTERM)
    assert one.ended() == 0


def test_a_closed_terminal_is_a_stop(up: Callable[..., Supervised]):
    one = up()
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execv(sys.executable, [*one.command, "up"])
    said = b""
    while said.count(b"entered RUNNING state") < 4:
        said += os.read(terminal, 65536)
    pids = one.pids()
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert not any(map(alive, pids.values()))


def test_sighup_without_a_terminal_restarts_all_in_order_with_the_configuration_as_it_is_now(
    up: Callable[..., Supervised],
):
    one = up()
    one.start()
    one.wait_until_running()
    before = one.pids()
    with one.config_file.open("a", encoding="utf-8") as file:
        file.write("[consumer]\nprocesses = 2\n")
    os.kill(one.pid, signal.SIGHUP)
    wait_for(lambda: set(one.pids()) >= {"consumer:consumer-0", "consumer:consumer-1", "watchdog"}, one.out)
    assert not set(before.values()) & set(one.pids().values())
    said = one.out.read_text(encoding="utf-8")
    assert re.findall(r"stopped: (\w+) ", said) == ["producer", "consumer", "aggregator", "watchdog"]
    one.wait_until_running(5)
    assert set(ports.noted(one.run_dir)) == {"watchdog", "producer", "aggregator", "consumer-0", "consumer-1"}
    os.kill(one.pid, signal.SIGTERM)
    assert one.ended() == 0


REFUSED = {
    "consumer.processes": ("[redis]\n", "[consumer]\nprocesses = 'x'\n[redis]\n"),
    "store.run_dir": ("[store]\n", "[store]\nrun_dir = 'elsewhere'\n"),
    "redis.password_file": ("[redis]\n", "[redis]\npassword_file = 'missing'\n"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_sighup_with_a_configuration_that_is_refused_says_why_and_changes_nothing(
    up: Callable[..., Supervised], key: str
):
    one = up()
    one.start()
    one.wait_until_running()
    before = one.pids()
    text = one.config_file.read_text(encoding="utf-8")
    one.config_file.write_text(text.replace(*REFUSED[key]), encoding="utf-8")
    os.kill(one.pid, signal.SIGHUP)
    wait_for(lambda: f"{key}: " in one.out.read_text(encoding="utf-8"), one.out)
    assert "received SIGHUP, refused: " in one.out.read_text(encoding="utf-8")
    one.config_file.write_text(text, encoding="utf-8")
    assert one.pids() == before


def test_a_stop_that_comes_with_a_restart_is_a_stop(up: Callable[..., Supervised]):
    one = up()
    one.start()
    one.wait_until_running()
    os.kill(one.pid, signal.SIGHUP)
    os.kill(one.pid, signal.SIGTERM)
    assert one.ended() == 0


def test_its_ports_are_said_and_those_of_an_earlier_run_are_forgotten(up: Callable[..., Supervised]):
    one = up()
    ports.note(one.run_dir, "consumer-7", 1)
    one.start()
    one.wait_until_running()
    assert set(ports.noted(one.run_dir)) == {"watchdog", "producer", "aggregator", "consumer"}
    assert "http         127.0.0.1: watchdog any" in one.out.read_text(encoding="utf-8")


def test_it_stops_when_whoever_started_it_is_gone(up: Callable[..., Supervised]):
    one = up()
    one.start(ZONERD_SUPERVISED="1")  # a foreign supervisor: whoever is the parent at the start
    one.wait_until_running()
    os.kill(one.pid, signal.SIGTERM)
    assert one.ended() == 0
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        one.start(ZONERD_SUPERVISED=str(other.pid))  # not our parent: as if it had gone at once
        other.kill()
    assert one.ended() == 0
    assert "gone" in one.out.read_text(encoding="utf-8")


def test_a_broker_that_has_just_died_does_not_hold_up_a_stop(tmp_path: Path):
    held = "from zonerd.kafka.embedded import EmbeddedBroker as B; import time; b = B(); b.make_topic('user_activity')"
    code = f"{held}; print(b.bootstrap_servers, flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as broker:
        assert broker.stdout is not None
        address = broker.stdout.readline().strip()
        overrides = [f"-Xkafka.bootstrap_servers={address}", f"-Xstore.data_dir={tmp_path}", "-Xredis.enabled=false"]
        command = [*ZONERD, *overrides, "-Xproducer.source=simulate"]
        log = tmp_path / "consumer.log"
        with log.open("wb") as out, subprocess.Popen([*command, "producer"], stdout=subprocess.DEVNULL) as producer:
            consumer = subprocess.Popen([*command, "consumer"], stdout=out, stderr=subprocess.STDOUT)
            stored = tmp_path / "events.db-wal"
            wait_for(lambda: stored.exists() and stored.stat().st_size > 100_000, log)
            producer.kill()
        broker.kill()
    consumer.terminate()
    assert consumer.wait(10) == 0
