"""Moments: every form that a person may write means one millisecond, and what is none is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonerd import moments

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("written", "at_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T22:13:20.5Z", 1_700_000_000_500),
        ("2023-11-15T00:13:20+02:00", 1_700_000_000_000),
        ("2023-11-14 22:13:20", 1_700_000_000_000),
        ("2023-11-14", 1_699_920_000_000),
        ("1700000000", 1_700_000_000_000),
        ("1700000000.25", 1_700_000_000_250),
        ("0", 0),
        ("90s", NOW_MS - 90_000),
        ("15m", NOW_MS - 900_000),
        ("2h", NOW_MS - 7_200_000),
        ("3d", NOW_MS - 3 * DAY_MS),
        ("1w", NOW_MS - 7 * DAY_MS),
        ("0s", NOW_MS),
    ],
)
def test_each_form_means_one_moment(written: str, at_ms: int) -> None:
    assert moments.milliseconds(written, NOW_MS) == at_ms


@pytest.mark.parametrize(
    "written",
    ["", "now", "yesterday", "2 h", "-2h", "2y", "1e9", "٣d", "2023-13-01", "2023-11-14T25:00Z", "nan", "1\n"],
)
def test_what_is_no_moment_is_refused_with_the_forms_that_are(written: str) -> None:
    with pytest.raises(ValueError, match="RFC 3339"):
        moments.milliseconds(written, NOW_MS)


@given(st.integers(0, 253_402_300_799_999))
def test_what_is_shown_is_read_back_as_the_same_moment(at_ms: int) -> None:
    assert moments.milliseconds(moments.text(at_ms), NOW_MS) == at_ms


@pytest.mark.parametrize("at_ms", [2**63 - 1, -(2**63), 253_402_300_800_000])
def test_a_moment_that_no_calendar_has_is_shown_as_its_number(at_ms: int) -> None:
    assert moments.text(at_ms) == str(at_ms)
