"""What the gateway and its users can expect of every back end."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import psutil
import pytest

from enterprise_gateway.core.states import Phase
from tests.clusters.ssh_hosts import HostLab
from tests.support.gateway import Gateway, running_gateway

from .backends import Backend

CONFIG: dict[str, Any] = {
    "EnterpriseGatewayApp": {"list_kernels": True, "unauthorized_users": ["mallory"]},
    "RemoteKernelManager": {"shutdown_wait_time": 4},
}
USER = {"KERNEL_USERNAME": "alice"}


async def start(gateway: Gateway, name: str, **env: str) -> str:
    """Start a kernel for alice."""
    return await gateway.start_kernel(name, env={**USER, **env})


async def refused(gateway: Gateway, expect_log: Any, name: str, status: int, **env: str) -> str:
    """Return the reason of a start that fails; nothing may be left of it."""
    kernel_id = str(uuid.uuid4())
    body = {"name": name, "env": {**USER, "KERNEL_ID": kernel_id, **env}}
    with expect_log("", required=status >= 500):
        answer = await gateway.call("/api/kernels", "POST", body, status=status)
    assert await gateway.call("/api/kernels") == []
    await nothing_left(kernel_id)
    return str(answer["message"] or answer["reason"])


def processes_of(kernel_id: str) -> list[psutil.Process]:
    """Return this machine's processes (those on the SSH hosts among them) that belong to a kernel."""
    found = []
    for process in psutil.process_iter():
        try:
            named = kernel_id in " ".join(process.cmdline()) or process.environ().get("KERNEL_ID") == kernel_id
            if named and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


async def nothing_left(kernel_id: str) -> None:
    """Check that no process of a kernel remains after a moment."""
    end = time.monotonic() + 8
    while (remaining := await asyncio.to_thread(processes_of, kernel_id)) and time.monotonic() < end:
        await asyncio.sleep(0.2)
    assert not remaining


async def test_a_kernel_starts_executes_and_stops(backend: Backend) -> None:
    """Code runs in the kernel, its environment names it, and after DELETE nothing of it is left."""
    name = backend.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await start(gateway, name, KERNEL_GREETING="hello")
        websocket = await gateway.websocket(kernel_id)
        text, reply = await websocket.execute(
            "from os import environ as e; print(e['KERNEL_ID'], e['KERNEL_GREETING'])"
        )
        assert (reply["status"], text.split()) == ("ok", [kernel_id, "hello"])
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        await nothing_left(kernel_id)


async def test_the_model_shows_the_phases_of_a_start(backend: Backend) -> None:
    """The model of a kernel has them in their order, with times that do not go back; after a restart, the new ones."""
    name = backend.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await start(gateway, name)
        websocket = await gateway.websocket(kernel_id)
        await websocket.execute("1")
        phases = (await gateway.call(f"/api/kernels/{kernel_id}"))["phases"]
        names = [step["phase"] for step in phases]
        assert names == [phase.value for phase in Phase if phase.value in names]
        assert names[0] == "queued"
        assert names[-2:] == ["connected", "answered"]
        assert not backend.is_remote or "reported" in names
        times = [step["time"] for step in phases]
        assert times == sorted(times)
        assert "phases" not in (await gateway.call("/api/kernels"))[0]

        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        await websocket.execute("1")
        assert (await gateway.call(f"/api/kernels/{kernel_id}"))["phases"][0]["time"] > times[-1]


async def test_an_interrupt_stops_the_cell_and_not_the_kernel(backend: Backend) -> None:
    """A loop ends with KeyboardInterrupt; variables are still there."""
    name = backend.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await start(gateway, name)
        websocket = await gateway.websocket(kernel_id)
        await websocket.execute("x = 42")
        loop = asyncio.create_task(websocket.execute("while True: pass"))
        await asyncio.sleep(0.7)
        await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", {}, status=204)
        assert (await loop)[1]["ename"] == "KeyboardInterrupt"
        assert (await websocket.execute("x"))[0] == "42"


async def test_a_restart_keeps_the_open_websocket(backend: Backend) -> None:
    """The websocket uses the new process, whose variables are gone; no message looks like a death."""
    name = backend.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await start(gateway, name)
        websocket = await gateway.websocket(kernel_id)
        process = "import os, socket; print(f'{socket.gethostname()}/{os.getpid()}', 'x' in globals())"
        first, _ = await websocket.execute(f"{process}; x = 1")
        before = gateway.app.kernel_manager.get_kernel(kernel_id).get_connection_info()
        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        after = gateway.app.kernel_manager.get_kernel(kernel_id).get_connection_info()
        info = await websocket.send("kernel_info_request", {})
        heard = await websocket.receive_until("kernel_info_reply", parent=info)
        assert not {"restarting", "dead"} & {message["content"].get("execution_state") for message in heard}
        second, _ = await websocket.execute(process)
        assert second.split()[1] == "False"
        assert second.split()[0] != first.split()[0]
        if backend.is_remote:
            ports = [entry for entry in before if entry.endswith("_port")]
            assert len(ports) == 5
            assert after["key"] != before["key"]
            # Ports are chosen at random: one may come again.
            assert len({after[port] for port in ports} & {before[port] for port in ports}) <= 1


