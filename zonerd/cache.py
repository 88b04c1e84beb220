"""Redis: what it says it holds, and transactions that replace it only if it still says so."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import NoPermissionError, RedisError, ResponseError, WatchError
from redis.retry import Retry

from zonerd import config
from zonerd.errors import Overtaken, Refused, ServiceUnavailable
from zonerd.rollups import AGGREGATES, AsOf, Keys, Value, parse_as_of

HURRIED_ATTEMPT_S: Final = 2.0
HURRIED_ANSWER_S: Final = 0.5


class Published(NamedTuple):
    """All that Redis holds of ours, at one moment of its own clock."""

    as_of: AsOf
    values: Mapping[str, Value]
    now_ms: int

    @property
    def age_s(self) -> float:
        """How long ago it was written."""
        return (self.now_ms - self.as_of.published_ms) / 1000


class Server(NamedTuple):
    """Which server answers, and how many seconds its clock is ahead of ours."""

    version: str
    ahead_s: float


class Rejected(ServiceUnavailable):
    """Redis ran a transaction and refused a part of it: what it holds now is a mixture."""


class View:
    """What Redis said of itself, and the right to replace it while it says so."""

    def __init__(self, pipeline: Pipeline, keys: Keys, shown: AsOf | None, now_ms: int) -> None:
        self._pipeline = pipeline
        self.keys = keys
        self.shown = shown
        self.now_ms = now_ms

    def send(self, values: Mapping[str, Value], as_of: AsOf) -> None:
        """Replace these keys and `as_of` in one transaction; an empty hash is deleted.

        Raises Overtaken, nothing changed, if `as_of` was written since it was read, and Rejected if
        a part of the transaction failed.
        """
        pipeline = self._pipeline
        pipeline.multi()
        for key, value in values.items():
            _replace(pipeline, key, value)
        _replace(pipeline, self.keys.as_of, as_of.fields())
        try:
            replies = pipeline.execute(raise_on_error=False)
        except WatchError:
            raise Overtaken(f"{self.keys.as_of} was written by another") from None
        failure = next((reply for reply in replies if isinstance(reply, Exception)), None)
        if failure is not None:
            raise Rejected("redis", str(failure))


class Cache:
    """The Redis of one configuration; it is connected to when it is used.

    While `interrupted()` is true, nothing more is begun. Every method raises ServiceUnavailable when
    Redis does not answer, or not with what was asked for.
    """

    def __init__(
        self, section: config.Redis, password: str | None, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        self._section = section
        self._password = password
        self._interrupted = interrupted
        self._client = _connect(section, password, section.timeout_s)
        self.keys = Keys(section.prefix, section.summary_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @classmethod
    def of(cls, section: config.Redis, environment: Mapping[str, str]) -> Self:
        """Give the Redis of this section, its password read from its file or credential."""
        return cls(section, config.read_secret(section.password_file, "redis_password", environment))

    def hurried(self) -> "Cache":
        """Give the same Redis for one last attempt: it ends within 2 s, whatever Redis does."""
        deadline = time.monotonic() + HURRIED_ATTEMPT_S - HURRIED_ANSWER_S
        cache = Cache(self._section, self._password, lambda: time.monotonic() > deadline)
        cache._client = _connect(self._section, self._password, HURRIED_ANSWER_S)
        return cache

    def check(self) -> str | None:
        """Refuse a Redis that cannot serve; give a warning about one that may lose what it was told.

        Raises Refused for a cluster: one transaction would span its slots.
        """
        with self._translated():
            try:
                if self._client.info("cluster").get("cluster_enabled"):
                    raise Refused(
                        f"{self._section.url}: runs in cluster mode, where one transaction cannot span all keys"
                    )
                policy = self._client.info("memory").get("maxmemory_policy", "noeviction")
            except NoPermissionError:
                return None
        return None if policy == "noeviction" else f"maxmemory-policy is {policy}; noeviction keeps answers whole"

    def server(self) -> Server:
        """Give what kind of Redis this is, and the time that its clock shows."""
        with self._translated():
            told = self._client.info("server")
            name = "Valkey" if "valkey_version" in told else "Redis"
            version = told.get("valkey_version", told.get("redis_version", "of an unknown version"))
            asked_s = time.time()
            now_ms = _ms(self._client.time())
            return Server(f"{name} {version}", now_ms / 1000 - (asked_s + time.time()) / 2)

    @contextmanager
    def watch(self) -> Iterator[View]:
        """Read what Redis says of itself; what is sent through the view is sent only if that still stands."""
        with self._translated():
            pipeline = self._client.pipeline()
            try:
                pipeline.watch(self.keys.as_of)  # type: ignore[no-untyped-call]
                shown, now_ms = self._shown(pipeline), self._now_ms(pipeline)
                yield View(pipeline, self.keys, shown, now_ms)
            except BaseException:
                pipeline.watching = False  # else reset() would talk to a server that may be gone, and wait
                if pipeline.connection is not None:
                    pipeline.connection.disconnect()  # type: ignore[no-untyped-call]
                raise
            finally:
                pipeline.reset()

    def read(self) -> Published | None:
        """Read `as_of` and all values at one moment; None if nothing was ever published."""
        forms = [form for aggregate in AGGREGATES for form in aggregate.forms]
        with self._translated(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(self.keys.as_of)
            pipeline.time()
            for form in forms:
                (pipeline.hgetall if form.kind == "hash" else pipeline.get)(self.keys.of(form))
            fields, now, *replies = pipeline.execute(raise_on_error=False)
        as_of = parse_as_of(fields) if isinstance(fields, dict) else None
        if as_of is None:
            return None
        values = {self.keys.of(form): _value(reply) for form, reply in zip(forms, replies, strict=True)}
        return Published(as_of, values, _ms(now))

    def _shown(self, pipeline: Pipeline) -> AsOf | None:
        self._refuse_interrupted()
        try:
            fields: Any = pipeline.hgetall(self.keys.as_of)
            return parse_as_of(fields)
        except ResponseError as error:
            if "WRONGTYPE" in str(error):
                return None
            raise

    def _now_ms(self, pipeline: Pipeline) -> int:
        self._refuse_interrupted()
        return _ms(pipeline.time())

    def _refuse_interrupted(self) -> None:
        if self._interrupted():
            raise ServiceUnavailable("redis", "given up: this process is stopping")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        self._refuse_interrupted()
        try:
            yield
        except RedisError as error:
            raise ServiceUnavailable("redis", f"{self._section.url}: {error}") from error


def _connect(section: config.Redis, password: str | None, timeout_s: float) -> "Redis":
    options: dict[str, Any] = {"password": password} if password is not None else {}
    if section.ssl_ca_file and section.url.startswith("rediss:"):
        options["ssl_ca_certs"] = section.ssl_ca_file
    return Redis.from_url(
        section.url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),  # the loop tries again; an attempt of its own must have an end
        decode_responses=True,
        encoding_errors="replace",
        protocol=2,
        **options,
    )


def _replace(pipeline: Pipeline, key: str, value: str | Mapping[str, Any]) -> None:
    if isinstance(value, str):
        pipeline.set(key, value)
        return
    pipeline.delete(key)
    if value:
        mapping: Any = dict(value)
        pipeline.hset(key, mapping=mapping)


def _value(reply: object) -> Value:
    if isinstance(reply, dict):
        return {name: int(count) if count.isdecimal() else -1 for name, count in reply.items()}
    return reply if isinstance(reply, str) else ""


def _ms(moment: tuple[int, int]) -> int:
    return moment[0] * 1000 + moment[1] // 1000
