"""A kernel whose code writes as much output as it can: others do not notice, and all of it arrives.

That no message holds the loop is checked by the loop itself, as in every test.
"""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from tests.support.attacker import hear, hear_a_bit
from tests.support.loops import loop_may_be_held
from tests.support.wsclient import random_id, types

LARGEST = 104_000_000
HEADER = {"msg_id": "1", "msg_type": "display_data", "session": "kernel", "username": "", "date": "", "version": "5.4"}
LINE = 'two words, "quoted" \\ and \u20ac and \U0001f600 and \x1b[0m\n'


async def made(kernel, msg_type, make_content, buffers=()):
    """Return the frames of a message; the time to make and sign them in this process is not counted."""
    with loop_may_be_held("a message is made and signed, by functions that keep the interpreter lock"):
        parts = [json.dumps({**HEADER, "msg_type": msg_type}).encode(), b"{}", b"{}", make_content()]
        frames = [b"topic", b"<IDS|MSG>", kernel._sign(parts), *parts, *buffers]
        await asyncio.sleep(0)
    return frames


async def heard(relay, kernel_id, channels, size, say, *, v1=True):
    """Return what a client receives, until that is ``size`` bytes, when ``say`` is called."""
    path = f"/api/kernels/{kernel_id}/channels?session_id={random_id()}"
    listener = asyncio.create_task(asyncio.to_thread(hear, relay.port, path, size, v1=v1))
    while not channels.connections:
        await asyncio.sleep(0.01)
    await say()
    return [message for message in await listener if len(message.payload) > 10_000]


async def digest(*pieces):
    """Return the digest of these one after the other."""
    result = hashlib.sha256()
    for piece in pieces:
        await asyncio.to_thread(result.update, piece)
    return result.hexdigest()


CONTENTS = {
    "content": lambda: b'{"x":"' + b"x" * LARGEST + b'"}',
    "foreign content": lambda: b'{"x":"' + "\u20ac".encode() * (LARGEST // 3) + b'"}',
    "lists": lambda: b'{"a":[' + b"[]," * (LARGEST // 3) + b"0]}",
    "buffer": lambda: b"{}",
}


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
@pytest.mark.parametrize("where", list(CONTENTS))
async def test_the_largest_message_does_not_block_others(relay, where, v1):
    """A message of 100 MB is checked, encoded and sent in the time that others leave."""
    kernel = relay.tiny_kernel()
    kernel_id, channels = await relay.add(kernel)
    buffers = [b"x" * LARGEST] if where == "buffer" else []
    message = await made(kernel, "display_data", CONTENTS[where], buffers)

    async def say():
        kernel.publish_raw(message)

    [large] = await heard(relay, kernel_id, channels, LARGEST, say, v1=v1)
    assert max(large.frames) < 300_000
    assert len(large.frames) > 100
    expected = message[-1]
    start = len(large.payload) - len(expected) if v1 or buffers else large.payload.index(b'"content":', 0, 2_000) + 10
    with memoryview(large.payload) as payload:
        assert await digest(payload[start : start + len(expected)]) == await digest(expected)


async def test_the_longest_text_is_cut_in_the_time_that_others_leave(relay):
    """An output stream's text of 50 MB arrives unchanged, in messages that Jupyter Server accepts."""
    kernel = relay.tiny_kernel()
    kernel_id, channels = await relay.add(kernel)
    line = json.dumps(LINE, ensure_ascii=False)[1:-1].encode()
    message = await made(kernel, "stream", lambda: b'{"name":"stdout","text":"' + line * 1_000_000 + b'"}')

    async def say():
        kernel.publish_raw(message)

    messages = await heard(relay, kernel_id, channels, len(line) * 1_000_000, say)
    assert max(len(message.payload) for message in messages) <= 10_000_000
    texts = [memoryview(message.payload)[message.payload.index(b'"text":"', 0, 2_000) + 8 : -2] for message in messages]
    assert len(texts) > 5
    assert await digest(*texts) == await digest(message[-1][25:-2])


@pytest.mark.parametrize("size", [15_000_000, LARGEST - 5_000_000])
async def test_a_client_may_go_in_the_middle_of_a_long_text(relay, expect_log, size):
    """That does not block others. When it reconnects it is told what was dropped, and gets what was kept."""
    kernel = relay.tiny_kernel()
    kernel_id, channels = await relay.add(kernel)
    message = await made(kernel, "stream", lambda: b'{"name":"stdout","text":"' + b"x" * LARGEST + b'"}')
    session_id = random_id()
    path = f"/api/kernels/{kernel_id}/channels?session_id={session_id}"
    listener = asyncio.create_task(asyncio.to_thread(hear_a_bit, relay.port, path, size, v1=True))
    while not channels.connections:
        await asyncio.sleep(0.01)
    kernel.publish_raw(message)
    await listener
    while channels.connections:
        await asyncio.sleep(0.01)
    with expect_log("messages were dropped", required=False):
        async with await relay.open(kernel_id, session_id) as client:
            with loop_may_be_held("this client decodes what it receives"):
                received = await client.until("stream")
                received += await client.pending(0.5)
    texts = [message["content"].get("text", "") for message in received]
    assert any("dropped" in text[:300] for text in texts)
    assert 1_000_000 < sum(map(len, texts)) < 11_000_000


async def test_what_is_sent_after_a_large_message_comes_after_it(relay):
    """Small output waits for large output to be checked."""
    kernel = relay.tiny_kernel()
    kernel_id, _ = await relay.add(kernel)
    large = await made(kernel, "display_data", lambda: b'{"x":"' + b"x" * 5_000_000 + b'"}')
    small = await made(kernel, "update_display_data", lambda: b"{}")
    received = []
    async with await relay.open(kernel_id) as client:
        for _ in range(5):
            kernel.publish_raw(large)
            kernel.publish_raw(small)
        for _ in range(5):
            with loop_may_be_held("this client decodes what it receives"):
                received += types(await client.until("update_display_data"))
    assert [name for name in received if name.endswith("display_data")] == ["display_data", "update_display_data"] * 5


async def test_a_large_message_that_is_not_the_kernels_is_dropped(relay, expect_log):
    """Its signature is checked, and the next message is delivered."""
    kernel = relay.tiny_kernel()
    kernel_id, _ = await relay.add(kernel)
    message = await made(kernel, "display_data", lambda: b'{"x":"' + b"x" * 8_000_000 + b'"}')
    message[2] = b"0" * 64
    async with await relay.open(kernel_id) as client:
        with expect_log("the signature is wrong"):
            kernel.publish_raw(message)
            received = types(await client.run("1")) + types(await client.pending())
    assert "execute_reply" in received
    assert "display_data" not in received


async def test_the_last_large_output_of_a_dead_kernel_is_delivered(relay):
    """The gateway waits until the last output of a kernel that has died is checked."""
    kernel = relay.tiny_kernel(says_idle=False)
    kernel_id, channels = await relay.add(kernel)
    message = await made(kernel, "display_data", lambda: b'{"x":"' + b"x" * 60_000_000 + b'"}')
    async with await relay.open(kernel_id) as client:
        client.execute("1")
        await client.until("execute_reply")

    async def say():
        kernel.publish_raw(message)
        while not any(task.get_name() == "check" for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
        await channels.last_words()
        channels.announce_state("dead")

    [large] = await heard(relay, kernel_id, channels, 60_000_000, say)
    assert large.payload.endswith(message[-1][-100:])
