"""What clients miss while they are disconnected, or too slow, and what they are told of it."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.wsclient import texts, types


async def settle(kernel_channels, seconds=0.1):
    """Let the relay receive what the kernel has sent."""
    await asyncio.sleep(seconds)


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
async def test_a_client_that_reconnects_with_its_session_gets_what_it_missed(relay, v1):
    """A client that lost its websocket gets output and reply of what ran meanwhile, once and in order."""
    kernel_id, channels = await relay.add()
    client = await relay.open(kernel_id, "s", v1=v1)
    msg_id = client.execute("later 5")
    await client.until("execute_input", msg_id)
    seen = client.history
    client.cut()
    await settle(channels, 0.5)
    async with await relay.open(kernel_id, "s", v1=v1) as again:
        again.history += seen
        messages = await again.finish(msg_id)
        assert texts(messages) == "".join(f"line {n}\n" for n in range(5))
        assert len({m["header"]["msg_id"] for m in messages}) == len(messages)
        assert types(await again.run("hello")).count("execute_result") == 1


async def test_unseen_output(relay):
    """What came while no websocket was attached goes to the first that attaches, and to its own session as well."""
    kernel_id, channels = await relay.add(kernel := relay.tiny_kernel())
    first = await relay.open(kernel_id, "first")
    await first.close()
    kernel.publish("stream", {"name": "stdout", "text": "missed"})
    await settle(channels)
    async with await relay.open(kernel_id, "second") as second, await relay.open(kernel_id, "third") as third:
        assert texts(await second.pending()) == "missed"
        assert texts(await third.pending()) == ""
        async with await relay.open(kernel_id, "first") as first:
            assert texts(await first.pending()) == "missed"


async def test_output_before_the_first_client_is_not_lost(relay):
    """Output from before any websocket was opened is not lost."""
    kernel_id, channels = await relay.add(kernel := relay.tiny_kernel())
    kernel.publish("stream", {"name": "stdout", "text": "early"})
    await settle(channels)
    async with await relay.open(kernel_id) as client:
        assert texts(await client.pending()) == "early"


async def test_a_detached_session_catches_up_although_another_was_attached(relay):
    """A detached session catches up although another client was attached all the time."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id, "stays") as stays:
        away = await relay.open(kernel_id, "away")
        await away.close()
        await stays.run("print 2")
        async with await relay.open(kernel_id, "away") as back:
            messages = await back.pending()
    assert texts(messages) == "line 0\nline 1\n"
    assert "execute_reply" not in types(messages)


