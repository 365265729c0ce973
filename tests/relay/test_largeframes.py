"""Frames of RFC 6455, whole and in fragments, small and large, are received as by tornado's own protocol."""

from __future__ import annotations

import json
import os
import random
import struct

import pytest

from enterprise_gateway.services.kernels.largeframes import PIECE_BYTES
from tests.support.attacker import HEADER, text_frame, v1_frame

COMM = {**HEADER, "msg_type": "comm_msg"}


def masked_frame(opcode, payload, *, is_final=True, reserved=0, mask=None):
    """Return a client's frame as bytes."""
    mask = os.urandom(4) if mask is None else mask
    head = bytes(((0x80 if is_final else 0) | reserved | opcode,))
    length = len(payload)
    if length < 126:
        head += bytes((0x80 | length,))
    else:
        head += struct.pack(">BH", 0xFE, length) if length < 65536 else struct.pack(">BQ", 0xFF, length)
    key = (mask * (length // 4 + 1))[:length]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")
    return head + mask + masked


def message(size, is_text):
    """Return a message for the kernel, of about that size, and the content that the kernel must get."""
    filler = random.Random(size).randbytes(size // 2).hex()
    content = json.dumps({"x": filler})
    if is_text:
        return text_frame(content, channel="shell"), content
    return v1_frame([json.dumps(COMM).encode(), b"{}", b"{}", content.encode()], channel="shell"), content


@pytest.mark.parametrize("is_text", [True, False], ids=["text", "binary"])
@pytest.mark.parametrize("size", [100, 1000, 100_000, PIECE_BYTES - 400, PIECE_BYTES + 4, 2 * PIECE_BYTES + 3])
@pytest.mark.parametrize("cuts", [0, 1, 3])
async def test_a_message_arrives_as_it_was_sent(relay, is_text, size, cuts):
    """Whatever its size and however many fragments it has, with pings between them."""
    kernel = relay.tiny_kernel()
    kernel_id, _ = await relay.add(kernel)
    payload, content = message(size, is_text)
    borders = sorted(random.Random(cuts).sample(range(len(payload)), cuts))
    pieces = [payload[start:end] for start, end in zip([0, *borders], [*borders, None], strict=True)]
    async with await relay.open(kernel_id, v1=not is_text) as client:
        for number, piece in enumerate(pieces):
            opcode = 0 if number else 1 if is_text else 2
            client._writer.write(masked_frame(opcode, piece, is_final=number == cuts))
            client._writer.write(masked_frame(9, b"ping"))
        await client.run("1")
    received = [entry["content"] for entry in kernel.received if entry["header"]["msg_type"] == "comm_msg"]
    assert received == [json.loads(content)]


@pytest.mark.parametrize(
    "frames",
    [
        [masked_frame(0, b"continues nothing")],
        [masked_frame(1, b"a", is_final=False), masked_frame(1, b"begins another")],
        [masked_frame(9, b"a ping in fragments", is_final=False)],
        [masked_frame(9, b"x" * 126)],
        [masked_frame(1, b"{}", reserved=0x40)],
        [masked_frame(3, b"{}")],
        [masked_frame(3, b"x" * (PIECE_BYTES + 1))],
    ],
    ids=["continuation", "interrupted", "control fragment", "long ping", "reserved", "opcode", "large opcode"],
)
async def test_an_invalid_frame_ends_the_connection(relay, frames):
    """At once, and without a warning: a client can send that at will."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id) as client:
        for frame in frames:
            client._writer.write(frame)
        await client.until_closed()
        assert client.closed == (1006, "")


@pytest.mark.parametrize("fragments", [1, 3])
async def test_a_message_over_the_limit_is_not_received(relay, fragments):
    """The head of the frame that exceeds ws_max_message_size ends the connection, whole or in fragments."""
    relay.configure(websocket_max_message_size=3_000_000)
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id) as client:
        for number in range(fragments):
            size = 3_000_001 // fragments + 1
            is_last = number == fragments - 1
            client._writer.write(masked_frame(0 if number else 2, b"x" * size, is_final=is_last, mask=bytes(4)))
        await client.until_closed()
        assert client.closed in {(1009, "message too big"), (1006, "")}


async def test_frames_without_a_mask_are_accepted(relay):
    """As tornado does, though clients have to mask."""
    kernel = relay.tiny_kernel()
    kernel_id, _ = await relay.add(kernel)
    payload, content = message(2 * PIECE_BYTES, True)
    async with await relay.open(kernel_id, v1=False) as client:
        client._writer.write(bytes((0x81, 0x7F)) + len(payload).to_bytes(8, "big") + payload)
        await client.run("1")
    assert kernel.received[-2]["content"] == json.loads(content)
