"""A local account of the gateway's host, or of a kernel's, makes files where the gateway's are going to be.

The gateway is ted's and the attacker is bob. The directories are ones that an administrator has opened to all, as
``/tmp`` is; a client has chosen the kernel's id.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.ssh_hosts import HostLab
from tests.support.gateway import Client
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import REPOSITORY, ServerProcess

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(180)]

LAUNCHER = REPOSITORY / "etc" / "kernel-launchers" / "python" / "scripts" / "launch_ipykernel.py"
PROXY = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
OPTIONS = (
    *("--kernel-id", "{kernel_id}", "--port-range", "{port_range}", "--response-address", "{response_address}"),
    *("--public-key", "{public_key}", "--cluster-type", "none"),
)
MANY = 70  # more than the gateway has threads for anything


@pytest.fixture
def teds(lab: HostLab) -> Iterator[Path]:
    """Return a directory of ted's that everybody may read."""
    folder = lab.folder / "teds"
    folder.mkdir(mode=0o755)
    shutil.chown(folder, lab.home("ted").stat().st_uid)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shared(lab: HostLab) -> Iterator[Path]:
    """Return a directory like /tmp."""
    folder = lab.folder / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def gateway_of_ted(lab: HostLab, teds: Path, **env: str) -> AsyncIterator[tuple[Client, ServerProcess]]:
    """Run ted's gateway, with the kernelspecs ``python3``, ``here`` (by a process proxy) and ``there`` (by SSH).

    The last one ends at once, for on the host ted cannot read the Python of the tests.
    """
    for name, hosts, argv in (
        ("here", "localhost", (sys.executable, str(LAUNCHER), *OPTIONS)),
        ("there", lab.hosts[0].address, ("sh", "-c", "echo $(hostname): out of cheese >&2; exit 3")),
    ):
        stanza = {"class_name": PROXY, "config": {"remote_hosts": hosts, "payload_version": 2}}
        write_kernelspec(name, argv=argv, metadata={"process_proxy": stanza}, directory=teds / "data")
    key = teds / "id"
    shutil.copy(lab.key_file, key)
    key.chmod(0o600)
    for path in (key, teds / "data"):
        shutil.chown(path, teds.stat().st_uid)
    readable = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix).resolve()}
    server = ServerProcess(
        [*lab.as_user("ted", sorted(readable)), sys.executable, "-m", "enterprise_gateway", "--port=0"],
        ready=r"is available at (?P<url>https?://\S+)",
        log=lab.folder / "gateway.out",
        env={
            **lab.environment(),
            "EG_REMOTE_USER": "ted",
            "EG_SSH_KEY_FILES": str(key),
            "EG_RESPONSE_PORT": "0",
            "EG_LIST_KERNELS": "true",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(lab.home("ted")),
            "JUPYTER_DATA_DIR": str(teds / "data"),
            "JUPYTER_RUNTIME_DIR": None,
            **env,
        },
    )
    async with server, Client(server.url) as client:
        yield client, server


def bob_makes(lab: HostLab, kind: str, path: Path, target: Path | None = None) -> None:
    """Have something of that name that bob has made."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(str(target))
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
    if kind != "link":
        path.chmod(0o777)
    os.chown(path, lab.home("bob").stat().st_uid, 100, follow_symlinks=False)


async def start(gateway: Client, name: str, kernel_id: str = "") -> tuple[int, Any]:
    """Start a kernel and return the status and what was answered; nothing is waited for for long."""
    env = {"KERNEL_ID": kernel_id} if kernel_id else {}
    began = time.monotonic()
    response = await gateway.fetch("/api/kernels", "POST", {"name": name, "env": env})
    assert time.monotonic() - began < 20
    return response.code, response.body.decode()


async def has_log(gateway: Client, spec: str, kernel_id: str, log: Path, owner: int) -> None:
    """Start a kernel, restart it and end it; its log is the user's alone, and what it writes there can be read."""
    status, said = await start(gateway, spec, kernel_id)
    if spec == "there":
        assert f"Last lines of {log}: egssh1: out of cheese" in said
    else:
        assert status == 201, said
        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
    assert (log.stat().st_uid, log.stat().st_mode & 0o777) == (owner, 0o600)


@pytest.mark.parametrize("kind", ["pipe", "file", "link"])
@pytest.mark.parametrize("spec", ["here", "there"])
async def test_a_log_is_no_file_that_somebody_else_made(
    lab: HostLab, teds: Path, shared: Path, spec: str, kind: str
) -> None:
    """The start fails at once and says why; nothing is written to bob's file, or to ted's that a link leads to."""
    kernel_id, precious = str(uuid.uuid4()), teds / "precious"
    precious.write_text("mine")
    shutil.chown(precious, teds.stat().st_uid)
    bob_makes(lab, kind, shared / f"kernel-{kernel_id}.log", precious)
    async with gateway_of_ted(lab, teds, EG_KERNEL_LOG_DIR=str(shared)) as (gateway, _):
        status, said = await start(gateway, spec, kernel_id)
        assert status == 500
        assert f"{shared}/kernel-{kernel_id}.log" in said
        assert "remove it" in said
        assert precious.read_text() == "mine"
        assert kind != "file" or (shared / f"kernel-{kernel_id}.log").read_text() == ""

        another = str(uuid.uuid4())
        await has_log(gateway, spec, another, shared / f"kernel-{another}.log", teds.stat().st_uid)


