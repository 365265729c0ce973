"""Limits for clients and users: those that send or keep too much wait or lose output, and others do not notice."""

from __future__ import annotations

import asyncio
import time

from tests.support.gateway import running_gateway
from tests.support.kernelspecs import write_kernelspec


def numbers(kernel):
    return [message["content"]["n"] for message in kernel.received if message["header"]["msg_type"] == "comm_msg"]


async def test_messages_of_a_client_beyond_its_rate_wait(relay, expect_log):
    """None is lost, and their order is kept; another client of the same kernel is served at once."""
    relay.configure(eg_ws_message_rate=20)
    kernel = relay.tiny_kernel()
    kernel_id, _ = await relay.add(kernel)
    async with await relay.open(kernel_id, "fast") as fast, await relay.open(kernel_id, "other") as other:
        began = time.monotonic()
        with expect_log("more than ws_message_rate"):
            for number in range(50):
                fast.send("shell", "comm_msg", {"n": number})
            await other.run("1")
            assert time.monotonic() - began < 1
            await fast.run("2", timeout=20)
        assert time.monotonic() - began > 1.4  # 31 of them wait for 50 ms each
    assert numbers(kernel) == list(range(50))


async def test_messages_of_a_user_beyond_the_rate_wait(relay, expect_log):
    """All websockets to a user's kernels count together; another user is served at once."""
    relay.configure(eg_ws_user_message_rate=20)
    busy, quiet = relay.tiny_kernel(), relay.tiny_kernel()
    busy_id, _ = await relay.add(busy, user="busy")
    quiet_id, _ = await relay.add(quiet, user="quiet")
    began = time.monotonic()
    async with await relay.open(busy_id) as one, await relay.open(busy_id) as two, await relay.open(quiet_id) as other:
        with expect_log("User busy sends more than ws_user_message_rate"):
            for number in range(25):
                one.send("shell", "comm_msg", {"n": number})
                two.send("shell", "comm_msg", {"n": number})
            await other.run("1")
            assert time.monotonic() - began < 1
            await asyncio.gather(one.run("2", timeout=20), two.run("3", timeout=20))
        assert time.monotonic() - began > 1.4
    assert sorted(numbers(busy)) == sorted([*range(25), *range(25)])


async def test_large_messages_that_are_never_finished_are_bounded(relay, expect_log):
    """The gateway does not keep any number of them: the next one is refused, and another user's is not."""
    relay.configure(eg_ws_receive_limit=5_000_000)
    kernel_id, channels = await relay.add(user="greedy")
    other_id, _ = await relay.add(user="modest")
    head, begun = bytes((0x82, 0xFF)) + (10_000_000).to_bytes(8, "big") + bytes(4), b"x" * 4_000_000
    first, second = await relay.open(kernel_id), await relay.open(kernel_id)
    first._writer.write(head + begun)
    await asyncio.sleep(0.2)
    with expect_log("user greedy sends more than ws_receive_limit"):
        second._writer.write(head + begun)
        await second.until_closed()
    assert second.closed in {(1013, "too many large messages at once"), (1006, "")}
    async with await relay.open(other_id) as other:
        other.send("shell", "comm_msg", {"x": "x" * 4_000_000})
        await other.run("1")
    first.cut()
    while channels.connections:
        await asyncio.sleep(0.01)
    async with await relay.open(kernel_id) as third:
        for _ in range(3):
            third.send("shell", "comm_msg", {"x": "x" * 4_000_000})
        await third.run("1")


async def text_until_idle(socket, msg_id):
    """Return what a request has printed; its reply may come before the last of it."""
    text = ""
    while (message := await socket.receive()) is not None:
        if message["parent_header"].get("msg_id") == msg_id:
            text += message["content"].get("text", "")
            if message["content"].get("execution_state") == "idle":
                break
    return text


async def test_kernels_of_users_share_what_is_kept(expect_log):
    """What all kernels keep is bounded; the user with the most loses output, and the notebook says so."""
    write_kernelspec("python3")
    config = {"EnterpriseGatewayApp": {"replay_total_limit": 4_000_000}}
    async with running_gateway(config=config) as gateway:
        kernels = {name: await gateway.start_kernel(env={"KERNEL_USERNAME": name}) for name in ("greedy", "modest")}
        code = "import time; time.sleep(0.3)\nfor i in range({}): print('x' * 50_000, flush=True)"
        requests = {}
        with expect_log("user greedy, whose keep most, loses output"):
            for name, kernel_id in kernels.items():
                socket = await gateway.websocket(kernel_id, name)
                await socket.execute("1")
                content = {"code": code.format(100 if name == "greedy" else 20), "silent": False, "allow_stdin": False}
                requests[name] = await socket.send("execute_request", content)
                await socket.receive_until("execute_input")
                await socket.end()
            for kernel_id in kernels.values():
                while (await gateway.call(f"/api/kernels/{kernel_id}"))["execution_state"] != "idle":
                    await asyncio.sleep(0.1)
        texts = {}
        with expect_log("messages were dropped while no client was connected"):
            for name, kernel_id in kernels.items():
                socket = await gateway.websocket(kernel_id, name)
                texts[name] = await text_until_idle(socket, requests[name])
        assert texts["modest"].count("x") == 20 * 50_000
        assert texts["greedy"].count("x") < 80 * 50_000
        assert "messages were dropped" in texts["greedy"]
