"""A graceful stop: what it waits for, whom it informs, and what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from traitlets import TraitError
from traitlets.config import Config

from enterprise_gateway.core.offload import offload
from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp
from tests.contract.backends import LAUNCHER, LAUNCHER_OPTIONS
from tests.support.embedded import make_app
from tests.support.kernelspecs import write_kernelspec
from tests.support.proxies import ClingingProxy, write_fussy_kernelspec

from .rolling import STANDALONE, eventually, processes_with, rolling_gateway, traces_of

LAUNCH = [sys.executable, str(LAUNCHER), *LAUNCHER_OPTIONS]
SQL_STORE = "enterprise_gateway.services.sessions.kernelsessionmanager.SQLKernelSessionManager"
REPLICA = (
    "--EnterpriseGatewayApp.availability_mode=replication",
    "--EnterpriseGatewayApp.list_kernels=True",
    f"--EnterpriseGatewayApp.kernel_session_manager_class={SQL_STORE}",
)


def slow_kernelspec(seconds: float) -> None:
    """Write a kernelspec whose back end is slow to launch."""
    stanza = {"class_name": "tests.support.proxies.SlowProxy", "config": {"seconds": seconds}}
    write_kernelspec("slow", metadata={"process_proxy": stanza})


async def test_kernels_live_on_and_clients_are_informed(tmp_path: Path) -> None:
    """SIGTERM with persistence: websockets are closed with 1012, the kernel is the same process with its variables."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel()
        websocket = await gateway.client.websocket(kernel_id)
        await websocket.execute("x = 42; import os")
        pid = await gateway.run(kernel_id, "print(os.getpid())")
        await gateway.stop()
        while await websocket.receive() is not None:
            pass
        assert websocket.connection.close_code == 1012
        assert "the kernel lives on" in (websocket.connection.close_reason or "")

        await gateway.start()
        assert (await gateway.model(kernel_id))["connections"] == 0
        assert await gateway.run(kernel_id, "print(x, os.getpid())") == f"42 {pid}"


async def test_the_stop_waits_for_a_start_in_progress(tmp_path: Path) -> None:
    """The client whose kernel is being started when the stop comes gets its 201, and finds the kernel afterwards."""
    slow_kernelspec(2)
    async with rolling_gateway(tmp_path) as gateway:
        start = asyncio.create_task(gateway.client.fetch("/api/kernels", "POST", {"name": "slow"}))
        await asyncio.sleep(0.5)
        await gateway.stop()
        answer = await start
        assert answer.code == 201
        assert "Waiting up to 20 s for 1 requests" in gateway.output
        await gateway.start()
        assert await gateway.kernel_ids() == {json.loads(answer.body)["id"]}


async def test_requests_are_abandoned_after_drain_timeout(tmp_path: Path) -> None:
    """A start that takes too long is answered 503, or its connection ends; nothing of it is left."""
    slow_kernelspec(30)
    async with rolling_gateway(tmp_path, [*STANDALONE, "--EnterpriseGatewayApp.drain_timeout=0.5"]) as gateway:
        kernel_id = "0d5b9a7e-3a51-4f0e-9a3c-0c8f2f6f1a11"
        body = {"name": "slow", "env": {"KERNEL_ID": kernel_id}}
        start = asyncio.create_task(gateway.client.fetch("/api/kernels", "POST", body))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await gateway.stop()
        assert time.monotonic() - began < 5
        assert "1 requests were not answered within 0.5 s and are abandoned" in gateway.output
        assert (await start).code in (503, 599)
        assert await offload(traces_of, kernel_id) == []


async def test_a_draining_gateway_refuses_new_requests(tmp_path: Path) -> None:
    """On a connection that stays open, a request that comes during the drain is answered 503 with Retry-After."""
    slow_kernelspec(2)
    async with rolling_gateway(tmp_path) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.process.url.rpartition(":")[2]))
        request = b"GET /api/kernels HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        writer.write(request)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        await reader.read(100)
        start = asyncio.create_task(gateway.client.fetch("/api/kernels", "POST", {"name": "slow"}))
        await asyncio.sleep(0.5)
        stop = asyncio.create_task(gateway.stop())
        await eventually(lambda: "Waiting up to" in gateway.output)
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b"503" in answer
        assert b"Retry-After: 1" in answer
        writer.close()
        await stop
        assert (await start).code == 201
        await gateway.start()


