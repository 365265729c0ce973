"""Requests: who gets the reply, what a kernel that ends leaves unanswered, and when a kernel is busy."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.channels import LOST_IDLE_SECONDS
from enterprise_gateway.transport.resumption import Memory
from tests.support.tinykernel import TinyKernel
from tests.support.wsclient import ABSENT, WebSocketClient, texts, types


def answers(messages: list[dict[str, Any]], msg_id: str) -> list[str]:
    """Return the types of the messages that answer a request."""
    return types([message for message in messages if message["parent_header"].get("msg_id") == msg_id])


async def busy(client: WebSocketClient, seconds: float = 1) -> str:
    """Begin an execution that lasts, and return its id when it has begun."""
    msg_id = client.execute(f"sleep {seconds}")
    await client.until("execute_input", msg_id)
    return msg_id


# -- a kernel that ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["restarting", "dead"])
async def test_a_kernel_that_dies_leaves_no_request_open(relay, state):
    """Every request gets its type of reply, an error that says what happened, and idle; the status comes last."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id) as client, await relay.open(kernel_id) as other:
        done = client.execute("print 2")
        await client.finish(done)
        running = await busy(client)
        queued = client.execute("hello")
        complete = client.send("shell", "complete_request", {"code": "a", "cursor_pos": 1})
        debug = client.send("control", "debug_request", {"command": "x"})
        comm = client.send("shell", "comm_msg", {"comm_id": "c", "data": {}})
        await asyncio.sleep(0.05)
        client.history.clear()
        channels.announce_state(state, "it exited with code 1")
        await client.until_state(state)
        assert types(client.history)[-1] == state
        assert answers(client.history, running) == ["error", "execute_reply", "idle"]
        assert answers(client.history, queued) == ["execute_reply", "idle"]
        assert answers(client.history, complete) == ["complete_reply", "idle"]
        assert answers(client.history, debug) == ["debug_reply", "idle"]
        assert answers(client.history, comm) == ["idle"]
        assert answers(client.history, done) == []
        replies = [message for message in client.history if message["header"]["msg_type"].endswith("_reply")]
        assert [reply["channel"] for reply in replies] == ["shell", "shell", "shell", "control"]
        for reply in replies:
            assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "KernelDied")
            assert reply["content"]["evalue"].endswith("died before it replied to this request: it exited with code 1.")
        await other.until_state(state)
        assert not [kind for kind in types(other.history) if kind.endswith("_reply")]
    assert channels.execution_state == state


async def test_the_first_cell_of_a_kernel_that_died_has_the_error_whatever_was_lost(relay):
    """A process that ends itself loses what it has sent, its ``busy`` too; cells behind it have no such output."""
    kernel = TinyKernel()
    kernel.start()
    kernel_id, channels = await relay.add(kernel)
    async with await relay.open(kernel_id) as client:
        await offload(kernel.stop)
        first, second = client.execute("hello"), client.execute("hello")
        await asyncio.sleep(0.05)
        channels.announce_state("restarting", "it exited")
        await client.until_state("restarting")
        assert answers(client.history, first) == ["error", "execute_reply", "idle"]
        assert answers(client.history, second) == ["execute_reply", "idle"]


async def test_waiting_requests_outlive_a_restart_but_not_a_death(relay):
    """Requests that were never sent to the old process go to the new one; without one they get an error."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id) as client:
        channels.announce_state("restarting", "it exited")
        held = client.execute("hello")
        await asyncio.sleep(0.05)
        channels.connect(relay.tiny_kernel().info)
        assert "execute_result" in types(await client.finish(held))
        channels.announce_state("restarting", "it exited")
        held = client.execute("hello")
        await asyncio.sleep(0.05)
        channels.announce_state("dead", "it could not be restarted")
        (reply,) = [m for m in await client.finish(held) if m["header"]["msg_type"] == "execute_reply"]
    assert reply["content"]["ename"] == "KernelDied"
    assert reply["content"]["evalue"].endswith("it could not be restarted.")


async def test_requests_to_a_dead_kernel_are_answered_at_once(relay):
    """With the reason; an input reply is discarded."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id) as client:
        channels.announce_state("dead", "it exited with code 1")
        await client.until_state("dead")
        reply = (await client.finish(client.execute("hello"), timeout=1))[0]
        assert reply["content"] == {
            "status": "error",
            "ename": "KernelDied",
            "evalue": "The kernel is dead: it exited with code 1.",
            "traceback": ["KernelDied: The kernel is dead: it exited with code 1."],
            "execution_count": None,
        }
        client.send("stdin", "input_reply", {"value": "x"})
        assert await client.pending() == []


