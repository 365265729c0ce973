"""Kernels of our back ends in jupyter_client's own manager: the adapter, and nothing else of a gateway."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from enterprise_gateway.core.errors import LauncherFailedError
from enterprise_gateway.provisioners.adapter import ProcessProxyProvisioner
from tests.clusters.ssh_hosts import HostLab
from tests.conftest import ExpectLog
from tests.contract.backends import LAUNCHER, LAUNCHER_OPTIONS, PROXIES
from tests.contract.test_contract import nothing_left
from tests.support.kernelspecs import write_kernelspec
from tests.support.loops import crowded_machine

WRITES = "jupyter_client's own manager writes connection files on the loop"
WHERE = "import os, socket; print(socket.gethostname(), os.environ['KERNEL_ID'], os.getpid())"


def spec(name: str, hosts: str, argv: tuple[str, ...] = ()) -> str:
    """Write a kernelspec for SSH hosts, and return its name."""
    stanza = {
        "class_name": f"{PROXIES}.distributed.DistributedProcessProxy",
        "config": {"remote_hosts": hosts, "payload_version": 2},
    }
    command = [*argv] or [sys.executable, str(LAUNCHER), *LAUNCHER_OPTIONS]
    write_kernelspec(name, argv=command, metadata={"process_proxy": stanza})
    return name


def manager_of(name: str) -> AsyncKernelManager:
    """Return jupyter_client's manager of a kernel, with the adapter as its provisioner."""
    manager = AsyncKernelManager(kernel_name=name, shutdown_wait_time=4.0)
    manager.kernel_id = str(uuid.uuid4())
    spec = manager.kernel_spec
    assert spec is not None
    manager.provisioner = ProcessProxyProvisioner(kernel_id=manager.kernel_id, kernel_spec=spec, parent=manager)
    return manager


@asynccontextmanager
async def client_of(manager: AsyncKernelManager) -> AsyncIterator[AsyncKernelClient]:
    """Connect a client to a kernel that was started."""
    client: AsyncKernelClient = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=30)
        yield client
    finally:
        client.stop_channels()


async def printed(client: AsyncKernelClient, code: str) -> str:
    """Execute code and return what it prints."""
    said: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            said.append(message["content"]["text"])

    await client.execute_interactive(code, output_hook=hear, timeout=30)
    return "".join(said).strip()


@pytest.fixture(autouse=True)
def _lab(lab: HostLab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EG_RESPONSE_PORT", "0")


@pytest.mark.ssh
async def test_jupyter_clients_own_manager_runs_a_kernel_on_an_ssh_host(lab: HostLab) -> None:
    """It starts, executes, is interrupted, restarted and shut down; nothing of it is left."""
    manager = manager_of(spec("there", lab.hosts[0].address))
    with crowded_machine(1, WRITES):
        await manager.start_kernel()
        async with client_of(manager) as client:
            host, kernel_id, pid = (await printed(client, WHERE)).split()
            assert (host, kernel_id) == (lab.hosts[0].name, manager.kernel_id)
            assert await manager.is_alive()

            loop = asyncio.create_task(printed(client, "while True: pass"))
            await asyncio.sleep(0.5)
            await manager.interrupt_kernel()
            await loop
        await manager.restart_kernel()
        async with client_of(manager) as client:
            assert (await printed(client, WHERE)).split()[2] != pid
        await manager.shutdown_kernel()
    assert manager.kernel_id is not None
    await nothing_left(manager.kernel_id)


@pytest.mark.ssh
async def test_kernels_of_one_application_share_what_listens_for_reports(lab: HostLab) -> None:
    """Two kernels are started at once; what they share is closed with the last of them."""
    name = spec("there", f"{lab.hosts[0].address},{lab.hosts[1].address}")
    first, second = manager_of(name), manager_of(name)
    with crowded_machine(1, WRITES):
        await asyncio.gather(first.start_kernel(), second.start_kernel())
        assert isinstance(first.provisioner, ProcessProxyProvisioner)
        assert isinstance(second.provisioner, ProcessProxyProvisioner)
        assert first.provisioner.launch_address == second.provisioner.launch_address
        await first.shutdown_kernel(now=True)
        async with client_of(second) as client:
            assert (await printed(client, WHERE)).split()[1] == second.kernel_id
        await second.shutdown_kernel(now=True)


@pytest.mark.ssh
async def test_a_launch_that_fails_leaves_nothing(lab: HostLab, expect_log: ExpectLog) -> None:
    """jupyter_client's manager does not clean up; the adapter does, and the reason is the one of a gateway."""
    manager = manager_of(spec("broken", lab.hosts[0].address, ("sh", "-c", "echo out of cheese; sleep 77 & exit 3")))
    with (
        crowded_machine(1, WRITES),
        expect_log("out of cheese"),
        pytest.raises(LauncherFailedError, match="out of cheese"),
    ):
        await manager.start_kernel()
    assert not manager.has_kernel
    assert not lab.hosts[0].processes("sleep 77")
