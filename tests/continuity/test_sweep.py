"""The sweeper finds and removes what was left behind, and nothing that another has made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enterprise_gateway.core.errors import StoreUnavailableError
from enterprise_gateway.core.offload import offload
from enterprise_gateway.services.processproxies.deployment import (
    RunDeployment,
    StoreDeployment,
    ended_runs,
    read_or_make,
)
from tests.clusters.ssh_hosts import HostLab
from tests.support.gateway import running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import REPOSITORY

from .rolling import STANDALONE, eventually, processes_with, rolling_gateway, traces_of
from .test_revived import DISTRIBUTED, LAUNCHER_ARGV, prepare_hosts

WEBHOOK = "enterprise_gateway.services.sessions.kernelsessionmanager.WebhookKernelSessionManager"


def sweep(*argv: str) -> tuple[int, str]:
    """Run the command and return its exit status and output."""
    command = [sys.executable, "-m", "enterprise_gateway.sweep", *STANDALONE[:1], *argv]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@contextmanager
def bystander(**env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that is nobody's kernel."""
    process = subprocess.Popen(["sleep", "120"], env={**os.environ, **env}, start_new_session=True)
    try:
        yield process
        assert process.poll() is None, "it was ended"
    finally:
        process.kill()
        process.wait()


async def test_what_lost_its_record_is_reported_and_removed(tmp_path: Path) -> None:
    """A dry run only reports; the sweep ends the process and removes its files, and keeps the kernels on record."""
    async with rolling_gateway(tmp_path) as gateway:
        lost, kept = [await gateway.client.start_kernel() for _ in range(2)]
        await gateway.run(kept, "x = 42")
        await gateway.kill()
        Path(os.environ["JUPYTER_DATA_DIR"], "kernel_sessions", f"{lost}.json").unlink()
        assert len(await offload(traces_of, lost)) == 3, "its process, its connection file, its log"

        status, report = await offload(sweep, "--dry-run")
        assert (status, report.count(f"kernel {lost}: "), kept in report) == (0, 3, False)
        assert "would be removed" in report
        assert "3 left behind, 3 in use by kernels." in report
        assert len(await offload(traces_of, lost)) == 3

        status, report = await offload(sweep)
        assert (status, report.count(": removed")) == (0, 3)
        await eventually(lambda: traces_of(lost) == [])
        assert "0 left behind" in (await offload(sweep))[1]
        await gateway.start()
        assert await gateway.run(kept, "print(x)") == "42\n"


async def test_a_back_end_that_fails_keeps_nothing_else_from_being_removed(tmp_path: Path) -> None:
    """What a third party's process proxy raises when it looks for remnants, or removes one, is told, with status 1."""
    write_kernelspec("littering", metadata={"process_proxy": {"class_name": "tests.support.proxies.LitteringProxy"}})
    async with rolling_gateway(tmp_path) as gateway:
        lost = await gateway.client.start_kernel()
        await gateway.kill()
        Path(os.environ["JUPYTER_DATA_DIR"], "kernel_sessions", f"{lost}.json").unlink()
        status, report = await offload(sweep)
        assert (status, report.count(": removed")) == (1, 3), report
        assert "kernel litter: job 17 of the cluster: TypeError('The cluster wants a number.')" in report
        assert "LitteringProxy could not be asked: RuntimeError('The cluster does not answer.')" in report
        await eventually(lambda: traces_of(lost) == [])
        await gateway.start()
        await eventually(lambda: "What kernels of LitteringProxy have left behind is not known" in gateway.output)


async def test_a_gateway_sweeps_when_it_starts(tmp_path: Path) -> None:
    """Standalone gateways remove what earlier ones have left, and log it."""
    async with rolling_gateway(tmp_path) as gateway:
        lost = await gateway.client.start_kernel()
        await gateway.kill()
        Path(os.environ["JUPYTER_DATA_DIR"], "kernel_sessions", f"{lost}.json").unlink()
        await gateway.start()
        await eventually(lambda: traces_of(lost) == [])
        assert f"Left behind by kernel {lost} and removed: process " in gateway.output


