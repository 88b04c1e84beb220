"""The watchdog: hears supervisord, asks every process, starts again what hangs or was given up, tells systemd."""

import time
from typing import Final

from zonerd import metrics
from zonerd.config import Config
from zonerd.endpoint import Endpoint, Listening
from zonerd.errors import ServiceUnavailable
from zonerd.health import Health, Report
from zonerd.log import Log
from zonerd.shutdown import Shutdown
from zonerd.supervise import RESTARTING
from zonerd.supervise.listener import REMOTE, STOPPING, TICK, Event, Listener, SupervisordGone
from zonerd.supervise.remote import STATES, Process, Remote
from zonerd.watchdog.polls import Answer, Polls
from zonerd.watchdog.recorded import Recorded
from zonerd.watchdog.systemd import Systemd
from zonerd.watchdog.watched import KILL_AFTER_S, RETRY_AFTER_S, RUNNING, Watched

ROLE: Final = "watchdog"
CHECK: Final = "supervisord"

LOOK_EVERY_S: Final = 0.25
ASKED_WITHIN_S: Final = 2.0
ASLEEP_S: Final = 5.0
"""A pass that took longer says nothing of the others: they may have slept as well."""

RESTARTS: Final = ("stalled", "fatal")
"""Why a process was started again: its loop hung; supervisord had given it up."""

LEVELS: Final = {"FATAL": "error", "BACKOFF": "warning", "UNKNOWN": "error"}
"""How loudly a state is said; any other at info, but for an unexpected end."""


def run(  # noqa: PLR0913 - whom it watches, and all whom it hears and tells
    config: Config, log: Log, shutdown: Shutdown, listener: Listener, remote: Remote, systemd: Systemd
) -> None:
    """Watch until a stop is requested, or until supervisord has gone."""
    health = Health(log, (CHECK,))
    watchdog = Watchdog(config, log, health, remote, systemd)
    log.info("started", processes=list(config.processes))
    asked = Polls(config, tuple(name for name in config.processes if name != ROLE))
    recorded = Recorded(config.data_dir)
    with systemd, remote, asked, recorded, Endpoint(Listening.of(config, ROLE), health, watchdog.report):
        while not shutdown.requested:
            try:
                event = listener.next(LOOK_EVERY_S)
            except SupervisordGone:
                break
            watchdog.wake()
            if event is not None:
                watchdog.hear(event)
            for answer in asked.answers():
                watchdog.note(answer)
            watchdog.act()
            health.beat()
    log.info("stopped", orphaned=shutdown.orphaned)


