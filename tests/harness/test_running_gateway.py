"""The gateway that tests run in their own process is the whole gateway, and leaves nothing behind."""

from __future__ import annotations

from tests.support.gateway import running_gateway
from tests.support.processes import gateway_process


async def test_a_gateway_in_the_tests_own_process_runs_kernels() -> None:
    """It starts a kernel, runs code over a websocket, and ends with everything that it started."""
    async with running_gateway() as gateway:
        assert (await gateway.call("/api"))["gateway_version"]
        kernel_id = await gateway.start_kernel()
        socket = await gateway.websocket(kernel_id)
        text, reply = await socket.execute("print(6 * 7)")
        assert (text, reply["status"]) == ("42\n", "ok")


async def test_options_come_from_arguments_and_config() -> None:
    """Both ways of configuring it reach it."""
    config = {"EnterpriseGatewayApp": {"auth_token": "secret"}}
    async with running_gateway(["--EnterpriseGatewayApp.base_url=/x"], config=config) as gateway:
        assert gateway.url.endswith("/x")
        assert (await gateway.fetch("/api")).code == 401
        await gateway.call("/api", headers={"Authorization": "token secret"})


async def test_a_gateway_as_a_program(tmp_path) -> None:
    """The same gateway runs as a program and ends with code 0 when it is asked to."""
    async with gateway_process(tmp_path / "log") as gateway:
        assert gateway.url.startswith("http://127.0.0.1:")
    assert gateway.process.returncode == 0, gateway.output


async def test_a_websocket_that_is_not_read_ends_with_its_gateway() -> None:
    """However much has come: nothing of it is left, which is what every test checks."""
    async with running_gateway() as gateway:
        kernel_id = await gateway.start_kernel()
        socket = await gateway.websocket(kernel_id)
        await socket.execute("1")
        for _ in range(5):
            await socket.send("kernel_info_request")
        other = await gateway.websocket(kernel_id)
        await other.execute("2")
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
