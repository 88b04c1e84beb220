"""Three real Kafka brokers on loopback, each a controller too: one may die."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from services.kafka import ANSWER_DEADLINE_S, KafkaBroker, free_ports
from services.process import wait_until

BROKERS: Final = 3


class KafkaCluster:
    """Brokers that run from construction on; topics have three replicas, and two must have what is acknowledged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = free_ports(2 * BROKERS)
        self._ports = [tuple(ports[2 * number : 2 * number + 2]) for number in range(BROKERS)]
        with ThreadPoolExecutor() as together:
            self.brokers = list(together.map(self._make, range(BROKERS)))
        self.admin = self.brokers[0].admin
        for broker in self.brokers:
            broker.launch()
        for broker in self.brokers:
            broker.wait_for_answer()
        wait_until(
            lambda: len(self.admin.list_topics(timeout=5).brokers) == BROKERS, ANSWER_DEADLINE_S, "all have joined"
        )

    def leader_of(self, topic: str, partition: int) -> KafkaBroker:
        """Give the broker that leads a partition."""
        leader: int = self.admin.list_topics(timeout=10).topics[topic].partitions[partition].leader
        return self.brokers[leader - 1]

    def in_sync(self, topic: str) -> bool:
        """Say whether each partition has three replicas, all of which have all of it."""
        found = self.admin.list_topics(timeout=10).topics.get(topic)
        partitions = list(found.partitions.values()) if found else []
        return bool(partitions) and all(len(one.replicas) == len(one.isrs) == BROKERS for one in partitions)

    def close(self) -> None:
        """End them for good."""
        for broker in self.brokers:
            broker.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self, number: int) -> KafkaBroker:
        voters = [f"{at}@127.0.0.1:{controller}" for at, (_, controller) in enumerate(self._ports, 1)]
        return KafkaBroker(
            self._folder / f"{number + 1}",
            ports=self._ports[number],
            alone=False,
            properties={
                "node.id": f"{number + 1}",
                "controller.quorum.voters": ",".join(voters),
                "default.replication.factor": f"{BROKERS}",
                "min.insync.replicas": "2",
                "offsets.topic.replication.factor": f"{BROKERS}",
            },
        )
