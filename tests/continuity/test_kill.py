"""A gateway that is killed, at each step of a kernel's life and at any moment: afterwards no kernel is half done."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.services.sessions.kernelsessionmanager import FileKernelSessionManager
from tests.clusters.ssh_hosts import HostLab
from tests.support.kernelspecs import PYTHON_ARGV, write_kernelspec
from tests.support.loops import loop_may_be_held
from tests.support.processes import REPOSITORY

from .rolling import RollingGateway, eventually, processes_with, record_of, rolling_gateway, traces_of

LAUNCHER = REPOSITORY / "etc" / "kernel-launchers" / "python" / "scripts" / "launch_ipykernel.py"
LAUNCHER_ARGV = (
    *(sys.executable, str(LAUNCHER), "--kernel-id", "{kernel_id}", "--port-range", "{port_range}"),
    *("--response-address", "{response_address}", "--public-key", "{public_key}"),
)
STARTING = ["launch", "launched"]
ENDING = ["ended", "cleaned"]


class Holds:
    """Where the gateway is to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def hold(self, step: str) -> None:
        (self.folder / f"hold-{step}").touch()

    async def reached(self, step: str) -> None:
        await eventually((self.folder / f"at-{step}").exists, 30, f"step {step}")

    def release_all(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()


@pytest.fixture
def holds(tmp_path: Path) -> Holds:
    """Return the steps of the kernelspecs ``stepping`` and ``stepping-distributed``."""
    folder = tmp_path / "steps"
    folder.mkdir()
    for name, class_name, argv in (
        ("stepping", "SteppingProxy", PYTHON_ARGV),
        ("stepping-distributed", "SteppingDistributedProxy", LAUNCHER_ARGV),
    ):
        config = {"steps": str(folder), "payload_version": 2}
        stanza = {"class_name": f"tests.support.proxies.{class_name}", "config": config}
        write_kernelspec(name, argv=argv, metadata={"process_proxy": stanza})
    return Holds(folder)


PLACES = ["local", "this host", pytest.param("ssh host", marks=pytest.mark.ssh)]


@pytest.fixture(scope="session", params=PLACES)
def place(request: pytest.FixtureRequest) -> tuple[str, HostLab | None]:
    """Return where kernels run, and the hosts if it is one of those."""
    return request.param, request.getfixturevalue("lab") if request.param == "ssh host" else None


@pytest.fixture
def kernelspec(place: tuple[str, HostLab | None], holds: Holds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the kernelspec of each place where kernels run."""
    monkeypatch.setenv("EG_RESPONSE_PORT", "0")
    monkeypatch.setenv("EG_KERNEL_LOG_DIR", str(tmp_path / "logs"))
    name, lab = place
    if lab is not None:
        for variable, value in lab.environment().items():
            monkeypatch.setenv(variable, value)
    return "stepping" if name == "local" else "stepping-distributed"


async def is_usable_or_gone(gateway: RollingGateway, kernel_id: str) -> str:
    """Return which of the two a kernel is, and fail when it is neither."""
    if kernel_id in await gateway.kernel_ids():
        assert await gateway.run(kernel_id, "print(6 * 7)") == "42\n"
        return "usable"
    answer = await gateway.client.fetch(f"/api/kernels/{kernel_id}")
    assert answer.code == 404, answer.body
    await eventually(lambda: traces_of(kernel_id) == [], 10, f"that nothing is left of {kernel_id}")
    return "gone"


@pytest.mark.parametrize("step", [*STARTING, "submitted"])
async def test_killed_while_a_kernel_starts(kernelspec: str, holds: Holds, step: str, tmp_path: Path) -> None:
    """The client never got an answer, so the kernel is removed with its processes, files and record."""
    if (kernelspec, step) == ("stepping", "submitted"):
        pytest.skip("not applicable: a process of this machine is known as soon as it runs")
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = str(uuid.uuid4())
        holds.hold(step)
        body = {"name": kernelspec, "env": {"KERNEL_ID": kernel_id}}
        start = asyncio.create_task(gateway.status("/api/kernels", "POST", body))
        await holds.reached(step)
        await gateway.kill()
        assert await start == 0
        assert await offload(traces_of, kernel_id) != []
        holds.release_all()
        await gateway.start()
        assert await is_usable_or_gone(gateway, kernel_id) == "gone"
        assert f"Removed kernel {kernel_id}: the gateway ended while it was starting." in gateway.output


@pytest.mark.parametrize("step", ["ended", "launched"])
async def test_killed_while_a_kernel_restarts(kernelspec: str, holds: Holds, step: str, tmp_path: Path) -> None:
    """The old process was ended on purpose and the new one is not recorded: the restart is completed once."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel(kernelspec)
        before = (await gateway.run(kernel_id, "import os; print(os.getpid())")).strip()
        holds.hold(step)
        restart = asyncio.create_task(gateway.status(f"/api/kernels/{kernel_id}/restart", "POST"))
        await holds.reached(step)
        await gateway.kill()
        assert await restart == 0
        holds.release_all()
        await gateway.start()
        assert await is_usable_or_gone(gateway, kernel_id) == "usable"
        pid = (await gateway.run(kernel_id, "import os; print(os.getpid())")).strip()
        assert pid not in {"", before}
        await gateway.client.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        await eventually(lambda: traces_of(kernel_id) == [], 10, f"that nothing is left of {kernel_id}")


@pytest.mark.parametrize("step", ENDING)
async def test_killed_while_a_kernel_is_shut_down(kernelspec: str, holds: Holds, step: str, tmp_path: Path) -> None:
    """The next gateway finishes what was begun."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel(kernelspec)
        assert await gateway.run(kernel_id, "print(6 * 7)") == "42\n"
        holds.hold(step)
        delete = asyncio.create_task(gateway.status(f"/api/kernels/{kernel_id}", "DELETE"))
        await holds.reached(step)
        await gateway.kill()
        assert await delete == 0
        holds.release_all()
        await gateway.start()
        assert await is_usable_or_gone(gateway, kernel_id) == "gone"


async def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Three times killed at random while two clients start, restart and delete kernels: usable or gone, each."""
    source = random.Random(20261121)
    kernel_ids: set[str] = set()

    async def use(gateway: RollingGateway) -> None:
        """Start, restart and delete kernels until the gateway is gone."""
        while True:
            kernel_id = str(uuid.UUID(int=source.getrandbits(128), version=4))
            kernel_ids.add(kernel_id)
            body = {"name": "python3", "env": {"KERNEL_ID": kernel_id}}
            path = f"/api/kernels/{kernel_id}"
            steps: list[tuple[str, str, Any]] = [("/api/kernels", "POST", body), (f"{path}/restart", "POST", {})]
            for step in [*steps, (path, "DELETE", None)][: source.randint(1, 3)]:
                if await gateway.status(*step) == 0:
                    return

    with loop_may_be_held("threads that search /proc keep the interpreter busy"):
        async with rolling_gateway(tmp_path) as gateway:
            for _ in range(3):
                users = [asyncio.create_task(use(gateway)) for _ in range(2)]
                await asyncio.sleep(source.uniform(0.2, 2.0))
                await gateway.kill()
                await asyncio.gather(*users)
                await gateway.start()
                await asyncio.gather(*(is_usable_or_gone(gateway, kernel_id) for kernel_id in kernel_ids))
                left = await gateway.kernel_ids()
                await asyncio.gather(*(gateway.status(f"/api/kernels/{kernel_id}", "DELETE") for kernel_id in left))


async def test_another_process_that_has_the_recorded_id_is_not_signalled(tmp_path: Path) -> None:
    """The kernel has died with the gateway, and another process has its id now: that process is not signalled."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel()
        await gateway.kill()
        for process in await offload(processes_with, f"KERNEL_ID={kernel_id}"):
            process.kill()
        bystander = await offload(subprocess.Popen, ["sleep", "60"], start_new_session=True)
        try:
            record = record_of(kernel_id)
            record["process_info"].update(pid=bystander.pid, pgid=bystander.pid)
            path = Path(os.environ["JUPYTER_DATA_DIR"], "kernel_sessions", f"{kernel_id}.json")
            path.write_text(json.dumps({kernel_id: record}))
            await gateway.start()
            assert await is_usable_or_gone(gateway, kernel_id) == "gone"
            assert bystander.poll() is None
        finally:
            bystander.kill()
            await offload(bystander.wait)


async def test_unfinished_files_of_a_killed_gateway_are_removed(tmp_path: Path) -> None:
    """They hold keys: removed at the next start if their writer is gone, left to a writer that lives."""
    directory = tmp_path / "kernel_sessions"
    directory.mkdir(mode=0o700)
    gone = await offload(subprocess.run, ["sh", "-c", "echo $$"], stdout=subprocess.PIPE, text=True, check=True)
    abandoned = directory / f".{uuid.uuid4()}.json.{gone.stdout.strip()}.0badcafe.tmp"
    living = directory / f".{uuid.uuid4()}.json.{os.getpid()}.0badcafe.tmp"
    for path in (abandoned, living):
        path.write_text("{")
    store = FileKernelSessionManager(None, enable_persistence=True, persistence_root=str(tmp_path))
    await store.fetch_sessions()
    await store.close()
    assert list(directory.iterdir()) == [living]
