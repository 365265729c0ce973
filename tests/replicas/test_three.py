"""Three replicas agree: what one starts, the others use, change and end, and automatic actions are done once."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from .conftest import eventually, processes_of

pytestmark = [pytest.mark.slow]

CULLING = ("--RemoteMappingKernelManager.cull_idle_timeout=8", "--RemoteMappingKernelManager.cull_interval=1")
PID = "import os; os.getpid()"


async def listings(replicas):
    """Return what each replica lists."""
    models = await asyncio.gather(*(client.call("/api/kernels") for client in replicas.clients))
    return [[kernel["id"] for kernel in listed] for listed in models]


async def test_three_replicas_are_one_gateway(replicas):
    """A kernel of the first is interrupted by the second, restarted by the third and deleted by the second.

    One that dies is restarted once, and idle ones are culled once. All three say the same after every step.
    """
    one, two, three = await replicas.start(3, *CULLING)
    used, idle = await one.start_kernel(), await two.start_kernel()
    assert await listings(replicas) == [[used, idle]] * 3
    sockets = [await client.websocket(used) for client in replicas.clients]
    for number, socket in enumerate(sockets):
        assert (await socket.execute(f"x = globals().get('x', 0) + 1; x - {number}"))[0] == "1"
    code = "import time; print('go', flush=True); time.sleep(60)"
    request = await sockets[0].send("execute_request", {"code": code, "silent": False, "allow_stdin": False})
    await sockets[0].receive_until("stream", parent=request)

    async def all_say_busy():
        models = await asyncio.gather(*(client.call(f"/api/kernels/{used}") for client in replicas.clients))
        return [model["execution_state"] for model in models] == ["busy"] * 3

    await eventually(all_say_busy)
    await two.call(f"/api/kernels/{used}/interrupt", "POST", status=204)
    replies = await sockets[0].receive_until("execute_reply", parent=request)
    assert replies[-1]["content"]["ename"] == "KeyboardInterrupt"
    before = (await sockets[0].execute(PID))[0]
    await three.call(f"/api/kernels/{used}/restart", "POST")
    pids = [(await socket.execute(PID))[0] for socket in sockets]
    assert len(set(pids)) == 1
    assert pids[0] != before

    os.kill(int(pids[0]), signal.SIGKILL)

    async def has_another_process():
        return processes_of(used) not in ([], [int(pids[0])])

    await eventually(has_another_process)
    for socket in sockets:
        socket.close()
    sockets = [await client.websocket(used) for client in replicas.clients]
    again = [(await socket.execute(PID))[0] for socket in sockets]
    assert len(set(again)) == 1
    assert again[0] != pids[0]
    assert replicas.output.count("has died") == 1

    async def only_one_is_left():
        return await listings(replicas) == [[used]] * 3

    await eventually(only_one_is_left, 25)
    assert replicas.output.count(f"Culling kernel {idle}") == 1
    assert replicas.output.count("Culling kernel") == 1
    await two.call(f"/api/kernels/{used}", "DELETE", status=204)
    assert await listings(replicas) == [[]] * 3
    for client in replicas.clients:
        await client.call(f"/api/kernels/{used}", status=404)
