"""The consumer's process: reads its partitions and stores them until it is asked to stop, and tells how it is."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zonerd.config import Config
from zonerd.endpoint import Endpoint, Listening
from zonerd.errors import ServiceUnavailable, StoreUnavailable
from zonerd.health import Health
from zonerd.incarnation import Replaced, Topic
from zonerd.ingest import Consumer
from zonerd.kafka import connection
from zonerd.kafka.cluster import Cluster
from zonerd.kafka.reader import Reader
from zonerd.log import Log, Progress
from zonerd.meter import Meter, pause_of
from zonerd.shutdown import Shutdown
from zonerd.store import database
from zonerd.store.database import EVENTS
from zonerd.store.history import History
from zonerd.store.lock import Lock, lock_when_free
from zonerd.store.opened import Opened

CHECKS: Final = ("lock", "store", "kafka", "topic", "partitions", "wal")

RETRY_S: Final = 1.0
LOCK_WAIT_S: Final = 1.0

GARBAGE_THRESHOLD: Final = 100_000
"""A batch makes thousands of objects, none of them in a cycle: looking for cycles so often cost 4 % of the CPU."""


def run(config: Config, sasl_password: str | None, log: Log, shutdown: Shutdown, number: int) -> None:
    """Read and store until a stop is requested; a missing lock, disk, broker or topic is waited for, not ready."""
    health = Health(log, CHECKS)
    log.info("started", number=number, of=config.consumer.processes, data_dir=config.store.data_dir)
    libraries = {"sqlite": database.library_version(), "librdkafka": connection.library_version()}
    with (
        Endpoint(Listening.of(config, config.consumer_name(number)), health, libraries=libraries),
        lock_when_free(config.data_dir, role(number), health, shutdown) as locked,
        Cluster(config.kafka, sasl_password) as cluster,
    ):
        meter, opened = Meter(config, log, cluster.watch), Opened(log, EVENTS.name)
        while locked and not shutdown.requested:
            try:
                with consuming(config, sasl_password, log, number, cluster, meter) as consumer:
                    opened.note(consumer.store_id)
                    _consume(consumer, meter, health, shutdown, config, log, opened)
            except StoreUnavailable as error:  # nothing was written; begin again at what the store says
                _pause(meter, health, shutdown, opened, error)
    log.info("stopped", orphaned=shutdown.orphaned)


def _consume(  # noqa: PLR0913 - the edges of the loop
    consumer: Consumer, meter: Meter, health: Health, shutdown: Shutdown, config: Config, log: Log, opened: Opened
) -> None:
    progress = Progress(log, config.log.progress_s)
    while not shutdown.requested:
        try:
            consumer.step()
            meter.paused(None)
            health.hold("store")
            health.hold("kafka")
            health.hold("topic")
        except ServiceUnavailable as error:
            consumer.forget()
            _pause(meter, health, shutdown, opened, error)
        except Replaced as error:
            consumer.forget()
            meter.lost()
            meter.paused("topic")
            health.fail("topic", str(error))
            shutdown.wait(RETRY_S, meter.look)
        _judge(consumer, meter, health, config)
        consumer.report()
        progress.tick(consumer.progress)
        health.beat()
    log.info("stop_requested")
    consumer.finish()


def _pause(meter: Meter, health: Health, shutdown: Shutdown, opened: Opened, error: ServiceUnavailable) -> None:
    if isinstance(error, StoreUnavailable):
        opened.failed(error)
    meter.paused(pause_of(error))
    health.fail(error.service, error.reason)
    health.beat()
    shutdown.wait(RETRY_S, meter.look)


def _judge(consumer: Consumer, meter: Meter, health: Health, config: Config) -> None:
    reasons = consumer.stalls.reasons
    if reasons:
        health.fail("partitions", "; ".join(f"partition {p}: {cause}" for p, cause in sorted(reasons.items())))
    else:
        health.hold("partitions")
    if meter.wal_too_large:
        health.fail("wal", f"events.db-wal is larger than store.max_wal_bytes, {config.store.max_wal_bytes}")
    else:
        health.hold("wal")


def catch_up(config: Config, sasl_password: str | None, log: Log, number: int) -> int:
    """Store all that the topic holds at the start, and give how many events that were; nothing is waited for.

    Raises LockHeld, StoreUnavailable, ServiceUnavailable or Replaced.
    """
    with (
        Lock(config.data_dir, role(number), LOCK_WAIT_S),
        Cluster(config.kafka, sasl_password) as cluster,
        consuming(config, sasl_password, log, number, cluster, Meter(config, log, cluster.watch)) as consumer,
    ):
        consumer.step()
        ends = consumer.ends()
        while not consumer.caught_up(ends):
            consumer.step()
        consumer.finish()
        return consumer.stored


@contextmanager
def consuming(  # noqa: PLR0913 - what it joins
    config: Config, sasl_password: str | None, log: Log, number: int, cluster: Cluster, meter: Meter
) -> Iterator[Consumer]:
    """Open the store and the reader of consumer `number`, and close them in reverse order."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    with (
        History.open_writer(config.data_dir, config.store.max_wal_bytes) as history,
        Reader(config.kafka, config.consumer.batch_bytes, sasl_password) as reader,
    ):
        processes = config.consumer.processes
        topic = Topic(history, cluster, reader, config.kafka, config.consumer, log, lambda p: p % processes == number)
        yield Consumer(config, log, history, cluster, reader, topic, meter)


def role(number: int) -> str:
    """Give the name of the lock of consumer `number`."""
    return f"consumer-{number}"