async def test_nobody_elses_things_are_touched(tmp_path: Path) -> None:
    """Another deployment's kernel and files in the same directories, and processes with a KERNEL_ID, survive."""
    other_root = tmp_path / "other"
    other = (*STANDALONE, f"--FileKernelSessionManager.persistence_root={other_root}")
    async with rolling_gateway(tmp_path) as gateway, rolling_gateway(other_root_logs(tmp_path), other) as theirs:
        kernel_id = await theirs.client.start_kernel()
        await theirs.run(kernel_id, "x = 1")
        await theirs.kill()
        shutil.rmtree(other_root / "kernel_sessions")
        runtime = Path(os.environ["JUPYTER_RUNTIME_DIR"])
        foreign = runtime / f"kernel-{uuid.uuid4()}.json"
        foreign.write_text(json.dumps({"shell_port": 1, "key": "k"}))
        foreign.with_suffix(".log").write_text("somebody's")
        await gateway.kill()
        with bystander(KERNEL_ID=str(uuid.uuid4())), bystander(EG_DEPLOYMENT_ID="x", KERNEL_ID=str(uuid.uuid4())):
            status, report = await offload(sweep)
            assert (status, report) == (0, report)
            assert "0 left behind, 0 in use" in report
            await gateway.start()
        assert foreign.exists()
        assert foreign.with_suffix(".log").exists()
        assert len(await offload(traces_of, kernel_id)) == 3
        (process,) = await offload(processes_with, f"KERNEL_ID={kernel_id}")
        process.kill()


def other_root_logs(tmp_path: Path) -> Path:
    """Return where another gateway's logs go."""
    (tmp_path / "logs-of-the-other").mkdir()
    return tmp_path / "logs-of-the-other"


async def test_runs_without_a_store_are_swept_when_they_are_over(tmp_path: Path) -> None:
    """After a kill -9 of a gateway without a store the next one removes what is left, and not what a living run has."""
    write_kernelspec("stub", argv=["sh", "-c", "exec sleep 600", "{connection_file}"])
    listed = ["--EnterpriseGatewayApp.list_kernels=True"]
    (tmp_path / "living").mkdir()
    async with (
        rolling_gateway(tmp_path / "living", listed) as living,
        rolling_gateway(tmp_path, listed) as gateway,
    ):
        alive = await living.client.start_kernel("stub")
        lost = await gateway.client.start_kernel("stub")
        await gateway.kill()
        assert len(await offload(traces_of, lost)) == 3
        await gateway.start()
        await eventually(lambda: traces_of(lost) == [])
        assert len(await offload(traces_of, alive)) == 3
        assert await living.kernel_ids() == {alive}
    runtime = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    assert list(runtime.iterdir()) == []


