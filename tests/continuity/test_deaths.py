"""Kernels that die are restarted within limits, and are otherwise dead with a reason that all clients are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from enterprise_gateway.core.death import describe_exit
from enterprise_gateway.transport.memorykills import RECENT_SECONDS, MemoryKills
from tests.conftest import ExpectLog
from tests.support.gateway import Gateway, KernelSocket, running_gateway
from tests.support.kernelspecs import write_kernelspec

from .rolling import eventually, processes_with, rolling_gateway

LISTED = {"EnterpriseGatewayApp": {"list_kernels": True}}


def with_restarts(**options: Any) -> dict[str, Any]:
    """Return the configuration of a gateway that lists kernels."""
    return {**LISTED, "KernelRestarter": options}


async def kill_kernel(gateway: Gateway, kernel_id: str, signum: int = signal.SIGKILL) -> None:
    """End the present process of a kernel."""
    proxy = gateway.app.kernel_manager.get_kernel(kernel_id).process_proxy
    assert proxy is not None
    os.kill(proxy.pid, signum)


async def test_a_killed_kernel_is_restarted_and_its_clients_learn_why(expect_log: ExpectLog) -> None:
    """The notebook is shown the reason and that variables are lost; the websocket stays and works."""
    async with running_gateway(config=LISTED) as gateway:
        kernel_id = await gateway.start_kernel()
        socket = await gateway.websocket(kernel_id)
        await socket.execute("x = 1")
        with expect_log("has died: its process was killed by signal SIGKILL; restart 1 of 5"):
            await kill_kernel(gateway, kernel_id)
            messages = await socket.receive_until("status")
            assert messages[-1]["content"]["execution_state"] == "restarting"
            assert "killed by signal SIGKILL" in messages[-1]["content"]["reason"]
            notice = next(message for message in messages if message["msg_type"] == "stream")
            assert "The kernel has died: its process was killed by signal SIGKILL." in notice["content"]["text"]
            text, _ = await socket.execute("print('x' in globals())")
        assert text == "False\n"


HAS_CHILDREN = (
    "import os, signal, subprocess\n"
    "children = [subprocess.Popen(['sleep', '1000']).pid, subprocess.Popen(['sh', '-c', 'sleep 1000; :']).pid]\n"
    "print(*children)"
)


async def children_of(socket: KernelSocket) -> list[int]:
    """Have a kernel start children, and return their process ids."""
    text, _ = await socket.execute(HAS_CHILDREN)
    children = [int(word) for word in text.split()]
    assert len(children) == 2
    return children


async def all_ended(kernel_id: str, children: list[int]) -> None:
    """Wait until a kernel's children have ended, and theirs."""
    await eventually(lambda: not any(map(psutil.pid_exists, children)), what="the children's end")
    await eventually(lambda: not set(processes_with(f"KERNEL_ID={kernel_id}")) & set(children))


@pytest.mark.parametrize("autorestart", [True, False], ids=["restarted", "not-restarted"])
@pytest.mark.parametrize("code", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "killed"])
async def test_a_kernel_that_dies_takes_its_children_with_it(
    code: str, autorestart: bool, expect_log: ExpectLog
) -> None:
    """They are gone before it is restarted, and also when it is not."""
    async with running_gateway(config={**LISTED, "RemoteKernelManager": {"autorestart": autorestart}}) as gateway:
        kernel_id = await gateway.start_kernel()
        socket = await gateway.websocket(kernel_id)
        children = await children_of(socket)
        with expect_log("has died: |is dead: "):
            await socket.send("execute_request", {"code": code, "silent": False})
            await all_ended(kernel_id, children)
            messages: list[Any] = []
            while not messages or messages[-1]["content"]["execution_state"] not in ("restarting", "dead"):
                messages = await socket.receive_until("status")
        if autorestart:
            text, _ = await socket.execute(
                f"import os; print([os.path.exists(f'/proc/{{pid}}') for pid in {children}])"
            )
            assert text == "[False, False]\n"


async def test_a_requested_end_takes_a_kernels_children_with_it() -> None:
    """Those of a kernel that is restarted or shut down, also when it dies of the request without ending them."""
    async with running_gateway(config=LISTED) as gateway:
        kernel_id = await gateway.start_kernel()
        socket = await gateway.websocket(kernel_id)
        for method, path, status in (("POST", "/restart", 200), ("DELETE", "", 204)):
            children = await children_of(socket)
            await socket.execute("signal.signal(signal.SIGINT, lambda *_: os._exit(9))")
            await gateway.call(f"/api/kernels/{kernel_id}{path}", method, status=status)
            await all_ended(kernel_id, children)
        while await socket.receive() is not None:
            pass


