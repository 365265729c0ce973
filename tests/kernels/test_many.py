"""Many kernels at once and one after the other: all are usable, none disturbs another, nothing is left."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.gateway import Gateway, running_gateway
from tests.support.loops import crowded_machine, loop_may_be_held
from tests.support.tinyfarm import tiny_kernels

CONFIG: dict[str, Any] = {
    "EnterpriseGatewayApp": {"list_kernels": True},
    "RemoteKernelManager": {"shutdown_wait_time": 20},
}
PORTS = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Path]:
    """The kernelspec ``tiny``; the file has a line for each process that was launched."""
    with tiny_kernels(tmp_path) as launches:
        yield launches


async def use(gateway: Gateway, kernel_id: str, code: str, until: str = "") -> str:
    """Execute code through a websocket of its own and return what it printed, when that has ``until`` in it."""
    websocket = await gateway.websocket(kernel_id)
    text, reply = await websocket.execute(code, timeout=110)
    assert reply["status"] == "ok"
    while until not in text:  # ipykernel says "idle" first when its threads wait long for a processor
        message = await websocket.receive(60)
        assert message is not None
        text += message["content"].get("text", "")
    return text


def assert_no_port_is_used_twice(gateway: Gateway, ids: list[str]) -> None:
    """Check the ports of living kernels."""
    kernels = [gateway.app.kernel_manager.get_kernel(kernel_id) for kernel_id in ids]
    ports = Counter(getattr(kernel, name) for kernel in kernels for name in PORTS)
    assert [port for port, count in ports.items() if count > 1] == []
    assert len(ports) == len(PORTS) * len(ids)


async def test_a_hundred_simultaneous_starts_are_a_hundred_launches(launches: Path) -> None:
    """All are answered 201 and all execute; each was launched once, on ports of its own.

    They are deleted at once, too, and that does not block the loop.
    """
    async with running_gateway(config=CONFIG) as gateway:
        began = time.monotonic()
        with crowded_machine(0.25, "two processors, and a hundred processes that start"):
            ids = await asyncio.gather(*(gateway.start_kernel("tiny") for _ in range(100)))
            await asyncio.gather(*(use(gateway, kernel_id, "1") for kernel_id in ids))
        print(f"100 usable kernels after {time.monotonic() - began:.1f} s")
        assert len(set(ids)) == 100
        assert sorted(launches.read_text().split()) == sorted(ids)
        assert_no_port_is_used_twice(gateway, ids)
        assert len(await gateway.call("/api/kernels")) == 100
        await asyncio.gather(*(gateway.call(f"/api/kernels/{i}", "DELETE", status=204) for i in ids))
        assert not list(Path(gateway.app.runtime_dir).glob("kernel-*"))
        assert not gateway.app.kernel_manager.resources.ports._taken


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_hundred_python_kernels_started_at_once_are_all_usable() -> None:
    """Each is its own process, on ports of its own, and answers for itself."""
    async with running_gateway(config=CONFIG) as gateway:
        code = "import os; print(f'I am {os.environ[\"KERNEL_ID\"]} {os.getpid()} and usable')"
        with crowded_machine(0.5, "two processors, and a hundred interpreters that start"):
            began = time.monotonic()
            ids = await asyncio.gather(*(gateway.start_kernel("python3") for _ in range(100)))
            texts = await asyncio.gather(*(use(gateway, i, code, until="and usable") for i in ids))
            print(f"100 usable Python kernels after {time.monotonic() - began:.1f} s")
            assert_no_port_is_used_twice(gateway, ids)
            await asyncio.gather(*(gateway.call(f"/api/kernels/{i}", "DELETE", status=204) for i in ids))
        # IPython may complain before and after: a hundred of them share one history file.
        answers = [re.findall(r"I am (\S+) (\d+)", text) for text in texts]
        assert [kernel_id for [(kernel_id, _)] in answers] == ids
        assert len({pid for [(_, pid)] in answers}) == 100


async def test_no_more_than_max_kernels_start_however_many_ask(launches: Path) -> None:
    """Of thirty simultaneous starts five succeed and the others are 403; each place that is released can be used."""
    config = {**CONFIG, "EnterpriseGatewayApp": {"max_kernels": 5, "list_kernels": True}}
    async with running_gateway(config=config) as gateway:
        for _ in range(3):
            answers = await asyncio.gather(
                *(gateway.fetch("/api/kernels", "POST", {"name": "tiny"}) for _ in range(30))
            )
            assert Counter(answer.code for answer in answers) == {201: 5, 403: 25}
            ids = [json.loads(answer.body)["id"] for answer in answers if answer.code == 201]
            assert sorted(kernel["id"] for kernel in await gateway.call("/api/kernels")) == sorted(ids)
            await asyncio.gather(*(gateway.call(f"/api/kernels/{i}", "DELETE", status=204) for i in ids))
        assert not gateway.app.kernel_manager.limits.pending


async def test_two_hundred_starts_and_stops_leave_nothing(launches: Path) -> None:
    """File descriptors, threads, files, child processes and objects are what they were before."""
    async with running_gateway(config=CONFIG) as gateway:

        async def cycle() -> None:
            kernel_id = await gateway.start_kernel("tiny")
            await use(gateway, kernel_id, "1")
            await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)

        async def cycles(count: int) -> None:
            for _ in range(count // 10):
                await asyncio.gather(*(cycle() for _ in range(10)))
            for websocket in gateway.sockets:
                websocket.close()
            gateway.sockets.clear()

        await cycles(20)  # threads of the hand-over, and whatever is made at first use
        before = await settled_holdings(gateway)
        with crowded_machine(0.25, "ten processes start at a time"):
            await cycles(200)
        after = await settled_holdings(gateway)
        assert len(launches.read_text().split()) == 220
        assert after == before


async def settled_holdings(gateway: Gateway) -> dict[str, Any]:
    """Return what this process holds when connections that are being closed are closed."""
    held: dict[str, Any] = {}
    while True:
        await asyncio.sleep(0.3)
        with loop_may_be_held("the test counts objects"):
            before, held = held, holdings(gateway)
        if held == before:
            return held


def holdings(gateway: Gateway) -> dict[str, Any]:
    """Return what this process holds, by kind."""
    gc.collect()
    me = psutil.Process()
    kinds = ("RemoteKernelManager", "KernelChannels", "LocalProcessProxy", "LocalProcess", "ProcessProxyProvisioner")
    objects = Counter(type(thing).__name__ for thing in gc.get_objects())
    return {
        "descriptors": me.num_fds(),
        "threads": sorted({thread.name.rstrip("_0123456789") for thread in threading.enumerate()}),
        "children": len(me.children(recursive=True)),
        "files": sorted(path.name for path in Path(gateway.app.runtime_dir).iterdir()),
        "tasks": len(asyncio.all_tasks()),
        "ports": len(gateway.app.kernel_manager.resources.ports._taken),
        **{kind: objects[kind] for kind in kinds},
    }
