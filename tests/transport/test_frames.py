"""Websocket payloads and message parts: spliced both ways, and nothing malformed gets through."""

from __future__ import annotations

import json
import random
import struct

import pytest

from enterprise_gateway.transport.frames import (
    FrameError,
    decode_header,
    decode_legacy_binary,
    decode_legacy_text,
    decode_v1,
    encode_legacy,
    encode_v1,
)

HEADER = b'{"msg_id": "1_2",  "msg_type":"execute_request","session":"s","date":"2026-01-01"}'
PARTS = [HEADER, b"{}", b'{ "x" : 1e2 }', '{"code":"\N{SNOWMAN}\\u2603 \\"}{"}'.encode()]
BUFFERS = [b"", b"\xff\x00\xfe", b"x" * 70_000]


def payload_of(frame):
    """Take the head off a server's websocket frame."""
    length, start = frame[1], 2
    if length >= 126:
        start = 4 if length == 126 else 10
        length = int.from_bytes(frame[2:start], "big")
    assert len(frame) == start + length
    return frame[0] & 15, frame[start:]


def as_text(parts, **changes):
    names = ("header", "parent_header", "metadata", "content")
    members = {
        "channel": '"shell"',
        **{name: part.decode() for name, part in zip(names, parts, strict=True)},
        **changes,
    }
    return "{" + ", ".join(f'"{name}":{raw}' for name, raw in members.items() if raw is not None) + "}"


@pytest.mark.parametrize("buffers", [[], BUFFERS], ids=["text", "buffers"])
def test_v1_round_trip(buffers):
    """What v1 encodes it decodes to the very same bytes."""
    opcode, payload = payload_of(encode_v1("shell", PARTS + buffers))
    assert opcode == 2
    assert decode_v1(payload) == ("shell", json.loads(HEADER), PARTS + buffers)


@pytest.mark.parametrize("buffers", [[], BUFFERS], ids=["text", "buffers"])
def test_legacy_round_trip(buffers):
    """The legacy protocol passes the raw JSON of every part on, unchanged."""
    opcode, payload = payload_of(encode_legacy("iopub", json.loads(HEADER), PARTS + buffers))
    assert opcode == (2 if buffers else 1)
    decoded = decode_legacy_binary(payload) if buffers else decode_legacy_text(payload.decode())
    assert decoded == ("iopub", json.loads(HEADER), PARTS + buffers)


def test_legacy_text_is_what_clients_expect():
    """The members that jupyter clients read are all there."""
    message = json.loads(payload_of(encode_legacy("iopub", json.loads(HEADER), PARTS))[1])
    assert set(message) == {
        "channel", "header", "parent_header", "metadata", "content", "buffers", "msg_id", "msg_type"
    }  # fmt: skip
    assert (message["msg_id"], message["msg_type"], message["buffers"]) == ("1_2", "execute_request", [])


def test_text_members_in_any_order_and_spacing():
    """White space, order and unknown members do not matter; a missing channel means shell."""
    text = ' {\n"content" : {"a": [1, {"b":"}"}]}\t,"header":' + HEADER.decode() + ' , "extra":null,"metadata":{} } '
    assert decode_legacy_text(text) == ("shell", json.loads(HEADER), [HEADER, b"{}", b"{}", b'{"a": [1, {"b":"}"}]}'])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "null",
        "[]",
        "{}",
        "{",
        '{"header"',
        '{"header":',
        '{"header":{}',
        '{"header":{},}',
        "{1:2}",
        as_text(PARTS) + "x",
        as_text(PARTS)[:-1],
        as_text(PARTS, header="{}"),
        as_text(PARTS, header='{"msg_id":1,"msg_type":"x"}'),
        as_text(PARTS, header='["msg_id"]'),
        as_text(PARTS, header=None),
        as_text(PARTS, content='"text"'),
        as_text(PARTS, channel='"heartbeat"'),
        as_text(PARTS, channel="[]"),
        as_text(PARTS, buffers='["AAAA"]'),
        as_text(PARTS, content="[" * 100_000),
        as_text(PARTS, content='{"a":' * 100_000),
        as_text(PARTS, content='{"a":' + "9" * 10_000 + "x}"),
        as_text(PARTS, content='{"a":"\ud800"}'),
    ],
)
def test_malformed_text(text):
    """Malformed text is one clear error, whatever is wrong with it."""
    with pytest.raises(FrameError):
        decode_legacy_text(text)


