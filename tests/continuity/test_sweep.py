"""The sweeper finds and removes what was left behind, and nothing that others have created."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from enterprise_gateway.core.authorization import UserRules
from enterprise_gateway.core.errors import StoreUnavailableError
from enterprise_gateway.core.offload import offload
from enterprise_gateway.drivers.ssh_shell import SSHSettings, SSHShell
from enterprise_gateway.services.processproxies.deployment import (
    RunDeployment,
    StoreDeployment,
    ended_runs,
    read_or_make,
)
from enterprise_gateway.services.processproxies.remnants import Owners, Remnant, local_processes
from enterprise_gateway.transport.localproc import environment_of
from tests.clusters.ssh_hosts import HostLab
from tests.support.gateway import running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import REPOSITORY

from .rolling import STANDALONE, eventually, processes_with, rolling_gateway, traces_of
from .test_revived import DISTRIBUTED, LAUNCHER_ARGV, prepare_hosts

LINE_ENDS = ("\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
NOBODY, TED = 65534, 52001
EVERYBODY = UserRules(frozenset(), frozenset({"root"}))
WEBHOOK = "enterprise_gateway.services.sessions.kernelsessionmanager.WebhookKernelSessionManager"

as_root = pytest.mark.skipif(os.getuid() != 0, reason="not applicable: only root may start processes of other users")


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
def bystander(*, user: int | None = None, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that is not a kernel."""
    process = subprocess.Popen(["sleep", "120"], env={**os.environ, **env}, start_new_session=True, user=user)
    try:
        yield process
        assert process.poll() is None, "it was ended"
    finally:
        process.kill()
        process.wait()


async def test_what_lost_its_record_is_reported_and_removed(tmp_path: Path) -> None:
    """A dry run only reports; the sweep ends the process and removes its files, and keeps recorded kernels."""
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


async def test_a_failing_back_end_does_not_prevent_the_removal_of_anything_else(tmp_path: Path) -> None:
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
        await eventually(lambda: "LitteringProxy could not be searched for leftovers" in gateway.output)


async def test_a_gateway_sweeps_when_it_starts(tmp_path: Path) -> None:
    """Standalone gateways remove what earlier ones have left, and log it."""
    async with rolling_gateway(tmp_path) as gateway:
        lost = await gateway.client.start_kernel()
        await gateway.kill()
        Path(os.environ["JUPYTER_DATA_DIR"], "kernel_sessions", f"{lost}.json").unlink()
        await gateway.start()
        await eventually(lambda: traces_of(lost) == [])
        assert f"Leftover of kernel {lost} removed: process " in gateway.output


async def test_things_of_other_deployments_are_not_touched(tmp_path: Path) -> None:
    """Another deployment's kernel and files in the same directories, and processes with a KERNEL_ID, survive."""
    other_root = tmp_path / "other"
    other = (*STANDALONE, f"--FileKernelSessionManager.persistence_root={other_root}")
    async with rolling_gateway(tmp_path) as gateway, rolling_gateway(other_root_logs(tmp_path), other) as theirs:
        kernel_id = await theirs.client.start_kernel()
        await theirs.run(kernel_id, "x = 1")
        await theirs.kill()
        await offload(shutil.rmtree, other_root / "kernel_sessions")
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
    """After a kill -9 of a gateway without a store the next one removes what is left, but nothing of a living run."""
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


async def test_kernels_of_unreadable_records_are_not_swept(tmp_path: Path) -> None:
    """A record that was set aside as corrupt still says which kernel the process is: it is not swept."""
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


async def test_nothing_is_removed_when_the_store_does_not_answer(expect_log) -> None:
    """Without its records no process or file can be known as left behind."""
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
    """A kernel on an SSH host that lost its record is ended there; a recorded one is not."""
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


@as_root
async def test_another_users_labelled_processes_are_not_touched(tmp_path: Path) -> None:
    """The label is in the environment of every kernel: put into one's own processes' it gets nothing ended."""
    label = {"EG_DEPLOYMENT_ID": StoreDeployment(tmp_path, "here").label, "KERNEL_ID": str(uuid.uuid4())}
    with bystander(user=NOBODY, **label, KERNEL_USERNAME="nobody"):
        assert list(await offload(labelled_here, label, Owners(False, [EVERYBODY]))) == []
        assert list(await offload(labelled_here, label, Owners(True, []))) == []
    with bystander(user=NOBODY, **label, KERNEL_USERNAME="root"):
        assert list(await offload(labelled_here, label, Owners(True, [EVERYBODY]))) == []


@as_root
async def test_remnants_of_impersonated_users_are_removed(tmp_path: Path) -> None:
    """A gateway that impersonates finds its users' processes as well."""
    env = {
        "EG_DEPLOYMENT_ID": StoreDeployment(tmp_path, "here").label,
        "KERNEL_ID": str(uuid.uuid4()),
        "KERNEL_USERNAME": "nobody",
    }
    process = subprocess.Popen(["sleep", "120"], env={**os.environ, **env}, user=NOBODY, start_new_session=True)
    (remnant,) = await offload(labelled_here, env, Owners(True, [EVERYBODY]))
    remnant.remove()
    assert await offload(process.wait) == -9