class Watchdog:
    """What is known of all our processes, and what is done about it; other programs are not looked at."""

    def __init__(self, config: Config, log: Log, health: Health, remote: Remote, systemd: Systemd) -> None:
        self._log = log
        self._health = health
        self._remote = remote
        self._systemd = systemd
        self._awake_at = time.monotonic()
        self._ask_at = 0.0
        self._restarting = self._stopping = False
        limits = config.watchdog
        self._watched = {name: Watched(name, limits.stall_s, limits.retry_fatal_s) for name in config.processes}
        for one in self._watched.values():
            metrics.prepare(metrics.PROCESS_STATE, (one.name,), (one.group,), STATES)
            metrics.prepare(metrics.PROCESS_EXITS, (one.name,), (one.group,), ("true", "false"))
            metrics.prepare(metrics.WATCHDOG_RESTARTS, (one.name,), RESTARTS)
            metrics.READY.labels(one.name).set(0)

    def report(self) -> Report:
        """Give our own last pass, and sum up why each process that is not ready is not."""
        own = self._health.report()
        return Report(own.last_pass_age_s, {**own.reasons, **self._reasons()})

    def wake(self) -> None:
        """Note a pass; after a long sleep of ours no process is blamed for what we did not hear."""
        now = time.monotonic()
        if now - self._awake_at > ASLEEP_S:
            for one in self._watched.values():
                one.forgive(now)
        self._awake_at = now

    def hear(self, event: Event) -> None:
        """Note what supervisord says."""
        if event.name == TICK:
            metrics.WATCHDOG_LAST_TICK.set_to_current_time()
            self._systemd.alive()
            self._ask_at = 0.0
        elif event.name == REMOTE and event.fields.get("type") == RESTARTING:
            self._restarting = True
        elif event.name == STOPPING:
            self._stopping = True
            if not self._restarting:
                self._systemd.stopping()
        elif event.state:
            self._hear_state(event)

    def note(self, answer: Answer) -> None:
        """Note what a process answered."""
        self._watched[answer.process].hear(answer, time.monotonic())

    def act(self) -> None:
        """Do what is due: ask supervisord, end what hangs, start what was given up, tell systemd."""
        if time.monotonic() >= self._ask_at and not self._stopping:
            self._ask()
        can_help = not self._stopping and CHECK not in self._health.reasons
        for one in self._watched.values():
            metrics.READY.labels(one.name).set(self._reason(one) is None)
            if can_help:
                self._help(one)
        self._tell_systemd()

    def _hear_state(self, event: Event) -> None:
        one = self._watched.get(event.fields["processname"])
        if one is None or one.group != event.fields["groupname"]:
            return
        state, before = event.state, event.fields["from_state"]
        pid = int(event.fields.get("pid", 0))
        one.enter(state, pid if state in (RUNNING, "STOPPING") else 0, time.monotonic())
        self._expose(one)
        self._ask_at = 0.0
        expected = event.fields.get("expected") != "0"
        if state == "EXITED" or (state, before) in (("STOPPED", "STOPPING"), ("BACKOFF", "STARTING")):
            ended_well = expected and state != "BACKOFF"
            metrics.PROCESS_EXITS.labels(one.name, one.group, "true" if ended_well else "false").inc()
        level = LEVELS.get(state, "info" if expected else "warning")
        told = {"process_pid": pid} if pid else {}
        getattr(self._log, level)(
            "process_state", name=one.name, group=one.group, state=state, from_state=before, **told
        )

    def _ask(self) -> None:
        """Take over what supervisord answers; it corrects what an event has not told."""
        self._ask_at = time.monotonic() + RETRY_AFTER_S
        try:
            found = self._remote.processes()
        except ServiceUnavailable as error:
            self._health.fail(CHECK, error.reason)
            return
        self._health.hold(CHECK)
        self._ask_at = float("inf")  # until it says something again
        by_name = {(process.group, process.name): process for process in found}
        for one in self._watched.values():
            self._take_over(one, by_name.get((one.group, one.name)))

    def _take_over(self, one: Watched, process: Process | None) -> None:
        if process is None:
            one.enter("", 0, time.monotonic())
        else:
            one.exit_code = process.exit_code
            one.enter(process.state, process.pid, time.monotonic())
            metrics.PROCESS_START_TIME.labels(one.name, one.group).set(process.started_s)
        self._expose(one)

    def _expose(self, one: Watched) -> None:
        for state in STATES:
            metrics.PROCESS_STATE.labels(one.name, one.group, state).set(state == one.state)

    def _help(self, one: Watched) -> None:
        now = time.monotonic()
        try:
            if one.hangs():
                self._abort(one, now)
            elif one.must_be_killed(now):
                self._kill(one, now)
            elif one.is_retried(now):
                self._start(one, now)
        except ServiceUnavailable as error:
            self._health.fail(CHECK, error.reason)
            self._ask_at = 0.0

    def _abort(self, one: Watched, now: float) -> None:
        """Let it write where it hangs, and end; supervisord starts it again by its rule for unexpected ends.

        Not if supervisord has another one by now, which we have not heard of yet.
        """
        self._ask()
        if not one.hangs():
            return
        reason, age_s = one.answer.reason if one.answer.silent else None, one.last_pass_age_s(now)
        self._remote.signal(_as_process(one), "ABRT")
        one.kill_at = now + KILL_AFTER_S
        metrics.WATCHDOG_RESTARTS.labels(one.name, "stalled").inc()
        detail = f"no pass of its loop for {age_s:.1f} s" + (f", {reason}" if reason else "")
        self._log.warning("process_restarted", name=one.name, reason="stalled", detail=detail, process_pid=one.pid)

    def _kill(self, one: Watched, now: float) -> None:
        """Kill what SIGABRT has not ended, unless supervisord has another one by now."""
        one.kill_at = now + RETRY_AFTER_S
        self._ask()
        if one.kill_at is not None:
            self._remote.signal(_as_process(one), "KILL")

    def _start(self, one: Watched, now: float) -> None:
        one.retry_at = now + RETRY_AFTER_S
        self._ask()
        if one.is_retried(now + RETRY_AFTER_S):
            self._remote.start(_as_process(one))
            metrics.WATCHDOG_RESTARTS.labels(one.name, "fatal").inc()
            self._log.warning("process_restarted", name=one.name, reason="fatal", detail="it had been given up")

    def _tell_systemd(self) -> None:
        known = [one for one in self._watched.values() if one.state]
        if known and all(one.settled for one in known):
            self._systemd.ready()
        self._systemd.status(self._summary())

    def _summary(self) -> str:
        if self._stopping:
            return "restarting all processes" if self._restarting else "stopping"
        failing = [f"{name}: {reason}" for name, reason in self._reasons().items() if reason]
        running = sum(one.state == RUNNING for one in self._watched.values())
        return f"{running} of {len(self._watched)} processes run, " + ("; ".join(failing) or "all ready")

    def _reasons(self) -> dict[str, str | None]:
        return {one.name: self._reason(one) for one in self._watched.values()}

    def _reason(self, one: Watched) -> str | None:
        return None if one.name == ROLE and one.state == RUNNING else one.reason


def _as_process(one: Watched) -> Process:
    return Process(one.group, one.name, one.state, one.pid, 0.0, 0.0, 0, "")
