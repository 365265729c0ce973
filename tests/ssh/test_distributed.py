"""Kernels on remote hosts, through the whole gateway."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from enterprise_gateway.core.offload import THREADS_PER_PLACE, offload
from enterprise_gateway.services.processproxies.distributed import DistributedProcessProxy
from enterprise_gateway.services.processproxies.remotehosts import ssh_hosts
from tests.clusters.ssh_hosts import Host, HostLab
from tests.support.gateway import Gateway, running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import REPOSITORY

pytestmark = pytest.mark.ssh

LAUNCHER = REPOSITORY / "etc" / "kernel-launchers" / "python" / "scripts" / "launch_ipykernel.py"
PROXY = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
OPTIONS = ("--kernel-id", "{kernel_id}", "--port-range", "{port_range}", "--response-address", "{response_address}")
CODE_THAT_TAKES_LONG = "import time; print('go', flush=True); time.sleep(60)"
ARGV = (sys.executable, str(LAUNCHER), *OPTIONS, "--public-key", "{public_key}")


def spec(name: str, *, argv: tuple[str, ...] = ARGV, env: dict[str, str] | None = None, **config: Any) -> None:
    """Write a kernelspec of the back end."""
    stanza = {"class_name": PROXY, "config": {"payload_version": 2, **config}}
    write_kernelspec(name, argv=argv, env=env or {}, metadata={"process_proxy": stanza})


@pytest.fixture
def hosts(lab: HostLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Host]]:
    """Have the gateway find the lab's hosts, and a kernelspec for them."""
    for name, value in {**lab.environment(), "EG_KERNEL_LOG_DIR": str(lab.folder / "logs")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EG_RESPONSE_PORT", "0")
    spec("distributed")
    yield lab.hosts
    shutil.rmtree(lab.folder / "logs", ignore_errors=True)


async def until(condition: Any, seconds: float = 10) -> None:
    """Wait until ``condition`` holds; it is asked in a thread."""
    end = time.monotonic() + seconds
    while not await offload(condition):
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def kernel(gateway: Gateway, name: str = "distributed", **body: Any) -> AsyncIterator[str]:
    """Have a kernel, and none afterwards."""
    kernel_id = await gateway.start_kernel(name, **body)
    yield kernel_id
    await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")


def kernels_on(host: Host) -> list[str]:
    """Return the launchers that run on a host."""
    return host.processes("launch_ipykernel.py")


async def test_a_kernel_runs_on_a_remote_host(hosts: list[Host]) -> None:
    """It starts, runs code there, is interrupted and restarted under an open websocket, and leaves nothing."""
    async with running_gateway() as gateway:
        kernel_id = await gateway.start_kernel("distributed")
        socket = await gateway.websocket(kernel_id)
        text, reply = await socket.execute("import socket; print(socket.gethostname())")
        assert (text, reply["status"]) == (f"{hosts[0].name}\n", "ok")

        request = await socket.send(
            "execute_request",
            {"code": CODE_THAT_TAKES_LONG, "silent": False, "allow_stdin": False},
        )
        await socket.receive_until("stream", parent=request)
        await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", status=204)
        replies = await socket.receive_until("execute_reply", parent=request)
        assert replies[-1]["content"]["ename"] == "KeyboardInterrupt"

        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST")
        text, _ = await socket.execute("print(socket.gethostname())")
        assert "NameError" in text or text == ""
        text, _ = await socket.execute(
            "import os, socket; print(socket.gethostname(), 'EG_LAUNCH_SECRET' in os.environ)"
        )
        assert text == f"{hosts[1].name} False\n"

        await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")
        await until(lambda: not any(kernels_on(host) for host in hosts))
        assert (Path(os.environ["EG_KERNEL_LOG_DIR"]) / f"kernel-{kernel_id}.log").exists()


async def failure(gateway: Gateway, expect_log: Any, name: str, status: int, **body: Any) -> str:
    """Start a kernel that cannot be started, and return the error's text."""
    with expect_log(f"{status} POST /api/kernels|cannot be started on", required=False):
        response = await gateway.fetch("/api/kernels", "POST", {"name": name, **body})
    assert response.code == status, response.body
    return str(json.loads(response.body)["message"])


async def hostname_of(gateway: Gateway, kernel_id: str) -> str:
    """Return the name of the host that a kernel runs on."""
    socket = await gateway.websocket(kernel_id)
    text, _ = await socket.execute("import socket; print(socket.gethostname())")
    return text.strip()


async def test_a_launcher_that_ends_is_noticed_at_once(hosts: list[Host], expect_log: Any) -> None:
    """The error has its last lines, and does not wait for the launch time-out."""
    spec("broken", argv=("sh", "-c", "echo $(hostname): out of cheese >&2; exit 3"))
    async with running_gateway() as gateway:
        await failure(gateway, expect_log, "broken", 500)  # connects
        started = time.monotonic()
        message = await failure(gateway, expect_log, "broken", 500)
        assert time.monotonic() - started < 2
        assert f"ended on {hosts[1].address}" in message
        assert "egssh2: out of cheese" in message
        assert gateway.app.kernel_manager.list_kernel_ids() == []


async def test_a_launch_that_takes_too_long_is_ended(hosts: list[Host], expect_log: Any) -> None:
    """The error says where the log is and how it ends; the launcher does not live on."""
    spec("slow", argv=("sh", "-c", "echo thinking; sleep 987; :"), launch_timeout=2)
    async with running_gateway() as gateway:
        message = await failure(gateway, expect_log, "slow", 500)
        assert "Waited too long (2s)" in message
        assert f"{hosts[0].address}:" in message
        assert "thinking" in message
        await until(lambda: not hosts[0].processes("987"))


async def test_an_unreachable_host_is_skipped(
    hosts: list[Host], lab: HostLab, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """The next host gets the kernel, and for a while the first is not even tried."""
    monkeypatch.setenv("EG_SSH_CONNECT_TIMEOUT", "1")
    spec("two", remote_hosts=f"{lab.absent_address},{hosts[1].address}")
    async with running_gateway() as gateway:
        with expect_log("cannot be started on"):
            async with kernel(gateway, "two") as kernel_id:
                assert await hostname_of(gateway, kernel_id) == "egssh2"
        started = time.monotonic()
        async with kernel(gateway, "two"), kernel(gateway, "two"):
            assert len(kernels_on(hosts[1])) >= 2
        assert time.monotonic() - started < 12


async def test_a_host_that_never_answers_does_not_block_others(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """With more starts waiting for it than it has threads, kernels start here and on other hosts as ever."""
    monkeypatch.setenv("EG_SSH_CONNECT_TIMEOUT", "20")
    spec("frozen", remote_hosts=hosts[2].address)
    spec("fine", remote_hosts=hosts[1].address)
    async with running_gateway() as gateway:
        # Those that failed first are given up while the others still hold all threads for their host.
        failures = (
            "cannot be started on|could not be started on any host|could not be cleaned up completely: TimeoutError"
        )
        with hosts[2].frozen(), expect_log(failures):
            starts = [
                asyncio.create_task(gateway.fetch("/api/kernels", "POST", {"name": "frozen"}))
                for _ in range(THREADS_PER_PLACE + 10)
            ]
            await asyncio.sleep(2)
            assert "python3" in (await gateway.call("/api/kernelspecs"))["kernelspecs"]
            async with kernel(gateway, "python3"), kernel(gateway, "fine") as there:
                assert await hostname_of(gateway, there) == "egssh2"
            assert not any(start.done() for start in starts)
            assert {response.code for response in await asyncio.gather(*starts)} == {500}


async def test_an_error_names_each_hosts_reason(
    hosts: list[Host], lab: HostLab, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """When no host takes the kernel, the client learns why, of each."""
    monkeypatch.setenv("EG_SSH_CONNECT_TIMEOUT", "1")
    spec("none", remote_hosts=f"{lab.absent_address},no-such-host.invalid,{hosts[2].address}")
    monkeypatch.setenv("EG_SSH_PORT", "2222")
    async with running_gateway() as gateway:
        message = await failure(gateway, expect_log, "none", 500)
        assert "no-such-host.invalid: the name cannot be resolved" in message
        assert f"{hosts[2].address}: port 2222: connection refused" in message
        assert f"{lab.absent_address}: " in message
        assert ssh_hosts(gateway.app.kernel_manager.resources).choice.load.counts() == {}


async def test_a_host_that_refuses_us_is_403(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """Upstream's status for failed SSH authentication."""
    monkeypatch.setenv("EG_SSH_KNOWN_HOSTS", "/nonexistent")
    async with running_gateway() as gateway:
        assert "host key" in await failure(gateway, expect_log, "distributed", 403)


async def test_a_client_may_choose_among_the_allowed_hosts(hosts: list[Host], lab: HostLab, expect_log: Any) -> None:
    """KERNEL_REMOTE_HOST decides, but cannot name a host that the administrator has not."""
    async with running_gateway() as gateway:
        async with kernel(gateway, env={"KERNEL_REMOTE_HOST": hosts[2].address}) as kernel_id:
            assert await hostname_of(gateway, kernel_id) == "egssh3"
        message = await failure(
            gateway, expect_log, "distributed", 403, env={"KERNEL_REMOTE_HOST": lab.gateway_address}
        )
        assert f"KERNEL_REMOTE_HOST '{lab.gateway_address}' is not one of the configured remote hosts" in message


async def test_kernels_are_spread_by_their_number(hosts: list[Host]) -> None:
    """least-connection fills the emptiest host, and counts ended kernels no more."""
    config = {"EnterpriseGatewayApp": {"load_balancing_algorithm": "least-connection"}}
    async with running_gateway(config=config) as gateway:
        first, *others = await asyncio.gather(*(gateway.start_kernel("distributed") for _ in range(3)))
        load = ssh_hosts(gateway.app.kernel_manager.resources).choice.load
        assert set(load.counts().values()) == {1}

        home = await hostname_of(gateway, first)
        await gateway.fetch(f"/api/kernels/{first}", "DELETE")
        async with kernel(gateway) as kernel_id:
            assert await hostname_of(gateway, kernel_id) == home
        for kernel_id in others:
            await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")
        assert load.counts() == {}


async def test_one_ssh_connection_serves_all_kernels_of_a_host(hosts: list[Host]) -> None:
    """However many kernels are started on a host, there is one login."""
    spec("one", remote_hosts=hosts[1].address)
    logins = hosts[1].logins()
    async with running_gateway() as gateway:
        kernels = await asyncio.gather(*(gateway.start_kernel("one") for _ in range(4)))
        assert hosts[1].logins() - logins == 1
        for kernel_id in kernels:
            await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")


async def test_a_kernel_on_the_gateways_host_is_a_child(hosts: list[Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """A local address among the hosts needs no SSH; the log is where the others' are, and stays."""
    spec("here", remote_hosts="localhost")
    async with running_gateway() as gateway:
        kernel_id = await gateway.start_kernel("here")
        socket = await gateway.websocket(kernel_id)
        text, _ = await socket.execute("import os; print(os.getpid())")
        assert psutil.Process(int(text)).ppid() == os.getpid()
        await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")
        assert not psutil.pid_exists(int(text))
    log = Path(os.environ["EG_KERNEL_LOG_DIR"]) / f"kernel-{kernel_id}.log"
    assert log.stat().st_mode & 0o777 == 0o600


async def test_a_kernel_is_known_to_be_dead_soon(hosts: list[Host], expect_log: Any) -> None:
    """A kernel killed on its host is restarted for its clients, on the next host."""
    async with running_gateway() as gateway:
        kernel_id = await gateway.start_kernel("distributed")
        socket = await gateway.websocket(kernel_id)
        assert (await socket.execute("import socket; print(socket.gethostname())"))[0] == "egssh1\n"
        with expect_log("has died: its process .*; restart 1 of 5"):
            await socket.send("execute_request", {"code": "import os; os.kill(os.getpid(), 9)", "silent": False})
            messages = await socket.receive_until("status", timeout=20)
            while messages[-1]["content"].get("execution_state") != "restarting":
                messages = await socket.receive_until("status", timeout=20)
            await until(lambda: kernels_on(hosts[1]), 20)
        text, _ = await socket.execute("import socket; print(socket.gethostname())")
        assert text == "egssh2\n"
        await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")


async def test_the_children_of_a_kernel_that_dies_for_good_end_with_it(hosts: list[Host], expect_log: Any) -> None:
    """Also when it is not restarted, on a host as on this machine."""
    async with running_gateway(config={"RemoteKernelManager": {"autorestart": False}}) as gateway:
        kernel_id = await gateway.start_kernel("distributed")
        socket = await gateway.websocket(kernel_id)
        await socket.execute("import os, subprocess; child = subprocess.Popen(['sleep', '9876'])")
        assert hosts[0].processes("sleep 9876")
        with expect_log("is dead"):
            await socket.send("execute_request", {"code": "os.kill(os.getpid(), 9)", "silent": False})
            await until(lambda: not hosts[0].processes("sleep 9876"), 20)
            while (await socket.receive_until("status"))[-1]["content"]["execution_state"] != "dead":
                pass
        await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")
        while await socket.receive() is not None:
            pass


async def test_a_cut_link_does_not_end_a_kernel(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """While a host is away its kernels are not taken for dead; when it is back they go on with what they know."""
    monkeypatch.setenv("EG_SSH_CONNECT_TIMEOUT", "1")
    monkeypatch.setenv("EG_SOCKET_TIMEOUT", "1")
    async with running_gateway() as gateway:
        kernel_id = await gateway.start_kernel("distributed")
        socket = await gateway.websocket(kernel_id)
        await socket.execute("x = 41")
        with expect_log("did not accept|not be sent|interrupted", required=False):
            await offload(hosts[0].link_down)
            try:
                await asyncio.sleep(8)
                assert (await gateway.call(f"/api/kernels/{kernel_id}"))["id"] == kernel_id
            finally:
                await offload(hosts[0].link_up)
            text, _ = await socket.execute("print(x + 1)", timeout=30)
        assert text == "42\n"
        await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")
        await until(lambda: not kernels_on(hosts[0]))


async def test_a_kernel_behind_a_firewall_is_reached_by_tunnels(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With EG_ENABLE_TUNNELING only the SSH port of the host needs to be open, for all a kernel can do."""
    monkeypatch.setenv("EG_ENABLE_TUNNELING", "true")
    spec("tunnelled", remote_hosts=hosts[1].address)
    await offload(hosts[1].firewall)
    try:
        async with running_gateway() as gateway:
            logins = hosts[1].logins()
            kernel_id = await gateway.start_kernel("tunnelled")
            socket = await gateway.websocket(kernel_id)
            assert (await socket.execute("import socket; print(socket.gethostname())"))[0] == "egssh2\n"
            request = await socket.send("execute_request", {"code": CODE_THAT_TAKES_LONG, "silent": False})
            await socket.receive_until("stream", parent=request)
            await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", status=204)
            await socket.receive_until("execute_reply", parent=request)
            await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST")
            assert (await socket.execute("print(6 * 7)"))[0].endswith("42\n")
            assert hosts[1].logins() - logins == 1
            await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")
            await until(lambda: not kernels_on(hosts[1]))
    finally:
        await offload(hosts[1].no_firewall)


@pytest.mark.parametrize("tunnelling", ["false", "true"])
async def test_a_kernel_outlives_the_gateway(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tunnelling: str
) -> None:
    """With persistence the next gateway finds the kernel on its host, with or without tunnels, and can end it."""
    monkeypatch.setenv("EG_ENABLE_TUNNELING", tunnelling)
    config = {"KernelSessionManager": {"enable_persistence": True, "persistence_root": str(tmp_path)}}
    config["EnterpriseGatewayApp"] = {"availability_mode": "standalone"}
    async with running_gateway(config=config) as gateway:
        kernel_id = await gateway.start_kernel("distributed")
        socket = await gateway.websocket(kernel_id)
        await socket.execute("x = 41")
    assert len(kernels_on(hosts[0])) >= 1
    async with running_gateway(config=config) as gateway:
        socket = await gateway.websocket(kernel_id)
        assert (await socket.execute("print(x + 1)"))[0] == "42\n"
        assert ssh_hosts(gateway.app.kernel_manager.resources).choice.load.counts() == {hosts[0].address: 1}
        await gateway.fetch(f"/api/kernels/{kernel_id}", "DELETE")
        await until(lambda: not kernels_on(hosts[0]))


async def test_impersonated_kernels_run_as_their_user(
    hosts: list[Host], lab: HostLab, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """With impersonation the kernel is its user's; a name that is no user name never reaches the host."""
    monkeypatch.setenv("EG_REMOTE_USER", "ted")
    monkeypatch.setenv("EG_KERNEL_LOG_DIR", str(lab.folder / "home-ted" / "logs"))
    spec(
        "whoami",
        argv=("sh", "-c", "echo I am $(id -un), $KERNEL_USERNAME, $SPEC_VARIABLE; exit 1"),
        env={"SPEC_VARIABLE": "x y"},
    )
    config = {"EnterpriseGatewayApp": {"impersonation_enabled": True, "unauthorized_users": {"root"}}}
    async with running_gateway(config=config) as gateway:
        message = await failure(gateway, expect_log, "whoami", 500, env={"KERNEL_USERNAME": "bob"})
        assert "I am bob, bob, x y" in message
        message = await failure(gateway, expect_log, "whoami", 403, env={"KERNEL_USERNAME": "bob --"})
        assert "not a user name" in message


async def test_the_environment_is_the_launchs(hosts: list[Host]) -> None:
    """Hostile values arrive unchanged; the gateway's own login does not leak into the host's."""
    hostile = 'it\'s "quoted" ; & | \\ ~ # grüß'
    config = {"EnterpriseGatewayApp": {"client_envs": ["VALUE"]}}
    async with running_gateway(config=config) as gateway, kernel(gateway, env={"VALUE": hostile}) as kernel_id:
        socket = await gateway.websocket(kernel_id)
        text, _ = await socket.execute("import os; print(os.environ['VALUE'], os.environ['HOME'], sep='|')")
    assert text == f"{hostile}|/root\n"


async def test_the_shipped_kernelspec_works_as_documented(hosts: list[Host], tmp_path: Path) -> None:
    """``jupyter kernelspec install`` copies python_distributed with its launcher, and it starts on a host."""
    source = REPOSITORY / "etc" / "kernelspecs" / "python_distributed"
    command = [sys.executable, "-m", "jupyter_client.kernelspecapp", "install", str(source), "--user"]
    await offload(subprocess.run, command, check=True, capture_output=True)
    installed = Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels" / "python_distributed"
    assert not (installed / "scripts").is_symlink()

    async with running_gateway() as gateway, kernel(gateway, "python_distributed") as kernel_id:
        assert await hostname_of(gateway, kernel_id) == "egssh1"
        assert any(str(installed) in line for line in await offload(kernels_on, hosts[0]))


def test_the_startup_command_of_version_3_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's directory, exports, and the start: values reach the shell as they are, those of the kernelspec too."""
    monkeypatch.setenv("EG_KERNEL_LOG_DIR", str(tmp_path / "logs"))
    proxy = DistributedProcessProxy.__new__(DistributedProcessProxy)
    proxy.ip, proxy.remote_user = "10.0.0.1", "ted"
    proxy.kernel_manager = SimpleNamespace(kernel_spec=SimpleNamespace(env={"FROM_SPEC": "$HOME `id`"}))  # type: ignore[assignment]

    text = proxy._build_startup_command(["python", "a b"], env={"KERNEL_ID": "abc", "X": "$(id) 'quoted'"})

    exports, _, start = text.partition("nohup")
    script = f'{exports}printf "%s|%s" "$FROM_SPEC" "$X"'
    shown = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout
    assert shown == "$HOME `id`|$(id) 'quoted'"
    assert start.endswith(f"python 'a b' >> {tmp_path}/logs/kernel-abc.log 2>&1 < /dev/null & echo $!\n")
    assert (tmp_path / "logs").is_dir()
    monkeypatch.delenv("EG_KERNEL_LOG_DIR")
    text = proxy._build_startup_command(["python"], env={"KERNEL_ID": "abc"})
    assert " >> /tmp/enterprise-gateway-ted/kernel-abc.log " in text


async def test_a_login_shell_that_runs_nothing_is_reported(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """The error names host, user and what the shell said, and does not speak of a lost connection."""
    monkeypatch.setenv("EG_REMOTE_USER", "nora")
    async with running_gateway() as gateway:
        message = await failure(gateway, expect_log, "distributed", 500)
    for host in hosts:
        said = "the login shell of nora does not run commands: This account is currently not available."
        assert f"{host.address}: {said}" in message
    assert "lost" not in message


@pytest.mark.parametrize("way", ["itself", "by a shell"])
async def test_a_script_with_windows_line_ends_is_reported(
    hosts: list[Host], lab: HostLab, expect_log: Any, way: str
) -> None:
    """The error names the script and what to do, besides what the host said of it."""
    script = lab.folder / "logs" / ("run.sh" if way == "by a shell" else "run")
    script.parent.mkdir(exist_ok=True)
    script.write_bytes(b"#!/bin/sh\r\nexec sleep 60\r\n")
    script.chmod(0o755)
    spec("windows", argv=("sh", "-e", str(script)) if way == "by a shell" else (str(script),))
    async with running_gateway() as gateway:
        message = await failure(gateway, expect_log, "windows", 500)
    assert f"{script} has Windows line ends (CR LF): convert it, for example with dos2unix. Last lines of" in message