async def test_a_kernel_of_an_earlier_gateway_takes_its_children_with_it(tmp_path: Path) -> None:
    """A recovered kernel is not a child of the gateway, and still its process group is ended when it dies."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel()
        children = [int(word) for word in (await gateway.run(kernel_id, HAS_CHILDREN)).split()]
        await gateway.roll(kill=True)
        socket = await gateway.client.websocket(kernel_id)
        await socket.send("execute_request", {"code": "os._exit(3)", "silent": False})
        await all_ended(kernel_id, children)
        text, reply = await socket.execute("print('again')")
        while reply["status"] == "error":  # it was sent to the process that has died, before that was noticed
            assert reply["ename"] in {"KernelDied", "KernelRestarted"}
            text, reply = await socket.execute("print('again')")
        assert text == "again\n"
        socket.close()


async def test_a_kernel_that_dies_while_no_gateway_runs_takes_its_children_with_it(tmp_path: Path) -> None:
    """The next gateway finds them by the kernel's id in their environment."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel()
        socket = await gateway.client.websocket(kernel_id)
        children = await children_of(socket)
        pid = int((await socket.execute("print(os.getpid())"))[0])
        await gateway.kill()
        os.kill(pid, signal.SIGKILL)
        await gateway.start()
        await all_ended(kernel_id, children)
        assert await gateway.kernel_ids() == set()


async def test_a_kernel_that_keeps_dying_is_dead_after_the_limit(expect_log: ExpectLog) -> None:
    """Two restarts with a growing pause, then dead: the reason is in the model, the log and the notebook."""
    write_kernelspec("mortal", argv=["sh", "-c", "sleep 0.3; exit 3", "{connection_file}"])
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with running_gateway(config=with_restarts(restart_limit=3, restart_backoff=5)) as gateway:
        gateway.app.kernel_manager.restarter.sleep = sleep
        with expect_log("has died: its process ended with exit code 3; restart|is dead: ") as records:
            kernel_id = await gateway.start_kernel("mortal")
            socket = await gateway.websocket(kernel_id)
            messages = []
            while not messages or messages[-1]["content"].get("execution_state") != "dead":
                messages.append(await socket.receive())
        assert pauses == [5, 10]
        assert len(records) == 4
        (model,) = await gateway.call("/api/kernels")
        reason = "its process ended with exit code 3; it was restarted 3 times in a row, which is the limit"
        assert (model["execution_state"], model["reason"]) == ("dead", reason)
        assert messages[-1]["content"]["reason"] == reason
        assert reason in messages[-2]["content"]["text"]


async def test_a_restart_that_proves_stable_no_longer_counts(expect_log: ExpectLog) -> None:
    """Only restarts in a row count: after the stable time the count begins again."""
    async with running_gateway(config=with_restarts(restart_limit=1, stable_start_time=0.2)) as gateway:
        kernel_id = await gateway.start_kernel()
        manager = gateway.app.kernel_manager.get_kernel(kernel_id)
        with expect_log("restart 1 of 1") as records:
            for _ in range(3):
                await asyncio.sleep(0.3)
                pid = manager.process_proxy.pid
                await kill_kernel(gateway, kernel_id)
                await eventually(lambda pid=pid: manager.process_proxy.pid not in (0, pid))
        assert len(records) == 3


async def test_a_dead_kernel_stays_until_it_is_restarted(expect_log: ExpectLog) -> None:
    """It is listed as dead with its reason; a restart brings it back, and the reason is gone."""
    async with running_gateway(config={**LISTED, "RemoteKernelManager": {"autorestart": False}}) as gateway:
        kernel_id = await gateway.start_kernel()
        socket = await gateway.websocket(kernel_id)
        await socket.execute("1")
        with expect_log("is dead: its process was killed by signal SIGSEGV"):
            await kill_kernel(gateway, kernel_id, signal.SIGSEGV)
            messages = await socket.receive_until("status")
        assert "The kernel is dead: its process was killed by signal SIGSEGV." in messages[-2]["content"]["text"]
        (model,) = await gateway.call("/api/kernels")
        assert (model["execution_state"], model["reason"]) == ("dead", "its process was killed by signal SIGSEGV")

        model = await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST")
        assert "reason" not in model
        assert (await socket.execute("print(6 * 7)"))[0] == "42\n"
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)


@pytest.fixture
def small_group() -> Iterator[Path]:
    """Yield a control group whose processes together have 200 MB of memory."""
    version_1, version_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (version_1, "memory.limit_in_bytes") if version_1.is_dir() else (version_2, "memory.max")
    group = root / f"test-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        (group / limit).write_text(str(200_000_000))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"not applicable: no control group for memory can be made on this machine ({error})")
    yield group
    while (group / "cgroup.procs").read_text():
        time.sleep(0.05)
    group.rmdir()


