"""What becomes of the history when the topic is not a plain log: markers, expiry, new partitions, another life."""

import math
import re

import pytest
from consuming import Running, Trial, event
from structlog.testing import CapturingLogger

from services.process import wait_until
from zonerd import config, ingest
from zonerd.consumer import consuming
from zonerd.kafka.cluster import Cluster
from zonerd.meter import Meter

ANOTHER = "topic_recreated"


def not_ready(running: Running, check: str) -> str:
    """Wait until this check fails, and give its reason."""
    return str(running.wait_for("not_ready", check=check)["reason"])


# Row 14, 38


def test_markers_and_aborted_records_become_gaps_and_lag_reaches_nothing(trial: Trial) -> None:
    trial.create_topic(2)
    trial.produce_events(10)
    with trial.transaction() as send:
        for number in range(50):
            send(number % 2, event(1000 + number))
    with trial.transaction(abort=True) as send:
        for number in range(50):
            send(number % 2, event(2000 + number))
    trial.produce_events(10)
    with trial.transaction() as send:
        send(0, event(3000))
    with trial.transaction(abort=True) as send:
        send(1, event(3001))
    running = trial.start(log__progress_s=1)
    trial.wait_until_stored()
    wait_until(lambda: any(line["lag"] == 0 and line["stored"] for line in running.said("progress")))
    assert running.said("fenced") == []
    assert running.stop() == 0
    assert {reason for *_, reason in trial.gaps()} == {"not_delivered"}
    assert trial.assert_exact().records == 71


