"""Replicas and kernels on SSH hosts: each has its own connection to the kernel, and the last one cleans up."""

from __future__ import annotations

import asyncio
import shutil
import sys

import pytest

from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import REPOSITORY

from .conftest import connected, eventually

pytestmark = [pytest.mark.ssh, pytest.mark.slow]

LAUNCHER = REPOSITORY / "etc" / "kernel-launchers" / "python" / "scripts" / "launch_ipykernel.py"
OPTIONS = ("--kernel-id", "{kernel_id}", "--port-range", "{port_range}", "--response-address", "{response_address}")
PROXY = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
WHERE = "import os, socket; print(socket.gethostname(), os.getpid())"


@pytest.fixture
def hosts(lab):
    """Return the lab's hosts, and have a kernelspec for them."""
    stanza = {"class_name": PROXY, "config": {"payload_version": 2}}
    argv = (sys.executable, str(LAUNCHER), *OPTIONS, "--public-key", "{public_key}")
    write_kernelspec("distributed", argv=argv, metadata={"process_proxy": stanza})
    yield lab.hosts
    for host in lab.hosts:
        host.no_firewall()
    shutil.rmtree(lab.folder / "logs", ignore_errors=True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("is_tunnelled", [False, True], ids=["plain", "tunnelled"])
async def test_a_kernel_on_an_ssh_host_is_shared(replicas, lab, hosts, is_tunnelled):
    """A kernel of one replica is used and restarted through the other, survives the first, and is deleted there.

    With tunnels nothing but SSH reaches the hosts, so that each replica needs tunnels of its own.
    """
    if is_tunnelled:
        for host in hosts:
            await asyncio.to_thread(host.firewall)
    settings = {**lab.environment(), "EG_ENABLE_TUNNELING": str(is_tunnelled), "EG_RESPONSE_PORT": "0"}
    one, two = await replicas.start(2, **settings, EG_KERNEL_LOG_DIR=str(lab.folder / "logs"))
    kernel_id = await one.start_kernel("distributed")
    here, there = await one.websocket(kernel_id), await two.websocket(kernel_id)
    await here.execute("x = 41")
    assert (await there.execute("x + 1"))[0] == "42"
    await two.call(f"/api/kernels/{kernel_id}/restart", "POST")
    place = (await there.execute(WHERE))[0]
    assert (await here.execute(WHERE))[0] == place
    assert (await here.execute("y = 'x' in globals(); y"))[0] == "False"

    await asyncio.to_thread(replicas.kill, 0)
    assert (await there.execute("y"))[0] == "False"
    socket = await connected(replicas.through_proxy, kernel_id, here.session_id)
    assert (await socket.execute(WHERE))[0] == place

    await two.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)

    async def nothing_is_left():
        return not await asyncio.to_thread(lambda: any(host.processes("launch_ipykernel.py") for host in hosts))

    await eventually(nothing_is_left)
    assert not [path for path in lab.folder.rglob(f"*{kernel_id}*") if path.suffix != ".log"]
    assert "Traceback" not in replicas.output
