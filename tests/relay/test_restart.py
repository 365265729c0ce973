"""Restarts happen below open websockets."""

from __future__ import annotations

import asyncio

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.resumption import GAP_NOTICE, PROOF_SECONDS, Memory
from tests.support.tinykernel import TinyKernel
from tests.support.wsclient import texts, types


async def test_an_open_websocket_survives_a_restart_on_other_ports(relay):
    """It goes on with the new process, which has another key, too."""
    first = relay.tiny_kernel()
    kernel_id, channels = await relay.add(first)
    async with await relay.open(kernel_id, "s") as client, await relay.open(kernel_id, "t", v1=False) as other:
        await client.run("hello")
        channels.hold()
        assert channels.execution_state == "restarting"
        queued = client.execute("input", allow_stdin=True)
        second = relay.tiny_kernel()
        channels.connect(second.info)
        await client.until("input_request", queued)
        client.send("stdin", "input_reply", {"value": "new"})
        assert texts(await client.finish(queued)) == "new"
        assert "execute_result" in types(await other.run("hello"))
        assert "restarting" not in types(client.history + other.history)
    assert [m["content"]["code"] for m in first.received if "code" in m["content"]] == ["hello"]


async def test_restart_while_no_client_is_connected(relay):
    """A client that comes back after a death learns of it and works with the new process."""
    kernel_id, channels = await relay.add()
    await (await relay.open(kernel_id, "s")).close()
    channels.announce_state("restarting")
    channels.connect(relay.tiny_kernel().info)
    await channels.ready(5)
    async with await relay.open(kernel_id, "s") as client:
        await client.until_state("restarting")
        assert "execute_result" in types(await client.run("hello"))


@pytest.mark.parametrize("was_here", [True, False])
@pytest.mark.parametrize("is_restarted_again", [False, True])
async def test_a_death_is_not_announced_to_clients_that_have_used_the_new_process_elsewhere(
    relay, was_here, is_restarted_again
):
    """A client that comes from another gateway is not told that the kernel, which it just used, has died; others are.

    It gets everything else that it missed. The same after another requested restart.
    """
    here_id, here = await relay.add()
    other_id, there = await relay.add()
    for session in ["moves", "sleeps"] if was_here else ["sleeps"]:
        await (await relay.open(here_id, session)).close()
    here.tell("The kernel has died.")
    for channels in (here, there):
        channels.announce_state("restarting", "it was killed")
    kernel = relay.tiny_kernel()
    for channels in (here, there):
        channels.connect(kernel.info)
        await channels.ready(5)
    async with await relay.open(other_id, "moves") as client:
        client.session = "moves"
        await client.run("hello")
    while "moves" not in here._replay._served:
        await asyncio.sleep(0.01)
    if is_restarted_again:
        here.hold()
        here.connect(relay.tiny_kernel().info)
        await here.ready(5)
    async with await relay.open(here_id, "moves") as client:
        messages = await client.pending()
        assert "execute_result" in types(messages)
        assert "died" not in texts(messages, "stderr")
        assert "restarting" not in [message["content"].get("execution_state") for message in messages]
    async with await relay.open(here_id, "sleeps") as client:
        messages = await client.pending()
        assert "died" in texts(messages, "stderr")
        assert "restarting" in [message["content"].get("execution_state") for message in messages]


async def test_requests_of_the_gateway_end_with_the_process(relay):
    """Requests to the old process fail when the new one is connected."""
    _, channels = await relay.add(kernel := relay.tiny_kernel())
    kernel.publish("status", {"execution_state": "idle"})
    waiting = asyncio.ensure_future(channels.request("unanswered", {}, "stdin", timeout=5))
    await asyncio.sleep(0.05)
    channels.connect(relay.tiny_kernel().info)
    with pytest.raises(ConnectionError, match="restarted"):
        await waiting
    assert (await channels.request("shutdown_request", {"restart": False}))["status"] == "ok"


async def test_a_death_is_announced_with_its_reason(relay):
    """A dead kernel is announced with its reason."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id) as client:
        channels.announce_state("dead", "it exited with code 1")
        message = await client.until_state("dead")
        assert message["content"] == {"execution_state": "dead", "reason": "it exited with code 1"}
    assert channels.execution_state == "dead"


async def test_a_shutdown_closes_the_websockets_with_the_reason(relay):
    """When the kernel is shut down its websockets are closed with the reason."""
    kernel_id, channels = await relay.add()
    client = await relay.open(kernel_id)
    channels.close()
    await client.until_closed()
    assert client.closed == (1001, "the kernel was shut down")
    assert channels.connections == 0
    client.cut()


async def test_a_kernel_that_is_slow_to_answer_is_not_reported_to_have_lost_output(relay):
    """A recovered kernel that is silent for long is considered busy; no client is told that output is lost."""
    kernel_id, channels = await relay.add(kernel := TinyKernel(), ready=False)
    channels.resume(Memory())
    async with await relay.open(kernel_id) as client:
        request = client.execute("hello")
        await asyncio.sleep(PROOF_SECONDS + 0.2)
        assert channels.execution_state == "busy"
        kernel.start()
        try:
            await client.finish(request)
            await client.pending()
        finally:
            await offload(kernel.stop)
    assert "execute_result" in types(client.history)
    assert texts(client.history, "stderr") == ""


async def test_output_of_a_cell_of_an_earlier_gateway_is_preceded_by_a_notice(relay):
    """That is output for a request that this gateway has not sent."""
    kernel_id, channels = await relay.add(kernel := relay.tiny_kernel(), ready=False)
    await channels.ready(5)
    await asyncio.sleep(0.1)  # for what answers the gateway itself
    channels.resume(Memory(last_cell='{"msg_id": "before", "msg_type": "execute_request"}'))
    async with await relay.open(kernel_id) as client:
        parent = {"msg_id": "now", "msg_type": "execute_request", "session": "s"}
        kernel.publish("stream", {"name": "stdout", "text": "more\n"}, parent)
        messages = await client.until("stream") + await client.pending()
    assert channels.execution_state == "busy"
    assert (texts(messages, "stderr"), texts(messages)) == (GAP_NOTICE, "more\n")
    assert {message["parent_header"]["msg_id"] for message in messages if "text" in message["content"]} == {"now"}
