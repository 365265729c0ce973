"""Whatever a peer sends is either a message, whose parts are the sender's, or one clear error."""

from __future__ import annotations

import json
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enterprise_gateway.transport import frames
from enterprise_gateway.transport.frames import (
    FrameError,
    decode_in_steps,
    decode_legacy_binary,
    decode_legacy_text,
    decode_v1,
    encode_legacy,
    encode_v1,
)
from enterprise_gateway.transport.messages import DELIMITER, Signer

CHANNELS = st.sampled_from(sorted(frames.CHANNELS))
JSON = st.recursive(  # no number that is not equal to itself
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=8), values, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)
HEADERS = st.builds(
    lambda more, msg_id, msg_type: {**more, "msg_id": msg_id, "msg_type": msg_type}, OBJECTS, st.text(), st.text()
)
SPACE = st.text(" \t\r\n", max_size=3)
BUFFERS = st.lists(st.binary(max_size=20), max_size=4)


@st.composite
def encoded(draw, values):
    """JSON in one of its spellings: spaces, and characters escaped or as they are."""
    text = json.dumps(draw(values), ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.integers(0, 3)))
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


@st.composite
def texts(draw):
    """A legacy message, its members in any order, with others among them."""
    members = {
        "channel": draw(encoded(CHANNELS)),
        "header": draw(encoded(HEADERS)),
        **{name: draw(encoded(OBJECTS | st.none())) for name in ("parent_header", "metadata", "content")},
        **draw(st.dictionaries(st.text('abcxyz\\"\n', max_size=8), encoded(JSON), max_size=3)),
        **draw(st.sampled_from([{}, {"buffers": "[]"}])),
    }
    spaces = iter(draw(st.lists(SPACE, min_size=4 * len(members) + 2, max_size=4 * len(members) + 2)))
    pieces = [
        next(spaces) + json.dumps(name) + next(spaces) + ":" + next(spaces) + members[name] + next(spaces)
        for name in draw(st.permutations(list(members)))
    ]
    return next(spaces) + "{" + ",".join(pieces) + "}" + next(spaces)


PARTS = st.tuples(encoded(HEADERS), encoded(OBJECTS), encoded(OBJECTS), encoded(OBJECTS)).map(
    lambda parts: [part.encode() for part in parts]
)


def payload_of(frame):
    """Take the head off a server's websocket frame."""
    length = frame[1]
    return frame[2 if length < 126 else 4 if length == 126 else 10 :]


def in_steps(frame, is_text):
    """Take a legacy frame apart as large ones are, and with chunks so small that each value has several."""
    steps = decode_in_steps(frame, is_text)
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


def outcome(decode, *arguments):
    """Return what a frame is taken for, None when it is refused; anything else than that fails."""
    try:
        return decode(*arguments)
    except FrameError:
        return None


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """Let values stretch over many chunks, whose ends fall on everything that JSON has."""
    size, frames._CHUNK_BYTES = frames._CHUNK_BYTES, 3
    yield
    frames._CHUNK_BYTES = size


@given(CHANNELS, PARTS, BUFFERS)
def test_v1_round_trip(channel, parts, buffers):
    """What was joined is taken apart again."""
    message = decode_v1(payload_of(encode_v1(channel, parts + buffers)))
    assert (message.channel, message.parts) == (channel, parts + buffers)


@given(texts())
def test_small_and_large_frames_are_taken_apart_alike(text):
    """What decodes a small frame and what finds the parts of a large one agree, also as a view and as binary."""
    message = decode_legacy_text(text)
    assert in_steps(text, True) == message
    assert in_steps(memoryview(text.encode()), True) == message
    binary = struct.pack(">II", 1, 8) + text.encode()
    assert in_steps(binary, False) == decode_legacy_binary(binary) == message


@given(CHANNELS, PARTS, BUFFERS)
def test_legacy_round_trip(channel, parts, buffers):
    """The legacy protocol passes raw JSON on, too."""
    payload = payload_of(encode_legacy(channel, json.loads(parts[0]), parts + buffers))
    message = decode_legacy_binary(payload) if buffers else decode_legacy_text(payload.decode())
    assert (message.channel, message.parts) == (channel, parts + buffers)


@given(st.binary())
def test_any_bytes(frame):
    """Any bytes are refused by one error, or are a message whose parts are in them."""
    for message in (
        outcome(decode_v1, frame),
        outcome(decode_legacy_binary, frame),
        outcome(in_steps, frame, False),
        outcome(in_steps, memoryview(frame), True),
    ):
        assert message is None or all(bytes(part) in frame or part == b"{}" for part in message.parts)


@given(st.text() | st.text('{}[]":,\\ abc'))
def test_any_text(text):
    """Any text is refused by one error, or is a message; what is refused as small may pass as large."""
    message = outcome(decode_legacy_text, text)
    assert message is None or in_steps(text, True) == message
    outcome(in_steps, text, True)


@given(texts(), st.integers(0), st.text('{}[]":,\\ 0\x00a', max_size=4), st.integers(0, 9))
def test_mutated_text(text, position, inserted, removed):
    """A message with a few characters changed is refused by one error, or both ways find the same parts."""
    position %= len(text) + 1
    mutated = text[:position] + inserted + text[position + removed :]
    message = outcome(decode_legacy_text, mutated)
    assert message is None or in_steps(mutated, True) == message
    outcome(in_steps, mutated, True)


OFFSETS = st.integers(0, 2**64 - 1) | st.integers(0, 200) | st.sampled_from([2**63, 2**32, 2**32 - 1])


@given(CHANNELS, PARTS, BUFFERS, st.lists(st.tuples(st.integers(0, 30), OFFSETS), max_size=3))
def test_mutated_v1_offsets(channel, parts, buffers, changes):
    """Whatever the table says, parts lie one after the other behind it, and are not made up."""
    frame = bytearray(payload_of(encode_v1(channel, parts + buffers)))
    for index, offset in changes:
        struct.pack_into("<Q", frame, 8 * (index % (len(parts + buffers) + 3)), offset)
    message = outcome(decode_v1, bytes(frame))
    if message is not None:
        assert b"".join(message.parts) in bytes(frame)


@given(texts(), BUFFERS, st.lists(st.tuples(st.integers(0, 30), OFFSETS), max_size=3))
def test_mutated_binary_offsets(text, buffers, changes):
    """The same for the legacy protocol, in both ways of taking it apart."""
    blobs = [text.encode(), *buffers]
    offset = 4 * (len(blobs) + 1)
    offsets = [offset, *(offset := offset + len(blob) for blob in blobs)]
    assert all(end >= start for start, end in pairwise(offsets))
    frame = bytearray(struct.pack(f">{len(blobs) + 1}I", len(blobs), *offsets[:-1]) + b"".join(blobs))
    for index, offset in changes:
        struct.pack_into(">I", frame, 4 * (index % (len(blobs) + 1)), offset % 2**32)
    message = outcome(decode_legacy_binary, bytes(frame))
    assert message is None or in_steps(bytes(frame), False) == message
    outcome(in_steps, bytes(frame), False)


@given(st.lists(st.binary(max_size=8) | st.just(DELIMITER), max_size=12), st.binary(min_size=1))
def test_what_comes_from_a_kernel(received, key):
    """ZMQ frames are a signed message of four parts or more, or one error; what was signed is what is taken."""
    signer = Signer(key, "hmac-sha256")
    parts = outcome(signer.unwrap, received)
    assert parts is None, "nobody guesses a signature"
    assert signer.unwrap([b"topic", *signer.wrap([b"{}"] * 4 + received)]) == [b"{}"] * 4 + received
