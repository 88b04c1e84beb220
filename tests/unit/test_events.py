"""Events: what is accepted and as what, how a batch is sorted out, what an anchor is."""

import json
import math
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from event_oracle import expected
from hypothesis import given
from hypothesis import strategies as st

from zonerd.events import (
    REASONS,
    Anchor,
    DeadLetter,
    Event,
    Gap,
    Reason,
    Record,
    Standing,
    anchor_of,
    canonical_user_id,
    decode,
    encode,
    key_of,
    row_of,
    sort_out,
)

MAX_BYTES = 10_000
INT64 = st.integers(-(2**63), 2**63 - 1)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
USER_IDS = INT64 | st.text(max_size=300) | INT64.map(str) | st.floats() | st.integers()
TIMESTAMPS = (
    st.floats(0, 1e11, exclude_max=True)
    | st.integers(0, 10**11 - 1)
    | st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)).map(lambda moment: moment.isoformat())  # noqa: DTZ001
)
GOOD_TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=128)


def _message(**fields: object) -> bytes:
    return json.dumps({"user_id": 1, "activity": "a", "timestamp": 5, **fields}).encode()


def _event(value: bytes) -> Event:
    event = decode(value, MAX_BYTES)
    assert isinstance(event, Event), event
    return event


def _reason(value: bytes | None) -> str:
    letter = decode(value, MAX_BYTES)
    assert isinstance(letter, DeadLetter), letter
    return letter.reason


@given(INT64 | GOOD_TEXTS, GOOD_TEXTS, TIMESTAMPS, st.dictionaries(st.text(max_size=9), JSON_VALUES, max_size=3))
def test_what_encode_makes_is_accepted_with_its_fields(
    user_id: int | str, activity: str, timestamp: float | str, properties: dict[str, Any]
) -> None:
    properties = {name: value for name, value in properties.items() if name not in ("user_id", "activity", "timestamp")}
    event = _event(encode(user_id, activity, timestamp, properties))
    assert event.user_id == (canonical_user_id(user_id) if isinstance(user_id, str) else user_id)
    assert event.activity == activity
    assert json.loads(event.properties or "{}") == properties
    assert (event.properties is None) == (not properties)


@given(USER_IDS, st.text(max_size=140) | JSON_VALUES, TIMESTAMPS | JSON_VALUES)
def test_an_extra_property_changes_neither_the_verdict_nor_the_fields(
    user_id: object, activity: object, timestamp: object
) -> None:
    fields = {"user_id": user_id, "activity": activity, "timestamp": timestamp}
    bare = decode(json.dumps(fields).encode(), MAX_BYTES)
    extended = decode(json.dumps({**fields, "more": 1}).encode(), MAX_BYTES)
    if isinstance(bare, Event):
        assert extended == Event(bare.user_id, bare.activity, bare.timestamp_ms, '{"more":1}')
    else:
        assert isinstance(extended, DeadLetter)
        assert extended.reason == bare.reason


@given(INT64)
def test_a_number_and_its_decimal_are_one_user_and_one_key(number: int) -> None:
    assert canonical_user_id(str(number)) == number
    assert key_of(number) == key_of(str(number)) == str(number).encode()


@given(st.text(max_size=30))
def test_a_text_is_a_number_only_where_it_is_that_numbers_decimal(text: str) -> None:
    user_id = canonical_user_id(text)
    assert str(user_id) == text


@pytest.mark.parametrize(
    "text", ["042", "-0", "+1", " 1", "1 ", "1_0", "٤٢", "²", "-", "--1", "1.0", str(2**63), str(-(2**63) - 1)]
)
def test_a_text_that_is_not_canonical_stays_text(text: str) -> None:
    assert canonical_user_id(text) == text


@given(st.floats(0, 1e11, exclude_max=True))
def test_a_number_of_seconds_becomes_the_floor_of_its_milliseconds_and_half_a_microsecond(seconds: float) -> None:
    assert _event(_message(timestamp=seconds)).timestamp_ms == math.floor(seconds * 1000 + 0.0005)


@given(st.integers(0, 10**14 - 1))
def test_whole_milliseconds_survive_being_written_as_seconds(timestamp_ms: int) -> None:
    assert _event(_message(timestamp=timestamp_ms / 1000)).timestamp_ms == timestamp_ms


