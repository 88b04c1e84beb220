"""A real Kafka broker: KRaft, one node, on loopback, in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from services.missing import Missing
from services.process import tail, wait_until

LIBS = Path(__file__).parents[2] / ".cache" / "kafka" / "libs"
START_DEADLINE_S = 60.0
ANSWER_DEADLINE_S = 30.0
CLUSTER_ID = "em9uZXJkLWZvci10ZXN0cw"


def free_ports(count: int) -> list[int]:
    """Give ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class KafkaBroker:
    """A broker that runs from construction on; `stop` ends it and `start` goes on over the same data and port.

    `auto_create_topics`: a topic asked for by name is made. `properties` are added to its server.properties, `ports`
    are those of its listener and its controller. Not `alone`, it is one of several, and waits to be launched.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        auto_create_topics: bool = False,
        properties: Mapping[str, str] | None = None,
        cluster_id: str = CLUSTER_ID,
        ports: Sequence[int] = (),
        alone: bool = True,
    ) -> None:
        java = shutil.which("java")
        if java is None or not any(LIBS.glob("kafka_*.jar")):
            raise Missing("Kafka's jars or Java are missing: `make test` sets them up")
        self._java = java
        self._owned = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="zonerd-kafka-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self.folder / "data"
        self.log = self.folder / "kafka.log"
        self.port, self._controller_port = ports or free_ports(2)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._properties = self.folder / "server.properties"
        self._write_properties(auto_create_topics, properties or {})
        self._run("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self._properties))
        if alone:
            try:
                self.start()
            except BaseException:
                self.close()
                raise
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    @property
    def bootstrap_servers(self) -> str:
        """The address, as the configuration's key `kafka.bootstrap_servers` wants it."""
        return self.bootstrap

    @property
    def pid(self) -> int:
        """The number of the broker's process."""
        assert self.process is not None, "the broker does not run"
        return self.process.pid

    def start(self) -> None:
        """Start it over its data and wait until it answers."""
        self.launch()
        self.wait_for_answer()

    def launch(self) -> None:
        """Start it over its data."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._command("-Xmx512m"), "kafka.Kafka", str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )

    def wait_for_answer(self) -> None:
        """Wait until it answers."""
        wait_until(self._answers, START_DEADLINE_S, lambda: f"Kafka answers\n{tail(self.log)}")

    def stop(self) -> None:
        """End it cleanly; its data stay."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; its data stay as they are."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """End it cleanly and start it again over the same data at the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it accepts connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it for good; a folder of its own making goes too."""
        self.kill()
        if self._owned:
            shutil.rmtree(self.folder, ignore_errors=True)

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Create a topic and wait until each of its partitions has a leader."""
        self.admin.create_topics([NewTopic(name, partitions, 1, config=dict(config or {}))])[name].result(
            ANSWER_DEADLINE_S
        )

        def led() -> bool:
            topic = self.admin.list_topics(timeout=5).topics.get(name)
            return (
                topic is not None
                and len(topic.partitions) == partitions
                and all(one.leader >= 0 for one in topic.partitions.values())
            )

        wait_until(led, ANSWER_DEADLINE_S, f"{name} has leaders")

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until it is gone."""
        self.admin.delete_topics([name])[name].result(ANSWER_DEADLINE_S)
        wait_until(lambda: name not in self.topics(), ANSWER_DEADLINE_S, f"{name} is gone")

    def topics(self) -> set[str]:
        """Give the names of all topics."""
        return set(self.admin.list_topics(timeout=10).topics)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"Kafka ended with {self.process.returncode}\n{tail(self.log)}"
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200})
        try:
            return bool(admin.list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _command(self, *options: str) -> list[str]:
        return [self._java, *options, "-XX:+UseSerialGC", "-cp", f"{LIBS}/*"]

    def _run(self, *words: str) -> None:
        with self.log.open("ab") as log:
            done = subprocess.run(
                [*self._command("-Xmx128m", "-XX:TieredStopAtLevel=1"), *words],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                timeout=START_DEADLINE_S,
                check=False,
            )
        assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}\n{tail(self.log)}"

    def _write_properties(self, auto_create_topics: bool, properties: Mapping[str, str]) -> None:
        values = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self.data),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": str(auto_create_topics).lower(),
            # what a broker does once in minutes, and a test waits for
            "log.initial.task.delay.ms": "500",
            "log.retention.check.interval.ms": "500",
            "log.segment.delete.delay.ms": "500",
            "log.cleaner.backoff.ms": "200",
            "log.cleaner.dedupe.buffer.size": "4194304",
            **properties,
        }
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in values.items()), encoding="utf-8")
