"""Lines are cut from a stream exactly, whatever its blocks, and never held whole past the limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonerd.events import DeadLetter
from zonerd.sources.lines import Cut, Cutter, is_blank, judge


def cut_all(blocks: list[bytes], max_line_bytes: int = 1000) -> list[Cut]:
    cutter = Cutter(max_line_bytes)
    return [cut for block in blocks for cut in cutter.feed(block)] + cutter.rest()


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=20), st.integers(1, 7))
def test_the_lines_are_the_same_however_the_stream_is_cut_into_blocks(lines: list[bytes], block_bytes: int) -> None:
    stream = b"x" + b"\n".join(lines)
    blocks = [stream[at : at + block_bytes] for at in range(0, len(stream), block_bytes)]
    assert cut_all(blocks) == cut_all([stream])
    cuts = cut_all(blocks)
    assert [cut.offset for cut in cuts] == [0, *[cut.end for cut in cuts]][:-1]
    assert all(stream[cut.offset : cut.end].rstrip(b"\n").removesuffix(b"\r") == cut.value for cut in cuts)


def test_a_line_without_its_end_is_given_only_as_the_rest() -> None:
    cutter = Cutter(100)
    assert cutter.feed(b"one\ntw") == [Cut(b"one", 0, 4)]
    assert cutter.feed(b"o") == []
    assert cutter.rest() == [Cut(b"two", 4, 7)]
    assert cutter.rest() == []


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_line_of_exactly_the_limit_is_kept_and_one_byte_more_is_not(ending: bytes) -> None:
    stream = b"a" * 10 + ending + b"b" * 11 + ending + b"c" + ending
    for blocks in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        assert [cut.value for cut in cut_all(blocks, max_line_bytes=10)] == [b"a" * 10, None, b"c"]


def test_an_endless_line_takes_no_memory() -> None:
    cutter = Cutter(1000)
    for _ in range(100):
        assert cutter.feed(b"x" * 1000) == []
    assert sum(map(len, cutter._held)) <= 1001
    assert cutter.feed(b"\nnext\n") == [Cut(None, 0, 100_001), Cut(b"next", 100_001, 100_006)]


def test_a_byte_order_mark_is_left_out_at_the_very_beginning_only() -> None:
    assert [cut.value for cut in cut_all([b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n"])] == [b"a", b"\xef\xbb\xbfb"]
    assert [cut.value for cut in cut_all([b"\xef", b"\xbb\xbfa", b"\n"])] == [b"a"]


def test_a_valid_line_gets_its_user_as_key_and_an_invalid_one_its_reason() -> None:
    assert judge(b'{"user_id":"42","activity":"a","timestamp":1}', 100) == (b"42", None)
    key, letter = judge(b"nope", 100)
    assert key is None
    assert isinstance(letter, DeadLetter)
    assert letter.reason == "not_json"


def test_white_space_alone_is_blank() -> None:
    assert is_blank(b"")
    assert is_blank(b" \t\r")
    assert not is_blank(b" x ")
