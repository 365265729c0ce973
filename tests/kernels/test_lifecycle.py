"""Interrupts, restarts and deletions of kernels, in any order."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.contract.test_contract import nothing_left
from tests.support.gateway import Gateway, running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.tinyfarm import tiny_kernels

CONFIG: dict[str, Any] = {
    "EnterpriseGatewayApp": {"list_kernels": True},
    "RemoteKernelManager": {"shutdown_wait_time": 2},
}


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Path]:
    """The kernelspec ``tiny``; the file has a line for each process that was launched."""
    with tiny_kernels(tmp_path) as launches:
        yield launches


async def state_of(gateway: Gateway, kernel_id: str, state: str) -> dict[str, Any]:
    """Wait until a kernel is in a state, and return its model."""
    for _ in range(300):
        model = await gateway.call(f"/api/kernels/{kernel_id}")
        if model["execution_state"] == state:
            return model
        await asyncio.sleep(0.05)
    raise AssertionError(f"kernel {kernel_id} is {model['execution_state']}, not {state}")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"interrupt_mode": "message"}, "while True: pass"),
        (
            {"env": {"EG_ALTERNATE_SIGINT": "SIGUSR2"}},
            (
                "import signal\n"
                "signal.signal(signal.SIGUSR2, lambda *_: signal.default_int_handler(signal.SIGINT, None))\n"
                "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
                "while True: pass"
            ),
        ),
    ],
    ids=["message", "alternate-signal"],
)
async def test_an_interrupt_is_sent_as_the_kernelspec_requires(fields: dict[str, Any], code: str) -> None:
    """In message mode the kernel gets interrupt_request, and with EG_ALTERNATE_SIGINT that signal."""
    write_kernelspec("special", **fields)
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("special")
        websocket = await gateway.websocket(kernel_id)
        await websocket.execute("x = 42")
        loop = asyncio.create_task(websocket.execute(code))
        await asyncio.sleep(1)
        await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", {}, status=204)
        assert (await loop)[1]["ename"] == "KeyboardInterrupt"
        assert (await websocket.execute("x"))[0] == "42"


async def test_a_restart_keeps_ports_and_key_of_a_local_kernel(launches: Path) -> None:
    """The new process gets the same connection information, so clients with direct connections stay connected."""
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("tiny")
        kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
        before, pid = kernel.get_connection_info(), kernel.process_proxy.pid
        assert (await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {}))["id"] == kernel_id
        assert kernel.get_connection_info() == before
        assert kernel.process_proxy.pid != pid
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("1"))[1]["status"] == "ok"


async def test_a_restart_requested_during_a_restart_is_the_same_one(launches: Path, expect_log: Any) -> None:
    """However many clients ask at once, all are answered 200 and the kernel is launched once more."""
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("tiny")
        await state_of(gateway, kernel_id, "idle")
        path = f"/api/kernels/{kernel_id}/restart"
        answers = await asyncio.gather(*(gateway.fetch(path, "POST", {}) for _ in range(6)))
        assert [answer.code for answer in answers] == [200] * 6
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("1"))[1]["status"] == "ok"
        assert len(launches.read_text().splitlines()) == 2
        kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
        with expect_log("has died: its process was killed by signal SIGKILL; restart 1 of 5") as told:
            psutil.Process(kernel.process_proxy.pid).kill()  # it is watched, and by one watch only
            while len(launches.read_text().splitlines()) < 3:
                await asyncio.sleep(0.05)
        assert len(told) == 1
        await state_of(gateway, kernel_id, "idle")
        assert len(launches.read_text().splitlines()) == 3
        await websocket.receive_until("stream")  # that it has died, and why
        assert (await websocket.execute("1"))[1]["status"] == "ok"


async def test_requests_during_a_restart_are_refused_or_end_it(expect_log: Any) -> None:
    """An interrupt is 409; DELETE ends the restart, whose client gets 409, and nothing is left."""
    stanza = {"class_name": "tests.support.proxies.SlowProxy", "config": {"seconds": 1.5}}
    write_kernelspec("slow", argv=["sleep", "1000"], metadata={"process_proxy": stanza})
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("slow")
        restart = asyncio.create_task(gateway.fetch(f"/api/kernels/{kernel_id}/restart", "POST", {}))
        await state_of(gateway, kernel_id, "restarting")
        refused = await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", {}, status=409)
        assert refused["message"] == f"Kernel {kernel_id} cannot be interrupted: it is being restarted."
        await asyncio.sleep(0.5)
        deletes = await asyncio.gather(*(gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE") for _ in range(2)))
        codes = sorted(delete.code for delete in deletes)
        assert codes in ([204, 204], [204, 404])  # 404 if the second one came when all was over
        assert (await restart).code == 409
        assert await gateway.call("/api/kernels") == []
        await nothing_left(kernel_id)
        assert not list(Path(gateway.app.runtime_dir).glob("kernel-*"))


async def test_a_kernel_that_is_being_stopped_is_left_alone() -> None:
    """Interrupt and restart are 409 with a sentence while a kernel is slow to end; DELETE waits until it has ended."""
    write_kernelspec("stubborn", argv=["sh", "-c", "trap '' TERM INT; while true; do sleep 0.1; done"])
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("stubborn")
        await asyncio.sleep(0.2)
        stop = asyncio.create_task(gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE"))
        await asyncio.sleep(0.3)
        for action in ("interrupt", "restart"):
            refused = await gateway.call(f"/api/kernels/{kernel_id}/{action}", "POST", {}, status=409)
            assert "being shut down" in refused["message"]
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        assert (await stop).code == 204
        await nothing_left(kernel_id)


async def test_a_kernel_that_ends_at_once_is_dead_with_a_reason(expect_log: Any) -> None:
    """After the limit of restarts the model says so; an interrupt is 409, a restart tries again, DELETE removes it."""
    write_kernelspec("brief", argv=["sh", "-c", "exit 3"])
    config = {**CONFIG, "KernelRestarter": {"restart_limit": 2}}
    async with running_gateway(config=config) as gateway:
        with expect_log("has died|is dead", required=False):
            kernel_id = await gateway.start_kernel("brief")
            model = await state_of(gateway, kernel_id, "dead")
            assert "its process ended with exit code 3" in model["reason"]
            refused = await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", {}, status=409)
            assert refused["message"].startswith(f"Kernel {kernel_id} cannot be interrupted: it is dead")
            await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
            await state_of(gateway, kernel_id, "dead")
            await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
            await gateway.call(f"/api/kernels/{kernel_id}", status=404)


async def test_a_command_that_does_not_exist_is_named(expect_log: Any) -> None:
    """The start is 500 with the command in its reason, and neither kernel nor file remains."""
    write_kernelspec("broken", argv=["/no/such/kernel", "{connection_file}"])
    async with running_gateway(config=CONFIG) as gateway:
        with expect_log("/no/such/kernel"):
            answer = await gateway.call("/api/kernels", "POST", {"name": "broken"}, status=500)
        assert "/no/such/kernel" in answer["message"]
        assert await gateway.call("/api/kernels") == []
        assert not list(Path(gateway.app.runtime_dir).glob("kernel-*"))
        assert not gateway.app.kernel_manager.resources.ports._taken


async def test_a_kernel_that_cannot_be_restarted_stays_as_dead(launches: Path, expect_log: Any) -> None:
    """The restart is 500 with the reason, open websockets are told, and the next restart may succeed."""
    spec = write_kernelspec("fragile", argv=["/no/such/kernel"])
    good = json.loads((spec.parent / "tiny" / "kernel.json").read_text())["argv"]
    write_kernelspec("fragile", argv=good)
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("fragile")
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("1"))[1]["status"] == "ok"
        kernel_spec = gateway.app.kernel_manager.get_kernel(kernel_id).kernel_spec
        kernel_spec.argv = ["/no/such/kernel"]
        with expect_log("/no/such/kernel"):
            answer = await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {}, status=500)
        assert "/no/such/kernel" in answer["message"]
        states = []
        while "dead" not in states:
            states.append((await websocket.receive_until("status"))[-1]["content"]["execution_state"])
        assert "/no/such/kernel" in (await gateway.call(f"/api/kernels/{kernel_id}"))["reason"]
        kernel_spec.argv = good
        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        assert (await websocket.execute("1"))[1]["status"] == "ok"
        assert "reason" not in await gateway.call(f"/api/kernels/{kernel_id}")


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_order_of_requests_is_an_internal_error(launches: Path, seed: int, expect_log: Any) -> None:
    """Starts, interrupts, restarts, deletions and deaths at random moments: no 5xx, and in the end nothing is left."""
    dice = random.Random(seed)
    config = {**CONFIG, "KernelRestarter": {"restart_limit": 1000}}
    async with running_gateway(config=config) as gateway:
        manager = gateway.app.kernel_manager
        ids = [await gateway.start_kernel("tiny") for _ in range(4)]
        answers: list[tuple[str, int, bytes]] = []

        async def act(number: int) -> None:
            await asyncio.sleep(dice.random() * 2)
            kernel_id = dice.choice(ids)
            path = f"/api/kernels/{kernel_id}"
            kind = dice.choice(["interrupt", "restart", "restart", "delete", "get", "kill", "start", "session"])
            if kind == "kill":
                proxy = manager.get_kernel(kernel_id).process_proxy if kernel_id in manager else None
                if proxy is not None and proxy.local_proc is not None:
                    proxy.local_proc.send_signal(signal.SIGKILL)
                return
            if kind == "start":
                answer = await gateway.fetch("/api/kernels", "POST", {"name": "tiny", "env": {"KERNEL_ID": kernel_id}})
            elif kind == "session":
                body = {"path": f"{number}.ipynb", "type": "notebook", "kernel": {"id": kernel_id}}
                answer = await gateway.fetch("/api/sessions", "POST", body)
                if answer.code == 201:
                    answer = await gateway.fetch(f"/api/sessions/{json.loads(answer.body)['id']}", "DELETE")
            elif kind in {"delete", "get"}:
                answer = await gateway.fetch(path, kind.upper())
            else:
                answer = await gateway.fetch(f"{path}/{kind}", "POST", {})
            answers.append((kind, answer.code, answer.body))

        with expect_log("has died|is dead", required=False):
            await asyncio.gather(*(act(number) for number in range(150)))
            assert [answer for answer in answers if answer[1] >= 500] == []
            assert {code for _, code, _ in answers} >= {200, 201, 204, 404}
            remaining = [kernel["id"] for kernel in await gateway.call("/api/kernels")]
            await asyncio.gather(*(gateway.call(f"/api/kernels/{i}", "DELETE", status=204) for i in remaining))
        for kernel_id in ids:
            await nothing_left(kernel_id)
        assert not manager.resources.ports._taken
        assert not list(Path(gateway.app.runtime_dir).glob("kernel-*"))
