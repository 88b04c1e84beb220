"""Events as the prototype's producer wrote them, in any number."""

import json
import random
from collections.abc import Iterator

from confluent_kafka import Producer

ACTIVITIES = ("sleep", "meal", "light_exposure")


def lines(count: int, seed: int = 1) -> Iterator[tuple[bytes, bytes]]:
    """Give so many events, each as its key and its bytes."""
    chance = random.Random(seed)
    for number in range(count):
        user_id = chance.randint(1, 100)
        event = {"user_id": user_id, "activity": chance.choice(ACTIVITIES), "timestamp": 1.7e9 + number / 8}
        yield str(user_id).encode(), json.dumps(event).encode()


def fill(bootstrap_servers: str, topic: str, count: int) -> None:
    """Put so many events into a topic."""
    producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 50})
    for key, value in lines(count):
        while True:
            try:
                producer.produce(topic, value, key=key)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()
