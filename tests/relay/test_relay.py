"""Messages between websockets and a kernel: each arrives, unchanged, where it belongs."""

from __future__ import annotations

import asyncio
import logging
import struct
import time

import pytest
import zmq

from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.resumption import Memory
from enterprise_gateway.transport.zmqsocket import ZmqSocket
from tests.support.launchers import eventually
from tests.support.loops import loop_may_be_held
from tests.support.tinykernel import BUFFERS, TinyKernel
from tests.support.wsclient import texts, types

BOTH = pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])


@BOTH
async def test_a_request_gets_its_reply_and_all_its_output(relay, v1):
    """And nothing of the gateway's own messages to the kernel."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id, "s", v1=v1) as client:
        messages = await client.run("print 3")
    assert sorted(types(messages)) == ["busy", "execute_input", "execute_reply", "idle", "stream", "stream", "stream"]
    assert texts(messages) == "line 0\nline 1\nline 2\n"
    assert {m["channel"] for m in messages} == {"iopub", "shell"}
    assert channels.execution_state == "idle"


@BOTH
async def test_buffers_pass_unchanged(relay, v1):
    """Binary buffers pass in both directions byte for byte."""
    kernel_id, _ = await relay.add(kernel := relay.tiny_kernel())
    async with await relay.open(kernel_id, v1=v1) as client:
        messages = await client.run("binary")
        assert next(m for m in messages if m["header"]["msg_type"] == "display_data")["buffers"] == BUFFERS
        client.send("shell", "comm_msg", {"comm_id": "1", "data": {}}, BUFFERS)
        assert (await client.until("comm_msg"))[-1]["buffers"] == BUFFERS
    assert kernel.received[-1]["buffers"] == BUFFERS


async def test_both_protocols_work_side_by_side(relay):
    """Websockets of both protocols on one kernel all see the output; only the one that asked sees the reply."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id, v1=True) as new, await relay.open(kernel_id, v1=False) as old:
        assert channels.connections == 2
        msg_id = new.execute("print 2")
        asked, other = await new.finish(msg_id), await old.until("status", msg_id)
        while other[-1]["content"]["execution_state"] != "idle":
            other += await old.until("status", msg_id)
        assert "execute_reply" in types(asked)
        assert "execute_reply" not in types(other)
        assert texts(asked) == texts(other) == "line 0\nline 1\n"
        assert "execute_reply" in types(await old.run("hello"))
        assert "execute_reply" not in types(await new.pending())
    assert channels.connections == 0


async def test_one_websocket_can_carry_many_sessions(relay):
    """A websocket that carries several sessions, as a Jupyter Server does, gets the replies to all of them."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id, v1=False) as client:
        for session in ("alice", "bob", "alice"):
            messages = await client.run("hello", session=session)
            reply = next(m for m in messages if m["header"]["msg_type"] == "execute_reply")
            assert reply["parent_header"]["session"] == session


@BOTH
async def test_control_messages_pass_on_their_own_channel(relay, v1):
    """Control messages pass on their own channel, and the reply to a debug request comes back."""
    kernel_id, _ = await relay.add(kernel := relay.tiny_kernel())
    async with await relay.open(kernel_id, v1=v1) as client:
        client.send("control", "debug_request", {"type": "request", "command": "initialize", "arguments": {"a": "é"}})
        reply = (await client.until("debug_reply"))[-1]
        assert (reply["channel"], reply["content"]["body"]) == ("control", {"a": "é"})
    assert kernel.received[-1]["channel"] == "control"


@pytest.mark.parametrize("attempt", range(10))
async def test_the_very_first_request_may_prompt(relay, attempt):
    """The very first request may prompt: the stdin socket is connected before the request goes out."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id, v1=bool(attempt % 2)) as client:
        first = client.execute("input", allow_stdin=True)
        second = client.execute("after")
        prompt = (await client.until("input_request"))[-1]
        assert prompt["channel"] == "stdin"
        client.send("stdin", "input_reply", {"value": "answer"})
        messages = await client.finish(first)
        assert texts(messages) == "answer"
        assert "execute_result" in types(await client.finish(second))


async def test_messages_sent_before_the_kernel_listens_are_executed_in_order(relay):
    """A websocket to a kernel that was taken over opens at once; what it sends is executed in order when it is up."""
    kernel = TinyKernel()
    kernel_id, channels = await relay.add(kernel, ready=False)
    channels.resume(Memory())
    async with await relay.open(kernel_id) as client:
        ids = [client.execute(f"print {number}") for number in range(4)]
        assert await client.pending(0.2) == []
        kernel.start()
        try:
            outputs = [texts(await client.finish(msg_id)) for msg_id in ids]
        finally:
            channels.close()
            kernel.stop()
    assert outputs == ["", "line 0\n", "line 0\nline 1\n", "line 0\nline 1\nline 2\n"]


