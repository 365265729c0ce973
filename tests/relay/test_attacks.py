"""A client that tries to exhaust the gateway: no other client notices.

That no frame holds the loop is checked by the loop itself, as in every test; these frames take seconds to decode.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.attacker import HEADER, PONG, attack, binary_frame, text_frame, v1_frame
from tests.support.loops import loop_may_be_held
from tests.support.wsclient import random_id, types

SIZE = 30_000_000
LARGEST = 104_850_000
TOO_BIG = 1009
LARGE = {**HEADER, "x": "x" * (64 << 10)}

CONTENTS = {
    "lists": lambda: '{"a":[' + "[]," * (SIZE // 3) + "0]}",
    "keys": lambda: "{" + ",".join(f'"k{number}":0' for number in range(2_000_000)) + "}",
    "texts": lambda: '{"a":[' + '"",' * (SIZE // 3) + "0]}",
    "deep": lambda: '{"a":' + "[" * (SIZE // 2) + "]" * (SIZE // 2) + "}",
    "escapes": lambda: '{"a":"' + "\\\\" * (SIZE // 2) + '"}',
}


async def sent(relay, kernel_id, make_frame, **options):
    """Make and send a frame in a thread; return what became of it."""

    def build_and_send():
        return attack(relay.port, f"/api/kernels/{kernel_id}/channels?session_id={random_id()}", [frame], **options)

    with loop_may_be_held("the frame is made in this process, by functions that keep the interpreter lock"):
        frame = make_frame()
        await asyncio.sleep(0)
    return await asyncio.to_thread(build_and_send)


@pytest.mark.parametrize("is_binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("kind", list(CONTENTS))
async def test_content_is_passed_on_without_being_built(relay, kind, is_binary):
    """Whatever the content of a large legacy message is, it does not delay others, and the kernel gets it."""
    kernel_id, _ = await relay.add()

    def make_frame():
        text = text_frame(CONTENTS[kind]())
        return binary_frame(text, [b"x"]) if is_binary else text

    assert await sent(relay, kernel_id, make_frame, opcode=2 if is_binary else 1) == PONG


@pytest.mark.parametrize("where", ["text", "v1 content", "v1 buffer", "binary"])
async def test_the_largest_frame_does_not_block_others(relay, where):
    """A frame of 100 MB is received, signed and sent in the time that others leave."""
    kernel_id, _ = await relay.add()

    def make_frame():
        header, filler = json.dumps(HEADER).encode(), b"x" * LARGEST
        if where.startswith("v1"):
            content, *buffers = [b"{}", filler] if where == "v1 buffer" else [b'"' + filler + b'"']
            return v1_frame([header, b"{}", b"{}", content, *buffers])
        return binary_frame(text_frame(), [filler]) if where == "binary" else text_frame(f'{{"x":"{filler.decode()}"}}')

    options = {"opcode": 1 if where == "text" else 2, "v1": where.startswith("v1")}
    assert await sent(relay, kernel_id, make_frame, **options) == PONG


@pytest.mark.parametrize(
    ("make_frame", "options"),
    [
        (lambda: text_frame(header=json.dumps(LARGE)), {}),
        (lambda: text_frame(header='{"a":[' + "[]," * (SIZE // 3) + "0]}"), {}),
        (lambda: text_frame(more="," + ",".join(f'"k{number}":0' for number in range(2_000_000))), {}),
        (lambda: text_frame(more=',"parent_header":' + json.dumps(LARGE)), {}),
        (lambda: binary_frame(text_frame(header=json.dumps(LARGE)), [b"x"]), {"opcode": 2}),
        (lambda: binary_frame(text_frame(), [b""] * 4_000_000), {"opcode": 2}),
        (lambda: v1_frame([json.dumps(LARGE).encode(), b"{}", b"{}", b"{}"]), {"opcode": 2, "v1": True}),
        (
            lambda: v1_frame([json.dumps(HEADER).encode(), json.dumps(LARGE).encode(), b"{}", b"{}"]),
            {"opcode": 2, "v1": True},
        ),
        (
            lambda: v1_frame([json.dumps(HEADER).encode(), *([b"{}"] * 3), *([b""] * 4_000_000)]),
            {"opcode": 2, "v1": True},
        ),
    ],
    ids=[
        *("text header", "text header of lists", "text members", "text parent", "binary header", "binary buffers"),
        *("v1 header", "v1 parent", "v1 buffers"),
    ],
)
async def test_a_message_that_is_too_large_closes_the_websocket(relay, expect_log, make_frame, options):
    """Headers over 64 kB, and too many buffers or members, are refused at once, and the client is told why."""
    kernel_id, _ = await relay.add()
    with expect_log("A websocket was closed: "):
        assert await sent(relay, kernel_id, make_frame, **options) == TOO_BIG


async def test_the_order_of_messages_is_kept(relay):
    """What follows a large message on its websocket waits for it."""
    kernel = relay.tiny_kernel()
    kernel_id, _ = await relay.add(kernel)
    async with await relay.open(kernel_id, v1=False) as client:
        for number in range(20):
            client.send("shell", "comm_msg", {"n": number, "x": "x" * (number % 2 * 2_000_000)})
        await client.run("1")
    numbers = [message["content"]["n"] for message in kernel.received if message["header"]["msg_type"] == "comm_msg"]
    assert numbers == list(range(20))


@pytest.mark.parametrize("msg_type", ["status", "error"])
async def test_messages_of_a_kernel_are_not_built_either(relay, expect_log, msg_type):
    """A kernel's message of lists does not delay others."""
    kernel = relay.tiny_kernel()
    kernel_id, channels = await relay.add(kernel, allow_tracebacks=False)
    with loop_may_be_held("the content is made and signed"):
        parts = [json.dumps({**HEADER, "msg_type": msg_type}).encode(), b"{}", b"{}"]
        parts.append(b'{"a":[' + b"[]," * 5_000_000 + b"0]}")
        signature = kernel._sign(parts)
        await asyncio.sleep(0)
    before = channels.last_activity
    kernel.publish_raw([b"topic", b"<IDS|MSG>", signature, *parts])
    while channels.last_activity == before:
        await asyncio.sleep(0.01)
    with expect_log("messages were dropped while no client was connected", required=msg_type == "status"):
        async with await relay.open(kernel_id) as client:
            await client.run("1")


async def test_a_kernels_message_of_too_many_parts_is_dropped(relay, expect_log):
    """What comes after it is delivered."""
    kernel = relay.tiny_kernel()
    kernel_id, _ = await relay.add(kernel)
    async with await relay.open(kernel_id) as client:
        with expect_log("more than 10000 parts"):
            kernel.publish_raw([b"topic", *([b""] * 100_000)])
            assert "execute_reply" in types(await client.run("1"))


@pytest.mark.parametrize("v1", [False, True], ids=["legacy", "v1"])
async def test_many_attackers_together_take_one_slice_of_each_turn(relay, v1):
    """Frames that are only just small enough, from twenty websockets at once, do not block others either."""
    kernel_id, _ = await relay.add()
    costly = '{"a":[' + "[]," * 20_000 + "0]}"
    header = json.dumps({**HEADER, "a": json.loads(costly)["a"]}, separators=(",", ":"))
    frame = v1_frame([header.encode(), b"{}", b"{}", b"{}"]) if v1 else text_frame(costly)

    def flood():
        path = f"/api/kernels/{kernel_id}/channels?session_id={random_id()}"
        return attack(relay.port, path, [frame] * 20, opcode=2 if v1 else 1, v1=v1)

    assert set(await asyncio.gather(*(asyncio.to_thread(flood) for _ in range(20)))) == {PONG}