@given(st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)), st.integers(-23 * 60, 23 * 60))  # noqa: DTZ001
def test_a_text_time_and_its_seconds_are_one_moment(moment: datetime, offset_minutes: int) -> None:
    moment = moment.replace(tzinfo=UTC)
    sign, (hours, minutes) = "-" if offset_minutes < 0 else "+", divmod(abs(offset_minutes), 60)
    local = (moment + timedelta(minutes=offset_minutes)).replace(tzinfo=None).isoformat()
    wanted = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert _event(_message(timestamp=f"{local}{sign}{hours:02}:{minutes:02}")).timestamp_ms == wanted


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "tombstone"),
        (b"", "not_json"),
        (b"\xff", "not_utf8"),
        (b'{"user_id":1,"activity":"a","timestamp":1,"p":"\xff"}', "not_utf8"),
        (b"[" * 101 + b"]" * 101, "not_json"),
        (b"[]", "not_object"),
        (b"[01]", "not_json"),
        (b"{}", "missing_field"),
        (b'{"user_id":1,"activity":"a"}', "missing_field"),
        (_message(user_id=42.0), "wrong_type"),
        (_message(user_id=True), "wrong_type"),
        (_message(user_id=None), "wrong_type"),
        (_message(user_id=2**63), "out_of_range"),
        (_message(user_id=-(2**63) - 1), "out_of_range"),
        (_message(user_id=10**30), "out_of_range"),
        (b'{"user_id":' + b"9" * 5000 + b',"activity":"a","timestamp":1}', "out_of_range"),
        (_message(user_id=""), "out_of_range"),
        (_message(user_id="x" * 257), "out_of_range"),
        (_message(user_id="a\0"), "out_of_range"),
        (_message(activity="a\x85"), "out_of_range"),
        (_message(activity=""), "out_of_range"),
        (_message(activity="x" * 129), "out_of_range"),
        (_message(activity=1), "wrong_type"),
        (_message(timestamp=None), "wrong_type"),
        (_message(timestamp=-0.001), "out_of_range"),
        (_message(timestamp=1e11), "looks_like_milliseconds"),
        (_message(timestamp=1_700_000_000_000), "looks_like_milliseconds"),
        (_message().replace(b"5", b"1e400"), "looks_like_milliseconds"),
        (_message().replace(b"5", b"-1e400"), "out_of_range"),
        (_message(timestamp="yesterday"), "wrong_type"),
        (_message(timestamp="2024-02-29T12:00:00\0Z"), "wrong_type"),
        (_message(timestamp="2023-02-29T12:00:00Z"), "wrong_type"),
        (_message(timestamp="1969-12-31T23:59:59Z"), "out_of_range"),
        (_message(timestamp="9999-12-31T23:59:59-01:00"), "out_of_range"),
        (_message(p="x" * MAX_BYTES), "too_large"),
    ],
)
def test_what_is_no_event_has_its_reason(value: bytes | None, reason: Reason) -> None:
    assert reason in REASONS
    assert _reason(value) == reason
    assert expected(value, MAX_BYTES) is None


@pytest.mark.parametrize(
    "value",
    [
        _message(user_id="x" * 256, activity="y" * 128),
        _message(user_id="a\xa0\xad\u200b", activity="\U0001f600"),
        b'{"user_id":true,"user_id":1,"activity":"a","timestamp":1}',
        b'{"user_id":1,"activity":"a","timestamp":1,"p":' + b"[" * 99 + b"]" * 99 + b"}",
        b'{"user_id":1,"activity":"a","timestamp":1,"p":"' + b"[" * 500 + b'"}',
        b'{"user_id":1,"activity":"a","timestamp":-0.0}',
    ],
)
def test_what_lies_just_within_the_limits_is_an_event(value: bytes) -> None:
    wanted = expected(value, MAX_BYTES)
    assert wanted is not None
    assert (_event(value).user_id, _event(value).activity, _event(value).timestamp_ms) == wanted[:3]


