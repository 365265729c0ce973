"""Kernels that are difficult to end, or whose back ends are."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from enterprise_gateway.transport.commport import CommPort
from tests.contract.backends import BAD_LAUNCHER, DISTRIBUTED_HERE, LAUNCHER, LAUNCHER_OPTIONS
from tests.contract.test_contract import nothing_left
from tests.kernels.test_lifecycle import CONFIG, state_of
from tests.support.gateway import Gateway, running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.proxies import CarelessProxy
from tests.support.tinyfarm import tiny_kernels
from tests.transport.test_commport import listener

LAUNCH = [sys.executable, str(LAUNCHER), *LAUNCHER_OPTIONS]
STAYS = 'setsid "$0" "$@" & exec sleep 1000'
STAYS_STUBBORNLY = """trap "" TERM; setsid "$0" "$@" & while :; do sleep 0.1; done"""
IGNORE_EVERYTHING = (
    "import signal, time\n"
    "for name in ('SIGINT', 'SIGTERM'): signal.signal(getattr(signal, name), signal.SIG_IGN)\n"
    "print('deaf', flush=True)\n"
    "while True: time.sleep(1)"
)


def script_kernelspec(name: str, argv: list[str], **config: Any) -> None:
    stanza = {"class_name": "tests.support.proxies.ScriptProxy", "config": config}
    write_kernelspec(name, argv=argv, metadata={"process_proxy": stanza})


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Path]:
    """The kernelspec ``tiny``."""
    with tiny_kernels(tmp_path) as launches:
        yield launches


@pytest.fixture(autouse=True)
def responses_come_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EG_RESPONSE_IP", "127.0.0.1")


async def delete(gateway: Gateway, kernel_id: str) -> None:
    """Delete a kernel and check that nothing of it is left."""
    await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
    assert await gateway.call("/api/kernels") == []
    await nothing_left(kernel_id)
    assert not list(Path(gateway.app.runtime_dir).glob("kernel-*"))


@pytest.mark.parametrize("script", [STAYS, STAYS_STUBBORNLY], ids=["lives", "ignores-sigterm"])
async def test_a_launch_script_that_lives_on_is_ended_with_its_kernel(script: str) -> None:
    """A restart and DELETE end the script too, and the launcher was told the log level."""
    script_kernelspec("script", ["sh", "-c", script, *LAUNCH])
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("script")
        first = gateway.app.kernel_manager.get_kernel(kernel_id).process_proxy.local_proc
        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        assert first.poll() is not None
        websocket = await gateway.websocket(kernel_id)
        text, _ = await websocket.execute("import os; print(os.environ.get('EG_LOG_LEVEL'))")
        assert text.strip() == "10"
        await delete(gateway, kernel_id)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_kernel_that_ignores_all_requests_is_killed(version: int) -> None:
    """Its launcher goes on listening after shutdown_request, so that the kernel can still be sent SIGKILL."""
    without_secret = ["env", "-u", "EG_LAUNCH_SECRET"] if version == 1 else []
    script_kernelspec("deaf", ["setsid", *without_secret, *LAUNCH], payload_version=version)
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("deaf")
        pid = gateway.app.kernel_manager.get_kernel(kernel_id).process_proxy.pid
        websocket = await gateway.websocket(kernel_id)
        await websocket.send("execute_request", {"code": IGNORE_EVERYTHING, "silent": False})
        await websocket.receive_until("stream")
        await delete(gateway, kernel_id)
        while await websocket.receive() is not None:
            pass
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_listener_that_outlives_its_kernel_is_told_to_stop() -> None:
    """A kernel with such a launcher of version 1 is known at once to be gone when it no longer answers."""
    script_kernelspec("outliving", [sys.executable, str(BAD_LAUNCHER), "outliving", *LAUNCHER_OPTIONS])
    patient = {"EnterpriseGatewayApp": {"list_kernels": True}, "RemoteKernelManager": {"shutdown_wait_time": 20}}
    async with running_gateway(config=patient) as gateway:
        kernel_id = await gateway.start_kernel("outliving")
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("1 + 1"))[0] == "2"
        began = time.monotonic()
        await delete(gateway, kernel_id)
        assert time.monotonic() - began < 10  # half of the time that a kernel has until it is signalled


async def test_a_back_end_that_does_not_answer_for_a_while_is_polled_again(expect_log: Any) -> None:
    """The kernel is still watched, so that it is restarted when it dies later."""
    stanza = {"class_name": "tests.support.proxies.UnsureProxy", "config": {"failures": 3}}
    write_kernelspec("unsure", metadata={"process_proxy": stanza})
    async with running_gateway(config=CONFIG) as gateway:
        with expect_log("The cluster does not answer|has died", required=False):
            kernel_id = await gateway.start_kernel("unsure")
            await asyncio.sleep(2.5)
            kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
            first = kernel.process_proxy.pid
            psutil.Process(first).kill()
            while kernel.process_proxy.pid in (0, first):
                await asyncio.sleep(0.1)
            await state_of(gateway, kernel_id, "idle")
            await delete(gateway, kernel_id)


async def test_a_back_end_that_fails_at_everything_but_kill_is_asked_to_kill(expect_log: Any) -> None:
    """DELETE is done, with warnings for the operator, and ports and files are released."""
    stanza = {"class_name": "tests.support.proxies.UnsureProxy", "config": {"failures": 10**6, "helpless": True}}
    argv = ["sh", "-c", "trap '' INT TERM; while :; do sleep 0.1; done"]
    write_kernelspec("helpless", argv=argv, metadata={"process_proxy": stanza})
    async with running_gateway(config=CONFIG) as gateway:
        with expect_log("The cluster|timed out", required=False):
            kernel_id = await gateway.start_kernel("helpless")
            await delete(gateway, kernel_id)
        assert not gateway.app.kernel_manager.resources.ports._taken


async def test_a_kernel_that_is_dead_for_good_holds_no_resources(launches: Path, expect_log: Any) -> None:
    """Its ports and the file with its key are given back at once, and a restart brings it to life again."""
    async with running_gateway(config={**CONFIG, "KernelRestarter": {"restart_limit": 0}}) as gateway:
        kernel_id = await gateway.start_kernel("tiny")
        await state_of(gateway, kernel_id, "idle")
        kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
        with expect_log("is dead", required=False):
            psutil.Process(kernel.process_proxy.pid).kill()
            await state_of(gateway, kernel_id, "dead")
        assert not gateway.app.kernel_manager.resources.ports._taken
        assert not list(Path(gateway.app.runtime_dir).glob("kernel-*"))
        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("1"))[1]["status"] == "ok"
        connection = json.loads(await asyncio.to_thread(Path(kernel.connection_file).read_text))
        assert connection["shell_port"] == kernel.shell_port
        await delete(gateway, kernel_id)


async def test_a_remote_kernel_that_is_dead_for_good_can_be_restarted(expect_log: Any) -> None:
    """Its script is ended and its connection closed when it dies; the restart creates both again."""
    script_kernelspec("script", ["sh", "-c", STAYS, *LAUNCH])
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("script")
        kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
        first = kernel.process_proxy
        with expect_log("is dead|no clients", required=False):
            psutil.Process(first.pid).kill()
            await state_of(gateway, kernel_id, "dead")
        assert first.local_proc.poll() is not None
        assert first.comm.duplicate() is None
        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("1 + 1"))[0] == "2"
        await delete(gateway, kernel_id)


async def test_a_back_ends_plain_methods_are_called_one_at_a_time(expect_log: Any) -> None:
    """Whatever calls them; the loop is not blocked, and simultaneous polls are one."""
    write_kernelspec(
        "careless", metadata={"process_proxy": {"class_name": f"{CarelessProxy.__module__}.CarelessProxy"}}
    )
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("careless")
        kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
        before, began = CarelessProxy.polls, time.monotonic()
        polls = [asyncio.create_task(kernel.is_alive()) for _ in range(40)]
        interrupts = [asyncio.create_task(gateway.fetch(f"/api/kernels/{kernel_id}/interrupt", "POST")) for _ in "ab"]
        assert all(await asyncio.gather(*polls))
        assert [response.code for response in await asyncio.gather(*interrupts)] == [204, 204]
        assert CarelessProxy.polls - before < 10
        assert time.monotonic() - began < 5
        await asyncio.gather(*(gateway.fetch(f"/api/kernels/{kernel_id}/{what}", "POST") for what in ("restart",) * 2))
        await delete(gateway, kernel_id)
    assert CarelessProxy.most_inside == 1
    assert CarelessProxy.inside == 0


async def test_a_back_end_that_hangs_blocks_only_its_own_kernels() -> None:
    """While its poll does not return, other kernels start and end, and its own are listed."""
    stanza = {"class_name": f"{CarelessProxy.__module__}.CarelessProxy"}
    write_kernelspec("hanging", metadata={"process_proxy": stanza})
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("hanging")
        kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
        CarelessProxy.go_on.clear()
        try:
            polls = [asyncio.create_task(kernel.is_alive()) for _ in range(200)]
            other = await gateway.start_kernel()
            assert {model["id"] for model in await gateway.call("/api/kernels")} == {kernel_id, other}
            await gateway.call(f"/api/kernels/{other}", "DELETE", status=204)
            assert CarelessProxy.inside == 1
            assert not any(poll.done() for poll in polls)
        finally:
            CarelessProxy.go_on.set()
        await asyncio.gather(*polls)
        await delete(gateway, kernel_id)


@pytest.mark.parametrize("answer", [b'{"version": 2, "challenge": "' + rb"\ud800" * 40 + b'"}\n', b"[" * 30000 + b"\n"])
async def test_an_interrupt_does_not_fail_because_of_what_a_communication_port_answers(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, expect_log: Any
) -> None:
    """The warning quotes it in one line, and the kernel's process is signalled directly."""
    monkeypatch.setenv("EG_KERNEL_LOG_DIR", str(tmp_path))
    name = DISTRIBUTED_HERE.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel(name)
        websocket = await gateway.websocket(kernel_id)
        loop = asyncio.create_task(websocket.execute("import time\nwhile True: time.sleep(0.1)"))
        await asyncio.sleep(0.7)
        proxy = gateway.app.kernel_manager.get_kernel(kernel_id).process_proxy
        true, proxy.comm = proxy.comm, None
        with listener(answer) as (port, _), expect_log("did not accept signal 2: The listener .* (speak|no JSON)"):
            proxy.comm = CommPort("127.0.0.1", port, kernel_id=kernel_id, secret=b"secret")
            await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", {}, status=204)
        proxy.comm = true
        assert (await loop)[1]["ename"] == "KeyboardInterrupt"
        await delete(gateway, kernel_id)
