"""Restarts happen below open websockets."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.wsclient import texts, types


async def test_restart_on_other_ports(relay):
    """An open websocket sees the restart and goes on with the new process, which has other ports and another key."""
    first = relay.tiny_kernel()
    kernel_id, channels = await relay.add(first)
    async with await relay.open(kernel_id, "s") as client, await relay.open(kernel_id, "t", v1=False) as other:
        await client.run("hello")
        channels.announce_state("restarting")
        assert channels.execution_state == "restarting"
        assert types(await client.until("status"))[-1] == "restarting"
        queued = client.execute("input", allow_stdin=True)
        second = relay.tiny_kernel()
        channels.connect(second.info)
        await client.until("input_request", queued)
        client.send("stdin", "input_reply", {"value": "new"})
        assert texts(await client.finish(queued)) == "new"
        assert "restarting" in types(await other.pending())
        assert "execute_result" in types(await other.run("hello"))
    assert [m["content"]["code"] for m in first.received if "code" in m["content"]] == ["hello"]


async def test_restart_while_nobody_is_attached(relay):
    """A client that comes back after a restart learns of it and works with the new process."""
    kernel_id, channels = await relay.add()
    await (await relay.open(kernel_id, "s")).close()
    channels.announce_state("restarting")
    channels.connect(relay.tiny_kernel().info)
    await channels.ready(5)
    async with await relay.open(kernel_id, "s") as client:
        assert "restarting" in types(await client.until("status"))
        assert "execute_result" in types(await client.run("hello"))


async def test_requests_of_the_gateway_end_with_the_process(relay):
    """What the gateway asked the old process fails when the new one is connected."""
    _, channels = await relay.add(kernel := relay.tiny_kernel())
    kernel.publish("status", {"execution_state": "idle"})
    waiting = asyncio.ensure_future(channels.request("unanswered", {}, "stdin", timeout=5))
    await asyncio.sleep(0.05)
    channels.connect(relay.tiny_kernel().info)
    with pytest.raises(ConnectionError, match="restarted"):
        await waiting
    assert (await channels.request("shutdown_request", {"restart": False}))["status"] == "ok"


async def test_death(relay):
    """A dead kernel is announced with its reason; what clients still send goes nowhere and hurts nobody."""
    kernel_id, channels = await relay.add()
    async with await relay.open(kernel_id) as client:
        channels.announce_state("dead", "it exited with code 1")
        message = (await client.until("status"))[-1]
        assert message["content"] == {"execution_state": "dead", "reason": "it exited with code 1"}
        client.execute("hello")
        assert await client.pending() == []
    assert channels.execution_state == "dead"


async def test_end(relay):
    """When the kernel is shut down its websockets are closed with the reason."""
    kernel_id, channels = await relay.add()
    client = await relay.open(kernel_id)
    channels.close()
    assert await client.receive() is None
    assert client.closed == (1001, "the kernel was shut down")
    assert channels.connections == 0
    client.cut()