async def test_the_error_of_a_dead_kernel_contains_its_kernel_info(relay):
    """The error reply to a kernel_info request has what is known: papermill looks for the language there."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id) as client:
        known = await channels.ready(5)
        channels.announce_state("dead", "it exited with code 1")
        client.send("shell", "kernel_info_request", {})
        reply = (await client.until("kernel_info_reply", timeout=1))[-1]["content"]
        assert reply["ename"] == "KernelDied"
        assert reply == {**known, **{name: reply[name] for name in ("status", "ename", "evalue", "traceback")}}


async def test_a_requested_restart_ends_the_requests_to_the_old_process(relay):
    """Clients are told of no death: replies by the old process, then an error for the rest, then the new process."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id) as client, await relay.open(kernel_id) as other:
        quick, slow = client.execute("sleep 0.2"), client.execute("sleep 1")
        await client.until("execute_input", quick)
        channels.hold()
        assert channels.execution_state == "restarting"
        held = client.execute("hello")
        await client.finish(quick)
        await client.until("execute_input", slow)
        assert channels.execution_state == "restarting"
        await channels.last_words()
        channels.end_process()
        assert answers(await client.finish(slow), slow)[-3:] == ["error", "execute_reply", "idle"]
        channels.connect(relay.tiny_kernel().info)
        assert "execute_result" in types(await client.finish(held))
        await other.pending()
        for messages in (client.history, other.history):
            assert "restarting" not in types(messages)
        enames = [m["content"].get("ename") for m in client.history if m["header"]["msg_type"] == "execute_reply"]
    assert enames == [None, "KernelRestarted", None]


async def test_a_shutdown_is_announced_before_the_websocket_is_closed(relay):
    """Who waits when a kernel is shut down gets an error and idle, then the websocket's end."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id) as client:
        running = await busy(client)
        channels.close("the kernel was shut down")
        reply = next(m for m in await client.finish(running) if m["header"]["msg_type"] == "execute_reply")
        assert reply["content"]["ename"] == "KernelShutDown"
        assert await client.receive() is None
        assert client.closed == (1001, "the kernel was shut down")


async def test_the_error_waits_for_a_client_that_is_away(relay):
    """A client that was disconnected when the kernel died gets the error when it reconnects."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id, "other"):
        client = await relay.open(kernel_id, "s")
        running = await busy(client)
        client.cut()
        await asyncio.sleep(0.1)
        channels.announce_state("restarting", "it exited")
        async with await relay.open(kernel_id, "s") as again:
            assert answers(await again.finish(running), running) == ["error", "execute_reply", "idle"]


async def test_a_request_to_an_earlier_gateway_is_not_forgotten(relay):
    """When a recovered kernel dies, clients that sent requests to the earlier gateway are told too."""
    kernel_id, channels = await relay.add()
    header = {"msg_id": "before", "msg_type": "execute_request", "session": "s"}
    memory = Memory(execution_state="busy", last_cell=json.dumps(header), requests=(json.dumps(header),))
    async with await relay.open(kernel_id, "s") as client:
        channels.resume(memory)
        channels.announce_state("dead", "it exited")
        await client.until_state("dead")
    assert answers(client.history, "before") == ["error", "execute_reply", "idle"]


# -- who gets the reply ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
@pytest.mark.parametrize("session", [ABSENT, "", None, 5, ["x"]], ids=repr)
async def test_a_reply_needs_no_session(relay, session, v1):
    """A client whose headers name no session, or an invalid one, gets its replies and is asked for input."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id, "a", v1=v1) as client, await relay.open(kernel_id, "b", v1=v1) as other:
        assert "execute_reply" in types(await client.run("hello", session=session))
        msg_id = client.execute("input", allow_stdin=True, session=session)
        await client.until("input_request", msg_id)
        client.send("stdin", "input_reply", {"value": "yes"}, session=session)
        assert texts(await client.finish(msg_id)) == "yes"
        assert not {"execute_reply", "input_request"} & set(types(await other.pending()))


async def test_the_websocket_that_asked_gets_the_reply(relay):
    """Two websockets of different clients that use one session in their headers do not get each other's replies."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id, "a") as first, await relay.open(kernel_id, "b") as second:
        slow = first.execute("sleep 0.3", session="shared")
        quick = second.execute("hello", session="shared")
        assert "execute_reply" in types(await first.finish(slow))
        assert "execute_reply" in types(await second.finish(quick))
        await first.pending()
        for client, msg_id in ((first, slow), (second, quick)):
            replies = [m for m in client.history if m["header"]["msg_type"] == "execute_reply"]
            assert [reply["parent_header"]["msg_id"] for reply in replies] == [msg_id]


