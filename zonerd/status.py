"""How the processes are, from outside: what supervisord says of them, and what each answers over HTTP."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from zonerd import errors, inquiry, supervise
from zonerd.config import Config
from zonerd.errors import ServiceUnavailable
from zonerd.inquiry import Address, Liveness, Readiness
from zonerd.supervise import remote

ANSWER_WITHIN_S: Final = 1.5
RATE_OVER_S: Final = 1.0
"""The two looks of a rate are so far apart."""
LOOK_WITHIN_S: Final = RATE_OVER_S + ANSWER_WITHIN_S + 0.25
"""Whatever hangs, and whoever answers drop by drop: a look ends."""

RUNNING: Final = ("RUNNING", "STARTING")
MISSING: Final = "MISSING"
"""The state of a process of the configuration that supervisord does not know."""
UNKNOWN: Final = "UNKNOWN"

ANSWER: Final = "answer"
"""The check that fails where a process gives no report."""
LOOP: Final = "loop"
"""The check that fails where its loop stands still."""

EVENTS: Final[Mapping[str, str]] = {
    "producer": "zonerd_producer_events_delivered_total",
    "consumer": "zonerd_consumer_records_total",
    "aggregator": "zonerd_aggregator_events_folded_total",
}
"""The counter whose rate is a role's events/s."""
BEHIND: Final[Mapping[str, str]] = {
    "consumer": "zonerd_consumer_lag_records",
    "aggregator": "zonerd_aggregator_behind_events",
}
"""The gauge of how far a role is behind the one before it."""
BEHIND_S: Final = "zonerd_consumer_lag_seconds"
DEAD_LETTERS: Final = "zonerd_consumer_dead_letters_total"
LAST_PUBLISH: Final = "zonerd_aggregator_last_publish_timestamp_seconds"


class Figures(NamedTuple):
    """What one process counts; what its role does not count is None."""

    events_per_s: float | None = None
    lag_records: int | None = None
    lag_s: float | None = None
    dead_letters: int | None = None
    summary_age_s: float | None = None


class Standing(NamedTuple):
    """How one process is; what nobody tells is None. `reasons` names each check that fails."""

    name: str
    full_name: str
    state: str
    pid: int | None = None
    uptime_s: float | None = None
    since_s: float | None = None
    exit_code: int | None = None
    reasons: Mapping[str, str] = {}
    figures: Figures = Figures()

    @property
    def running(self) -> bool:
        """True while supervisord runs it, or nobody can tell and it answers."""
        return self.state in RUNNING

    @property
    def ready(self) -> bool:
        """True while it runs and all its checks hold."""
        return self.running and not self.reasons


class Status(NamedTuple):
    """How all is at one moment; `supervisord` says why none answers."""

    at: datetime
    supervisord: str | None
    processes: tuple[Standing, ...]
    data_dir: Path
    free_bytes: int | None
    min_free_bytes: int

    @property
    def exit_code(self) -> int:
        """What `zonerd status` ends with."""
        if self.supervisord is not None:
            return errors.SUPERVISORD_UNREACHABLE
        if not all(one.running for one in self.processes):
            return errors.PROCESS_NOT_RUNNING
        return errors.DONE if all(one.ready for one in self.processes) else errors.ANSWER_IS_NO

    @property
    def summary_age_s(self) -> float | None:
        """How long ago Redis was last confirmed to show the newest answers."""
        ages = (one.figures.summary_age_s for one in self.processes)
        return next((age for age in ages if age is not None), None)

    def as_object(self) -> dict[str, object]:
        """Give all of it as what becomes JSON."""
        return {
            "schema": 1,
            "at": self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "ok": self.exit_code == errors.DONE,
            "supervisord": {"ok": self.supervisord is None, "reason": self.supervisord},
            "processes": [_as_object(one) for one in self.processes],
            "summary_age_s": self.summary_age_s,
            "disk": {
                "data_dir": str(self.data_dir),
                "free_bytes": self.free_bytes,
                "min_free_bytes": self.min_free_bytes,
            },
        }


class _Seen(NamedTuple):
    """What a process answered."""

    pid: int | None
    reasons: Mapping[str, str]
    figures: Figures = Figures()


def look(config: Config) -> Status:
    """Look at supervisord and at every process at once, for about RATE_OVER_S and at most LOOK_WITHIN_S."""
    questions = {name: partial(_see, config, name) for name in config.processes}
    answers = _at_once({**questions, "": partial(_supervised, supervise.socket_of(config))})
    supervised = answers.get("", "no answer in time")
    known = supervised if isinstance(supervised, dict) else None
    return Status(
        datetime.now(UTC),
        None if known is not None else str(supervised),
        tuple(_standing(name, known, answers.get(name)) for name in config.processes),
        config.data_dir,
        _free_bytes(config.data_dir),
        config.store.min_free_bytes,
    )


