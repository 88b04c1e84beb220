"""The proof: broker, history, answers and Redis compared, beside a live pipeline or a stopped one."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import msgspec

from zonerd.cache import Cache
from zonerd.config import Config
from zonerd.errors import Refused, ServiceUnavailable
from zonerd.kafka.cluster import Cluster
from zonerd.kafka.reader import Reader
from zonerd.store.answers import Answers
from zonerd.store.audit import Audit
from zonerd.store.outcomes import Check
from zonerd.verify.broker import Broker, check_broker
from zonerd.verify.counts import check_answers
from zonerd.verify.coverage import check_history
from zonerd.verify.noted import Noted, Tell, note, settled
from zonerd.verify.published import check_redis
from zonerd.verify.report import Part, Report

__all__ = ["Report", "Tell", "verify"]

BATCH_BYTES = 4 * 1024 * 1024
QUEUE_KBYTES = "16384"
"""What the Kafka client may fetch in advance: verify has time, and must stay small."""


def verify(
    config: Config, sasl_password: str | None, environment: Mapping[str, str], *, quick: bool, tell: Tell
) -> Report:
    """Prove that the history is the topic's, whole, and that answers and Redis are the history's.

    Nothing is written anywhere: no row, no commit to Kafka, no key. Each read of a database is short
    but one, the integrity check, which ends by itself if too much is written beside it. What cannot
    be reached is one `unavailable` part of the report. Raises StoreUnavailable where there is no
    history at all, and Refused where events.db is not ours.
    """
    with Audit.open_reader(config.data_dir) as audit:
        noted = note(audit)
        scope = _Scope(config, audit, noted, quick, tell)
        parts = [
            _part("broker", lambda: _broker(scope, sasl_password)),
            _part("history", lambda: _history(scope)),
            _part("answers", lambda: _answers(scope)),
            _part("redis", lambda: _redis(config, environment)),
        ]
        return Report(quick, _as_of(noted, note(audit)), parts)


class _Scope(NamedTuple):
    """What is checked, from where on, and how thoroughly."""

    config: Config
    audit: Audit
    noted: Noted
    quick: bool
    tell: Tell


def _as_of(begin: Noted, end: Noted) -> dict[str, int]:
    """Give for each open partition the offset below which all was looked at: what was taken back meanwhile was not."""
    still = {row.id: row.next_offset for row in end.partitions if row.open}
    open_ = [row for row in begin.partitions if row.id in still]
    return {f"{row.topic}/{row.partition}": min(row.next_offset, still[row.id]) for row in open_}


def _part(check: Check, run: Callable[[], Part]) -> Part:
    """Run one check; what cannot be reached, or is damaged, is its outcome and not the end of the others."""
    try:
        return run()
    except ServiceUnavailable as error:
        return Part(check, "unavailable", str(error), {})
    except Refused as error:
        return Part(check, "different", str(error), {}, (), 1)


def _broker(scope: _Scope, sasl_password: str | None) -> Part:
    quick, tell, section = scope.quick, scope.tell, scope.config.kafka
    own = {"queued.max.messages.kbytes": QUEUE_KBYTES, **section.properties}
    kafka = msgspec.structs.replace(section, properties=own)
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(kafka, sasl_password))
        cluster.incarnation()  # a broker that is away is known before anything is read
        broker = Broker(cluster, stack.enter_context(Reader(kafka, BATCH_BYTES, sasl_password)), kafka.topic)
        return settled(
            scope.audit, scope.noted, lambda now: check_broker(scope.audit, broker, now, quick=quick, tell=tell)
        )


def _history(scope: _Scope) -> Part:
    audit, folder, quick, tell = scope.audit, scope.config.data_dir, scope.quick, scope.tell
    return settled(audit, scope.noted, lambda now: check_history(audit, folder, now, quick=quick, tell=tell))


def _answers(scope: _Scope) -> Part:
    audit, quick, tell = scope.audit, scope.quick, scope.tell
    with Answers.open_reader(scope.config.data_dir) as answers:
        return settled(audit, scope.noted, lambda now: check_answers(audit, answers, now, quick=quick, tell=tell))


def _redis(config: Config, environment: Mapping[str, str]) -> Part:
    if not config.redis.enabled:
        return Part("redis", "disabled", "redis.enabled is false: nothing is published", {})
    with Answers.open_reader(config.data_dir) as answers, Cache.of(config.redis, environment) as cache:
        return check_redis(answers, cache, config)
