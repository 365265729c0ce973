"""Kernels of other users on the gateway's own host, by sudo: a gateway that is root's, and one that is not."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.clusters.ssh_hosts import HostLab
from tests.support.gateway import Client, KernelSocket
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import REPOSITORY, ServerProcess

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(180)]

LAUNCHER = REPOSITORY / "etc" / "kernel-launchers" / "python" / "scripts" / "launch_ipykernel.py"
PROXY = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
OPTIONS = (
    *("--kernel-id", "{kernel_id}", "--port-range", "{port_range}", "--response-address", "{response_address}"),
    *("--public-key", "{public_key}", "--cluster-type", "none"),
)
# What `ps` shows to everybody while the launcher starts, and the secret that must not be in it.
NOTE = 'ps -eww -o args > "$HOME/seen"; printf %s "$EG_LAUNCH_SECRET" > "$HOME/secret"; exec "$@"'
SUDO = ["sudo", "-n", "-H", "-u", "bob"]
HOSTILE = "it's 'quoted' * ~ # grüß"
LIFTED = {"PYTHONPATH": "/nowhere", "LD_LIBRARY_PATH": "/nowhere/either"}  # sudo never keeps these


@pytest.fixture(params=["root", "ted"])
def gateways_user(request: pytest.FixtureRequest) -> str:
    """As whom the gateway runs: ted's only privilege is to become bob."""
    return str(request.param)


@asynccontextmanager
async def gateway_of(user: str, lab: HostLab) -> AsyncIterator[Client]:
    """Run a gateway as ``user`` among the lab's users, with a kernelspec ``here``."""
    data = lab.folder / f"data-{user}"
    argv = ("sh", "-c", NOTE, "sh", sys.executable, str(LAUNCHER), *OPTIONS)
    stanza = {"class_name": PROXY, "config": {"remote_hosts": "localhost", "payload_version": 2}}
    write_kernelspec("here", argv=argv, env=LIFTED, metadata={"process_proxy": stanza}, directory=data)
    write_kernelspec(
        "broken",
        argv=("sh", "-c", "echo $(id -un): out of cheese >&2; exit 3"),
        metadata={"process_proxy": stanza},
        directory=data,
    )
    if user != "root":
        shutil.chown(data, lab.home(user).stat().st_uid)
    readable = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix).resolve()}
    server = ServerProcess(
        [
            *lab.as_user(user, sorted(readable)),
            *(sys.executable, "-m", "enterprise_gateway", "--port=0", "--log-level=INFO"),
        ],
        ready=r"is available at (?P<url>https?://\S+)",
        log=lab.folder / f"{user}.out",
        env={
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/root" if user == "root" else str(lab.home(user)),
            "JUPYTER_DATA_DIR": str(data),
            "JUPYTER_RUNTIME_DIR": None,
            "EG_KERNEL_LOG_DIR": str(data / "logs"),
            "EG_IMPERSONATION_ENABLED": "true",
            "EG_REMOTE_USER": "bob",  # as whom other hosts are entered, not this one
            "EG_RESPONSE_IP": "127.0.0.1",
            "EG_RESPONSE_PORT": "0",
            "EG_CLIENT_ENVS": "VALUE",
            "EG_UNAUTHORIZED_USERS": "root",
        },
    )
    try:
        async with server, Client(server.url) as client:
            yield client
    finally:
        shutil.rmtree(data)


def processes_of(lab: HostLab, user: str) -> list[psutil.Process]:
    """Return the processes of one of the lab's users."""
    uid = lab.home(user).stat().st_uid
    found = []
    for process in psutil.process_iter():
        try:
            if process.uids().real == uid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def sudos() -> list[psutil.Process]:
    """Return the processes of sudo that wait for a kernel of bob's."""
    return [each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [])[:5] == SUDO]