async def test_a_kernel_that_ran_out_of_memory_has_that_as_its_reason(small_group: Path, expect_log: ExpectLog) -> None:
    """The system ends it for lack of memory: log, model and notebook say so."""
    reason = "its process was killed by signal SIGKILL: the system ran out of memory"
    async with running_gateway(config={**LISTED, "RemoteKernelManager": {"autorestart": False}}) as gateway:
        kernel_id = await gateway.start_kernel()
        socket = await gateway.websocket(kernel_id)
        await socket.execute("1")
        proxy = gateway.app.kernel_manager.get_kernel(kernel_id).process_proxy
        assert proxy is not None
        (small_group / "cgroup.procs").write_text(str(proxy.pid))
        with expect_log(f"is dead: {reason}"):
            await socket.send("execute_request", {"code": "everything = b'x' * 1_000_000_000", "silent": False})
            messages = await socket.receive_until("status", timeout=30)
            while messages[-1]["content"]["execution_state"] != "dead":
                messages = await socket.receive_until("status", timeout=30)
        assert messages[-1]["content"]["reason"] == reason
        (model,) = await gateway.call("/api/kernels")
        assert (model["execution_state"], model["reason"]) == ("dead", reason)


async def test_a_dead_kernel_can_be_deleted(expect_log: ExpectLog) -> None:
    """DELETE of a dead kernel is 204, at once."""
    async with running_gateway(config={**LISTED, "RemoteKernelManager": {"autorestart": False}}) as gateway:
        kernel_id = await gateway.start_kernel()
        with expect_log("is dead"):
            await kill_kernel(gateway, kernel_id)
            manager = gateway.app.kernel_manager.get_kernel(kernel_id)
            await eventually(lambda: manager.execution_state == "dead")
        await asyncio.wait_for(gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204), 2)
        assert await gateway.call("/api/kernels") == []


@pytest.mark.parametrize(
    ("exit_code", "memory_kill", "words"),
    [
        (None, False, "its process has ended"),
        (0, True, "its process has ended"),
        (7, False, "its process ended with exit code 7"),
        (-9, False, "its process was killed by signal SIGKILL"),
        (-9, True, "its process was killed by signal SIGKILL: the system ran out of memory"),
        (-15, True, "its process was killed by signal SIGTERM"),
        (-99, False, "its process was killed by signal 99"),
    ],
)
def test_exit_codes_and_signals_are_named_in_words(exit_code: int | None, memory_kill: bool, words: str) -> None:
    """Exit codes and signals by name; lack of memory only where the system counted a kill, and the signal is KILL."""
    assert describe_exit(exit_code, memory_kill=memory_kill) == words


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("groups", "file", "text"),
    [
        ("0::/kernels", "sys/fs/cgroup/kernels/memory.events", "low 0\noom 5\noom_kill {}\n"),
        ("0::/elsewhere/in/the/host", "sys/fs/cgroup/memory.events", "oom_kill {}\noom_group_kill 0\n"),
        ("4:memory:/a\n2:cpu:/", "sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill_disable 0\noom_kill {}\n"),
        ("", "proc/vmstat", "nr_free_pages 5\noom_kill {}\n"),
    ],
)
def test_kills_for_lack_of_memory_are_noticed(groups: str, file: str, text: str, tmp_path: Path) -> None:
    """A counter that rises (control groups of both versions, whole machine) makes a kill recent for half a minute."""
    now = [0.0]
    write(tmp_path / "proc/self/cgroup", groups + "\n")
    write(tmp_path / file, text.format(3))
    kills = MemoryKills(tmp_path, clock=lambda: now[0])
    assert not kills.was_recent()
    write(tmp_path / file, text.format(4))
    assert kills.was_recent()
    now[0] += RECENT_SECONDS - 1
    assert kills.was_recent()
    now[0] += 2
    assert not kills.was_recent()


def test_without_counters_no_kill_is_recent(tmp_path: Path) -> None:
    """Where the system has no counters, no kill is attributed to a lack of memory."""
    assert not MemoryKills(tmp_path).was_recent()


async def test_a_kernel_killed_for_lack_of_memory_says_so(tmp_path: Path, expect_log: ExpectLog) -> None:
    """The counter has risen when the kernel is found killed: the model's reason names the lack of memory."""
    write(tmp_path / "proc/vmstat", "oom_kill 0\n")
    async with running_gateway(config={**LISTED, "RemoteKernelManager": {"autorestart": False}}) as gateway:
        gateway.app.kernel_manager.restarter.memory_kills = MemoryKills(tmp_path)
        kernel_id = await gateway.start_kernel()
        with expect_log("is dead: its process was killed by signal SIGKILL: the system ran out of memory"):
            write(tmp_path / "proc/vmstat", "oom_kill 1\n")
            await kill_kernel(gateway, kernel_id)
            manager = gateway.app.kernel_manager.get_kernel(kernel_id)
            await eventually(lambda: manager.execution_state == "dead")
        assert "ran out of memory" in (await gateway.call("/api/kernels"))[0]["reason"]
