"""What a start request, a kernelspec and a back end of version 3 can rely on."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

from enterprise_gateway.core.connection import ConnectionInfo
from enterprise_gateway.core.errors import LauncherFailedError
from enterprise_gateway.provisioners.adapter import ProcessProxyProvisioner
from enterprise_gateway.provisioners.foreign import ForeignProcess
from enterprise_gateway.provisioners.standalone import StandaloneKernel
from enterprise_gateway.services.kernels.remotemanager import RemoteKernelManager, new_kernel_id
from tests.conftest import ExpectLog
from tests.contract.test_contract import nothing_left
from tests.support.gateway import Gateway, running_gateway
from tests.support.kernelspecs import PYTHON_ARGV, write_kernelspec

CONFIG: dict[str, Any] = {
    "EnterpriseGatewayApp": {"list_kernels": True},
    "RemoteKernelManager": {"shutdown_wait_time": 2},
}
WITNESS = ["sh", "-c", 'env -0 > "$0/env.part"; pwd > "$0/cwd"; mv "$0/env.part" "$0/env"; exec sleep 1000']


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """The kernelspec ``witness``, whose kernel writes its directory and environment down; the directory of that."""
    write_kernelspec("witness", argv=[*WITNESS, str(tmp_path)])
    return tmp_path


async def witnessed(gateway: Gateway, witness: Path, **body: Any) -> tuple[str, dict[str, str]]:
    """Start and stop the witness; return its working directory and its environment."""
    headers = body.pop("headers", {})
    answer = await gateway.call("/api/kernels", "POST", {"name": "witness", **body}, status=201, headers=headers)
    while not (witness / "env").exists():
        await asyncio.sleep(0.01)
    await gateway.call(f"/api/kernels/{answer['id']}", "DELETE", status=204)
    entries = (witness / "env").read_text().rstrip("\0").split("\0")
    (witness / "env").unlink()
    return (witness / "cwd").read_text().strip(), dict(entry.split("=", 1) for entry in entries)


async def test_a_process_proxy_that_takes_long_to_import_does_not_block_others(
    witness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules of third parties are imported in a thread; every test checks that the loop was not blocked."""
    (witness / "slow_to_import.py").write_text(
        "import time\n"
        "from enterprise_gateway.services.processproxies.processproxy import LocalProcessProxy\n"
        "time.sleep(0.3)\n"
        "class SlowProxy(LocalProcessProxy): pass\n"
    )
    monkeypatch.syspath_prepend(witness)
    proxy = {"process_proxy": {"class_name": "slow_to_import.SlowProxy"}}
    write_kernelspec("witness", argv=[*WITNESS, str(witness)], metadata=proxy)
    async with running_gateway() as gateway:
        await witnessed(gateway, witness)


async def test_a_start_without_a_name_starts_the_default_kernel(witness: Path) -> None:
    """default_kernel_name is used when the request names none, also after it was changed."""
    async with running_gateway(config={"EnterpriseGatewayApp": {"default_kernel_name": "witness"}}) as gateway:
        for body in ({}, {"name": None}, None):
            model = await gateway.call("/api/kernels", "POST", body, status=201)
            assert model["name"] == "witness"
            await gateway.call(f"/api/kernels/{model['id']}", "DELETE", status=204)


async def test_a_path_is_the_working_directory_within_the_root(witness: Path) -> None:
    """The nearest existing directory of the path below root_dir is used, and none outside of it."""
    root = witness / "root"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "book.ipynb").touch()
    (root / "way-out").symlink_to("/etc")
    config = {**CONFIG, "RemoteMappingKernelManager": {"root_dir": str(root)}}
    async with running_gateway(config=config) as gateway:
        for path, expected in [
            ("deep/er", root / "deep" / "er"),
            ("/deep/er", root / "deep" / "er"),
            ("deep/book.ipynb", root / "deep"),
            ("deep/not/there", root / "deep"),
            ("", root),
            ("../../etc", root),
            ("/etc", root),
            ("deep/../../..", root),
            ("way-out", root),
            ("way-out/ssl", root),
        ]:
            cwd, _ = await witnessed(gateway, witness, path=path)
            assert cwd == str(expected), path


async def test_any_directory_is_below_the_root_directory(witness: Path) -> None:
    """With root_dir="/" the path is used unchanged."""
    (witness / "deep").mkdir()
    config = {**CONFIG, "RemoteMappingKernelManager": {"root_dir": "/"}}
    async with running_gateway(config=config) as gateway:
        for path, expected in [
            (f"{witness}/deep", witness / "deep"),
            (f"{witness}/not/there", witness),
            ("", Path("/")),
        ]:
            cwd, _ = await witnessed(gateway, witness, path=path)
            assert cwd == str(expected), path