async def test_what_became_something_else_meanwhile_is_not_touched(tmp_path: Path) -> None:
    """Between the report and the removal a process may run another program; what it is at the removal counts."""
    env = {"EG_DEPLOYMENT_ID": StoreDeployment(tmp_path, "here").label, "KERNEL_ID": str(uuid.uuid4())}
    process = subprocess.Popen(
        ["sh", "-c", "read line; exec env -u EG_DEPLOYMENT_ID sleep 120"],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        (remnant,) = await offload(labelled_here, env, Owners(False, []))
        process.stdin.close()
        # In the middle of an exec a process has no environment at all: that is not yet the program to come.
        await eventually(lambda: environment_of(process.pid).keys() & env.keys() == {"KERNEL_ID"})
        remnant.remove()
        await offload(time.sleep, 0.1)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def settings_of(lab: HostLab) -> SSHSettings:
    """Return settings that open every host of the lab for root."""
    return SSHSettings(user="root", key_files=(str(lab.key_file),), known_hosts=(str(lab.known_hosts),))


def labelled_here(env: Mapping[str, str], owners: Owners) -> list[Remnant]:
    """Return the processes of this machine that carry a label."""
    return list(local_processes("EG_DEPLOYMENT_ID", [env["EG_DEPLOYMENT_ID"]], owners))


@pytest.mark.ssh
async def test_a_user_cannot_have_anothers_kernel_ended_by_labelling_his_own(
    tmp_path: Path, lab: HostLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's process with the label, whose kernel id has line breaks of any kind, says nothing about other processes.

    The login on the host is root, who may read everybody's environment.
    """
    prepare_hosts(lab, monkeypatch, tmp_path)
    host = lab.hosts[0]
    monkeypatch.setenv("EG_REMOTE_HOSTS", host.address)
    shell = SSHShell(host.address, settings_of(lab))
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel("distributed")
        await gateway.run(kernel_id, "x = 42")
        words = await gateway.run(kernel_id, "import os; print(os.environ['EG_DEPLOYMENT_ID'], os.getpid())")
        label, victim = words.split()
        await gateway.kill()
        other = str(uuid.uuid4())
        injected = [f"x{end}{victim} {name}" for end in LINE_ENDS for name in ("x", other)]
        injected += [f"{end}leader{end}{victim}{end}" for end in ("\n", "\r")] + [f"x\nKERNEL_ID={other}", other]
        for text in injected:
            env = {"EG_DEPLOYMENT_ID": label, "KERNEL_ID": text, "KERNEL_USERNAME": "ted"}
            command = ["setpriv", f"--reuid={TED}", "--clear-groups", "sleep", "117"]
            await offload(partial(shell.start_detached, command, env=env, log_path=f"/tmp/{uuid.uuid4()}.log"))
        await eventually(lambda: len(host.processes("sleep 117")) == len(injected))
        status, report = await offload(sweep)
        assert (status, "0 left behind" in report) == (0, True), report
        assert len(host.processes("sleep 117")) == len(injected)
        await gateway.start()
        assert await gateway.run(kernel_id, "print(x)") == "42\n"
    await offload(shell.run, ["pkill", "-f", "sleep 117"])
    shell.close()


@pytest.mark.ssh
async def test_a_group_on_a_host_is_ended_only_while_it_is_the_one_that_was_found(lab: HostLab) -> None:
    """Its leader's start, owner and environment are checked again in the script that kills."""
    host = lab.hosts[0]
    shell = SSHShell(host.address, settings_of(lab))
    label, other = [f"EG_DEPLOYMENT_ID={uuid.uuid4().hex}" for _ in range(2)]
    start = partial(shell.start_detached, ["sleep", "118"], log_path=f"/tmp/{uuid.uuid4()}.log")
    env = dict([label.split("=")], KERNEL_ID=str(uuid.uuid4()), KERNEL_USERNAME="root")
    pid, _ = await offload(partial(start, env=env))
    (leader,) = await offload(shell.leaders, label)
    assert leader == (pid, leader.start_time, 0, "root", True, env["KERNEL_ID"], "root")
    assert not await offload(shell.end_leader, leader._replace(start_time=leader.start_time + 1), label)
    assert not await offload(shell.end_leader, leader._replace(uid=TED), label)
    assert not await offload(shell.end_leader, leader, other)
    assert host.processes("sleep 118")
    assert await offload(shell.end_leader, leader, label)
    await eventually(lambda: not host.processes("sleep 118"))
    assert not await offload(shell.end_leader, leader, label)
    shell.close()


@pytest.mark.ssh
async def test_hosts_that_only_a_kernelspec_names_are_swept(
    tmp_path: Path, lab: HostLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them that is unreachable is reported, and does not prevent the sweep of the others."""
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


def test_a_label_identifies_a_directory_and_store_unless_the_administrator_sets_it(tmp_path: Path) -> None:
    """A directory and store have one label, others another; one that the administrator gives is used as it is."""
    first = StoreDeployment(tmp_path, "store-1").label
    assert StoreDeployment(tmp_path, "store-1").label == first
    assert StoreDeployment(tmp_path, "store-2").label != first
    assert StoreDeployment(tmp_path / "elsewhere", "store-1").label != first
    assert StoreDeployment(tmp_path, "store-1", "mine").label == "mine"
    assert (tmp_path / "eg_deployment_id").stat().st_mode & 0o777 == 0o600
    assert read_or_make(tmp_path / "eg_deployment_id") == read_or_make(tmp_path / "eg_deployment_id")


def test_runs(tmp_path: Path) -> None:
    """A run that goes on is not over, one that was closed cleanly leaves nothing, a killed one is over."""
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