def test_a_transaction_left_open_holds_nothing_back_but_itself(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(10)
    running = trial.start(log__progress_s=1)
    with trial.transaction() as send:
        send(0, event(1000))
        trial.produce_events(5)
        wait_until(lambda: trial.next_offsets() == {0: 10})
        lines = len(running.said("progress"))
        wait_until(lambda: len(running.said("progress")) > lines + 1)
        assert running.said("progress")[-1]["lag"] == 0
    trial.wait_until_stored()
    assert running.stop() == 0
    assert trial.assert_exact().records == 16


def test_a_compacted_topic_is_stored_with_its_sparse_offsets(trial: Trial) -> None:
    trial.create_topic(
        1, cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.001", max_compaction_lag_ms="200",
        delete_retention_ms="100",
    )  # fmt: skip
    for round_ in range(3):
        for number in range(50):
            trial.producer.produce(trial.topic, event(round_ * 50 + number), key=str(number % 10), partition=0)
        trial.producer.flush(30)
        trial.catch_up() if round_ == 0 else None

    def compacted() -> bool:
        trial.producer.produce(trial.topic, event(999), key="other", partition=0)  # rolls the segment
        trial.producer.flush(30)
        return len(trial.ledger()) < 60

    wait_until(compacted, 60)
    stored = trial.stored()
    trial.catch_up()
    assert trial.stored() > stored
    verdict = trial.verdict()  # what was stored before it was compacted away stays: missing is the question
    assert (verdict.missing, verdict.duplicates, verdict.phantoms) == (0, 0, 0)


# Row 11


def test_what_expired_before_it_was_read_is_a_gap_that_says_so(trial: Trial) -> None:
    trial.create_topic(2)
    trial.produce_events(400)
    trial.catch_up()
    trial.produce_events(1000)
    trial.expire_below({0: 500})
    running = trial.start()
    gap = running.wait_for("gap_recorded", partition=0, reason="expired")
    assert (gap["first_offset"], gap["last_offset"]) == (200, 499)
    trial.wait_until_stored()
    assert running.stop() == 0
    assert trial.gaps() == [(0, 200, 499, "expired")]
    trial.catch_up()


def test_what_expires_under_a_running_consumer_is_a_gap_too(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    running = trial.start()
    trial.wait_until_stored()
    running.pause()
    trial.produce_events(1000)
    trial.expire_below({0: 600})
    running.go_on()
    trial.wait_until_stored()
    assert running.stop() == 0
    assert trial.stored() + sum(last - first + 1 for _, first, last, _ in trial.gaps()) == 1100
    verdict = trial.verdict()
    assert (verdict.missing, verdict.duplicates, verdict.phantoms) == (0, 0, 0)


def test_told_to_stop_at_expired_records_it_waits_and_names_them(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    trial.catch_up()
    trial.produce_events(1000)
    trial.expire_below({0: 600})
    running = trial.start(consumer__on_expired_offsets="stop")
    line = running.wait_for("service_unavailable", check="kafka")
    assert "500 records expired" in line["reason"]
    assert trial.next_offsets() == {0: 100}
    assert running.stop() == 0


# Row 13


def test_partitions_added_while_it_runs_are_read_from_their_beginning(trial: Trial) -> None:
    trial.create_topic(4)
    running = trial.start(consumer__start_from="latest")
    running.wait_for("partitions_assigned")
    trial.produce_events(400)
    trial.add_partitions(8)
    trial.produce_events(800)
    assert running.wait_for("partitions_added")["partitions"] == [4, 5, 6, 7]
    trial.wait_until_stored()
    assert running.stop() == 0
    assert trial.assert_exact().records == 1200


def test_a_process_without_a_partition_gets_the_one_that_is_added_for_it(trial: Trial) -> None:
    trial.create_topic(4)
    running = trial.start(number=5, consumer__processes=8)
    running.wait_for("ready")
    trial.add_partitions(8)
    running.wait_for("partitions_assigned", partitions=[5])
    trial.produce_events(800)
    wait_until(lambda: trial.next_offsets().get(5) == 100)
    assert running.stop() == 0
    trial.catch_up()
    trial.assert_exact()


# Rows 12 and 31


def test_a_topic_made_again_while_stopped_is_refused_until_it_is_accepted(trial: Trial) -> None:
    old, new = made_again(trial, old=400, new=100)
    running = trial.start()
    reason = not_ready(running, "topic")
    assert re.search(r"topic id is .*, was ", reason)
    assert "zonerd topic accept" in reason
    wait_until(lambda: len(running.said("kafka_client")) >= 0)
    assert len(running.said("not_ready")) == 1, "one clear line"
    done = trial.run("topic", "accept", "--yes")
    assert done.returncode == 0, done.stderr
    trial.wait_until_stored()
    running.wait_for("ready")
    assert running.stop() == 0
    closed_rows_hold(trial, old)
    assert trial.assert_exact().records == new
    assert trial.run("consumer", "--until-caught-up").returncode == 0


def test_a_one_shot_run_over_a_replaced_topic_answers_no(trial: Trial) -> None:
    made_again(trial, old=40, new=10)
    done = trial.run("consumer", "--until-caught-up")
    assert done.returncode == 1
    assert "zonerd topic accept" in done.stderr


def test_a_topic_made_again_while_stopped_is_followed_where_told_so(trial: Trial) -> None:
    old, new = made_again(trial, old=400, new=100)
    trial.catch_up(consumer__on_topic_recreated="follow")
    closed_rows_hold(trial, old)
    assert trial.assert_exact().records == new


@pytest.mark.parametrize("policy", ["stop", "follow"])
def test_a_topic_made_again_under_a_running_consumer_is_never_mixed(trial: Trial, policy: str) -> None:
    trial.create_topic(2)
    trial.produce_events(400)
    running = trial.start(consumer__on_topic_recreated=policy)
    trial.wait_until_stored()
    before = trial.rows("select id, next_offset from partitions order by id")
    trial.delete_topic()
    trial.create_topic(2)
    trial.produce_events(2000)  # grown past our position within seconds
    if policy == "stop":
        not_ready(running, "topic")
        assert trial.run("topic", "accept", "--yes").returncode == 0
    else:
        running.wait_for(ANOTHER, count=2)
    trial.wait_until_stored()
    assert running.stop() == 0
    assert trial.rows("select id, next_offset from partitions where closed_ms is not null order by id") == before
    assert trial.assert_exact().records == 2000


def test_what_was_stored_of_a_new_topic_under_the_old_row_is_taken_back(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(400)
    trial.catch_up()
    trial.delete_topic()
    trial.create_topic(1)
    trial.produce_events(1000)
    stored = trial.start(changed="blind_for_a_while", consumer__on_topic_recreated="follow")
    line = stored.wait_for(ANOTHER)
    assert line["taken_back"] == 600
    trial.wait_until_stored()
    assert stored.stop() == 0
    assert trial.rows("select next_offset from partitions where closed_ms is not null") == [(400,)]
    assert trial.rows("select kind, first_offset, next_offset from changes where kind <> 'open'") == [
        ("take_back", 400, 1000)
    ]
    assert trial.assert_exact().records == 1000


def test_an_answer_to_a_question_from_before_a_break_confirms_nothing_that_was_stored_since(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirmed() -> int:
        return int(trial.rows("select confirmed_offset from partitions")[0][0])

    trial.create_topic(1)
    trial.produce_events(5)
    values = (f"store.data_dir={trial.data}", f"kafka.bootstrap_servers={trial.bootstrap_servers}")
    settings = config.load(None, {}, [*values, f"kafka.topic={trial.topic}"]).config
    log = CapturingLogger()
    trial.data.mkdir()
    monkeypatch.setattr(ingest, "CHECK_INTERVAL_S", 0.0)
    with Cluster(settings.kafka, None) as cluster:
        meter = Meter(settings, log, cluster.watch)
        with consuming(settings, None, log, 0, cluster, meter) as consumer:
            wait_until(lambda: consumer.step() or confirmed() == 5)
            asked = wait_until(lambda: consumer.step() or cluster._asked)
            asked.result(10)
            consumer.forget()
            monkeypatch.setattr(cluster, "ask", lambda _: None)  # from now on nobody answers
            monkeypatch.setattr(ingest, "CHECK_INTERVAL_S", math.inf)
            trial.produce_events(5)
            wait_until(lambda: consumer.step() or consumer.caught_up({0: 10}))
            monkeypatch.setattr(ingest, "CHECK_INTERVAL_S", 0.0)
            consumer.step()
            consumer.step()
        assert confirmed() == 5
        meter.lost()


def test_the_topic_is_not_made_again_over_a_history_of_it(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(10)
    running = trial.start()
    trial.wait_until_stored()
    trial.delete_topic()
    line = running.wait_for("service_unavailable", check="kafka")
    assert "gone" in line["reason"] or "unknown" in line["reason"].lower(), line
    wait_until(lambda: any("zonerd topic create" in one["reason"] for one in running.said("service_unavailable")))
    assert trial._known_partitions() == {}
    assert running.stop() == 0


# The anchor


def test_another_record_at_the_anchor_is_not_our_topic(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    trial.catch_up()
    trial.write("update partitions set anchor_sha256 = zeroblob(32)")
    running = trial.start()
    assert "another record at offset 99" in not_ready(running, "topic")
    assert running.stop() == 0


def test_a_log_that_ends_below_our_position_is_not_our_topic(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    trial.catch_up()
    trial.write("update partitions set next_offset = 500, anchor_offset = 499")
    running = trial.start()
    assert "ends at 100, below our 500" in not_ready(running, "topic")
    assert running.stop() == 0


def test_a_log_that_ends_below_a_position_without_an_anchor_is_not_our_topic(trial: Trial) -> None:
    """A partition met at its latest offset has a position before it has seen a record."""
    trial.create_topic(1)
    trial.produce_events(100)
    trial.catch_up(consumer__start_from="latest")
    trial.write("update partitions set first_offset = 500, next_offset = 500, confirmed_offset = 500")
    running = trial.start()
    assert "ends at 100, below our 500" in not_ready(running, "topic")
    assert running.stop() == 0


def test_an_expired_anchor_leaves_identity_to_the_ids(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    trial.catch_up()
    trial.expire_below({0: 100})
    trial.catch_up()
    trial.produce_events(100)
    trial.catch_up()
    assert trial.stored() == 200
    assert trial.gaps() == []


def test_an_id_that_appears_later_is_noted_in_place(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    trial.catch_up()
    trial.write("update partitions set topic_id = ''")
    trial.produce_events(100)
    trial.catch_up()
    assert trial.rows("select count(*), min(length(topic_id)) > 0 from partitions") == [(1, 1)]
    assert trial.assert_exact().records == 200


def test_an_id_that_cannot_be_read_for_a_while_is_no_new_topic(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    trial.catch_up()
    trial.produce_events(100)
    running = trial.start(changed="no_ids_for_a_while", consumer__on_topic_recreated="follow")
    running.wait_for("service_unavailable", check="kafka")
    trial.wait_until_stored()
    running.wait_for("ready")
    assert running.stop() == 0
    assert running.said(ANOTHER) == []
    assert trial.assert_exact().records == 200


def test_an_earlier_cluster_that_is_back_is_gone_on_with(trial: Trial) -> None:
    trial.create_topic(1)
    trial.produce_events(100)
    trial.catch_up()
    first = trial.rows("select id, topic_id from partitions")
    trial.write("update partitions set closed_ms = 1")
    trial.write(
        "insert into partitions select 2, 'elsewhere', topic, 'x', 0, 0, 7, 7, null, null, null from partitions"
    )
    trial.produce_events(50)
    trial.catch_up(consumer__on_topic_recreated="follow")
    assert trial.rows("select id, topic_id from partitions where closed_ms is null") == first
    assert trial.assert_exact().records == 150


def made_again(trial: Trial, old: int, new: int) -> tuple[int, int]:
    """Store a topic of two partitions, delete it, make it again."""
    trial.create_topic(2)
    trial.produce_events(old)
    trial.catch_up()
    trial.delete_topic()
    trial.create_topic(2)
    trial.produce_events(new)
    return old, new


def closed_rows_hold(trial: Trial, events: int) -> None:
    sql = "select count(*) from events join partitions p on p.id = partition_id where closed_ms is not null"
    assert trial.rows(sql) == [(events,)]


def test_under_steady_traffic_the_topic_is_recognised_once(trial: Trial) -> None:
    trial.create_topic(1)
    running = trial.start()
    running.wait_for("ready")
    confirmed: set[int] = set()

    def checked_again_and_again() -> bool:
        trial.produce_events(20)
        confirmed.update(offset for (offset,) in trial.rows("select confirmed_offset from partitions"))
        return len(confirmed) >= 4

    wait_until(checked_again_and_again)
    assert len(running.said("partitions_assigned")) == 1
    assert running.stop() == 0
