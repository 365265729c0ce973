"""The kernel manager for pipelines does with real gateways what its documentation says."""

from __future__ import annotations

import asyncio
import logging
import queue
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from enterprise_gateway.client.kernelclient import GatewayKernelClient
from enterprise_gateway.client.kernelmanager import GatewayError, GatewayKernelManager
from tests.conftest import ExpectLog
from tests.support.certificates import Authority
from tests.support.gateway import Gateway, running_gateway
from tests.support.processes import gateway_process
from tests.support.tcpproxy import TcpProxy

TOKEN = "s3cret-t0ken"
AUTHORIZED = {"Authorization": f"token {TOKEN}"}
ARGV = [f"--EnterpriseGatewayApp.auth_token={TOKEN}", "--EnterpriseGatewayApp.list_kernels=True"]


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A gateway that wants a token; no kernel stays on it."""
    async with running_gateway(ARGV) as gateway:
        yield gateway
        assert await kernels(gateway) == []


async def kernels(gateway: Gateway) -> Any:
    """Return the models of the gateway's kernels."""
    return await gateway.call("/api/kernels", headers=AUTHORIZED)


def manager_for(url: str, **options: Any) -> GatewayKernelManager:
    """Return a manager that has the token."""
    return GatewayKernelManager(**{"kernel_name": "python3", "url": url, "auth_token": TOKEN, **options})


@asynccontextmanager
async def running_kernel(url: str, **options: Any) -> AsyncIterator[tuple[GatewayKernelManager, GatewayKernelClient]]:
    """Start a kernel (or attach to one), and end it as nbclient does."""
    manager = manager_for(url, **options)
    await manager.start_kernel()
    client = manager.client()
    try:
        await client.start_channels()
        await client.wait_for_ready(timeout=30)
        yield manager, client
    finally:
        await manager.shutdown_kernel()
        await manager.cleanup_resources()
        await client.stop_channels()


async def run(client: GatewayKernelClient, code: str, timeout: float = 30) -> tuple[list[str], Any]:
    """Run code; return the texts it printed, one for each line, and the content of the reply."""
    return await outcome(client, client.execute(code, allow_stdin=False), timeout)


async def outcome(client: GatewayKernelClient, msg_id: str, timeout: float = 30) -> tuple[list[str], Any]:
    """Return what came of a request."""
    text = ""
    while True:
        message = await client.get_iopub_msg(timeout=timeout)
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        text += message["content"].get("text", "")
        if message["content"].get("execution_state") == "idle":
            break
    reply = await client._recv_reply(msg_id, timeout=timeout)
    return text.splitlines(), reply["content"]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    """Wait until ``condition`` holds."""

    async def look() -> None:
        while not await condition():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(look(), seconds)


async def dead(client: GatewayKernelClient, seconds: float = 20) -> None:
    """Wait until the client knows that its kernel is dead."""

    async def is_dead() -> bool:
        return not await client.is_alive()

    await until(is_dead, seconds)


async def test_code_runs_with_a_token(gateway: Gateway) -> None:
    """REST requests and the websocket carry it; outputs arrive in order."""
    async with running_kernel(gateway.url) as (manager, client):
        lines, reply = await run(client, "for i in range(3000): print(i)")
        assert lines == [str(i) for i in range(3000)]
        assert reply["status"] == "ok"
        assert await manager.is_alive()
    assert not await manager.is_alive()


