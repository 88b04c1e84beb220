"""The rules of the event written a second time, slowly and by other means than the decoder's."""

import json
import re
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any, NamedTuple

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):?(\d\d))?", re.ASCII
)


class Expected(NamedTuple):
    """What an accepted event must be."""

    user_id: int | str
    activity: str
    timestamp_ms: int
    properties: dict[str, Any]


class Refuse(Exception):
    """The bytes are no event."""


def expected(value: bytes | None, max_bytes: int) -> Expected | None:
    """Give what `decode` must give for these bytes; None: a dead letter."""
    if value is None or len(value) > max_bytes:
        return None
    try:
        fields = parse(value)
        user_id, activity = _user_id(fields.pop("user_id")), _text(fields.pop("activity"), 128)
        return Expected(user_id, activity, _timestamp_ms(fields.pop("timestamp")), fields)
    except (Refuse, ValueError, KeyError, RecursionError):
        return None


def parse(value: bytes) -> dict[str, Any]:
    """Give the object that these bytes are, by the standard library."""
    text = value.decode()
    if _depth(text) > 100:
        raise Refuse
    escapes = "\\u" in text
    found = json.loads(
        text, parse_constant=_refuse, parse_int=integer, object_pairs_hook=_object_of_good_text if escapes else None
    )
    if not isinstance(found, dict):
        raise Refuse
    return found


def _object_of_good_text(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    json.dumps(pairs, ensure_ascii=False).encode()  # a lone surrogate fails here, also behind a key that comes again
    return dict(pairs)


def integer(text: str) -> int:
    """Read an integer of any length; past what Python parses, one that is as good."""
    return int(text) if len(text) < 400 else (-1 if text[0] == "-" else 1) * 10**400


def _refuse(_text: str) -> None:
    raise Refuse


def _depth(text: str) -> int:
    depth = deepest = 0
    in_string = escaped = False
    for character in text if text.count("[") + text.count("{") > 100 else "":
        if in_string:
            in_string = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _user_id(value: object) -> int | str:
    if isinstance(value, bool):
        raise Refuse
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise Refuse
        return value
    text = _text(value, 256)
    if re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text) and -(1 << 63) <= int(text) < 1 << 63:
        return int(text)
    return text


def _text(value: object, longest: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise Refuse
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise Refuse
    return value


def _timestamp_ms(value: object) -> int:
    if isinstance(value, str):
        return _time_ms(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise Refuse
    return int(value * 1000 + 0.0005)


def _time_ms(text: str) -> int:
    match = TIME.fullmatch(text)
    if match is None:
        raise Refuse
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, offset_hours, offset_minutes = match[7] or "", match[9], int(match[10] or 0), int(match[11] or 0)
    if offset_minutes > 59:
        raise Refuse
    offset = timedelta(hours=offset_hours, minutes=offset_minutes) * (-1 if sign == "-" else 1)
    moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone(offset))
    seconds = Fraction((moment - EPOCH) // timedelta(seconds=1)) + Fraction(
        int(fraction or 0), 10 ** len(fraction or "")
    )
    found = int((seconds * 1000 + Fraction(5, 10_000)) // 1)
    if not 0 <= found < 253_402_300_800_000:
        raise Refuse
    return found