async def test_a_kernel_that_dies_is_restarted_for_its_client(backend: Backend, expect_log: Any) -> None:
    """A crash is noticed without a request; the client gets an error as reply, is told and gets a fresh kernel."""
    name = backend.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await start(gateway, name)
        websocket = await gateway.websocket(kernel_id)
        await websocket.execute("1")
        states = []
        with expect_log("has died: its process .*; restart 1 of 5"):
            await websocket.send("execute_request", {"code": "import os; os._exit(7)", "silent": False})
            queued = await websocket.send("execute_request", {"code": "1", "silent": False})
            replies = {}
            while "restarting" not in states:
                message = await websocket.receive()
                if message["msg_type"] == "status":
                    states.append(message["content"]["execution_state"])
                elif message["msg_type"] == "execute_reply":
                    replies[message["parent_header"]["msg_id"]] = message["content"]
        assert [reply["ename"] for reply in replies.values()] == ["KernelDied", "KernelDied"]
        assert queued in replies
        assert (await websocket.execute("6 * 7"))[0] == "42"


async def test_a_kernel_that_dies_for_good_leaves_no_client_waiting(backend: Backend, expect_log: Any) -> None:
    """Without automatic restarts what it was asked is replied to with an error; so is what comes afterwards."""
    name = backend.kernelspec()
    async with running_gateway(config={**CONFIG, "RemoteKernelManager": {"autorestart": False}}) as gateway:
        kernel_id = await start(gateway, name)
        websocket = await gateway.websocket(kernel_id)
        with expect_log("is dead: its process "):
            assert (await websocket.execute("import os; os._exit(7)"))[1]["ename"] == "KernelDied"
            assert (await websocket.execute("6 * 7"))[1]["ename"] == "KernelDied"
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)