async def test_the_token_is_in_no_url_log_or_text(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """Neither what is logged nor the objects' texts hold it."""
    caplog.set_level(logging.DEBUG)
    async with running_kernel(gateway.url) as (manager, client):
        await run(client, "1")
        request = await manager.request("/x", timeout=1)
        assert TOKEN not in request.url
        assert TOKEN not in f"{manager!r} {client!r} {manager} {client}"
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("token", ["wrong", ""])
async def test_a_wrong_token_is_one_clear_sentence(gateway: Gateway, token: str) -> None:
    """The error names the gateway and the cause; no kernel was started."""
    manager = manager_for(gateway.url, auth_token=token)
    with pytest.raises(GatewayError, match="answered 401 Unauthorized: check the token$") as caught:
        await manager.start_kernel()
    assert TOKEN not in str(caught.value)
    assert not manager.has_kernel


async def test_an_unknown_kernelspec_is_named(gateway: Gateway) -> None:
    """The gateway's own sentence is passed on."""
    with pytest.raises(GatewayError, match="'no-such'.*answered 404"):
        await manager_for(gateway.url, kernel_name="no-such").start_kernel()


@pytest.mark.parametrize("url", ["", "gateway.example:8888"])
async def test_a_missing_url_is_reported(url: str) -> None:
    """The error says which variable to set."""
    with pytest.raises(GatewayError, match="JUPYTER_GATEWAY_URL"):
        await manager_for(url).start_kernel()


async def test_options_come_from_the_environment(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter Server's variables count, and KERNEL_* ones and those that were named reach the kernel."""
    for name, value in {
        "JUPYTER_GATEWAY_URL": gateway.url,
        "JUPYTER_GATEWAY_AUTH_TOKEN": TOKEN,
        "KERNEL_USERNAME": "ada",
        "KERNEL_COLOUR": "blue",
    }.items():
        monkeypatch.setenv(name, value)
    manager = GatewayKernelManager(kernel_name="python3", env={"KERNEL_SIZE": "7", "KERNEL_COLOUR": "red"})
    await manager.start_kernel()
    client = manager.client()
    await client.start_channels()
    await client.wait_for_ready(timeout=30)
    names = ("KERNEL_USERNAME", "KERNEL_COLOUR", "KERNEL_SIZE")
    lines, _ = await run(client, f"import os; print(*[os.environ[name] for name in {names}])")
    assert lines == ["ada blue 7"]
    await manager.shutdown_kernel()
    await client.stop_channels()


async def test_tls_with_a_private_authority_and_a_client_certificate(tmp_path: Path) -> None:
    """The gateway's certificate is checked by the authority that was named, on REST and on the websocket."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    own_certificate, own_key = authority.issue("client")
    argv = [
        f"--EnterpriseGatewayApp.certfile={certificate}",
        f"--EnterpriseGatewayApp.keyfile={key}",
        f"--EnterpriseGatewayApp.client_ca={authority.certificate}",
    ]
    own = {"ca_certs": authority.certificate, "client_cert": own_certificate, "client_key": own_key}
    async with gateway_process(tmp_path / "log", [*ARGV, *argv]) as gateway:
        assert gateway.url.startswith("https")
        async with running_kernel(gateway.url, **own) as (_, client):
            assert (await run(client, "print(6 * 7)"))[0] == ["42"]


async def test_an_untrusted_authority_is_reported(tmp_path: Path, expect_log: ExpectLog) -> None:
    """Without the private authority nothing is sent, and the error says that the certificate is not accepted."""
    certificate, key = Authority(tmp_path).issue("127.0.0.1")
    argv = [f"--EnterpriseGatewayApp.certfile={certificate}", f"--EnterpriseGatewayApp.keyfile={key}"]
    async with gateway_process(tmp_path / "log", [*ARGV, *argv]) as gateway:
        with expect_log("SSL Error"), pytest.raises(GatewayError, match="CERTIFICATE_VERIFY_FAILED"):
            await manager_for(gateway.url).start_kernel()
        async with running_kernel(gateway.url, validate_cert=False) as (_, client):
            assert (await run(client, "print(1)"))[0] == ["1"]


async def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(GatewayError, match=r"missing\.pem"):
        await manager_for("https://127.0.0.1:1", ca_certs=str(tmp_path / "missing.pem")).start_kernel()


async def test_a_cut_connection_loses_no_output(gateway: Gateway) -> None:
    """The websocket is opened again with its session, and every line of the running cell is there once."""
    with TcpProxy(urlsplit(gateway.url).port or 0) as proxy:
        async with running_kernel(f"http://127.0.0.1:{proxy.port}") as (_, client):
            msg_id = client.execute("import time\nfor i in range(60): print(i, flush=True); time.sleep(0.05)")
            cell = asyncio.create_task(outcome(client, msg_id))
            for _ in range(3):
                await asyncio.sleep(0.6)
                await asyncio.to_thread(proxy.cut)
            lines, reply = await cell
            assert lines == [str(i) for i in range(60)]
            assert reply["status"] == "ok"
            assert (await run(client, "print('next')"))[0] == ["next"]


async def test_requests_made_while_disconnected_are_sent_later(gateway: Gateway) -> None:
    """A request waits for the next connection, and is executed once."""
    with TcpProxy(urlsplit(gateway.url).port or 0) as proxy:
        async with running_kernel(f"http://127.0.0.1:{proxy.port}") as (_, client):
            await run(client, "count = 0")
            proxy.refuse = True
            await asyncio.to_thread(proxy.cut)
            await asyncio.sleep(0.3)
            request = client.execute("count += 1; print(count)")
            await asyncio.sleep(0.5)
            proxy.refuse = False
            assert (await outcome(client, request))[0] == ["1"]
            assert (await run(client, "print(count)"))[0] == ["1"]


async def test_a_lost_reply_is_reported() -> None:
    """Where the gateway keeps nothing for absent clients, the request gets an error, and the kernel goes on."""
    argv = [*ARGV, "--RemoteMappingKernelManager.buffer_offline_messages=False"]
    async with running_gateway(argv) as gateway:
        with TcpProxy(urlsplit(gateway.url).port or 0) as proxy:
            async with running_kernel(f"http://127.0.0.1:{proxy.port}") as (_, client):
                request = client.execute("import time; time.sleep(1)")
                await asyncio.sleep(0.5)
                proxy.refuse = True
                await asyncio.to_thread(proxy.cut)
                await asyncio.sleep(1)
                proxy.refuse = False
                assert (await outcome(client, request))[1]["ename"] == "ReplyLostError"
                assert (await run(client, "print('next')"))[0] == ["next"]


async def test_a_gateway_that_stays_away_is_given_up(gateway: Gateway, expect_log: ExpectLog) -> None:
    """After reconnect_timeout seconds the kernel counts as dead, and the log says why."""
    with TcpProxy(urlsplit(gateway.url).port or 0) as proxy:
        async with running_kernel(f"http://127.0.0.1:{proxy.port}", reconnect_timeout=1) as (_, client):
            client.execute("import time; time.sleep(60)")
            with expect_log("died: Cannot reconnect to it: gateway .* cannot be reached"):
                proxy.refuse = True
                await asyncio.to_thread(proxy.cut)
                await dead(client)
            proxy.refuse = False


async def test_the_death_of_a_kernel_is_announced_within_a_second(gateway: Gateway, expect_log: ExpectLog) -> None:
    """The gateway starts it again, but what the program had there is gone: for its client it is dead."""
    async with running_kernel(gateway.url) as (_, client):
        with expect_log("died|is dead"):
            client.execute("import os; os._exit(3)")
            await dead(client, 5)


async def test_a_kernel_that_stays_dead_is_taken_off_the_list(expect_log: ExpectLog) -> None:
    """Without automatic restarts the gateway lists it as dead; it is deleted at the end, as nobody else does."""
    argv = [*ARGV, "--RemoteKernelManager.autorestart=False", "--KernelManager.autorestart=False"]
    async with running_gateway(argv) as gateway:
        async with running_kernel(gateway.url) as (manager, client):
            with expect_log("died|is dead"):
                client.execute("import os; os._exit(3)")
                await dead(client, 5)
                assert manager.has_kernel
        assert await kernels(gateway) == []


async def test_a_kernel_that_somebody_deleted_is_dead(gateway: Gateway, expect_log: ExpectLog) -> None:
    """A client that finds its kernel gone stops looking for it."""
    async with running_kernel(gateway.url) as (manager, client):
        with expect_log("died"):
            await gateway.call(f"/api/kernels/{manager.kernel_id}", "DELETE", status=204, headers=AUTHORIZED)
            await dead(client, 10)
        assert not await manager.is_alive()


async def test_a_restart_of_ones_own_is_no_death(gateway: Gateway) -> None:
    """The client stays connected; what was asked before the restart gets an error for a reply."""
    async with running_kernel(gateway.url) as (manager, client):
        await run(client, "x = 1")
        request = client.execute("import time; time.sleep(60)")
        await asyncio.sleep(0.5)
        await manager.restart_kernel()
        reply = await client._recv_reply(request, timeout=20)
        assert reply["content"]["status"] == "error"
        assert (await run(client, "print('x' in globals())"))[0] == ["False"]
        assert await client.is_alive()


async def test_an_interrupt_ends_a_loop(gateway: Gateway) -> None:
    """The reply is a KeyboardInterrupt, and the kernel goes on."""
    async with running_kernel(gateway.url) as (manager, client):
        request = client.execute("while True: pass")
        await asyncio.sleep(0.5)
        await manager.interrupt_kernel()
        assert (await outcome(client, request))[1]["ename"] == "KeyboardInterrupt"


async def test_attaching_sees_variables_and_leaves_the_kernel(gateway: Gateway) -> None:
    """One that was attached to stays, unless keep_kernel says otherwise."""
    async with running_kernel(gateway.url, keep_kernel=True) as (manager, client):
        await run(client, "secret = 41")
    kernel_id = manager.kernel_id
    async with running_kernel(gateway.url, kernel_id=kernel_id) as (_, client):
        assert (await run(client, "print(secret + 1)"))[0] == ["42"]
    assert [model["id"] for model in await kernels(gateway)] == [kernel_id]
    async with running_kernel(gateway.url, kernel_id=kernel_id, keep_kernel=False) as (_, client):
        assert (await run(client, "print(secret)"))[0] == ["41"]


async def test_attaching_to_no_kernel_is_an_error(gateway: Gateway) -> None:
    """The error names the kernel."""
    kernel_id = str(uuid.uuid4())
    with pytest.raises(GatewayError, match=f"attach to kernel {kernel_id}.*answered 404"):
        await manager_for(gateway.url, kernel_id=kernel_id).start_kernel()


async def test_a_start_that_is_cancelled_leaves_no_kernel(gateway: Gateway) -> None:
    """Whenever it is cancelled, the kernel that the gateway may have started is deleted."""
    for delay in (0, 0.005, 0.01, 0.02, 0.05, 0.1):
        manager = manager_for(gateway.url)
        start = asyncio.create_task(manager.start_kernel())
        await asyncio.sleep(delay)
        start.cancel()
        await asyncio.wait([start])
        if not start.cancelled():  # it was quicker
            await manager.shutdown_kernel()
        await until(lambda: no_kernels(gateway))


async def no_kernels(gateway: Gateway) -> bool:
    """Whether the gateway has none."""
    return await kernels(gateway) == []


async def test_two_gateways_are_used_at_once(gateway: Gateway, tmp_path: Path) -> None:
    """Each manager has its own address and token."""
    async with (
        gateway_process(tmp_path / "log", ["--EnterpriseGatewayApp.auth_token=other"]) as second,
        running_kernel(gateway.url) as (_, one),
        running_kernel(second.url, auth_token="other") as (_, two),
    ):
        await asyncio.gather(run(one, "x = 'one'"), run(two, "x = 'two'"))
        assert [(await run(client, "print(x)"))[0] for client in (one, two)] == [["one"], ["two"]]


async def test_two_clients_of_one_kernel_have_their_own_replies(gateway: Gateway) -> None:
    """Each has a session of its own."""
    async with running_kernel(gateway.url) as (manager, first):
        second = manager.client()
        await second.start_channels()
        await second.wait_for_ready(timeout=30)
        answers = await asyncio.gather(run(first, "print('first')"), run(second, "print('second')"))
        assert [lines for lines, _ in answers] == [["first"], ["second"]]
        await second.stop_channels()


async def test_no_message_within_the_time_is_empty(gateway: Gateway) -> None:
    """Channels raise what jupyter_client's do."""
    async with running_kernel(gateway.url) as (_, client):
        with pytest.raises(queue.Empty):
            await client.get_shell_msg(timeout=0)
        with pytest.raises(queue.Empty):
            await client.get_stdin_msg(timeout=0.05)
