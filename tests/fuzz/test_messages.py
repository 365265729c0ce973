"""Whatever a kernel sends, its large messages are cut into frames that are the same message."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enterprise_gateway.transport import frames, messages, streamtext
from enterprise_gateway.transport.frames import encode_legacy, encode_v1, fragments_legacy, fragments_v1
from enterprise_gateway.transport.messages import KernelMessage
from enterprise_gateway.transport.streamtext import find_text

HEADER = {"msg_id": "1", "msg_type": "stream"}
RAW = st.binary(max_size=60) | st.text(max_size=20).map(str.encode)
ESCAPES = (
    "\\\\",
    '\\"',
    "\\n",
    "\\u00e4",
    "\\ud83d\\ude00",
    "\\ud83d",
    "\\ude00",
    "\u00e4",
    "\u20ac",
    "\U0001f600",
    "a",
)
ESCAPED = st.lists(st.sampled_from(ESCAPES), max_size=60).map("".join)


@pytest.fixture(autouse=True, scope="module")
def small_steps():
    """Let fragments, pieces and chunks end at everything that a message has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "FRAGMENT_BYTES", 7)
        patch.setattr(frames, "_CHUNK_BYTES", 3)
        patch.setattr(streamtext, "SMALLEST_PIECE", 16)
        patch.setattr(messages, "_SEARCHED_BYTES", 1)
        yield


def joined(fragments):
    """Return opcode and payload of websocket frames that are one message."""
    payload, opcodes = b"", []
    for number, frame in enumerate(fragments):
        is_last = number == len(fragments) - 1
        assert bool(frame[0] & 0x80) == is_last
        assert frame[1] == len(frame) - 2 <= 125
        opcodes.append(frame[0] & 0x0F)
        payload += frame[2:]
    assert set(opcodes[1:]) <= {0}
    return opcodes[0], payload


def whole(frame):
    """Return the same of a single frame."""
    length = frame[1]
    return frame[0] & 0x0F, frame[2 if length < 126 else 4 if length == 126 else 10 :]


def found(content):
    """Return what a content's text is taken for."""
    steps = find_text(content)
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


@given(st.lists(RAW, min_size=4, max_size=7))
def test_fragments_are_the_frame(parts):
    """In both protocols, with and without buffers, with what is not UTF-8 replaced in the same way."""
    assert joined(list(fragments_v1("iopub", parts))) == whole(encode_v1("iopub", parts))
    views = [memoryview(part) for part in parts]
    assert joined(list(fragments_legacy("iopub", HEADER, views))) == whole(encode_legacy("iopub", HEADER, parts))


@given(ESCAPED, st.booleans(), st.sampled_from([None, 0, 2]), st.integers(0, 60))
def test_a_text_is_cut_between_its_characters(text, is_name_first, indent, limit):
    """Every piece is JSON of the same name, with whole characters; together they are the text."""
    value = json.loads(f'"{text}"')
    members = {"name": "std\\out", "text": "?"} if is_name_first else {"text": "?", "name": "std\\out"}
    content = json.dumps(members, indent=indent).replace("?", text).encode()
    message = KernelMessage("iopub", HEADER, {}, [json.dumps(HEADER).encode(), b"{}", b"{}", content])
    around = message.size - len(text.encode())
    pieces, rest = [], message
    while rest is not None:
        piece, rest = rest.cut(around + limit)
        pieces.append(piece)
    contents = [json.loads(piece.parts[3]) for piece in pieces]
    assert {piece["name"] for piece in contents} == {"std\\out"}
    assert "".join(piece["text"] for piece in contents) == value
    assert value == "" or all(piece["text"] for piece in contents)
    for before, after in pairwise(contents):
        assert not ("\ud800" <= before["text"][-1] <= "\udbff" and "\udc00" <= after["text"][0] <= "\udfff")
    assert len({piece.header["msg_id"] for piece in pieces}) == len(pieces)


@given(st.lists(st.sampled_from(['"status"', ":", '"error"', " ", "x", '"', '"ok"']), max_size=30).map("".join))
def test_an_error_is_found_wherever_it_is_said(content):
    """Gone through in steps, a reply says the same as at once."""
    header = {**HEADER, "msg_type": "execute_reply"}
    message = KernelMessage("shell", header, {}, [b"{}", b"{}", b"{}", content.encode()])
    assert message.says_error == bool(re.search(r'"status" *: *"error"', content))


@given(st.binary() | st.text('{}[]":,\\ name text').map(str.encode))
def test_any_content(content):
    """Any bytes are no text, or one whose pieces are in them."""
    text = found(content)
    if text is not None:
        assert text.head + content[text.start : text.end] + text.tail == content
        while text.start < text.end:
            piece, rest = text.cut(0)
            assert content[text.start : rest.start] in piece
            assert text.start < rest.start
            text = rest


@given(st.lists(st.sampled_from([b"\\", b"\\u", b"\\ud83d", b"\x80", b"\xf0", b"\x00", b"a", b"\xc3"])))
def test_any_text(pieces):
    """What is no proper text is cut as well, somewhere."""
    content = b'{"name":"n","text":"' + b"".join(pieces) + b'"}'
    test_any_content.hypothesis.inner_test(content)
