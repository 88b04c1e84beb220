"""The decoder against damaged events: it never raises, it gives an event or a dead letter, neighbours are unharmed."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from event_oracle import expected, integer

from zonerd.events import DeadLetter, Event, Record, Standing, decode, row_of, sort_out

MAX_BYTES = 1 << 20
SEED = 20_260_101
MUTATIONS = 200_000
BATCH = 50
LOGGED_MS = 1_700_000_000_000

GOOD = [
    b'{"user_id":42,"activity":"sleep","timestamp":1700000000}',
    b'{"user_id":"42","activity":"meal","timestamp":1700000000.25}',
    b'{"user_id":"anna@example.org","activity":"light_exposure","timestamp":"2024-02-29T12:00:00Z"}',
    '{"user_id":"Zoë \U0001f600","activity":"мир","timestamp":"2024-02-29 12:00:00.5+05:30"}'.encode(),
    b'{"user_id":"\\ud83d\\ude00","activity":"\\u00e9","timestamp":1e9}',
    b'{"user_id":-9223372036854775808,"activity":"a","timestamp":0}',
    b'{"user_id":9223372036854775807,"activity":"a","timestamp":99999999999.9}',
    b' { "timestamp" : 5 , "activity" : "a" , "user_id" : 1 } \n',
    b'{"user_id":7,"activity":"walk","timestamp":1,"steps":[1,2,{"x":null}],"note":"a\\"b","ok":true}',
    b'{"user_id":7,"activity":"walk","timestamp":1,"deep":[[[[[[[[[[{"a":[{}]}]]]]]]]]]],"f":-1.5e-3}',
    b'{"user_id":"042","activity":"a b","timestamp":"1970-01-01T00:00:00"}',
]

Mutation = Callable[[random.Random, bytes], bytes]


def _flip_a_bit(rng: random.Random, value: bytes) -> bytes:
    at = rng.randrange(len(value))
    return value[:at] + bytes([value[at] ^ 1 << rng.randrange(8)]) + value[at + 1 :]


def _flip_bits(rng: random.Random, value: bytes) -> bytes:
    for _ in range(rng.randrange(2, 6)):
        value = _flip_a_bit(rng, value)
    return value


def _cut_out(rng: random.Random, value: bytes) -> bytes:
    begin = rng.randrange(len(value))
    return value[:begin] + value[begin + rng.randrange(1, 9) :]


def _repeat(rng: random.Random, value: bytes) -> bytes:
    begin = rng.randrange(len(value))
    end = begin + rng.randrange(1, 30)
    return value[:end] + value[begin:]


def _insert(*parts: bytes) -> Mutation:
    def insert(rng: random.Random, value: bytes) -> bytes:
        at = rng.randrange(len(value) + 1)
        return value[:at] + rng.choice(parts) + value[at:]

    return insert


def _replace_a_value(*values: bytes) -> Mutation:
    def replace(rng: random.Random, value: bytes) -> bytes:
        fields = json.loads(value)
        name = rng.choice(list(fields))
        marked = json.dumps({**fields, name: "\x00"}).encode()
        return marked.replace(b'"\\u0000"', rng.choice(values))

    return replace


def _a_key_again(rng: random.Random, value: bytes) -> bytes:
    name = rng.choice([b"user_id", b"activity", b"timestamp", b"p", b"user\\u005fid"])
    what = rng.choice([b"1", b'"x"', b"true", b"null", b"[]", b"1.5", b'"2020-01-01T00:00:00Z"', b"{}"])
    end = value.rindex(b"}")
    return value[:end] + b',"' + name + b'":' + what + value[end:]


def _a_number_for_a_value(rng: random.Random, value: bytes) -> bytes:
    number = rng.choice([f"{rng.uniform(-1, 2e11)!r}", f"{rng.randrange(-(2**65), 2**65)}", f"{rng.uniform(0, 2)!r}"])
    return _replace_a_value(number.encode())(rng, value)


def _a_time_for_a_value(rng: random.Random, value: bytes) -> bytes:
    text = (
        f"{rng.choice([0, 1, 1969, 1970, 2024, 9999, rng.randrange(10_000)]):04}-{rng.randrange(14):02}-"
        f"{rng.randrange(33):02}{rng.choice('Tt _')}{rng.randrange(25):02}:{rng.randrange(61):02}:"
        f"{rng.randrange(61):02}{rng.choice(['', '.5', '.9999', '.123456789', '.'])}"
        f"{rng.choice(['', 'Z', 'z', '+01:00', '-0130', '+24:00', '-00:60', '+1'])}"
    )
    return _replace_a_value(json.dumps(text).encode())(rng, value)


MUTATE: list[Mutation] = [
    _flip_a_bit,
    _flip_bits,
    _cut_out,
    _repeat,
    _insert(b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\x80", b"\x80"),
    _insert(b"\x00", b"\x01", b"\x1f", b"\x7f", b"\xc2\x85", b"\\u0000", b"\\u009f", b"\n"),
    _insert(b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b"\xc2\xa0"),
    _insert(b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\q", b"\\u12", b"\\", b'"'),
    _insert(b",", b":", b"{", b"}", b"[", b"]", b"NaN", b"-", b"0", b"1e999", b"//", b" "),
    _replace_a_value(b"NaN", b"Infinity", b"-Infinity", b"nan", b"true", b"null", b"[]", b"{}", b'""', b"'a'"),
    _replace_a_value(b"01", b"1.", b".5", b"-", b"+1", b"-0", b"-0.0", b"42.0", b"1e2", b"1e400", b"-1e400", b"0x10"),
    _replace_a_value(b"9" * 5000, b"-" + b"9" * 5000, b'"' + b"9" * 5000 + b'"', b"1" + b"0" * 30, b"1e11"),
    _replace_a_value(b'"' + b"a" * 128 + b'"', b'"' + b"a" * 129 + b'"', b'"' + b"a" * 257 + b'"', b'"-0"', b'"-1"'),
    _replace_a_value(b'"9223372036854775807"', b'"9223372036854775808"', b"18446744073709551616", b'"\\u00002"'),
    _replace_a_value(b"[" * 99 + b"]" * 99, b"[" * 100 + b"]" * 100, b"[" * 98 + b'"]"' + b"]" * 98, b"[" * 300),
    _a_number_for_a_value,
    _a_time_for_a_value,
    _a_key_again,
]


def _mutations() -> Iterator[bytes]:
    """Give truncations at every byte, then random mutations, `MUTATIONS` in all; the same ones each time."""
    rng = random.Random(SEED)
    cuts = [value[:end] for value in GOOD for end in range(len(value))]
    yield from cuts
    for number in range(MUTATIONS - len(cuts)):
        yield MUTATE[number % len(MUTATE)](rng, rng.choice(GOOD))


def _check(value: bytes | None) -> Event | DeadLetter:
    verdict = decode(value, MAX_BYTES)
    wanted = expected(value, MAX_BYTES)
    if isinstance(verdict, DeadLetter):
        assert wanted is None, (value, verdict, wanted)
    else:
        assert wanted is not None, (value, verdict)
        assert type(verdict.user_id) is type(wanted.user_id), value
        assert (verdict.user_id, verdict.activity, verdict.timestamp_ms) == wanted[:3], value
        assert json.loads(verdict.properties or "{}", parse_int=integer) == wanted.properties, value
        assert (verdict.properties is None) == (not wanted.properties), value
    return verdict


def _check_neighbours(batch: list[tuple[bytes, Event | DeadLetter]]) -> None:
    """Sort the values out, each between two good records: those become the same rows, and no record is lost."""
    payloads = [payload for value, _ in batch for payload in (GOOD[0], value)] + [GOOD[0]]
    records = [Record(0, offset, LOGGED_MS, b"k", payload) for offset, payload in enumerate(payloads)]
    (piece,) = sort_out(records, {}, {0: Standing(0, 0)}, MAX_BYTES)
    good = [(offset, 42, "sleep", LOGGED_MS, LOGGED_MS, None) for offset in range(0, len(records), 2)]
    events, letters = [], []
    for (_, verdict), record in zip(batch, records[1::2], strict=True):
        if isinstance(verdict, Event):
            events.append(row_of(record, verdict))
        else:
            letters.append((record, verdict))
    assert piece.events == sorted(good + events)
    assert piece.dead_letters == letters
    assert not piece.gaps


def test_each_of_200_000_damaged_events_is_an_event_or_a_dead_letter_as_the_rules_say() -> None:
    verdicts: Counter[str] = Counter()
    batch: list[tuple[bytes, Event | DeadLetter]] = []
    count = 0
    for value in _mutations():
        verdict = _check(value)
        verdicts[verdict.reason if isinstance(verdict, DeadLetter) else "event"] += 1
        batch.append((value, verdict))
        count += 1
        if len(batch) == BATCH:
            _check_neighbours(batch)
            batch = []
    assert count == MUTATIONS
    for kind in ("event", "not_utf8", "not_json", "missing_field", "wrong_type", "out_of_range"):
        assert verdicts[kind] > MUTATIONS // 200, verdicts  # the mutations reach every branch
    assert verdicts["looks_like_milliseconds"], verdicts


@pytest.mark.parametrize(
    "value",
    [
        *(event.decode().encode(code) for event in GOOD for code in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig")),
        *(b"[" * depth for depth in (1, 100, 101, 5_000, 100_000)),
        *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (1, 100, 101, 5_000, 100_000)),
        b'{"user_id":1,"activity":"a","timestamp":1,"p":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"user_id":' + b"[" * 100_000 + b',"activity":"a","timestamp":1}',
        b'{"user_id":1,"activity":"a","timestamp":1,"p":"' + b"[" * 200_000 + b'"}',
        b'{"user_id":1,"activity":"a","timestamp":1,"p":"' + b'[\\"' * 200_000 + b'"}',
        b'{"user_id":1,"activity":"a","timestamp":1,"p":"' + b"\\" * 400_000 + b'"}',
        b'{"user_id":1,"activity":"a","timestamp":1,"p":' + b"9" * 5_000 + b"}",
        b"",
        b" ",
        b"\x00",
        b"[]",
        b"1e400 x",
        b"[1e400]",
        b'"text"',
        b"null",
        None,
    ],
    ids=lambda value: f"{value[:12]!r}…{len(value)}" if value is not None else "null",
)  # fmt: skip
def test_an_extreme_value_is_judged_as_the_rules_say(value: bytes | None) -> None:
    _check(value)


@pytest.mark.parametrize("place", ["user_id", "activity", "timestamp", "p"])
@pytest.mark.parametrize("unit", [b"a", b"\xc3\xa9", b"\\u0000", b'\\"', b"["])
def test_a_text_of_5_mb_is_judged_within_a_second(place: str, unit: bytes) -> None:
    text = b'"' + unit * (5_000_000 // len(unit)) + b'"'
    fields = {"user_id": b"1", "activity": b'"a"', "timestamp": b"1", place: text}
    value = b"{" + b",".join(b'"%b":%b' % (name.encode(), what) for name, what in fields.items()) + b"}"
    begin = time.monotonic()
    large, limited = decode(value, 6_000_000), decode(value, MAX_BYTES)
    assert time.monotonic() - begin < 1
    assert isinstance(limited, DeadLetter)
    assert limited.reason == "too_large"
    assert isinstance(large, Event) == (place == "p")


def test_the_oracle_has_teeth() -> None:
    assert expected(GOOD[0], MAX_BYTES) == (42, "sleep", 1_700_000_000_000, {})
    for bad in (b"{", b'{"user_id":42.0,"activity":"a","timestamp":1}', b'{"user_id":1,"activity":"","timestamp":1}'):
        assert expected(bad, MAX_BYTES) is None