@pytest.mark.parametrize("want", ["websocket", "request", "interrupt", "shutdown"])
async def test_a_delayed_connection_is_made_as_soon_as_the_kernel_is_used(relay, want):
    """Neither websockets nor the gateway's own requests wait for the delay."""
    kernel = relay.tiny_kernel()
    kernel_id, channels = await relay.add(kernel, ready=False, delay=3600)
    await asyncio.sleep(0.05)
    assert channels.connected_at == 0.0
    if want == "websocket":
        async with await relay.open(kernel_id) as client:
            assert "execute_result" in types(await client.run("hello"))
    elif want == "request":
        await channels.request("kernel_info_request", {}, channel="shell", timeout=5)
    else:
        if want == "shutdown":
            channels.hold()
        channels.post(f"{want}_request", {})
        await eventually(lambda: bool(kernel.received))
    assert channels.connected_at > 0.0


async def test_a_delayed_connection_is_made_after_the_delay_unless_the_kernel_is_gone(relay):
    """Without any request for the kernel: what it sends before that is kept for later clients."""
    _, channels = await relay.add(ready=False, delay=0.05)
    _, gone = await relay.add(ready=False, delay=0.05)
    gone.close()
    await eventually(lambda: channels.kernel_info is not None)
    assert gone.connected_at == 0.0


async def test_a_kernel_that_encrypts_its_transport_is_reached(relay):
    """A kernel that encrypts its transport is reached with the keys of its connection information."""
    kernel_id, _ = await relay.add(relay.tiny_kernel(curve=True))
    async with await relay.open(kernel_id) as client:
        first = client.execute("input", allow_stdin=True)
        await client.until("input_request")
        client.send("stdin", "input_reply", {"value": "secret"})
        assert texts(await client.finish(first)) == "secret"


async def test_twenty_thousand_messages_arrive_once_and_in_order(relay):
    """No message of a long stream is dropped, doubled or reordered, although each is sent alone."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id, buffer=1 << 22) as client:
        messages = await client.run("print 20000", timeout=20)
        with loop_may_be_held("the comparison takes its time"):
            assert texts(messages) == "".join(f"line {number}\n" for number in range(20_000))


async def test_draining_does_not_block_the_loop(relay, zmq_context):
    """However long each message takes, as it does while another thread computes, many do not block the loop."""
    kernel = relay.tiny_kernel()
    batches = [0]

    def on_message(frames, size):
        time.sleep(0.004)
        batches[-1] += 1

    def publish():
        for _ in range(100):
            kernel.publish("stream", {"name": "stdout", "text": "x"})

    sub = ZmqSocket(
        *(zmq_context, zmq.SUB, kernel.info, kernel.info.iopub_port),
        on_message=on_message,
        on_batch=lambda: batches.append(0),
        log=logging.getLogger("enterprise_gateway.test"),
    )
    while not sum(batches):
        kernel.publish("stream", {"name": "stdout", "text": "x"})
        await asyncio.sleep(0.01)
    await offload(publish)
    while sum(batches) < 100:
        await asyncio.sleep(0.01)
    sub.close()
    assert max(batches) <= 10


async def test_malformed_frames_of_clients_are_dropped(relay, expect_log):
    """Malformed frames of every kind are dropped with a warning; the websocket goes on working."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id) as new, await relay.open(kernel_id, v1=False) as old:
        with expect_log("message from a websocket was dropped"):
            for payload in (
                b"",
                b"x",
                b"\xff" * 8,
                b"\x06" + b"\0" * 7,
                struct.pack("<7Q", 6, *[1 << 60] * 6),
                bytes(200),
            ):
                new.send_frame(2, payload)
                old.send_frame(2, payload)
            for text in (
                "",
                "{",
                "[]",
                "1",
                '{"header": 1}',
                '{"header": {}}',
                '{"channel": "x"}',
                "[" * 100_000,
                "\0",
            ):
                new.send_frame(1, text.encode())
                old.send_frame(1, text.encode())
            old.send("iopub", "status", {})
            new.send("nowhere", "execute_request", {"code": ""})
            assert "execute_result" in types(await new.run("still here"))
            assert "execute_result" in types(await old.run("still here"))


