"""What the cluster's answers mean for a kernel: where it is, and whether it lives."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import running_gateway

from .backends import JOBS
from .test_contract import CONFIG, USER, nothing_left, refused, start


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOBS.environment.items():
        monkeypatch.setenv(name, value)


async def test_a_report_waits_until_the_host_is_known() -> None:
    """A launcher that is faster than the cluster does not fail; the kernel is reached when its host is known."""
    name = JOBS.kernelspec(place_after=3)
    async with running_gateway(config=CONFIG) as gateway:
        began = time.monotonic()
        kernel_id = await start(gateway, name)
        assert time.monotonic() - began > 2.5
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("6 * 7"))[0] == "42"


async def test_a_start_fails_when_the_host_is_never_known(expect_log: Any) -> None:
    """The launch time-out applies to that, too, and the error says what the start waited for."""
    name = JOBS.kernelspec(place_after=1000)
    async with running_gateway(config=CONFIG) as gateway:
        reason = await refused(gateway, expect_log, name, 500, KERNEL_LAUNCH_TIMEOUT="3")
        assert "its launcher has reported, but the cluster does not tell its address" in reason


async def test_a_kernel_lives_on_while_the_cluster_does_not_answer(expect_log: Any) -> None:
    """It is not considered dead; afterwards its end is noticed as usual."""
    name = JOBS.kernelspec()
    async with running_gateway(config={**CONFIG, "RemoteKernelManager": {"autorestart": False}}) as gateway:
        kernel_id = await start(gateway, name)
        websocket = await gateway.websocket(kernel_id)
        away = Path(os.environ["JUPYTER_RUNTIME_DIR"]) / "away"
        away.touch()
        await asyncio.sleep(2)
        assert (await websocket.execute("6 * 7"))[0] == "42"
        away.unlink()
        with expect_log("is dead"):
            assert (await websocket.execute("import os; os._exit(7)"))[1]["ename"] == "KernelDied"


async def test_a_script_that_fails_is_reported_with_its_last_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, expect_log: Any
) -> None:
    """It has submitted nothing: the start does not wait for its time-out."""
    (tmp_path / "setsid").write_text("#!/bin/sh\n")
    (tmp_path / "mv").write_text("#!/bin/sh\necho the queue does not exist; exit 4\n")
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    name = JOBS.kernelspec(env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    async with running_gateway(config=CONFIG) as gateway:
        began = time.monotonic()
        reason = await refused(gateway, expect_log, name, 500, KERNEL_LAUNCH_TIMEOUT="30")
        assert "ended with exit code 4. Its last lines: the queue does not exist" in reason
        assert time.monotonic() - began < 12


async def test_a_back_end_that_fails_to_describe_does_not_hide_the_reason(expect_log: Any) -> None:
    """The client still learns that the launcher has ended, and what the cluster says of it."""
    name = JOBS.bad_kernelspec("crash", speechless=True)
    async with running_gateway(config=CONFIG) as gateway:
        reason = await refused(gateway, expect_log, name, 500, KERNEL_LAUNCH_TIMEOUT="30")
        assert reason.endswith("ended on jobs: its job is over.")


async def test_a_back_end_whose_probe_fails_is_named(expect_log: Any) -> None:
    """A defect of a back end fails the start at once, with a sentence that says which, and nothing of it is left."""
    name = JOBS.kernelspec(blind=True)
    async with running_gateway(config=CONFIG) as gateway:
        reason = await refused(gateway, expect_log, name, 500)
        assert "its back end JobsProxy fails with ValueError: no state has the name PENDING" in reason


async def test_a_kernel_is_taken_over_by_the_next_gateway(tmp_path: Path) -> None:
    """What the back end has recorded is enough to find it again, and to end it."""
    store = {
        "FileKernelSessionManager": {"enable_persistence": True, "persistence_root": str(tmp_path)},
        "EnterpriseGatewayApp": {**CONFIG["EnterpriseGatewayApp"], "keep_kernels_on_stop": True},
    }
    name = JOBS.kernelspec()
    kernel_id = str(uuid.uuid4())
    async with running_gateway(config={**CONFIG, **store}) as gateway:
        await gateway.start_kernel(name, env={**USER, "KERNEL_ID": kernel_id})
        websocket = await gateway.websocket(kernel_id)
        await websocket.execute("x = 41")
    async with running_gateway(config={**CONFIG, **store}) as gateway:
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("x + 1"))[0] == "42"
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        await nothing_left(kernel_id)
