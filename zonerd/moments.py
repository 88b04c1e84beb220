"""Moments as people write them and read them; UTC throughout."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

FORMS: Final = "RFC 3339 (2026-03-01T12:00:00Z, 2026-03-01), seconds since 1970, or ago: 90s, 15m, 2h, 3d, 1w"
"""How a moment can be written, as a sentence for people."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS: Final = re.compile(r"\d{1,11}(?:\.\d{1,9})?", re.ASCII)
_AGO: Final = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def milliseconds(text: str, now_ms: int) -> int:
    """Give the moment that this text says, in milliseconds since 1970; a time without a zone is UTC.

    Raises ValueError, with a sentence for people.
    """
    if ago := _AGO.fullmatch(text):
        return now_ms - int(ago[1]) * _UNIT_S[ago[2]] * 1000
    if _SECONDS.fullmatch(text):
        return int(float(text) * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"not a time; write {FORMS}") from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(milliseconds=1)


def text(at_ms: int) -> str:
    """Give a moment in RFC 3339, to the millisecond; one that no calendar has, as its number."""
    try:
        moment = _EPOCH + timedelta(milliseconds=at_ms)
    except OverflowError:
        return str(at_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
