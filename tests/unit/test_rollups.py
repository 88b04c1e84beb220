"""Counts follow from events, what Redis must hold from counts, and what a publish does from what Redis shows."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonerd import rollups
from zonerd.rollups import AsOf, Cursor, Fact, Keys, Need, Place, Publish, Snapshot

KEYS = Keys("zonerd:", "activity_summary")
NOW_MS = 1_000_000_000

NAMES = st.one_of(st.sampled_from(["a", "b", "c", "(other)"]), st.text(min_size=1, max_size=4))


def place(offset: int, id_: int = 1, topic_id: str = "t", open_: bool = True, partition: int = 0) -> Place:
    return Place(id_, "cluster", "topic", topic_id, partition, open_, offset)


def snapshot(*places: Place, fold: int = 5, rankings: Sequence[tuple[str, int]] = (), **changes: object) -> Snapshot:
    cursor = Cursor("store", 3, b"n", 0, sum(count for _, count in rankings), {one.partition_id: one for one in places})
    ours = Snapshot("rollups", fold, cursor, {"total": rankings}, last=Publish(fold, "last"))
    return ours._replace(**changes)


def shown(ours: Snapshot, age_s: float = 1, **changes: object) -> AsOf:
    as_of = rollups.as_of(ours, "last", "live", NOW_MS - int(age_s * 1000))
    return as_of._replace(**changes)


def need(shown: AsOf | None, ours: Snapshot, state: rollups.State = "live") -> Need:
    return rollups.need(shown, ours, state, NOW_MS)


def ranked(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def test_every_aggregate_has_a_name_a_check_and_keys_of_its_own() -> None:
    names = [aggregate.name for aggregate in rollups.AGGREGATES]
    keys = [KEYS.of(form) for aggregate in rollups.AGGREGATES for form in aggregate.forms]
    assert len(set(names)) == len(names)
    assert len({*keys, KEYS.as_of}) == len(keys) + 1


@given(st.lists(NAMES))
def test_the_fold_counts_each_event_once_whatever_its_time(activities: list[str]) -> None:
    facts: list[Fact] = [(at, "user", activity, 10**14, 0) for at, activity in enumerate(activities)]
    counts = rollups.fold(facts)["total"]
    assert counts == {name: activities.count(name) for name in set(activities)}


@given(st.dictionaries(NAMES, st.integers(1, 50), max_size=12), st.integers(1, 8))
def test_what_is_published_adds_up_to_all_events_under_any_cap(counts: dict[str, int], limit: int) -> None:
    ours = snapshot(rankings=ranked(counts))
    short = snapshot(rankings=ranked(counts))._replace(rankings={"total": ranked(counts)[: limit + rollups.LOOK_AHEAD]})
    published = rollups.publication(ours, KEYS, limit)
    assert rollups.publication(short, KEYS, limit) == published
    pairs = json.loads(str(published["activity_summary"]))
    assert dict(pairs) == published["zonerd:total"]
    assert sum(count for _, count in pairs) == sum(counts.values())
    named = [(name, count) for name, count in pairs if name != "(other)"]
    assert named == [(name, count) for name, count in ranked(counts) if name != "(other)"][:limit]
    assert [name for name, _ in pairs].index("(other)") == len(pairs) - 1 if len(named) < len(pairs) else True


def test_no_events_are_an_empty_list_and_no_hash() -> None:
    assert rollups.publication(snapshot(), KEYS, 10) == {"activity_summary": "[]", "zonerd:total": {}}


def test_as_of_is_read_back_as_it_was_written() -> None:
    written = rollups.as_of(snapshot(place(7), place(9, 2, "", open_=False)), "n", "live", NOW_MS)
    assert written.positions == {"topic/0": 7}
    assert rollups.parse_as_of({name: str(value) for name, value in written.fields().items()}) == written


@pytest.mark.parametrize("damage", [{"fold": "x"}, {"topic/0": "?"}, {"published_ms": ""}])
def test_a_damaged_as_of_is_none(damage: dict[str, str]) -> None:
    fields = {name: str(value) for name, value in rollups.as_of(snapshot(place(7)), "n", "live", 1).fields().items()}
    assert rollups.parse_as_of({**fields, **damage}) is None
    assert rollups.parse_as_of({}) is None


def test_nothing_is_sent_where_redis_shows_our_last_publish() -> None:
    ours = snapshot(place(7))
    assert need(shown(ours), ours).kind == "nothing"
    pending = ours._replace(last=None, pending=Publish(5, "last"))
    assert need(shown(pending), pending).kind == "nothing"


def test_it_is_renewed_after_ten_seconds_or_where_the_state_is_another() -> None:
    ours = snapshot(place(7))
    assert need(shown(ours, 10), ours).kind == "renew"
    assert need(shown(ours), ours, "stopped").kind == "renew"
    assert need(shown(ours, state="stopped"), ours).kind == "renew"
    assert need(shown(ours, -3600), ours).kind == "renew"


def test_a_later_fold_is_sent_as_an_ordinary_publish() -> None:
    ours = snapshot(place(7))
    assert need(shown(ours), ours._replace(fold=6)).kind == "ordinary"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"nonce": "?"}, "unknown"), ({"fold": 4}, "unknown"), ({"state": "loading"}, "loading")],
)
def test_all_is_sent_where_redis_shows_anything_else_of_ours(changes: dict[str, object], reason: str) -> None:
    ours = snapshot(place(7))
    assert need(shown(ours, **changes), ours) == Need("full", reason)
    assert need(None, ours) == Need("full", "missing")
    assert need(shown(ours), ours._replace(resend=True)) == Need("full", "rebuilt")


@pytest.mark.parametrize("changes", [{"store": "theirs"}, {"rollups": "a copy"}, {"fold": 6, "nonce": "?"}])
@pytest.mark.parametrize("state", ["live", "loading", "stopped"])
def test_another_publisher_is_left_alone_for_thirty_seconds(changes: dict[str, object], state: str) -> None:
    ours = snapshot(place(7))
    theirs = {"nonce": "?", "state": state, **changes}
    assert need(shown(ours, 29, **theirs), ours).kind == "foreign"
    assert need(shown(ours, 31, **theirs), ours).kind == "full"


def test_nothing_is_sent_before_we_are_where_redis_is() -> None:
    ours = snapshot(place(7), place(3, 2, partition=1), last=None)
    ahead = shown(ours, 60, positions={"topic/0": 7, "topic/1": 4})
    assert need(ahead, ours).kind == "held"
    assert "topic/1 up to 4" in need(ahead, ours).reason
    assert need(shown(ours, 60, positions={"topic/0": 1, "topic/9": 1}), ours).kind == "held"


def test_nothing_holds_back_where_redis_shows_another_incarnation_or_what_was_taken_back() -> None:
    ours = snapshot(place(7), last=None)
    ahead = shown(ours, 60, positions={"topic/0": 8})
    corrected = ours._replace(cursor=ours.cursor._replace(corrections=1))
    assert need(ahead, corrected).kind == "full"
    assert need(ahead._replace(topic_id="other"), ours).kind == "full"
    assert need(ahead._replace(store="other"), ours).kind == "full"
    assert need(ahead._replace(positions={"elsewhere/0": 8}), ours).kind == "full"
    closed = snapshot(place(8, open_=False), place(2, 2), last=None)
    assert need(ahead, closed).kind == "full"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"kinds": ["open", "open"]}, None),
        ({"store_id": "other"}, "another_store"),
        ({"nonce": b"?"}, "another_history"),
        ({"nonce": None}, "another_history"),
        ({"kinds": ["open", "take_back"]}, "take_back"),
        ({"kinds": ["of a later version"]}, "of a later version"),
        ({"ends": {}}, "another_history"),
        ({"ends": {1: place(6)}}, "another_history"),
        ({"ends": {1: place(9, partition=4)}}, "another_history"),
        ({"ends": {1: place(9, topic_id="told later", open_=False), 2: place(1, 2)}}, None),
    ],
)
def test_answers_are_counted_anew_where_the_history_is_not_theirs(changes: dict[str, object], reason: str) -> None:
    cursor = snapshot(place(7)).cursor
    arguments = {"store_id": "store", "nonce": b"n", "kinds": [], "ends": {1: place(9)}, **changes}
    assert rollups.trouble(cursor, **arguments) == reason  # type: ignore[arg-type]


def test_while_a_topic_is_replaced_partition_by_partition_nothing_holds_the_new_ones_back() -> None:
    half_way = snapshot(place(12_000, 2, "old", partition=1), place(3, 3, "new", partition=0), fold=5)
    told = shown(half_way)
    assert (told.topic_id, told.positions) == ("new", {"topic/0": 3})
    done = snapshot(
        place(12_000, 2, "old", open_=False, partition=1),
        place(4, 3, "new", partition=0),
        place(0, 4, "new", partition=1),
        fold=6,
    )
    assert need(told, done._replace(last=Publish(5, "last"))).kind == "ordinary"