def _at_once(questions: Mapping[str, Callable[[], object]]) -> dict[str, object]:
    """Ask all at once; what has not been answered in LOOK_WITHIN_S is absent."""
    answers: dict[str, object] = {}

    def answer(name: str, ask: Callable[[], object]) -> None:
        answers[name] = ask()

    threads = [threading.Thread(target=answer, args=question, daemon=True) for question in questions.items()]
    deadline = time.monotonic() + LOOK_WITHIN_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(answers)


def _supervised(place: Path) -> dict[str, remote.Process] | str:
    try:
        with remote.Remote(place, ANSWER_WITHIN_S) as supervisord:
            found = supervisord.processes()
            return {process.name: process for process in found if process.group == process.name.partition("-")[0]}
    except ServiceUnavailable as error:
        return error.reason


def _see(config: Config, name: str) -> _Seen:
    pid = None
    try:
        address = inquiry.address_of(config, name)
        readiness = inquiry.report(address, "/readyz", Readiness, ANSWER_WITHIN_S)
        pid, reasons = readiness.pid, _of_its_own(config, readiness.reasons)
        liveness = inquiry.report(address, "/healthz", Liveness, ANSWER_WITHIN_S)
        if not liveness.ok:
            reasons |= {LOOP: f"stands still: no pass of it for {liveness.last_pass_age_s:.0f} s"}
        return _Seen(pid, reasons, _figures(address))
    except ServiceUnavailable as error:
        return _Seen(pid, {ANSWER: error.reason})


def _of_its_own(config: Config, reasons: Mapping[str, str]) -> dict[str, str]:
    """Leave out what the watchdog says of the others: each is asked itself."""
    return {check: reason for check, reason in reasons.items() if check not in config.processes}


def _figures(address: Address) -> Figures:
    role = address.process.partition("-")[0]
    first, first_at = _samples(address), time.monotonic()
    time.sleep(RATE_OVER_S if role in EVENTS else 0)
    second, over_s = _samples(address), time.monotonic() - first_at
    return Figures(
        events_per_s=_rate(first.get(EVENTS.get(role, "")), second.get(EVENTS.get(role, "")), over_s),
        lag_records=_total(second.get(BEHIND.get(role, ""))),
        lag_s=max(second.get(BEHIND_S, ()), default=None),
        dead_letters=_total(second.get(DEAD_LETTERS)),
        summary_age_s=_age(max(second.get(LAST_PUBLISH, ()), default=0.0)),
    )


def _samples(address: Address) -> dict[str, list[float]]:
    """Give the values of all samples by their name."""
    found: dict[str, list[float]] = {}
    try:
        text = inquiry.ask(address, "/metrics", ANSWER_WITHIN_S).decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.value)
    except ValueError:
        raise ServiceUnavailable(address.process, f"at {address} answers a program that is not zonerd") from None
    return found


def _rate(first: list[float] | None, second: list[float] | None, over_s: float) -> float | None:
    """Give events/s; None where nobody counts, or where it has begun anew in between."""
    counted = sum(second or ()) - sum(first or ())
    return None if second is None or counted < 0 else round(counted / over_s, 1)


def _total(values: list[float] | None) -> int | None:
    return None if values is None else int(sum(values))


def _age(timestamp_s: float) -> float | None:
    return round(max(0.0, time.time() - timestamp_s), 1) if timestamp_s else None


def _standing(name: str, supervised: Mapping[str, remote.Process] | None, answer: object) -> Standing:
    seen = answer if isinstance(answer, _Seen) else _Seen(None, {ANSWER: "no answer in time"})
    if supervised is None:
        return Standing(name, name, UNKNOWN, seen.pid, reasons=seen.reasons, figures=seen.figures)
    process = supervised.get(name)
    if process is None:
        return Standing(name, name, MISSING)
    known = Standing(
        name,
        process.full_name,
        process.state,
        process.pid or None,
        uptime_s=_age(process.started_s) if process.pid else None,
        since_s=None if process.pid else _age(process.stopped_s),
        exit_code=process.exit_code if process.state in ("EXITED", "FATAL", "BACKOFF") else None,
    )
    if seen.pid is not None and seen.pid != known.pid:
        return known._replace(reasons={ANSWER: f"another one answers at its port: pid {seen.pid}"})
    if not known.running and seen.pid is None:
        return known
    return known._replace(reasons=seen.reasons, figures=seen.figures)


def _free_bytes(data_dir: Path) -> int | None:
    try:
        return shutil.disk_usage(next(place for place in _upwards(data_dir) if place.exists())).free
    except OSError:
        return None


def _upwards(place: Path) -> Iterator[Path]:
    yield place
    yield from place.parents


def _as_object(one: Standing) -> dict[str, object]:
    fields = one._asdict()
    figures: Figures = fields.pop("figures")
    return {**fields, "reasons": dict(one.reasons), "ready": one.ready, **figures._asdict()}
