"""Kernels on remote hosts, through the whole gateway."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from enterprise_gateway.core.offload import offload
from tests.clusters.ssh_hosts import Host, HostLab
from tests.support.gateway import Gateway, running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import REPOSITORY

LAUNCHER = REPOSITORY / "etc" / "kernel-launchers" / "python" / "scripts" / "launch_ipykernel.py"
PROXY = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
OPTIONS = ("--kernel-id", "{kernel_id}", "--port-range", "{port_range}", "--response-address", "{response_address}")
ARGV = (sys.executable, str(LAUNCHER), *OPTIONS, "--public-key", "{public_key}")


def spec(name: str, *, argv: tuple[str, ...] = ARGV, env: dict[str, str] | None = None, **config: Any) -> None:
    """Write a kernelspec of the back end."""
    stanza = {"class_name": PROXY, "config": {"payload_version": 2, **config}}
    write_kernelspec(name, argv=argv, env=env or {}, metadata={"process_proxy": stanza})


@pytest.fixture
def hosts(lab: HostLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Host]]:
    """Have the gateway find the lab's hosts, and a kernelspec for them."""
    for name, value in {**lab.environment(), "EG_KERNEL_LOG_DIR": str(lab.folder / "logs")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EG_RESPONSE_PORT", "0")
    spec("distributed")
    yield lab.hosts
    shutil.rmtree(lab.folder / "logs", ignore_errors=True)


async def until(condition: Any, seconds: float = 10) -> None:
    """Wait until ``condition`` holds; it is asked in a thread."""
    end = time.monotonic() + seconds
    while not await offload(condition):
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def kernel(gateway: Gateway, name: str = "distributed", **body: Any) -> AsyncIterator[str]:
    """Have a kernel, and none afterwards."""
    kernel_id = await gateway.start_kernel(name, **body)
    yield kernel_id
    await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")


def kernels_on(host: Host) -> list[str]:
    """Return the launchers that run on a host."""
    return host.processes("launch_ipykernel.py")


async def test_a_kernel_runs_on_a_remote_host(hosts: list[Host]) -> None:
    """It starts, runs code there, is interrupted and restarted under an open websocket, and leaves nothing."""
    async with running_gateway() as gateway:
        kernel_id = await gateway.start_kernel("distributed")
        socket = await gateway.websocket(kernel_id)
        text, reply = await socket.execute("import socket; print(socket.gethostname())")
        assert (text, reply["status"]) == (f"{hosts[0].name}\n", "ok")

        request = await socket.send(
            "execute_request",
            {"code": "import time; time.sleep(60)", "silent": False, "allow_stdin": False, "store_history": True},
        )
        await socket.receive_until("execute_input", parent=request)
        await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", status=204)
        replies = await socket.receive_until("execute_reply", parent=request)
        assert replies[-1]["content"]["ename"] == "KeyboardInterrupt"

        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST")
        text, _ = await socket.execute("print(socket.gethostname())")
        assert "NameError" in text or text == ""
        text, _ = await socket.execute("import os, socket; print(socket.gethostname(), 'EG_LAUNCH_SECRET' in os.environ)")
        assert text == f"{hosts[1].name} False\n"

        await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")
        await until(lambda: not any(kernels_on(host) for host in hosts))
        assert (Path(os.environ["EG_KERNEL_LOG_DIR"]) / f"kernel-{kernel_id}.log").exists()