@pytest.mark.parametrize("sessions", [("a", "b"), ("", "")])
async def test_clients_with_the_same_message_id_get_their_own_replies(relay, sessions):
    """Two clients that use the same message ids get one reply each, their own."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id, "1") as first, await relay.open(kernel_id, "2") as second:
        first.execute("error", session=sessions[0], msg_id="1")
        await first.until("execute_input")
        second.execute("hello", session=sessions[1], msg_id="1")
        await second.until("execute_result")
        for client, status in ((first, "error"), (second, "ok")):
            await client.pending(0.3)
            replies = [m for m in client.history if m["header"]["msg_type"] == "execute_reply"]
            assert [reply["content"]["status"] for reply in replies] == [status]


@pytest.mark.parametrize("session", ["", "shared"])
async def test_a_careless_client_that_reconnects_gets_its_reply(relay, session):
    """The reply waits for the session_id of the websocket that asked, not for the next one with the same header."""
    kernel_id, _ = await relay.add()
    async with await relay.open(kernel_id, "b") as other:
        await other.run("hello", session=session)
        client = await relay.open(kernel_id, "a")
        msg_id = client.execute("later 1", session=session)
        await client.until("execute_input", msg_id)
        client.cut()
        await asyncio.sleep(0.6)
        assert "execute_reply" not in answers(await other.pending(), msg_id)
        async with await relay.open(kernel_id, "a") as again:
            assert "execute_reply" in types(await again.finish(msg_id))


# -- when a kernel is busy ---------------------------------------------------------------------------------------


def request(session: str = "elsewhere", **header: Any) -> dict[str, Any]:
    """Return the header of a request that another gateway's client has sent."""
    return {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": session, **header}


async def say(kernel: Any, channels: Any, parent: dict[str, Any], state: str) -> str:
    """Publish a status, and return the state that the gateway considers the kernel to be in after it."""
    kernel.publish("status", {"execution_state": state}, parent)
    await asyncio.sleep(0.05)
    return channels.execution_state


async def test_a_kernel_is_busy_as_long_as_one_of_its_shells_is(relay):
    """The end of a request on a subshell, or on control, does not end that of the main shell, nor when it began."""
    _, channels = await relay.add(kernel := relay.tiny_kernel())
    main, sub, usage = request(), request(subshell_id="1"), request(msg_type="usage_request")
    assert await say(kernel, channels, main, "busy") == "busy"
    since = channels.busy_since
    for parent in (sub, usage):
        assert await say(kernel, channels, parent, "busy") == "busy"
        assert await say(kernel, channels, parent, "idle") == "busy"
    assert await say(kernel, channels, sub, "busy") == "busy"
    assert channels.busy_since == since
    assert await say(kernel, channels, main, "idle") == "busy"
    assert await say(kernel, channels, sub, "idle") == "idle"
    assert channels.busy_since is None


async def test_a_lost_idle_status_does_not_keep_a_kernel_busy(relay):
    """What the same shell says of a later request shows that the earlier one is over; so does a new process."""
    _, channels = await relay.add(kernel := relay.tiny_kernel())
    assert await say(kernel, channels, request(), "busy") == "busy"
    later = request()
    assert await say(kernel, channels, later, "busy") == "busy"
    assert await say(kernel, channels, later, "idle") == "idle"
    assert await say(kernel, channels, request(), "busy") == "busy"
    assert await say(kernel, channels, {}, "starting") == "starting"
    assert await say(kernel, channels, later, "idle") == "idle"
    assert await say(kernel, channels, request(), "busy") == "busy"
    channels.connect(relay.tiny_kernel().info)
    await channels.ready(5)
    assert channels.execution_state == "idle"


async def test_a_reply_without_idle_ends_the_request(relay):
    """A kernel that replies and never sends idle is not busy for ever."""
    kernel_id, channels = await relay.add(relay.tiny_kernel(says_idle=False))
    async with await relay.open(kernel_id) as client:
        await client.until("execute_reply", client.execute("hello"))
        assert channels.execution_state == "busy"
        await asyncio.sleep(LOST_IDLE_SECONDS + 0.2)
        assert channels.execution_state == "idle"


async def test_a_cell_of_an_earlier_gateway_keeps_the_kernel_busy(relay):
    """A kernel that was taken over while busy stays so when a request on a subshell ends."""
    _, channels = await relay.add(kernel := relay.tiny_kernel())
    await channels.ready(5)
    await channels.request("kernel_info_request", {}, "shell")  # what was asked before is answered by now
    await asyncio.sleep(0.1)  # and the answers are here: one that came later would prove the kernel idle
    cell = request()
    channels.resume(Memory(execution_state="busy", last_cell=json.dumps(cell)))
    sub = request(subshell_id="1")
    assert await say(kernel, channels, sub, "busy") == "busy"
    assert await say(kernel, channels, sub, "idle") == "busy"
    assert await say(kernel, channels, cell, "idle") == "idle"
