"""The documentation's example of a back end: users are shown what Slurm knows of their kernels."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.core.states import Phase, State
from tests.clusters.slurm import SlurmCluster
from tests.continuity.rolling import STANDALONE, eventually, free_port, rolling_gateway
from tests.support.gateway import running_gateway
from tests.support.tcpproxy import TcpProxy

from .backends import REPOSITORY, Backend
from .test_contract import CONFIG, USER, nothing_left, refused, start

pytestmark = pytest.mark.slurm
OBSERVED = "tests.contract.observed_slurm.ObservedSlurmProxy"
NOT_RESTARTED = {**CONFIG, "RemoteKernelManager": {"autorestart": False}}


@pytest.fixture
def slurm_backend(slurm_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Set the gateway's environment for it."""
    for name, value in slurm_backend.environment.items():
        monkeypatch.setenv(name, value)
    return slurm_backend


def phases(kernel_id: str) -> dict[Phase, str]:
    """Return the phases that a start has reached, each with what was said of it last."""
    from . import observed_slurm  # it needs the example to be on Python's path

    return observed_slurm.phases(kernel_id)


async def test_a_report_waits_until_the_host_is_known(slurm: SlurmCluster, slurm_backend: Backend) -> None:
    """A launcher reports while Slurm does not answer where its job runs: the start is completed when it does."""
    kernel_id = str(uuid.uuid4())
    observed = replace(slurm_backend, proxy=OBSERVED)
    with TcpProxy(slurm.controller_port) as line:
        configuration = slurm.configured("by-proxy.conf", line.port)
        name = observed.kernelspec(slurm_conf=str(configuration), sbatch_options=["--hold"])
        async with running_gateway(config=CONFIG) as gateway:
            starting = asyncio.create_task(start(gateway, name, KERNEL_ID=kernel_id))
            await eventually(lambda: slurm.job_of(kernel_id))
            await eventually(lambda: "JobHeldUser" in phases(kernel_id)[Phase.QUEUED])
            line.refuse = True
            line.cut()
            await offload(slurm.call, "scontrol", "release", await offload(slurm.job_of, kernel_id))
            await eventually(lambda: Phase.REPORTED in phases(kernel_id), 20)
            await asyncio.sleep(1)
            assert phases(kernel_id)[Phase.STARTED] == "", "Slurm cannot have said on which host"
            assert not starting.done()
            line.refuse = False
            await starting
            assert phases(kernel_id)[Phase.STARTED]
            kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
            assert kernel.get_connection_info()["ip"] == "127.0.0.1"
            websocket = await gateway.websocket(kernel_id)
            assert (await websocket.execute("6 * 7"))[0] == "42"


async def test_a_cancelled_job_is_a_dead_kernel(slurm: SlurmCluster, slurm_backend: Backend, expect_log: Any) -> None:
    """Within seconds, with the state that Slurm reports as reason."""
    name = slurm_backend.kernelspec()
    async with running_gateway(config=NOT_RESTARTED) as gateway:
        kernel_id = await start(gateway, name)
        job = await offload(slurm.job_of, kernel_id)

        async def is_dead() -> bool:
            return bool((await gateway.call(f"/api/kernels/{kernel_id}"))["execution_state"] == "dead")

        with expect_log("is dead: "):
            await offload(slurm.call, "scancel", job)
            await eventually(is_dead, 10)
        assert f"(Slurm job {job} is CANCELLED)" in (await gateway.call(f"/api/kernels/{kernel_id}"))["reason"]
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        await nothing_left(kernel_id)


async def test_a_pending_job_says_why_it_waits(slurm: SlurmCluster, slurm_backend: Backend, expect_log: Any) -> None:
    """The start is queued, with Slurm's reason, which its time-out ends with; no job is left in the queue."""
    kernel_id = str(uuid.uuid4())
    name = replace(slurm_backend, proxy=OBSERVED).kernelspec(partition="closed")
    async with running_gateway(config=CONFIG) as gateway:
        body = {"name": name, "env": {**USER, "KERNEL_ID": kernel_id, "KERNEL_LAUNCH_TIMEOUT": "4"}}
        with expect_log("launch timeout"):
            starting = asyncio.create_task(gateway.call("/api/kernels", "POST", body, status=500))
            await eventually(lambda: slurm.job_of(kernel_id))
            waits = f"Slurm job {await offload(slurm.job_of, kernel_id)} is PENDING: PartitionDown"
            await eventually(lambda: phases(kernel_id)[Phase.QUEUED] == waits)
            answer = await starting
        assert answer["reason"].endswith(f"On the cluster: {waits}.")
        assert await offload(slurm.job_of, kernel_id) == ""