async def test_forged_messages_reach_no_client(relay, expect_log):
    """What is not signed with the kernel's key reaches no client."""
    kernel_id, _ = await relay.add(kernel := relay.tiny_kernel())
    header = b'{"msg_id":"1","msg_type":"stream","session":"s"}'
    async with await relay.open(kernel_id) as client:
        with expect_log("signature is wrong"):
            kernel.publish_raw(
                [b"topic", b"<IDS|MSG>", b"0" * 64, header, b"{}", b"{}", b'{"name":"stdout","text":"x"}']
            )
            kernel.publish_raw([b"nonsense"])
            kernel.publish_raw([b"topic", b"<IDS|MSG>", b"0" * 64, header])
            assert texts(await client.run("print 1")) == "line 0\n"


async def test_legacy_frames_are_valid_utf_8_whatever_the_kernel_sends(relay):
    """Legacy text frames are valid UTF-8 even when a kernel's JSON is not."""
    kernel_id, _ = await relay.add(kernel := relay.tiny_kernel())
    async with await relay.open(kernel_id, v1=False) as client:
        parts = [
            b'{"msg_id":"1","msg_type":"stream","session":"s"}',
            b"{}",
            b"{}",
            b'{"name":"stdout","text":"\xff\xc3\xa9"}',
        ]
        kernel.publish_raw([b"topic", b"<IDS|MSG>", kernel._sign(parts), *parts])
        assert texts(await client.until("stream")) == "\N{REPLACEMENT CHARACTER}é"


async def test_only_allowed_message_types_reach_the_kernel(relay, expect_log):
    """With an allow-list, other messages do not reach the kernel."""
    kernel_id, _ = await relay.add(kernel := relay.tiny_kernel(), allowed_message_types=frozenset({"execute_request"}))
    async with await relay.open(kernel_id) as client:
        with expect_log("message type is not allowed"):
            client.send("shell", "comm_msg", {"comm_id": "1", "data": {}})
            await client.run("hello")
    assert [m["header"]["msg_type"] for m in kernel.received if m["header"]["session"] == client.session] == [
        "execute_request"
    ]


@BOTH
async def test_tracebacks_are_replaced(relay, v1):
    """Where tracebacks are not allowed, neither output nor reply shows anything of the error."""
    kernel_id, _ = await relay.add(allow_tracebacks=False, traceback_replacement="hidden")
    async with await relay.open(kernel_id, v1=v1) as client:
        messages = await client.run("error")
    contents = [m["content"] for m in messages if m["header"]["msg_type"] in {"error", "execute_reply"}]
    assert len(contents) == 2
    for content in contents:
        assert (content["ename"], content["evalue"], content["traceback"]) == (
            "ExecutionError",
            "Execution error",
            ["hidden"],
        )
    assert "secret" not in str(messages)


async def test_only_requests_of_clients_count_as_activity(relay):
    """Busy and idle follow the requests of clients; the gateway's own requests do not count."""
    kernel_id, channels = await relay.add()
    states = []
    channels.on_change.append(lambda it: states.append((it.execution_state, it.connections)))
    before = channels.last_activity
    assert await channels.request("kernel_info_request", {}, "shell") == channels.kernel_info
    assert (channels.last_activity, channels.execution_state, channels.busy_since) == (before, "idle", None)
    async with await relay.open(kernel_id) as client:
        await client.run("hello")
    assert channels.last_activity > before
    assert states == [("idle", 1), ("busy", 1), ("idle", 1), ("idle", 0)]


async def test_an_unanswered_request_of_the_gateway_fails_after_its_time_out(relay, expect_log):
    """So does waiting for a silent kernel."""
    kernel = TinyKernel()
    with expect_log("sent no kernel_info_reply"):
        _, channels = await relay.add(kernel, ready=False, info_timeout=0.2)
        with pytest.raises(TimeoutError, match=r"interrupt_request within 0\.05 s"):
            await channels.request("interrupt_request", {}, timeout=0.05)
        with pytest.raises(TimeoutError, match="kernel_info_request"):
            await channels.ready(0.3)
    waiting = asyncio.ensure_future(channels.ready(5))
    await asyncio.sleep(0)
    channels.close()
    with pytest.raises(ConnectionError, match="shut down"):
        await waiting
    kernel.start()
    kernel.stop()


async def test_a_warning_appears_in_the_cell_that_was_executed_last(relay):
    """As error output, for all clients."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id) as client:
        msg_id = client.execute("hello")
        await client.finish(msg_id)
        channels.tell("about to end\n")
        message = (await client.until("stream"))[-1]
    assert message["content"] == {"name": "stderr", "text": "about to end\n"}
    assert message["parent_header"]["msg_id"] == msg_id
