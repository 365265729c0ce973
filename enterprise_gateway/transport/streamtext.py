"""The text of a kernel's ``stream`` message, found and cut in its JSON without being decoded."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import NamedTuple

from .frames import FrameError, Part, find_end

SMALLEST_PIECE = 1 << 10
_ENDS_BYTES = 1 << 10  # in which head and tail are looked for
_NAME = rb'"name"[ \t\r\n]*:[ \t\r\n]*"(?:[^"\\]|\\.){0,64}"[ \t\r\n]*'
_HEAD = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*(%b,[ \t\r\n]*)?"text"[ \t\r\n]*:[ \t\r\n]*"' % _NAME).match
_TAIL = re.compile(rb'"[ \t\r\n]*(,[ \t\r\n]*%b)?\}[ \t\r\n]*\Z' % _NAME).match
_LONGEST_ESCAPE = 6  # bytes: \uXXXX
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB]..\Z").search


class StreamText(NamedTuple):
    """A text between ``start`` and ``end`` of a message's content, which has a name and nothing else beside it."""

    content: Part
    start: int
    end: int
    head: bytes
    tail: bytes

    @property
    def size(self) -> int:
        """Bytes of content that has this text alone."""
        return len(self.head) + self.end - self.start + len(self.tail)

    def cut(self, limit: int) -> tuple[bytes, StreamText]:
        """Return content of ``limit`` bytes at most that has the beginning of the text, and the rest of the text."""
        room = max(limit - len(self.head) - len(self.tail), SMALLEST_PIECE)
        end = self.end if self.end - self.start <= room else self._boundary(self.start + room)
        piece = b"".join((self.head, memoryview(self.content)[self.start : end], self.tail))
        return piece, self._replace(start=end)

    def _boundary(self, position: int) -> int:
        """Return where to cut, at ``position`` or just before: in no character, escape sequence or surrogate pair."""
        content = self.content
        for _ in range(3):
            if content[position] & 0xC0 == 0x80:  # UTF-8 goes on
                position -= 1
        for back in range(1, _LONGEST_ESCAPE):
            if content[position - back] == ord("\\"):
                length = 6 if content[position - back + 1] == ord("u") else 2
                if back < length and self._begins_escape(position - back):
                    position -= back
                break
        pair = position - _LONGEST_ESCAPE
        if _HIGH_SURROGATE(bytes(content[pair:position])) and self._begins_escape(pair):
            position = pair
        return position

    def _begins_escape(self, position: int) -> bool:
        """Whether the backslash at ``position`` is not itself escaped."""
        start = max(self.start, position - 64)
        before = bytes(self.content[start:position])
        if not before.strip(b"\\"):
            before = bytes(self.content[self.start : position])
        return (len(before) - len(before.rstrip(b"\\"))) % 2 == 0


def find_text(content: Part) -> Generator[None, None, StreamText | None]:
    """Return the text of a ``stream`` message, in steps; None if it is not a name and a text, whatever else it is."""
    head = _HEAD(content[:_ENDS_BYTES])
    if head is None:
        return None
    start = head.end()
    try:
        end = (yield from find_end(content, start - 1)) - 1
    except FrameError:
        return None
    tail = _TAIL(content[end : end + _ENDS_BYTES])
    if tail is None or end + tail.end() != len(content) or (head[1] is None) == (tail[1] is None):
        return None
    return StreamText(content, start, end, bytes(head[0]), bytes(tail[0]))