async def test_a_session_gets_its_replies_when_a_websocket_first_sends_for_it(relay):
    """A websocket without session id gets the replies of a session when it first speaks for it."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id):  # so that nothing counts as unseen
        server = await relay.open(kernel_id, v1=False)
        msg_id = server.execute("later 2", session="browser")
        await server.until("execute_input", msg_id)
        server.cut()
        await settle(channels, 0.5)
        async with await relay.open(kernel_id, v1=False) as again:
            assert await again.pending() == []
            again.execute("next", session="browser")
            messages = await again.finish(msg_id)
            assert texts(messages) == "line 0\nline 1\n"


async def test_overflow_is_reported(relay, expect_log):
    """When more came than is kept, the oldest goes and the client reads in the cell how many messages are missing."""
    kernel_id, channels = await relay.add(replay=100_000)
    client = await relay.open(kernel_id, "s")
    msg_id = client.execute("later 1000")
    await client.until("execute_input", msg_id)
    client.cut()
    with expect_log("messages were dropped"):
        await settle(channels, 0.6)
        async with await relay.open(kernel_id, "s") as again:
            messages = await again.finish(msg_id)
            notice = next(m for m in messages if m["header"]["msg_type"] == "stream")
            assert notice["content"]["name"] == "stderr"
            assert notice["parent_header"]["msg_id"] == msg_id
            dropped = int(notice["content"]["text"].split()[0].strip("["))
            lines = texts(messages).splitlines()
            assert lines[-1] == "line 999"
            assert 0 < len(lines) < 1000
            assert abs(1000 - len(lines) - dropped) <= 5  # status and the like count, too


async def test_nothing_is_kept_when_switched_off(relay):
    """With a replay limit of 0 nothing is replayed."""
    kernel_id, channels = await relay.add(kernel := relay.tiny_kernel(), replay=0)
    await (await relay.open(kernel_id, "s")).close()
    kernel.publish("stream", {"name": "stdout", "text": "missed"})
    await settle(channels)
    async with await relay.open(kernel_id, "s") as client:
        assert await client.pending() == []


async def test_a_second_websocket_of_a_session_replaces_the_first(relay):
    """The first one is closed."""
    kernel_id, channels = await relay.add()
    first = await relay.open(kernel_id, "s")
    msg_id = first.execute("hello")
    await first.finish(msg_id)
    async with await relay.open(kernel_id, "s") as second:
        await first.until_closed()
        assert first.closed == (1001, "another websocket with this session_id was opened")
        assert channels.connections == 1
        assert "execute_result" in types(await second.run("hello"))
        first.cut()


async def test_a_slow_client_is_closed_and_gets_every_line_later(relay, expect_log):
    """A client that does not read is closed at the limit, others go on; when it reconnects it gets every line."""
    kernel_id, channels = await relay.add(replay=50 << 20)
    relay.configure(eg_ws_queue_limit=300_000)
    slow = await relay.open(kernel_id, "slow", buffer=1024)
    async with await relay.open(kernel_id, "fast", buffer=1 << 22) as fast:
        expected = ""
        for _ in range(40):
            if channels.connections == 1:
                break
            text = texts(await fast.run("write 500000"))
            assert text == "x" * 500_000
            expected += text
        assert channels.connections == 1, "the slow one was closed"
        expected += texts(await fast.run("print 10"))
        received = ""
        while (message := await slow.receive()) is not None:
            received += texts([message])
        assert slow.closed in {(1013, "the client takes its messages too slowly"), (1006, "")}
        async with await relay.open(kernel_id, "slow", buffer=1 << 22) as back:
            while len(received) < len(expected):
                message = await back.receive()
                received += texts([message])
        assert received == expected


async def test_backlogged_output_is_merged(relay):
    """Texts that pile up for a slow client reach it as few messages, complete and in order."""
    kernel_id, channels = await relay.add(kernel := relay.tiny_kernel())
    async with await relay.open(kernel_id, "slow", buffer=1024) as slow:
        for _ in range(20):  # more than the system buffers for a client that does not read
            kernel.publish("stream", {"name": "stderr", "text": "x" * 500_000})
        msg_id = slow.execute("print 5000")
        while channels.execution_state != "busy":
            await asyncio.sleep(0.01)
        while channels.execution_state != "idle":
            await asyncio.sleep(0.01)
        messages = await slow.finish(msg_id, timeout=60)
        same = texts(slow.history, "stderr") == "x" * 10_000_000  # pytest would print what differs
        assert same
    streams = [m for m in messages if m["header"]["msg_type"] == "stream"]
    assert len(streams) < 500
    assert texts(streams) == "".join(f"line {n}\n" for n in range(5000))


async def test_a_message_over_the_limit_is_replaced_by_a_note(relay, expect_log):
    """A message over the limit is replaced by a note; what follows still arrives."""
    kernel_id, _ = await relay.add(max_message=1 << 20)
    async with await relay.open(kernel_id) as client:
        with expect_log("over the limit"):
            messages = await client.run("write 1100000")
    assert texts(messages) == ""
    assert "stream message" in texts(messages, "stderr")


async def test_a_client_that_floods_a_stopped_kernel_is_closed(relay, expect_log):
    """Messages that wait for a kernel are bounded: the websocket that sends too many is closed."""
    kernel_id, channels = await relay.add(pending=1 << 20)
    channels.announce_state("restarting")
    client = await relay.open(kernel_id)
    with expect_log("sends more than the kernel takes"):
        for _ in range(20):
            client.execute("x" * 100_000)
        while await client.receive() is not None:
            pass
    assert client.closed == (1013, "too many messages wait for the kernel")
    client.cut()
