"""Kafka and Redis, tried with the clients and the passwords that zonerd uses."""

import time
from collections.abc import Iterator, Mapping
from typing import Final

from zonerd.cache import Cache
from zonerd.config import Config, read_secret
from zonerd.doctor.finding import Finding, fail, ok, warn
from zonerd.doctor.places import readable
from zonerd.errors import ConfigurationRefused, Refused, ServiceUnavailable
from zonerd.kafka.cluster import Cluster

CLOCKS_APART_S: Final = 1.0


def examine(config: Config, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Read the passwords, then ask each service."""
    kafka_file, redis_file = config.kafka.sasl_password_file, config.redis.password_file
    for key, file in (("kafka.sasl_password_file", kafka_file), ("redis.password_file", redis_file)):
        if found := readable(key, file):
            yield found
    try:
        password = read_secret(kafka_file, "kafka_sasl_password", environment)
        yield from _kafka(config, password)
    except ConfigurationRefused as error:
        yield from (fail("kafka", problem) for problem in error.problems)
    if not config.redis.enabled:
        yield ok("redis", "redis.enabled = false")
        return
    try:
        with Cache.of(config.redis, environment) as cache:
            yield from _redis(cache, config.redis.url)
    except (ServiceUnavailable, Refused) as error:
        yield fail("redis", error.reason if isinstance(error, ServiceUnavailable) else str(error))


def _kafka(config: Config, password: str | None) -> Iterator[Finding]:
    began = time.perf_counter()
    servers, topic = config.kafka.bootstrap_servers, config.kafka.topic
    try:
        with Cluster(config.kafka, password) as cluster:
            found = cluster.incarnation()
            took = _took(began)
    except ServiceUnavailable as error:
        yield fail("kafka", f"{error.reason} (tried for {_took(began)})")
        return
    if found is not None:
        yield ok("kafka", f"{servers} answered in {took}: cluster {found.cluster_id}")
        yield ok("topic", f"{topic}: {len(found.partitions)} partitions, id {found.topic_id or 'none'}")
        return
    yield ok("kafka", f"{servers} answered in {took}")
    if config.kafka.create_topic:
        yield warn("topic", f"{topic}: not there yet; the first process makes it")
    else:
        yield fail("topic", f"{topic}: not there, and kafka.create_topic is false; try: zonerd topic create")


def _redis(cache: Cache, url: str) -> Iterator[Finding]:
    began = time.perf_counter()
    server = cache.server()
    yield ok("redis", f"{url} answered in {_took(began)}: {server.version}")
    if warning := cache.check():
        yield warn("redis", warning)
    apart = f"{url} is {abs(server.ahead_s):.3f} s {'ahead' if server.ahead_s > 0 else 'behind'}"
    yield (ok if abs(server.ahead_s) < CLOCKS_APART_S else warn)("clock", apart)


def _took(began: float) -> str:
    return f"{(time.perf_counter() - began) * 1000:.0f} ms"