async def test_a_kernel_outlives_a_cut_link(
    backend: Backend, lab: HostLab, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """While its host is unreachable a kernel is not considered dead; afterwards it goes on with its variables."""
    monkeypatch.setenv("EG_SSH_CONNECT_TIMEOUT", "1")
    monkeypatch.setenv("EG_SOCKET_TIMEOUT", "1")
    name = backend.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await start(gateway, name)
        websocket = await gateway.websocket(kernel_id)
        pid, _ = await websocket.execute("import os; x = 41; print(os.getpid())")
        with expect_log("did not accept|not be sent|interrupted", required=False):
            await asyncio.to_thread(set_links, lab, up=False)
            try:
                kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
                for _ in range(9):
                    await asyncio.sleep(1)
                    assert (await gateway.call(f"/api/kernels/{kernel_id}"))["execution_state"] != "dead"
                assert gateway.app.kernel_manager.get_kernel(kernel_id) is kernel
            finally:
                await asyncio.to_thread(set_links, lab, up=True)
            text, _ = await websocket.execute("print(os.getpid(), x + 1)", timeout=30)
        assert text.split() == [pid.strip(), "42"]
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        await nothing_left(kernel_id)


def set_links(lab: HostLab, *, up: bool) -> None:
    """Cut all hosts off, or connect them again."""
    for host in lab.hosts:
        if up:
            host.link_up()
        else:
            host.link_down()


async def test_a_user_who_may_not_start_it_is_refused(backend: Backend, expect_log: Any) -> None:
    """403 with a sentence; nothing was started."""
    name = backend.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        reason = await refused(gateway, expect_log, name, 403, KERNEL_USERNAME="mallory")
        assert "User 'mallory' is not authorized to start kernel" in reason


@pytest.mark.parametrize("port_range", ["1..2", "nonsense", "100..5000", "60000..70000"])
async def test_a_wrong_port_range_is_refused(backend: Backend, port_range: str, expect_log: Any) -> None:
    """A range that is malformed, too small or out of bounds fails the start with a sentence."""
    name = backend.kernelspec(port_range=port_range)
    async with running_gateway(config=CONFIG) as gateway:
        assert "Port range" in await refused(gateway, expect_log, name, 500)


async def test_ports_are_within_the_range(backend: Backend) -> None:
    """All ports of a kernel lie within the kernelspec's port range."""
    name = backend.kernelspec(port_range="21000..23000")
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await start(gateway, name)
        info = gateway.app.kernel_manager.get_kernel(kernel_id).get_connection_info()
        if backend.name == "thirdparty":
            return  # ports of a base proxy are the gateway's to choose, as here
        assert all(21000 <= port <= 23000 for entry, port in info.items() if entry.endswith("_port"))


async def test_a_start_that_is_cancelled_leaves_nothing(backend: Backend) -> None:
    """DELETE while the kernel is starting ends it; its id can be used again."""
    name = backend.bad_kernelspec("silent") if backend.is_remote else backend.kernelspec()
    kernel_id = str(uuid.uuid4())
    async with running_gateway(config=CONFIG) as gateway:
        body = {"name": name, "env": {**USER, "KERNEL_ID": kernel_id}}
        starting = asyncio.create_task(gateway.fetch("/api/kernels", "POST", body))
        await asyncio.sleep(0.5 if backend.is_remote else 0)
        stopped = await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")
        answer = await starting
        # A local start may be over before the DELETE comes, or not yet begun.
        assert (stopped.code, answer.code) in {(204, 409), (204, 201), (404, 201)}
        assert not backend.is_remote or answer.code == 409
        if stopped.code == 204:
            await nothing_left(kernel_id)


@pytest.mark.launchers
async def test_a_silent_launcher_times_out_with_an_explanation(backend: Backend, expect_log: Any) -> None:
    """The request's launch time-out applies; the launcher is ended."""
    name = backend.bad_kernelspec("silent")
    async with running_gateway(config=CONFIG) as gateway:
        began = time.monotonic()
        reason = await refused(gateway, expect_log, name, 500, KERNEL_LAUNCH_TIMEOUT="1.5")
        assert "launch timeout due to: Waited too long (1.5s)" in reason
        assert time.monotonic() - began < 12


@pytest.mark.launchers
async def test_a_launcher_that_crashes_says_why_at_once(backend: Backend, expect_log: Any) -> None:
    """The error comes long before the time-out and ends with the launcher's last lines."""
    name = backend.bad_kernelspec("crash")
    async with running_gateway(config=CONFIG) as gateway:
        began = time.monotonic()
        reason = await refused(gateway, expect_log, name, 500, KERNEL_LAUNCH_TIMEOUT="30")
        assert "ModuleNotFoundError: No module named 'ipykernel'" in reason
        assert time.monotonic() - began < 12


@pytest.mark.launchers
@pytest.mark.parametrize("mode", ["late", "twice", "pieces", "wrong-key", "wrong-id", "garbage"])
async def test_a_clumsy_launcher_still_starts_its_kernel(backend: Backend, mode: str, expect_log: Any) -> None:
    """A report that comes late, twice, in pieces or after garbage is accepted when it is valid."""
    name = backend.bad_kernelspec(mode)
    async with running_gateway(config=CONFIG) as gateway:
        with expect_log("", required=False):
            kernel_id = await start(gateway, name)
            websocket = await gateway.websocket(kernel_id)
            assert (await websocket.execute("6 * 7"))[0] == "42"
            await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
            await nothing_left(kernel_id)


@pytest.mark.launchers
async def test_a_kernel_that_dies_while_its_launcher_lives_is_not_considered_alive(
    backend: Backend, expect_log: Any
) -> None:
    """Its client is told of restarts, then that the kernel is dead and why; after DELETE nothing is left."""
    name = backend.bad_kernelspec("dies")
    restarts = {"KernelRestarter": {"restart_limit": 1}}
    async with running_gateway(config={**CONFIG, **restarts}) as gateway:
        with expect_log("", required=False):
            kernel_id = await start(gateway, name)
            websocket = await gateway.websocket(kernel_id)
            states = []
            while "dead" not in states:
                message = await websocket.receive()
                if message["msg_type"] == "status":
                    states.append(message["content"]["execution_state"])
            assert "restarting" in states
            model = await gateway.call(f"/api/kernels/{kernel_id}")
            assert model["execution_state"] == "dead"
            assert model["reason"]
            await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
            await nothing_left(kernel_id)


@pytest.mark.launchers
async def test_invalid_connection_information_is_rejected(backend: Backend, expect_log: Any) -> None:
    """A port out of range is refused, and the time-out says so."""
    name = backend.bad_kernelspec("bad-ports")
    async with running_gateway(config=CONFIG) as gateway:
        reason = await refused(gateway, expect_log, name, 500, KERNEL_LAUNCH_TIMEOUT="4")
        assert "shell_port must be a port number" in reason


@pytest.mark.launchers
async def test_version_1_is_refused_where_version_2_is_required(backend: Backend, expect_log: Any) -> None:
    """A kernelspec that requires payload version 2 does not accept a report of version 1."""
    name = backend.bad_kernelspec("late", payload_version=2)
    async with running_gateway(config=CONFIG) as gateway:
        reason = await refused(gateway, expect_log, name, 500, KERNEL_LAUNCH_TIMEOUT="5")
        assert "version" in reason
