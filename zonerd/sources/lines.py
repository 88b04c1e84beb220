"""Cutting a stream of bytes into lines, in bounded memory."""

from typing import Final, NamedTuple

from zonerd.events import DeadLetter, decode, key_of

BLOCK_BYTES: Final = 128 * 1024
"""How much is read at a time."""
_BOM: Final = b"\xef\xbb\xbf"


class Cut(NamedTuple):
    """One line: its bytes without the line end (None: too long, not kept), its first byte, and the one behind it."""

    value: bytes | None
    offset: int
    end: int


class Cutter:
    """Cuts what it is fed into lines.

    A line ends in LF or CRLF, which is no part of it. A byte order mark at the very beginning is none either. Of a
    line above `max_line_bytes` only the length is kept.
    """

    def __init__(self, max_line_bytes: int, offset: int = 0) -> None:
        self.offset = offset
        """Where the line begins that is not yet whole."""
        self._max_line_bytes = max_line_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0

    def feed(self, block: bytes) -> list[Cut]:
        """Give the lines that end within this block."""
        pieces = block.split(b"\n")
        last = pieces.pop()
        cuts = []
        for piece in pieces:
            if self._held_bytes:
                self._hold(piece)
                cuts.append(self._whole(1))
            else:
                end = self.offset + len(piece) + 1
                cuts.append(Cut(self._trimmed(piece), self.offset, end))
                self.offset = end
        if last:
            self._hold(last)
        return cuts

    def rest(self) -> list[Cut]:
        """Give the last line, which no line end closes, if there is one: the stream has ended."""
        return [self._whole(0)] if self._held_bytes else []

    def _hold(self, piece: bytes) -> None:
        self._held_bytes += len(piece)
        if self._held_bytes > self._max_line_bytes + 1:  # one more: a CR
            self._held.clear()
        else:
            self._held.append(piece)

    def _whole(self, line_end_bytes: int) -> Cut:
        end = self.offset + self._held_bytes + line_end_bytes
        value = self._trimmed(b"".join(self._held)) if self._held else None
        cut = Cut(value, self.offset, end)
        self.offset, self._held, self._held_bytes = end, [], 0
        return cut

    def _trimmed(self, line: bytes) -> bytes | None:
        if line[-1:] == b"\r":
            line = line[:-1]
        if self.offset == 0 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        return line if len(line) <= self._max_line_bytes else None


def judge(line: bytes, max_event_bytes: int) -> tuple[bytes | None, DeadLetter | None]:
    """Give a line's message key, or why it has none: it is no event, and will be a dead letter."""
    verdict = decode(line, max_event_bytes)
    if isinstance(verdict, DeadLetter):
        return None, verdict
    return key_of(verdict.user_id), None


def is_blank(line: bytes) -> bool:
    """Tell whether there is nothing on a line but white space."""
    return not line or line.isspace()