async def test_an_unknown_partition_is_an_error_at_once(slurm_backend: Backend, expect_log: Any) -> None:
    """The answer is what sbatch says."""
    name = slurm_backend.kernelspec(partition="golden")
    async with running_gateway(config=CONFIG) as gateway:
        began = time.monotonic()
        assert "Invalid partition name specified" in await refused(gateway, expect_log, name, 500)
        assert time.monotonic() - began < 5


async def test_a_job_whose_submission_was_not_confirmed_is_cancelled(
    slurm: SlurmCluster, slurm_backend: Backend, expect_log: Any
) -> None:
    """The connection is cut between the request and its answer: the start fails, and the job is found by its name."""
    kernel_id = str(uuid.uuid4())
    with TcpProxy(slurm.controller_port) as line:
        configuration = slurm.configured("by-proxy.conf", line.port)
        name = slurm_backend.kernelspec(slurm_conf=str(configuration), partition="closed")
        async with running_gateway(config=CONFIG) as gateway:
            line.cut_at(f"--RemoteProcessProxy.kernel-id {kernel_id}".encode(), is_answer_lost=True)
            starting = asyncio.create_task(refused(gateway, expect_log, name, 500, KERNEL_ID=kernel_id))
            while not line.refuse:  # the line is cut a tenth of a second later
                await asyncio.sleep(0.01)
            line.refuse = False
            assert "Slurm did not do what it was asked" in await starting
            jobs = ("--noheader", "--states=all", f"--name={kernel_id}", "--format=%T")
            assert await offload(slurm.call, "squeue", *jobs) == "CANCELLED\n"


async def test_a_controller_that_does_not_answer_is_an_error(
    slurm: SlurmCluster, slurm_backend: Backend, expect_log: Any
) -> None:
    """The start fails with what Slurm says of it."""
    configuration = slurm.configured("nobody.conf", free_port())
    name = slurm_backend.kernelspec(slurm_conf=str(configuration))
    async with running_gateway(config=CONFIG) as gateway:
        assert "Unable to contact slurm controller" in await refused(gateway, expect_log, name, 500)


async def test_missing_programs_are_named(
    slurm_backend: Backend, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """Without Slurm's commands the start fails with a sentence that says so."""
    name = slurm_backend.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        monkeypatch.setenv("PATH", os.environ["HOME"])
        assert "is not installed on the gateway's host" in await refused(gateway, expect_log, name, 500)


async def test_another_gateway_takes_over_the_job(slurm: SlurmCluster, slurm_backend: Backend, tmp_path: Path) -> None:
    """The kernel goes on with its variables, and its end is noticed as before."""
    name = slurm_backend.kernelspec()
    path = {"PYTHONPATH": str(REPOSITORY / "docs/developers")}
    argv = [*STANDALONE, "--RemoteKernelManager.autorestart=False"]
    async with rolling_gateway(tmp_path, argv, path) as gateway:
        kernel_id = await gateway.client.start_kernel(name, env=USER)
        await gateway.run(kernel_id, "x = 42")
        job = await offload(slurm.job_of, kernel_id)
        await gateway.roll(kill=True)
        assert await gateway.run(kernel_id, "print(x)") == "42\n"
        assert await offload(slurm.job_of, kernel_id) == job
        await offload(slurm.call, "scancel", job)

        async def is_dead() -> bool:
            return bool((await gateway.model(kernel_id))["execution_state"] == "dead")

        await eventually(is_dead, 10)
        assert f"(Slurm job {job} is CANCELLED)" in (await gateway.model(kernel_id))["reason"]


async def test_all_jobs_are_polled_with_one_query(slurm: SlurmCluster, slurm_backend: Backend) -> None:
    """However many kernels there are, Slurm is asked every three seconds."""
    name = slurm_backend.kernelspec()
    async with running_gateway(config=CONFIG) as gateway:
        kernels = await asyncio.gather(*(start(gateway, name) for _ in range(4)))
        proxies = [gateway.app.kernel_manager.get_kernel(kernel_id).process_proxy for kernel_id in kernels]
        assert {proxy.watched.watch for proxy in proxies} == {proxies[0].slurm.watch}
        before = await offload(slurm.queries)
        await asyncio.sleep(6.5)
        assert 1 <= await offload(slurm.queries) - before <= 3
        assert [proxy.state for proxy in proxies] == [State(Phase.STARTED, proxies[0].state.host, "127.0.0.1")] * 4
