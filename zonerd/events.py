"""The event: what a record of the topic must look like, and what becomes of one that does not."""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal, NamedTuple, final, get_args

import msgspec

Reason = Literal[
    "not_utf8",
    "not_json",
    "not_object",
    "missing_field",
    "wrong_type",
    "out_of_range",
    "looks_like_milliseconds",
    "too_large",
    "tombstone",
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

GapReason = Literal["not_delivered", "expired", "skipped", "dropped", "forgotten"]
GAP_REASONS: Final[tuple[GapReason, ...]] = get_args(GapReason)

MAX_USER_ID_CHARACTERS: Final = 256
MAX_ACTIVITY_CHARACTERS: Final = 128
MAX_TIMESTAMP_S: Final = 1e11
"""From here on a number of seconds is taken for milliseconds: as seconds it would be the year 5138."""
MAX_NESTING: Final = 100
"""Levels of arrays and objects in one record; a limit of our own, because the parser's depends on its caller."""

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_INT64_CHARACTERS: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_10000_MS: Final = 253_402_300_800_000
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_JSON_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_INTEGER: Final = re.compile(rb"-?[0-9]+")
_BRACKET: Final = re.compile(rb"[\[\]{}]")


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as Kafka delivered it; `timestamp_ms` is Kafka's own (-1: the broker gave none)."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@final
class Event(msgspec.Struct, frozen=True, gc=False):
    """What an accepted record says; `properties` is the JSON of all other fields, None without any."""

    user_id: int | str
    activity: str
    timestamp_ms: int
    properties: str | None


class DeadLetter(NamedTuple):
    """Why a record is not an event; its key and bytes stay with the record."""

    reason: Reason
    detail: str


class Anchor(NamedTuple):
    """What the last record seen was: the proof, later, that a topic is still the same one."""

    offset: int
    sha256: bytes


class Gap(NamedTuple):
    """Offsets from `first_offset` to `last_offset`, both included, at which there is no record."""

    first_offset: int
    last_offset: int
    reason: GapReason


EventRow = tuple[int, int | str, str, int, int, str | None]
"""An event as it is kept: offset, user_id, activity, timestamp_ms, logged_ms (Kafka's timestamp), properties."""


class Standing(NamedTuple):
    """How far one partition is read, and where the broker's log of it now begins."""

    next_offset: int
    low_watermark: int


class Slice(msgspec.Struct, gc=False):
    """What one batch holds of one partition: all that became of `expected_offset` to `next_offset` - 1."""

    partition: int
    expected_offset: int
    next_offset: int
    events: list[EventRow] = []
    dead_letters: list[tuple[Record, DeadLetter]] = []
    gaps: list[Gap] = []
    last: Record | None = None


class _Wire(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What most events are; the parser checks these limits at a tenth of what Python takes for it."""

    user_id: Annotated[int, msgspec.Meta(ge=_INT64_MIN, le=_INT64_MAX)] | str
    activity: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ACTIVITY_CHARACTERS)]
    timestamp: Annotated[float, msgspec.Meta(ge=0, lt=MAX_TIMESTAMP_S)] | str


class _Rejected(Exception):
    """Not an error: a verdict on one record."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.letter = DeadLetter(reason, detail)


_decode_wire = msgspec.json.Decoder(_Wire).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_user_id: Callable[[bytes], int | str] = msgspec.json.Decoder(int | str).decode
_decode_activity: Callable[[bytes], str] = msgspec.json.Decoder(str).decode
_decode_timestamp: Callable[[bytes], float | str] = msgspec.json.Decoder(int | float | str).decode
_decode_json = msgspec.json.Decoder(msgspec.Raw).decode
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(user_id: int | str, activity: str, timestamp: float | str, properties: Mapping[str, object]) -> bytes:
    """Give the message that `decode` accepts as this event; the values are not checked here."""
    return msgspec.json.encode({"user_id": user_id, "activity": activity, "timestamp": timestamp, **properties})


def key_of(user_id: int | str) -> bytes:
    """Give the Kafka key of a user's messages: the id as text, so that one user stays in one partition."""
    return str(user_id).encode()


def decode(value: bytes | None, max_bytes: int) -> Event | DeadLetter:
    """Give the event that these bytes are, or the reason why they are none; never raises.

    The answer depends on the arguments alone, and what one version accepts every later one accepts
    with the same result. `max_bytes` is the size past which a value is `too_large`.
    """
    try:
        if value is not None and len(value) <= max_bytes:
            wire = _decode_wire(value)
            user_id, activity, timestamp = wire.user_id, wire.activity, wire.timestamp
            return Event(
                user_id if type(user_id) is int else _user_id(user_id),
                activity if activity.isprintable() else _activity(activity),
                math.floor(timestamp * 1000 + 0.0005) if type(timestamp) is float else _timestamp_ms(timestamp),
                None,
            )
    except _MALFORMED:
        pass  # other fields, or not an event: the careful way below tells which
    except _Rejected as rejected:
        return rejected.letter
    try:
        return _decode_carefully(value, max_bytes)
    except _Rejected as rejected:
        return rejected.letter


def row_of(record: Record, event: Event) -> EventRow:
    """Give the row that keeps this event of this record."""
    return (record.offset, event.user_id, event.activity, event.timestamp_ms, record.timestamp_ms, event.properties)


def anchor_of(record: Record) -> Anchor:
    """Give the anchor that this record leaves: SHA-256 over its key, value and Kafka timestamp.

    Each part goes in behind its length (-1: null), so that no two records share one input.
    """
    digest = hashlib.sha256()
    for part in (record.key, record.value, str(record.timestamp_ms).encode()):
        digest.update(b"-1:" if part is None else b"%d:%b" % (len(part), part))
    return Anchor(record.offset, digest.digest())


def sort_out(
    records: Iterable[Record],
    ends: Mapping[int, int],
    standings: Mapping[int, Standing],
    max_bytes: int,
) -> list[Slice]:
    """Sort records into one slice a partition: events, dead letters, and gaps where offsets are missing.

    `ends` tells for a partition where its log ended behind these records: trailing offsets without a
    record become a gap. Records below the expected offset, and of partitions without a standing, are
    left out.
    """
    slices: dict[int, Slice] = {}
    for record in records:
        piece = slices.get(record.partition) or _begin(slices, record.partition, standings)
        offset = record.offset
        if piece is None or offset < piece.next_offset:
            continue
        if offset > piece.next_offset:
            _step_to(piece, offset, standings)
        verdict = decode(record.value, max_bytes)
        if type(verdict) is Event:
            piece.events.append(
                (
                    offset,
                    verdict.user_id,
                    verdict.activity,
                    verdict.timestamp_ms,
                    record.timestamp_ms,
                    verdict.properties,
                )
            )
        else:
            piece.dead_letters.append((record, verdict))
        piece.next_offset = offset + 1
        piece.last = record
    for partition, end in ends.items():
        piece = slices.get(partition) or _begin(slices, partition, standings)
        if piece is not None:
            _step_to(piece, end, standings)
    return [piece for piece in slices.values() if piece.next_offset > piece.expected_offset]


def _begin(slices: dict[int, Slice], partition: int, standings: Mapping[int, Standing]) -> Slice | None:
    if partition not in standings:
        return None
    start = standings[partition].next_offset
    slices[partition] = Slice(partition, start, start)
    return slices[partition]


def _step_to(piece: Slice, offset: int, standings: Mapping[int, Standing]) -> None:
    if offset > piece.next_offset:
        low_watermark = standings[piece.partition].low_watermark
        piece.gaps.extend(missing_before(piece.next_offset, offset, low_watermark))
        piece.next_offset = offset


def missing_before(expected_offset: int, offset: int, low_watermark: int) -> Iterable[Gap]:
    """Give the gaps between the offset expected and the one that came: expired below the low watermark."""
    expired_until = min(max(low_watermark, expected_offset), offset)
    if expected_offset < expired_until:
        yield Gap(expected_offset, expired_until - 1, "expired")
    if expired_until < offset:
        yield Gap(expired_until, offset - 1, "not_delivered")


def canonical_user_id(text: str) -> int | str:
    """Give the user whom this text names: the integer, where it is one's canonical decimal.

    `"42"` and `42` are one user; `"042"` and `"-0"` stay text.
    """
    if len(text) <= _INT64_CHARACTERS and text.isascii() and (text.isdigit() or text[:1] == "-"):
        try:
            number = int(text)
        except ValueError:
            return text
        if str(number) == text and _INT64_MIN <= number <= _INT64_MAX:
            return number
    return text


def _user_id(value: int | str) -> int | str:
    if isinstance(value, int):
        if _INT64_MIN <= value <= _INT64_MAX:
            return value
        raise _Rejected("out_of_range", "user_id does not fit a 64-bit integer")
    _check_text("user_id", value, MAX_USER_ID_CHARACTERS)
    return canonical_user_id(value)


def _activity(value: str) -> str:
    _check_text("activity", value, MAX_ACTIVITY_CHARACTERS)
    return value


def _check_text(field: str, text: str, max_characters: int) -> None:
    if not 0 < len(text) <= max_characters:
        raise _Rejected("out_of_range", f"{field} must have 1 to {max_characters} characters")
    if not text.isprintable() and _CONTROL.search(text):
        raise _Rejected("out_of_range", f"{field} has a control character")


def _timestamp_ms(value: float | str) -> int:
    if isinstance(value, str):
        return _rfc3339_ms(value)
    if value < 0:
        raise _Rejected("out_of_range", "timestamp is before 1970")
    if value >= MAX_TIMESTAMP_S:
        raise _Rejected("looks_like_milliseconds", "timestamp looks like milliseconds; seconds are wanted")
    return math.floor(value * 1000 + 0.0005)


def _rfc3339_ms(text: str) -> int:
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        raise _Rejected("wrong_type", "timestamp is text, but not an RFC 3339 time") from None
    if "\0" in text:  # where the parser stops reading, whatever follows
        raise _Rejected("wrong_type", "timestamp is text, but not an RFC 3339 time")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    timestamp_ms = (moment - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= timestamp_ms < _YEAR_10000_MS:
        raise _Rejected("out_of_range", "timestamp is not between 1970-01-01 and 9999-12-31 UTC")
    return timestamp_ms


def _decode_carefully(value: bytes | None, max_bytes: int) -> Event:
    if value is None:
        raise _Rejected("tombstone", "the record has no value")
    if len(value) > max_bytes:
        raise _Rejected("too_large", f"{len(value)} bytes; at most {max_bytes} are taken")
    fields = _fields(value)
    for name in ("user_id", "activity", "timestamp"):
        if name not in fields:
            raise _Rejected("missing_field", f"no {name}")
    user_id = _user_id(_user_id_of(bytes(fields.pop("user_id"))))
    activity = _activity(_activity_of(bytes(fields.pop("activity"))))
    timestamp_ms = _timestamp_ms(_timestamp_of(bytes(fields.pop("timestamp"))))
    properties = msgspec.json.encode(fields).decode() if fields else None
    return Event(user_id, activity, timestamp_ms, properties)


def _fields(value: bytes) -> dict[str, msgspec.Raw]:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise _Rejected("not_utf8", f"not UTF-8 at byte {error.start}") from None
    _check_nesting(value)
    try:
        return _decode_fields(value)
    except msgspec.ValidationError:
        _check_json(value)
        raise _Rejected("not_object", "JSON, but not an object") from None
    except _MALFORMED as error:
        raise _Rejected("not_json", f"not JSON: {error}") from None


def _check_json(value: bytes) -> None:
    try:
        _decode_json(value)
    except _MALFORMED as error:
        raise _Rejected("not_json", f"not JSON: {error}") from None


def _check_nesting(value: bytes) -> None:
    if value.count(b"[") + value.count(b"{") <= MAX_NESTING:
        return
    depth = 0
    for bracket in _BRACKET.findall(_JSON_STRING.sub(b"", value)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_NESTING:
            raise _Rejected("not_json", f"nested deeper than {MAX_NESTING} levels")


def _user_id_of(raw: bytes) -> int | str:
    try:
        return _decode_user_id(raw)
    except msgspec.ValidationError:
        if _INTEGER.fullmatch(raw):
            raise _Rejected("out_of_range", "user_id does not fit a 64-bit integer") from None
        raise _Rejected("wrong_type", "user_id must be an integer or a string") from None


def _activity_of(raw: bytes) -> str:
    try:
        return _decode_activity(raw)
    except msgspec.ValidationError:
        raise _Rejected("wrong_type", "activity must be a string") from None


def _timestamp_of(raw: bytes) -> float | str:
    try:
        return _decode_timestamp(raw)
    except msgspec.ValidationError:
        if raw[:1].isdigit():  # a number past what Python holds
            return math.inf
        if raw[:1] == b"-":
            return -math.inf
        raise _Rejected("wrong_type", "timestamp must be a number or a string") from None