async def test_captured_headers_reach_the_back_end(tmp_path: Path, witness: Path) -> None:
    """Headers that kernel_headers names are passed to launch_process, in its spelling, and no others."""
    argv = json.loads((Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels/witness/kernel.json").read_text())["argv"]
    stanza = {"class_name": "tests.support.proxies.OldStyleProxy"}
    write_kernelspec("witness", argv=argv, metadata={"process_proxy": stanza})
    config = {**CONFIG, "EnterpriseGatewayApp": {"kernel_headers": ["X-Trace"]}}
    async with running_gateway(config=config) as gateway:
        headers = {"x-trace": "42", "X-Other": "1"}
        _, environment = await witnessed(gateway, witness, headers=headers)
        assert json.loads(environment["HEADERS"]) == {"X-Trace": "42"}


async def test_a_back_end_of_version_3_finds_its_attributes(witness: Path, expect_log: ExpectLog) -> None:
    """Options, addresses, ports and identity are where version 3 had them, on the kernel manager and the base class."""
    argv = json.loads((Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels/witness/kernel.json").read_text())["argv"]
    config = {"port_range": "20000..30000", "launch_timeout": 17, "authorized_users": "alice,bob"}
    stanza = {"class_name": "tests.support.proxies.OldStyleProxy", "config": config}
    write_kernelspec("witness", argv=argv, metadata={"process_proxy": stanza}, display_name="Witness")
    options = {"impersonation_enabled": True, "port_range": "40000..50000", "max_kernels": 7}
    with expect_log("Impersonation is enabled and the gateway's user"):
        async with running_gateway(config={**CONFIG, "EnterpriseGatewayApp": options}) as gateway:
            _, environment = await witnessed(gateway, witness, env={"KERNEL_USERNAME": "bob"})
    seen = json.loads(environment["SEEN"])
    assert seen["port_range"] == "40000..50000"
    assert seen["ports"] == [20000, 30000]
    assert seen["impersonation_enabled"] is True
    assert seen["max_kernels"] == 7
    assert seen["launch_timeout"] == 17
    assert seen["spec_name"] == "Witness"
    assert (seen["response_address"], seen["public_key"]) == ("", "")
    assert seen["connection_file"].endswith(f"kernel-{environment['KERNEL_ID']}.json")
    assert seen["kernel_id"] == environment["KERNEL_ID"]


async def test_a_provisioner_that_a_kernelspec_names_is_used(
    monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """jupyter_client's local-provisioner: start, run, interrupt, restart, notice a death and stop."""
    monkeypatch.setenv("CLOUD_CREDENTIAL", "secret")
    metadata = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
    write_kernelspec("provisioned", argv=PYTHON_ARGV, metadata=metadata)
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel("provisioned", env={"KERNEL_USERNAME": "ada"})
        websocket = await gateway.websocket(kernel_id)
        text, _ = await websocket.execute("import json, os; print(json.dumps(dict(os.environ)))")
        environment = json.loads(text)
        assert (environment["KERNEL_USERNAME"], environment["KERNEL_ID"]) == ("ada", kernel_id)
        assert "CLOUD_CREDENTIAL" not in environment
        loop = asyncio.create_task(websocket.execute("while True: pass"))
        await asyncio.sleep(0.7)
        await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", {}, status=204)
        assert (await loop)[1]["ename"] == "KeyboardInterrupt"
        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        assert (await websocket.execute("import os; 'json' in globals()"))[0] == "False"
        assert (await websocket.execute("os.environ['KERNEL_USERNAME']"))[0] == "'ada'"
        with expect_log("has died: its process ended with exit code 7; restart 1 of 5"):
            await websocket.send("execute_request", {"code": "os._exit(7)", "silent": False})
            states = []
            while "restarting" not in states:
                states.append((await websocket.receive_until("status"))[-1]["content"]["execution_state"])
        assert (await websocket.execute("6 * 7"))[0] == "42"
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        await nothing_left(kernel_id)
        assert not list(Path(gateway.app.runtime_dir).glob("kernel-*"))


async def test_the_rules_for_users_hold_for_provisioners_too() -> None:
    """A user who may not start kernels cannot bypass this with a provisioner."""
    metadata = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
    write_kernelspec("provisioned", metadata=metadata)
    config = {"EnterpriseGatewayApp": {"unauthorized_users": ["mallory"], "list_kernels": True}}
    async with running_gateway(config=config) as gateway:
        body = {"name": "provisioned", "env": {"KERNEL_USERNAME": "mallory"}}
        answer = await gateway.call("/api/kernels", "POST", body, status=403)
        assert "User 'mallory' is not authorized" in answer["reason"]
        assert await gateway.call("/api/kernels") == []


async def test_a_kernelspec_whose_provisioner_is_not_installed_cannot_be_started(expect_log: ExpectLog) -> None:
    """It is 404 like a kernelspec that is not there, as in jupyter_client; the log names the provisioner."""
    write_kernelspec("provisioned", metadata={"kernel_provisioner": {"provisioner_name": "no-such-provisioner"}})
    async with running_gateway(config=CONFIG) as gateway:
        with expect_log("kernel provisioner \\('no-such-provisioner'\\) that is not available"):
            answer = await gateway.call("/api/kernels", "POST", {"name": "provisioned"}, status=404)
        assert "No kernelspec named 'provisioned'" in answer["message"]


class FailingProvisioner(LocalProvisioner):
    """Starts a process, and then says that it failed."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Launch, then raise."""
        await super().launch_kernel(cmd, **kwargs)
        raise LauncherFailedError("The cluster is on holiday.")


@pytest.mark.parametrize("manager_class", [RemoteKernelManager, AsyncKernelManager])
@pytest.mark.parametrize("process", ["proxy", "provisioner"])
async def test_the_reason_of_a_failed_launch_is_reported_even_if_the_clean_up_fails(
    process: str, manager_class: type[AsyncKernelManager], expect_log: ExpectLog
) -> None:
    """Nothing of the launch is left with any manager and provisioner: what has launched cleans up."""
    stanza = {"class_name": "tests.support.proxies.HelplessProxy"}
    write_kernelspec("failing", metadata={"process_proxy": stanza})
    manager = manager_class(kernel_name="failing")
    manager.kernel_id = kernel_id = str(uuid.uuid4())
    spec = manager.kernel_spec
    assert spec is not None
    names: dict[str, Any] = {"kernel_id": kernel_id, "kernel_spec": spec, "parent": manager}
    kernel = manager if isinstance(manager, RemoteKernelManager) else StandaloneKernel(manager, kernel_id, spec)
    if process == "proxy":
        own = kernel if manager_class is RemoteKernelManager else None
        manager.provisioner = ProcessProxyProvisioner(kernel=own, **names)
    else:
        spec.metadata["kernel_provisioner"] = {}
        manager.provisioner = ForeignProcess(FailingProvisioner(**names), kernel, **names)
    with (
        expect_log("wants no (kill|cleanup)|on holiday", required=process == "proxy"),
        pytest.raises(Exception, match="The cluster is on holiday"),
    ):
        await manager.start_kernel()
    assert not manager.has_kernel
    assert not kernel.resources.ports._taken
    if process == "proxy":
        assert not Path(manager.connection_file).exists()
    await nothing_left(kernel_id)
    if isinstance(kernel, StandaloneKernel):
        await kernel.release()


class KernelWhoseClientLeaves(RemoteKernelManager):
    """Calls ``leave`` right after its start is complete, before the task that waits for it continues."""

    leave: Callable[[], object]

    def connection(self) -> ConnectionInfo:
        """Return how to connect; the last step of a start asks for it."""
        asyncio.get_running_loop().call_soon(type(self).leave)
        return super().connection()


async def test_a_start_that_is_complete_when_its_client_disconnects_is_cancelled_too(witness: Path) -> None:
    """The kernel is ended, its place is free again, and nothing of it is left."""
    manager_class = {"kernel_manager_class": f"{__name__}.KernelWhoseClientLeaves"}
    config = {"EnterpriseGatewayApp": {"max_kernels": 1}, "RemoteMappingKernelManager": manager_class}
    async with running_gateway(config={**CONFIG, **config}) as gateway:
        manager = gateway.app.kernel_manager
        kernel_id = new_kernel_id()
        for _ in range(2):
            start = asyncio.create_task(manager.start_kernel(kernel_name="witness", kernel_id=kernel_id))
            KernelWhoseClientLeaves.leave = start.cancel
            with pytest.raises(asyncio.CancelledError):
                await start
            assert manager.list_kernels() == []
            await nothing_left(kernel_id)