@pytest.mark.parametrize("kind", ["pipe", "link"])
@pytest.mark.parametrize("spec", ["python3", "here"])
async def test_many_of_them_keep_nothing_from_working(
    lab: HostLab, teds: Path, shared: Path, spec: str, kind: str
) -> None:
    """Of connection files, outputs and logs: all starts are answered, others work, and SIGTERM ends the gateway."""
    kernel_ids = [str(uuid.uuid4()) for _ in range(MANY)]
    bob_makes(lab, "pipe", shared / f"kernel-{uuid.uuid4()}.json")  # is looked at by the sweep at the start
    settings = {"EG_KERNEL_LOG_DIR": str(shared), "JUPYTER_RUNTIME_DIR": str(shared)}
    async with gateway_of_ted(lab, teds, **settings) as (gateway, server):
        first = await gateway.start_kernel()
        (run,) = [path for path in shared.iterdir() if path.name.startswith("gateway-run-")]
        label = run.name.split("-")[-1].split(".")[0]
        for number, kernel_id in enumerate(kernel_ids):
            ending = f".{label}.log" if number % 2 else ".json"
            bob_makes(lab, kind, shared / f"kernel-{kernel_id}{ending if spec == 'python3' else '.log'}", teds / "none")
        answers = await asyncio.gather(*(start(gateway, spec, kernel_id) for kernel_id in kernel_ids))
        assert {status for status, _ in answers} == {500}
        assert all(kernel_id in said for kernel_id, (_, said) in zip(kernel_ids, answers, strict=True))
        assert "python3" in (await gateway.call("/api/kernelspecs"))["kernelspecs"]
        second = await gateway.start_kernel()
        assert {model["id"] for model in await gateway.call("/api/kernels")} == {first, second}
        began = time.monotonic()
        assert await asyncio.to_thread(server.stop) == 0
        assert time.monotonic() - began < 10
    assert not (teds / "none").exists()


@pytest.mark.parametrize("spec", ["here", "there"])
async def test_logs_have_a_directory_that_is_their_users_alone(lab: HostLab, teds: Path, spec: str) -> None:
    """By default; where bob has made it first, and opened it to all, kernels start with another one."""
    usual, kernel_id, owner = Path("/tmp/enterprise-gateway-ted"), str(uuid.uuid4()), teds.stat().st_uid
    log = usual / f"kernel-{kernel_id}.log"
    assert not list(usual.parent.glob(f"{usual.name}*"))
    try:
        async with gateway_of_ted(lab, teds) as (gateway, server):
            await has_log(gateway, spec, kernel_id, log, owner)
            assert (usual.stat().st_uid, usual.stat().st_mode & 0o7777) == (owner, 0o700)
            shutil.rmtree(usual)

            bob_makes(lab, "folder", usual)
            bob_makes(lab, "pipe", log)
            status, said = await start(gateway, spec, kernel_id)
            (other,) = usual.parent.glob(f"{usual.name}-*")
            assert (other.stat().st_uid, other.stat().st_mode & 0o7777) == (owner, 0o700)
            assert os.listdir(other) == [log.name]
            assert status == 201 or f"Last lines of {other / log.name}: egssh1: out of cheese" in said
            assert f"The log of kernel {kernel_id} will be {other / log.name}" in server.output
    finally:
        for path in usual.parent.glob(f"{usual.name}*"):
            shutil.rmtree(path)


@pytest.mark.parametrize("kind", ["file", "link"])
async def test_a_connection_key_is_not_written_where_somebody_else_can_read_it(
    lab: HostLab, teds: Path, shared: Path, kind: str
) -> None:
    """Nor does ted's gateway overwrite a file of ted's."""
    kernel_id, precious = str(uuid.uuid4()), teds / "precious"
    precious.write_text("mine")
    shutil.chown(precious, teds.stat().st_uid)
    path = shared / f"kernel-{kernel_id}.json"
    bob_makes(lab, kind, path, precious)
    async with gateway_of_ted(lab, teds, JUPYTER_RUNTIME_DIR=str(shared)) as (gateway, _):
        status, said = await start(gateway, "python3", kernel_id)
        assert status == 500
        assert f"The connection file {path} cannot be written: Operation not permitted." in said
        assert precious.read_text() == "mine"
        assert kind == "link" or path.read_text() == ""
        assert not [name for name in os.listdir(shared) if name.startswith(f"kernel-{kernel_id}.json.")]
        kernel = await gateway.start_kernel()
        assert (shared / f"kernel-{kernel}.json").stat().st_mode & 0o777 == 0o600
