"""Events that go on coming while everything else is stopped, killed and started, and what became of each."""

import json
import threading
import time
from typing import Final, Self

from confluent_kafka import KafkaError, Message, Producer

PER_S: Final = 2000
EVERY_S: Final = 0.02
FLUSH_WITHIN_S: Final = 120.0


class Load:
    """Sends numbered events, in a thread, from the start of its `with` to its end; then each is delivered.

    Each is the only event of its own user, `NAME-NUMBER`: who counts users and events finds what is lost or doubled.
    A broker that is away is waited for.
    """

    def __init__(self, bootstrap: str, name: str, topic: str = "user_activity") -> None:
        self.name = name
        self.sent = 0
        self._delivered = 0
        self._errors: list[str] = []
        self._topic = topic
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait until what was sent is delivered; an AssertionError tells what was not."""
        self._ended.set()
        self._thread.join(FLUSH_WITHIN_S)
        self._producer.flush(FLUSH_WITHIN_S)
        assert not self._errors, self._errors[:3]
        assert self._delivered == self.sent > 0

    @property
    def count(self) -> str:
        """The SQL that counts its events and their users."""
        counts = "count(*) as events, count(distinct user_id) as users"
        return f"select {counts} from events where user_id like '{self.name}-%'"

    @property
    def counted(self) -> dict[str, int]:
        """What that SQL must give: each event once."""
        return {"events": self.sent, "users": self.sent}

    def _go_on(self) -> None:
        while not self._ended.is_set():
            for _ in range(int(PER_S * EVERY_S)):
                user = f"{self.name}-{self.sent}"
                value = json.dumps({"user_id": user, "activity": "load", "timestamp": time.time()})
                self._producer.produce(self._topic, value, key=user, on_delivery=self._note)
                self.sent += 1
            self._producer.poll(0)
            self._ended.wait(EVERY_S)

    def _note(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self._delivered += 1
        else:
            self._errors.append(str(error))