def v1_frame(offsets, rest=b"", count=None):
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets) if count is None else count, *offsets) + rest


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        v1_frame([56, 61, 61, 61, 61]),
        v1_frame([56] * 6, count=2**63),
        v1_frame([56, 61, 70, 60, 72, 74], b"x" * 100),
        v1_frame([0, 5, 8, 10, 12, 14], b"x" * 100),
        v1_frame([56, 61, 100, 200, 300, 2**60], b"x" * 100),
        v1_frame([56, 61, 63, 65, 67, 69], b"shell" + b"{}" * 4),
        v1_frame([56, 61, 61, 61, 61, 61], b"shell"),
    ],
)
def test_malformed_v1(frame):
    """Offsets that are impossible, run backwards or leave the frame are refused."""
    with pytest.raises(FrameError):
        decode_v1(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        struct.pack(">II", 1, 4) + b"{}",
        struct.pack(">II", 1, 900) + b"{}",
        struct.pack(">III", 2, 12, 9) + b"{}",
        struct.pack(">II", 1, 8) + b"\xff\xff",
    ],
)
def test_malformed_binary(frame):
    """The legacy binary frame is checked in the same way."""
    with pytest.raises(FrameError):
        decode_legacy_binary(frame)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{} x", b"{", b"\xff", b"nul", b"[" * 100_000])
def test_malformed_header(raw):
    """A header is a JSON object and nothing else."""
    with pytest.raises(FrameError):
        decode_header(raw)


def test_fuzz():
    """Random, cut and mutated frames either decode to parts of the frame or raise the one error."""
    generator = random.Random(20260101)
    _, v1 = payload_of(encode_v1("shell", PARTS + BUFFERS[:2]))
    _, binary = payload_of(encode_legacy("shell", json.loads(HEADER), PARTS + BUFFERS[:2]))
    text = as_text(PARTS).encode()
    outcomes = {True: 0, False: 0}
    for _ in range(6_000):
        decode, good = generator.choice([(decode_v1, v1), (decode_legacy_binary, binary), (decode_text, text)])
        frame = bytearray(good)
        for _ in range(generator.randrange(4)):
            position = generator.randrange(len(frame))
            change = generator.randrange(4)
            if change == 0:
                frame[position] = generator.randrange(256)
            elif change == 1:
                del frame[position:]
            elif change == 2:
                frame[position:position] = generator.randbytes(generator.randrange(9))
            else:
                frame[position : position + 8] = generator.choice([b"\xff" * 8, b"\0" * 8, generator.randbytes(8)])
            if not frame:
                break
        try:
            _, header, parts = decode(bytes(frame))
        except FrameError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert isinstance(header["msg_type"], str)
            assert len(parts) >= 4
            assert sum(map(len, parts)) <= len(frame) + 8
    assert min(outcomes.values()) > 500


def decode_text(frame):
    return decode_legacy_text(frame.decode(errors="replace"))


def test_repair_of_what_is_not_utf8():
    """A kernel's bytes that are no UTF-8 are replaced in legacy text: browsers would drop the connection."""
    parts = [HEADER, b"{}", b"{}", b'{"text":"\xff\xe2\x98\x83"}']
    _, payload = payload_of(encode_legacy("iopub", json.loads(HEADER), parts))
    assert json.loads(payload)["content"] == {"text": "\N{REPLACEMENT CHARACTER}\N{SNOWMAN}"}
