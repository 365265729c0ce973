"""A kernel changes hands, and answers the gateway that has it now.

Many kernels poll their sockets between two cells only: connections in between are noticed in a row when the cell
is over. A ROUTER socket that still knows an identity then does not listen to a second connection of it, unless it has
ROUTER_HANDOVER, which ipykernel and IRkernel set and others, as Toree, do not.
"""

from __future__ import annotations

import asyncio

import pytest

from enterprise_gateway.core.offload import offload
from tests.support.tinykernel import TinyKernel
from tests.support.wsclient import texts, types


async def look(kernel):
    """Wait until a kernel has polled its sockets."""
    looks = kernel.looks
    while kernel.looks < looks + 3:
        await asyncio.sleep(0.01)


async def test_a_kernel_that_is_connected_to_twice_while_it_starts_answers_on_the_newest_connection(relay):
    """Although it has not polled the older ones before that."""
    kernel_id, channels = await relay.add(kernel := TinyKernel(), ready=False)
    try:
        for _ in range(3):
            await asyncio.sleep(0.2)
            channels.connect(kernel.info)
        await asyncio.sleep(0.2)
        kernel.start()
        await channels.ready(5)
        async with await relay.open(kernel_id) as client:
            assert "execute_result" in types(await client.run("hello"))
    finally:
        channels.close()
        await offload(kernel.stop)


@pytest.mark.parametrize(("hands_over", "queued"), [(True, 0), (False, 0), (False, 2)])
async def test_a_kernel_that_was_busy_all_the_time_executes_for_the_next_gateway(relay, hands_over, queued):
    """A client that waits for a reply gets an error if the reply is lost."""
    kernel_id, channels = await relay.add(kernel := relay.tiny_kernel(hands_over=hands_over))
    client = await relay.open(kernel_id, "s")
    client.session = "s"
    waiting = [client.execute("sleep 1"), *(client.execute(f"print {number}") for number in range(queued))]
    await client.until("execute_input", waiting[0])
    memory = channels.hand_over("the gateway is restarted")
    await asyncio.sleep(0.1)
    kernel_id, channels = await relay.add(kernel, memory=memory, ready=False)
    await client.until_closed()
    async with await relay.open(kernel_id, "s") as back:
        for msg_id in waiting:
            replies = [m for m in await back.finish(msg_id) if m["header"]["msg_type"] == "execute_reply"]
            assert [reply["content"].get("ename") for reply in replies] == [None if hands_over else "GatewayRestarted"]
        assert "execute_result" in types(await back.run("hello"))
        assert channels.execution_state == "idle"
    client.cut()


async def test_a_kernel_that_polls_its_sockets_while_it_is_busy_replies_through_the_present_gateway(relay):
    """Its outstanding replies and questions for earlier gateways go through the present one."""
    kernel_id, channels = await relay.add(kernel := relay.tiny_kernel())
    client = await relay.open(kernel_id, "s")
    client.session = "s"
    waiting = client.execute("input later", allow_stdin=True)
    await client.until("execute_input", waiting)
    for _ in range(2):
        memory = channels.hand_over("the gateway is restarted")
        await asyncio.sleep(0.1)
        await look(kernel)
        kernel_id, channels = await relay.add(kernel, memory=memory, ready=False)
        await asyncio.sleep(0.1)
        await look(kernel)
    await client.until_closed()
    client.cut()
    kernel.may_go_on.set()
    async with await relay.open(kernel_id, "s") as back:
        back.session = "s"
        await back.until("input_request", waiting)
        back.send("stdin", "input_reply", {"value": "yes"})
        messages = await back.finish(waiting)
        assert texts(messages) == "yes"
        (reply,) = [m["content"] for m in messages if m["header"]["msg_type"] == "execute_reply"]
        assert reply["status"] == "ok"
        assert "execute_result" in types(await back.run("hello"))
