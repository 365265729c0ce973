"""Threads that hang, as on an unreachable file server: they cannot be ended, and nothing waits for them for ever."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.services.kernels import changes
from tests.conftest import ExpectLog
from tests.continuity.rolling import rolling_gateway
from tests.support.gateway import Client, running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.loops import crowded_machine

CONFIG: dict[str, Any] = {
    "EnterpriseGatewayApp": {"list_kernels": True, "max_kernels": 72},
    "RemoteKernelManager": {"shutdown_wait_time": 2},
}
MANY = 70  # more than the gateway has threads for anything


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """The pipe at which the kernels of the kernelspecs ``stuck`` and ``stuck-by-itself`` hang."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for name, threads in (("stuck", ""), ("stuck-by-itself", "own")):
        stanza = {"class_name": "tests.support.proxies.StuckProxy", "config": {"pipe": str(path), "threads": threads}}
        write_kernelspec(name, metadata={"process_proxy": stanza})
        write_kernelspec(f"{name}-sleeper", argv=["sleep", "600"], metadata={"process_proxy": stanza})
    return path


@contextmanager
def at_the_other_end(pipe: Path) -> Iterator[None]:
    """Let no thread hang at the pipe."""
    writer = os.open(pipe, os.O_RDWR)  # which does not wait
    try:
        yield
    finally:
        os.close(writer)


async def start(gateway: Client, name: str, kernel_id: str, seconds: float) -> tuple[int, str, float]:
    """Start a kernel; return the status, the sentence and how long it took."""
    began = time.monotonic()
    env = {"KERNEL_ID": kernel_id, "KERNEL_LAUNCH_TIMEOUT": str(seconds)}
    response = await gateway.fetch("/api/kernels", "POST", {"name": name, "env": env})
    return response.code, json.loads(response.body).get("message", ""), time.monotonic() - began


async def until(condition: Any) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.05)


async def test_launches_that_hang_end_in_time_and_do_not_block_others(pipe: Path, expect_log: ExpectLog) -> None:
    """Each is answered with what it waits for, and takes no place any more; what it still does is undone later."""
    kernel_ids, before = [str(uuid.uuid4()) for _ in range(MANY)], set(psutil.Process().children())
    async with running_gateway(config=CONFIG) as gateway:
        manager = gateway.app.kernel_manager
        with expect_log(r"will be removed when .* has ended|500 POST|409 POST", required=False):
            starts = [asyncio.create_task(start(gateway, "stuck-sleeper", id_, 3)) for id_ in kernel_ids]
            await until(lambda: len(manager.launches.under_way) == MANY)
            began = time.monotonic()
            assert "python3" in (await gateway.call("/api/kernelspecs"))["kernelspecs"]
            other = await gateway.start_kernel()
            assert [model["id"] for model in await gateway.call("/api/kernels")] == [other]
            assert time.monotonic() - began < 2.5
            assert not any(each.done() for each in starts)
            answers = await asyncio.gather(*starts)
            assert {status for status, _, _ in answers} == {500}
            assert max(seconds for _, _, seconds in answers) < 8
            sentence = "Waited too long (3s) for LocalProcessProxy._start"
            assert {said.partition("due to: ")[2] for _, said, _ in answers} == {sentence}
            another = await gateway.start_kernel()
            assert (await start(gateway, "python3", kernel_ids[0], 3))[0] == 409  # it may yet come
            reason = "two processors, and seventy threads that start a process each at the same moment"
            with at_the_other_end(pipe), crowded_machine(0.5, reason):
                await until(lambda: not manager.launches.under_way)
                await asyncio.sleep(0.5)
        assert sorted(manager.list_kernel_ids()) == sorted([other, another])
    assert set(psutil.Process().children()) <= before


async def test_a_launch_that_hangs_can_be_deleted(pipe: Path, expect_log: ExpectLog) -> None:
    """The request need not wait for the thread, which ends the kernel's process if it ever starts one."""
    kernel_id, before = str(uuid.uuid4()), set(psutil.Process().children())
    async with running_gateway(config=CONFIG) as gateway:
        with expect_log(r"will be removed when .* has ended|POST /api/kernels", required=False):
            starting = asyncio.create_task(start(gateway, "stuck", kernel_id, 100))
            await until(lambda: kernel_id in gateway.app.kernel_manager.launches.under_way)
            began = time.monotonic()
            await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
            assert time.monotonic() - began < 4
            with at_the_other_end(pipe):
                await until(lambda: not gateway.app.kernel_manager.launches.under_way)
                assert (await starting)[0] != 201
        assert gateway.app.kernel_manager.list_kernel_ids() == []
    assert set(psutil.Process().children()) <= before


async def test_a_restart_that_hangs_is_answered(
    pipe: Path, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And completed when the thread continues."""
    monkeypatch.setattr(changes, "ENDING_SECONDS", 3.0)
    monkeypatch.setenv("EG_KERNEL_LAUNCH_TIMEOUT", "1")
    async with running_gateway(config=CONFIG) as gateway:
        with at_the_other_end(pipe):
            kernel_id = await gateway.start_kernel("stuck")
        with expect_log("500 POST"):
            response = await gateway.fetch(f"/api/kernels/{kernel_id}/restart", "POST", {})
        said = f"Kernel {kernel_id} is still being restarted after 4s: it waits for LocalProcessProxy._start."
        assert (response.code, json.loads(response.body)["message"]) == (500, said)
        with at_the_other_end(pipe):
            await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("6 * 7"))[0] == "42"
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)


@pytest.mark.parametrize("name", ["stuck", "stuck-by-itself"])
async def test_a_stop_ends_whatever_threads_do(pipe: Path, tmp_path: Path, name: str) -> None:
    """With more hanging threads than any pool has, SIGTERM ends the gateway gracefully, with exit code 0."""
    async with rolling_gateway(tmp_path, env={"EG_DRAIN_TIMEOUT": "1"}) as gateway:
        kernel_id = await gateway.client.start_kernel()
        pid = int(await gateway.run(kernel_id, "import os; print(os.getpid())"))
        starts = [
            asyncio.create_task(start(gateway.client, name, str(uuid.uuid4()), 100 if number else 1))
            for number in range(MANY)
        ]
        status, _, _ = await starts[0]
        assert status == 500
        began = time.monotonic()
        assert await offload(gateway.process.stop, 60) == 0
        # One for requests, two for launches, ten for a step that needs a thread, five for threads, and this machine.
        assert time.monotonic() - began < 30
        assert "The gateway exits although these threads have not ended: " in gateway.output
        assert psutil.pid_exists(pid)
        await asyncio.gather(*starts, return_exceptions=True)
        await gateway.start()
        assert [model["id"] for model in await gateway.client.call("/api/kernels")] == [kernel_id]