async def until_stopped(process: psutil.Process) -> None:
    """Wait for a process to be stopped by a signal."""
    end = time.monotonic() + 8
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def ended(lab: HostLab, kernel_id: str, socket: KernelSocket) -> None:
    """Wait until bob has no process, no command names the kernel, and the gateway has closed the websocket."""
    while await socket.receive() is not None:
        pass

    def remaining() -> list[Any]:
        lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        return [*processes_of(lab, "bob"), *(line for line in lines if kernel_id in line)]

    end = time.monotonic() + 8
    while (left := await asyncio.to_thread(remaining)) and time.monotonic() < end:
        await asyncio.sleep(0.1)
    assert not left


async def test_a_kernel_runs_as_its_user(gateways_user: str, lab: HostLab) -> None:
    """It is that user's from start to end, has the whole environment of its launch, and nobody sees that in ``ps``."""
    env = {"KERNEL_USERNAME": "bob", "KERNEL_TOKEN": "hunter3", "VALUE": HOSTILE}
    async with gateway_of(gateways_user, lab) as gateway:
        kernel_id = await gateway.start_kernel("here", env=env)
        socket = await gateway.websocket(kernel_id)
        assert (await socket.execute("import os; print(os.getuid(), os.path.expanduser('~'), os.environ['USER'])"))[
            0
        ] == f"{lab.home('bob').stat().st_uid} {lab.home('bob')} bob\n"
        names = ["KERNEL_ID", "KERNEL_TOKEN", "VALUE", *LIFTED]
        text, _ = await socket.execute(f"print(repr([os.environ.get(n) for n in {names}]))")
        assert text == f"{[kernel_id, 'hunter3', HOSTILE, *LIFTED.values()]!r}\n"
        seen = (lab.home("bob") / "seen").read_text()
        secret = (lab.home("bob") / "secret").read_text()
        assert len(secret) > 20
        assert kernel_id in seen
        assert secret not in seen
        assert "hunter3" not in seen

        request = await socket.send(
            "execute_request", {"code": "x = 41; import time; print('go', flush=True); time.sleep(60)", "silent": False}
        )
        await socket.receive_until("stream", parent=request)
        await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", {}, status=204)
        reply = (await socket.receive_until("execute_reply", parent=request))[-1]
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert (await socket.execute("print(x + 1)"))[0] == "42\n"

        before = await asyncio.to_thread(processes_of, lab, "bob")
        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        text, reply = await socket.execute("import os; print(os.getuid()); x")
        assert (text, reply["ename"]) == (f"{lab.home('bob').stat().st_uid}\n", "NameError")
        assert not set(before) & set(await asyncio.to_thread(processes_of, lab, "bob"))

        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        await ended(lab, kernel_id, socket)


async def test_a_kernel_that_does_not_listen_is_killed(gateways_user: str, lab: HostLab) -> None:
    """A kernel that is stopped, with its children, is ended by a signal that only its user and root may send."""
    async with gateway_of(gateways_user, lab) as gateway:
        kernel_id = await gateway.start_kernel("here", env={"KERNEL_USERNAME": "bob"})
        socket = await gateway.websocket(kernel_id)
        code = (
            "import os, subprocess, time\nsubprocess.Popen(['sleep', '63'])\nprint('go', flush=True)\n"
            "time.sleep(0.5)\nos.kill(os.getpid(), 19)"
        )
        request = await socket.send("execute_request", {"code": code, "silent": False})
        await socket.receive_until("stream", parent=request)
        (sudo,) = await asyncio.to_thread(sudos)
        await until_stopped(sudo)
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        await ended(lab, kernel_id, socket)
        assert gateways_user != "root" or not sudo.is_running()


async def test_a_launcher_that_ends_is_noticed_at_once(gateways_user: str, lab: HostLab) -> None:
    """Its user's words are in the error, as are sudo's when it does not let us."""
    async with gateway_of(gateways_user, lab) as gateway:
        for user, sentence in (("bob", "bob: out of cheese"), ("nobody-known", "unknown user")):
            body = {"name": "broken", "env": {"KERNEL_USERNAME": user}}
            answer = await gateway.call("/api/kernels", "POST", body, status=500)
            assert sentence in answer["message"]