def _schema_accepts(value: object) -> bool:
    schema = json.loads(files("zonerd").joinpath("event.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@given(
    USER_IDS.filter(lambda value: not isinstance(value, float) or not value.is_integer()),
    st.text(max_size=140) | JSON_VALUES,
    TIMESTAMPS | st.floats(-1, 2e11) | JSON_VALUES,
)
def test_the_schema_accepts_what_the_decoder_accepts(user_id: object, activity: object, timestamp: object) -> None:
    fields = {"user_id": user_id, "activity": activity, "timestamp": timestamp}
    try:
        value = json.dumps(fields, allow_nan=False).encode()
    except ValueError:
        return  # not JSON
    assert _schema_accepts(fields) == isinstance(decode(value, MAX_BYTES), Event)


@pytest.mark.parametrize(
    "value",
    [
        [], {}, {"user_id": 1, "activity": "a"}, {"user_id": 1, "activity": "a", "timestamp": 1, "more": [None]},
        {"user_id": 2**63, "activity": "a", "timestamp": 1}, {"user_id": 1, "activity": "a\n", "timestamp": 1},
        {"user_id": 1, "activity": "a", "timestamp": 1e11}, {"user_id": 1, "activity": "a", "timestamp": -1},
        {"user_id": 1, "activity": "a", "timestamp": "2024-02-29T12:00:00Z\n"},
        {"user_id": 1, "activity": "a", "timestamp": "2024-02-29 12:00:00.123"},
        {"user_id": 1, "activity": "a", "timestamp": "2024-02-29"},
        {"user_id": "x" * 257, "activity": "", "timestamp": 1},
    ],
)  # fmt: skip
def test_the_schema_and_the_decoder_agree_at_the_limits(value: object) -> None:
    assert _schema_accepts(value) == isinstance(decode(json.dumps(value).encode(), MAX_BYTES), Event)


GOOD = _message()
BAD = b"{"


def _record(partition: int, offset: int, value: bytes | None = GOOD) -> Record:
    return Record(partition, offset, 1000 + offset, b"k", value)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.booleans()), max_size=40),
    st.dictionaries(st.integers(0, 3), st.integers(0, 50)),
    st.dictionaries(st.integers(0, 2), st.tuples(st.integers(0, 20), st.integers(0, 30))),
)
def test_every_offset_passed_is_exactly_once_an_event_a_dead_letter_or_in_a_gap(
    places: list[tuple[int, int, bool]], ends: dict[int, int], from_: dict[int, tuple[int, int]]
) -> None:
    records = [_record(partition, offset, GOOD if good else BAD) for partition, offset, good in places]
    standings = {partition: Standing(*numbers) for partition, numbers in from_.items()}
    for piece in sort_out(records, ends, standings, MAX_BYTES):
        expected_offset, low_watermark = standings[piece.partition]
        events = [row[0] for row in piece.events]
        letters = [record.offset for record, _ in piece.dead_letters]
        gaps = [offset for gap in piece.gaps for offset in range(gap.first_offset, gap.last_offset + 1)]
        assert piece.expected_offset == expected_offset
        assert sorted(events + letters + gaps) == list(range(expected_offset, piece.next_offset))
        assert piece.next_offset > expected_offset
        assert all((gap.last_offset < low_watermark) == (gap.reason == "expired") for gap in piece.gaps)
        assert piece.last is None or piece.last.offset == max(events + letters)
        by_offset = {(record.partition, record.offset): record for record in records}
        assert set(events) | set(letters) <= {offset for partition, offset in by_offset if partition == piece.partition}


def test_records_of_a_partition_that_is_not_ours_are_left_out() -> None:
    assert sort_out([_record(5, 0)], {6: 3}, {0: Standing(0, 0)}, MAX_BYTES) == []


def test_records_below_the_expected_offset_are_dropped() -> None:
    (piece,) = sort_out([_record(0, 3), _record(0, 4), _record(0, 4)], {}, {0: Standing(4, 0)}, MAX_BYTES)
    assert [row[0] for row in piece.events] == [4]


def test_offsets_below_the_low_watermark_expired_and_those_above_were_not_delivered() -> None:
    (piece,) = sort_out([_record(0, 10)], {0: 13}, {0: Standing(2, 7)}, MAX_BYTES)
    assert piece.gaps == [Gap(2, 6, "expired"), Gap(7, 9, "not_delivered"), Gap(11, 12, "not_delivered")]
    assert (piece.expected_offset, piece.next_offset) == (2, 13)


def test_a_bad_record_keeps_its_bytes_and_its_neighbours() -> None:
    records = [_record(0, 0), _record(0, 1, BAD), _record(0, 2)]
    (piece,) = sort_out(records, {}, {0: Standing(0, 0)}, MAX_BYTES)
    assert piece.events == [row_of(record, _event(GOOD)) for record in (records[0], records[2])]
    assert [record for record, _ in piece.dead_letters] == [records[1]]
    assert piece.last == records[2]


def test_an_anchor_is_a_known_hash_of_key_value_and_timestamp() -> None:
    assert anchor_of(Record(0, 7, 5, None, b"v")) == Anchor(
        7, bytes.fromhex("3f08b9990357ea4203732a6e83787e89bdf6c3457b3f4097086a620cdd2fb012")
    )


@given(
    st.lists(
        st.tuples(st.none() | st.binary(max_size=4), st.none() | st.binary(max_size=4), st.integers(-1, 20)),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_two_records_have_one_anchor_only_when_key_value_and_timestamp_are_equal(
    pair: list[tuple[bytes | None, bytes | None, int]],
) -> None:
    one, other = (anchor_of(Record(0, 0, timestamp_ms, key, value)) for key, value, timestamp_ms in pair)
    assert one != other


def test_an_empty_key_is_not_a_missing_one() -> None:
    assert anchor_of(Record(0, 0, 0, b"", b"")) != anchor_of(Record(0, 0, 0, None, b""))