async def test_a_back_end_that_fails_during_the_stop_does_not_prevent_the_release_of_resources(tmp_path: Path) -> None:
    """A kernel's proxy raises: the others are detached nevertheless, and leases and places in the store released."""
    stanza = {"class_name": f"{ClingingProxy.__module__}.ClingingProxy"}
    write_kernelspec("clinging", argv=LAUNCH, metadata={"process_proxy": stanza})
    database = tmp_path / "store.sqlite"
    env = {"EG_SESSION_DATABASE_URL": f"sqlite:///{database}", "EG_RESPONSE_IP": "127.0.0.1", "EG_RESPONSE_PORT": "0"}
    async with rolling_gateway(tmp_path, REPLICA, env) as gateway:
        kernel_ids = [await gateway.client.start_kernel(name) for name in ("clinging", "python3", "clinging")]
        for kernel_id in kernel_ids:
            await gateway.run(kernel_id, "x = 1")
        assert leases(database) == 3
        assert await offload(gateway.process.stop) == 0
        assert gateway.output.count("I hold on.") >= 2
        assert leases(database) == 0
        await gateway.start()
        for kernel_id in kernel_ids:
            assert await gateway.run(kernel_id, "print(x)") == "1\n"


async def test_a_kernel_that_cannot_be_ended_does_not_prevent_the_end_of_others(tmp_path: Path) -> None:
    """A stop that ends the kernels ends those before and after it, and says what could not be done."""
    failing = write_fussy_kernelspec("fussy", tmp_path, "poll", "signal", "kill", "cleanup")
    async with rolling_gateway(tmp_path, [*STANDALONE, "--EnterpriseGatewayApp.keep_kernels_on_stop=False"]) as gateway:
        first, fussy, last = [await gateway.client.start_kernel(name) for name in ("python3", "fussy", "python3")]
        for file in failing:
            file.touch()
        try:
            await gateway.stop()
            assert await offload(traces_of, first) == await offload(traces_of, last) == []
            for verb in ("kill", "cleanup"):
                assert (
                    f"Kernel {fussy} could not be cleaned up completely: TypeError('The cluster wants no {verb}.')"
                    in (gateway.output)
                )
        finally:
            for process in await offload(processes_with, f"KERNEL_ID={fussy}"):
                process.kill()


def leases(database: Path) -> int:
    """Return how many leases there are in a store."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM eg_kernel_leases").fetchone()[0])


async def test_without_a_store_kernels_are_shut_down_at_once(tmp_path: Path) -> None:
    """SIGTERM without persistence ends twelve kernels that ignore a shutdown request, in about the time of one."""
    write_kernelspec("stubborn", argv=["sh", "-c", "trap '' INT TERM; while :; do sleep 1; done", "{connection_file}"])
    async with rolling_gateway(tmp_path, ["--EnterpriseGatewayApp.list_kernels=True"]) as gateway:
        kernel_ids = [await gateway.client.start_kernel("stubborn") for _ in range(12)]
        began = time.monotonic()
        await gateway.stop()
        assert time.monotonic() - began < 5
        assert [await offload(traces_of, kernel_id) for kernel_id in kernel_ids] == [[]] * 12


async def test_keep_kernels_on_stop_overrides_persistence(tmp_path: Path) -> None:
    """False with persistence: the stop ends the kernels, and deletes their records."""
    argv = [*STANDALONE, "--EnterpriseGatewayApp.keep_kernels_on_stop=False"]
    async with rolling_gateway(tmp_path, argv) as gateway:
        kernel_id = await gateway.client.start_kernel()
        assert await offload(processes_with, f"KERNEL_ID={kernel_id}")
        await gateway.stop()
        assert await offload(traces_of, kernel_id) == []


def test_kernels_that_no_gateway_would_find_are_not_kept() -> None:
    """True without persistence is refused at start, with a sentence that says what is missing."""
    with pytest.raises(TraitError, match="keep_kernels_on_stop needs stored kernel sessions: set availability_mode"):
        make_app(keep_kernels_on_stop=True)


def test_the_option_overrides_whether_sessions_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option, or EG_KEEP_KERNELS_ON_STOP, wins in both directions; without it stored sessions keep kernels."""
    assert not make_app().leaves_kernels
    assert make_app(availability_mode="standalone").leaves_kernels
    assert not make_app(availability_mode="standalone", keep_kernels_on_stop=False).leaves_kernels
    monkeypatch.setenv("EG_KEEP_KERNELS_ON_STOP", "no")
    monkeypatch.setenv("EG_DRAIN_TIMEOUT", "7.5")
    app = make_app(availability_mode="standalone")
    assert (app.leaves_kernels, app.drain_timeout) == (False, 7.5)
    monkeypatch.setenv("EG_KEEP_KERNELS_ON_STOP", " ")
    assert EnterpriseGatewayApp(config=Config()).keep_kernels_on_stop is None