async def test_records_that_cannot_be_read_keep_their_kernels(tmp_path: Path) -> None:
    """A record that was set aside as corrupt still says whose the process is: it is not swept."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel()
        await gateway.kill()
        path = Path(os.environ["JUPYTER_DATA_DIR"], "kernel_sessions", f"{kernel_id}.json")
        text = path.read_text()
        path.write_text("{")
        status, report = await offload(sweep)
        assert (status, "0 left behind" in report) == (0, True), report
        path.write_text(text)
        await gateway.start()
        assert await gateway.run(kernel_id, "print(6 * 7)") == "42\n"


async def test_without_the_records_nothing_is_removed(expect_log) -> None:
    """A store that does not answer leaves everything where it is."""
    config = {
        "EnterpriseGatewayApp": {
            "availability_mode": "replication",
            "kernel_session_manager_class": WEBHOOK,
        },
        "WebhookKernelSessionManager": {"webhook_url": "http://127.0.0.1:9", "store_timeout": 1.0},
    }
    async with running_gateway(config=config) as gateway:
        label = gateway.app.kernel_manager.resources.deployment.label
        process = bystander(KERNEL_ID=str(uuid.uuid4()), EG_DEPLOYMENT_ID=label)
        with process, expect_log("not available"), pytest.raises(StoreUnavailableError):
            await gateway.app.sweeper.sweep()


@pytest.mark.ssh
async def test_hosts_are_swept(tmp_path: Path, lab: HostLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel on an SSH host that lost its record is ended there; one on record is not."""
    prepare_hosts(lab, monkeypatch, tmp_path)
    async with rolling_gateway(tmp_path) as gateway:
        lost, kept = [await gateway.client.start_kernel("distributed") for _ in range(2)]
        await gateway.run(kept, "x = 42")
        await gateway.kill()
        Path(os.environ["JUPYTER_DATA_DIR"], "kernel_sessions", f"{lost}.json").unlink()
        status, report = await offload(sweep, "--dry-run")
        assert (status, f"on {lab.hosts[0].address}: would be removed" in report) == (0, True), report
        assert kept not in report
        status, report = await offload(sweep)
        assert status == 0, report
        await eventually(lambda: traces_of(lost) == [])
        await gateway.start()
        assert await gateway.run(kept, "print(x)") == "42\n"


@pytest.mark.ssh
async def test_hosts_that_only_a_kernelspec_names_are_swept(
    tmp_path: Path, lab: HostLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one of them that cannot be asked is told, and keeps none of the others from it."""
    prepare_hosts(lab, monkeypatch, tmp_path)
    monkeypatch.delenv("EG_REMOTE_HOSTS")
    monkeypatch.setenv("EG_SSH_CONNECT_TIMEOUT", "1")
    for name, hosts in {"distributed": lab.hosts[1].address, "absent": f"{lab.absent_address},no-such-host"}.items():
        stanza = {"class_name": DISTRIBUTED, "config": {"payload_version": 2, "remote_hosts": hosts}}
        write_kernelspec(name, argv=LAUNCHER_ARGV, metadata={"process_proxy": stanza})
    async with rolling_gateway(tmp_path) as gateway:
        lost = await gateway.client.start_kernel("distributed")
        await gateway.run(lost, "x = 42")
        await gateway.kill()
        Path(os.environ["JUPYTER_DATA_DIR"], "kernel_sessions", f"{lost}.json").unlink()
        status, report = await offload(sweep)
        assert f"on {lab.hosts[1].address}: removed" in report
        assert (status, report.count("could not be asked: ")) == (1, 1), report
        assert lab.absent_address in report
        assert "no-such-host" in report
        await eventually(lambda: traces_of(lost) == [])
        await gateway.start()


def test_labels(tmp_path: Path) -> None:
    """One directory and store make one label, others another; the label is the administrator's if he gives one."""
    first = StoreDeployment(tmp_path, "store-1").label
    assert StoreDeployment(tmp_path, "store-1").label == first
    assert StoreDeployment(tmp_path, "store-2").label != first
    assert StoreDeployment(tmp_path / "elsewhere", "store-1").label != first
    assert StoreDeployment(tmp_path, "store-1", "mine").label == "mine"
    assert (tmp_path / "eg_deployment_id").stat().st_mode & 0o777 == 0o600
    assert read_or_make(tmp_path / "eg_deployment_id") == read_or_make(tmp_path / "eg_deployment_id")


def test_runs(tmp_path: Path) -> None:
    """A run that goes on is not over, one that was closed in order leaves nothing, a killed one is over."""
    run = RunDeployment(tmp_path)
    assert list(ended_runs(tmp_path)) == []
    label = run.label
    assert list(ended_runs(tmp_path)) == []
    script = (
        "import os, sys, pathlib; from enterprise_gateway.services.processproxies.deployment import RunDeployment; "
        "run = RunDeployment(pathlib.Path(sys.argv[1])); print(run.label, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    assert list(ended_runs(tmp_path)) == [killed] != [label]
    run.close()
    assert label not in list(ended_runs(tmp_path))
