"""What `zonerd status` makes of what it sees: figures, exit codes, and lines that no process can forge."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric

from zonerd import cli, errors, metrics, status
from zonerd.commands import status as shown
from zonerd.status import Figures, Standing, Status

GIB = 1024**3
RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"


def standing(name: str = "consumer", state: str = "RUNNING", **fields: object) -> Standing:
    return Standing(name, name, state, 7, 61.0)._replace(**fields)  # type: ignore[arg-type]


def of(*processes: Standing, supervisord: str | None = None, free_bytes: int = 50 * GIB) -> Status:
    return Status(datetime(2026, 1, 2, tzinfo=UTC), supervisord, processes, Path("/data"), free_bytes, GIB)


def written(found: Status) -> list[str]:
    return shown._written(cli.Session(None, [], 0), found, as_json=False).splitlines()


def problems(found: Status) -> list[str]:
    return [line for line in written(found) if line.startswith("!")]


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (of(standing()), errors.DONE),
        (of(standing(), standing(reasons={"kafka": "gone"})), errors.ANSWER_IS_NO),
        (of(standing(state="STARTING", reasons={"answer": "no answer"})), errors.ANSWER_IS_NO),
        (of(standing(reasons={"kafka": "gone"}), standing(state="FATAL")), errors.PROCESS_NOT_RUNNING),
        (of(standing(state="BACKOFF")), errors.PROCESS_NOT_RUNNING),
        (of(standing(state="MISSING")), errors.PROCESS_NOT_RUNNING),
        (of(standing(state="UNKNOWN"), supervisord="gone"), errors.SUPERVISORD_UNREACHABLE),
    ],
)
def test_the_exit_code_is_that_of_the_worst(found: Status, code: int):
    assert found.exit_code == code
    assert found.as_object()["ok"] is (code == errors.DONE)


def test_every_figure_is_read_from_a_metric_that_its_role_declares():
    names = {role: _sample_names(list(metrics.families(role))) for role in ("producer", "consumer", "aggregator")}
    wanted = [*status.EVENTS.items(), *status.BEHIND.items(), ("consumer", status.BEHIND_S)]
    wanted += [("consumer", status.DEAD_LETTERS), ("aggregator", status.LAST_PUBLISH)]
    assert [(role, name) for role, name in wanted if name not in names[role]] == []


def _sample_names(families: list[Metric]) -> set[str]:
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def test_a_counter_that_began_anew_between_two_looks_gives_no_rate():
    assert status._rate([10.0, 5.0], [20.0, 5.0], 2.0) == 5.0
    assert status._rate(None, [3.0], 1.0) == 3.0
    assert status._rate([10.0], [1.0], 1.0) is None
    assert status._rate(None, None, 1.0) is None


def test_what_the_watchdog_says_of_the_others_is_not_said_twice():
    found = status._of_its_own(cli.Session(None, [], 0).loaded.config, {"consumer": "not ready", "http": "taken"})
    assert found == {"http": "taken"}


def test_a_reason_cannot_write_a_line_or_give_a_terminal_orders():
    hostile = standing(reasons={"\x1b]0;a\x07": "\r\n! all is well\x1b[2J\u202e\x9b1A"})
    lines = written(of(hostile))
    assert all(line.isprintable() for line in lines)
    assert len([line for line in lines if line.startswith("!")]) == 1


@pytest.mark.parametrize(
    ("aggregator", "says"),
    [
        (standing("aggregator", figures=Figures(summary_age_s=2.0)), "current 2 s ago"),
        (standing("aggregator", figures=Figures(events_per_s=0.0)), "never published"),
        (standing("aggregator", state="STOPPED"), "unknown"),
        (standing("aggregator", reasons={"answer": "no answer in time"}), "unknown"),
    ],
)
def test_a_summary_whose_aggregator_tells_nothing_is_unknown_and_not_unpublished(aggregator: Standing, says: str):
    (line,) = (line for line in written(of(aggregator)) if line.startswith("summary:"))
    assert says in line


def test_an_endless_reason_is_cut():
    assert all(len(line) < 400 for line in written(of(standing(reasons={"kafka": "x" * 100_000}))))


def test_checks_that_only_wait_for_another_come_last():
    (line,) = problems(of(standing(reasons={"store": "not tried yet", "kafka": "refused"})))
    assert line == "! consumer is not ready: kafka: refused; store: not tried yet"


@pytest.mark.parametrize(
    ("found", "says", "runbook"),
    [
        (of(standing(state="STOPPED", since_s=90.0)), "consumer was stopped by hand 1 min ago", "ProcessStopped"),
        (of(standing(state="EXITED", since_s=5.0, exit_code=70)), "consumer is EXITED: it ended 5 s ago, exit code 70",
         "ProcessDown"),
        (of(standing(state="FATAL", exit_code=78)), "it refused its configuration or a file", "ProcessDown"),
        (of(standing(state="MISSING")), "consumer is none of supervisord's programs", "ProcessDown"),
        (of(standing(reasons={"answer": "no answer"})), "consumer: no answer", "TargetDown"),
        (of(standing(reasons={"loop": "stands still: no pass of it for 99 s"})), "stands still", "Stalled"),
        (of(standing(figures=Figures(lag_records=9000, lag_s=7260.0))), "behind by 9,000 records, 2 h 1 min",
         "LagGrowing"),
        (of(standing(figures=Figures(summary_age_s=61.0))), "the summary in Redis is 1 min old", "SummaryStale"),
        (of(standing(), free_bytes=3 * GIB), "only 3.0 GiB are free", "DiskFilling"),
    ],
)  # fmt: skip
def test_each_trouble_is_named_with_its_runbook(found: Status, says: str, runbook: str):
    (line,) = problems(found)
    assert says in line
    assert written(found)[-1].endswith(f"(runbook {runbook})")


def test_every_runbook_that_is_named_is_there():
    named = set(re.findall(r'"([A-Z][a-z]+[A-Z][A-Za-z]+)"\)', Path(shown.__file__).read_text(encoding="utf-8")))
    assert {"NotReady", "ProcessDown", "DiskFilling"} <= named
    assert named <= {page.stem for page in RUNBOOKS.glob("*.md")}


def test_the_look_gives_up_on_what_never_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(status, "LOOK_WITHIN_S", 0.1)
    never = status.threading.Event()
    answers = status._at_once({"hangs": never.wait, "answers": lambda: "soon"})
    assert answers == {"answers": "soon"}
    never.set()


def test_health_is_light_it_loads_no_client_no_logger_and_nothing_that_draws(tmp_path: Path):
    heavy = ["apsw", "confluent_kafka", "prometheus_client", "redis", "rich", "structlog", "supervisor"]
    program = f"""
import sys
from zonerd import cli
try:
    cli.main(["-X", "store.data_dir={tmp_path}", "-X", "http.port.consumer=1", "health", "consumer"])
finally:
    print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == errors.ANSWER_IS_NO
    assert done.stdout.splitlines() == ["consumer: no answer at 127.0.0.1:1 (connection refused)", "[]"]
