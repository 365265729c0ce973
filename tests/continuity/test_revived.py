"""What a gateway knows and shows of kernels that an earlier one has started."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from enterprise_gateway.core.offload import offload
from tests.clusters.ssh_hosts import HostLab
from tests.support.kernelspecs import write_kernelspec
from tests.support.proxies import write_fussy_kernelspec

from .rolling import (
    STANDALONE,
    RollingGateway,
    begin,
    eventually,
    processes_with,
    record_of,
    rolling_gateway,
    traces_of,
)
from .test_kill import LAUNCHER_ARGV

DISTRIBUTED = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"


async def wait_for_state(gateway: RollingGateway, kernel_id: str, state: str, seconds: float = 10) -> dict[str, Any]:
    """Wait for an execution state and return the model."""

    async def has_state() -> bool:
        return (await gateway.model(kernel_id))["execution_state"] == state

    await eventually(has_state, seconds, f"state {state}")
    return await gateway.model(kernel_id)


def at(model: dict[str, Any]) -> datetime:
    """Return when a kernel was last active."""
    return datetime.strptime(model["last_activity"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)


async def test_state_and_activity_are_right_at_once_after_a_recovery(tmp_path: Path) -> None:
    """An idle kernel is idle at once, with its last activity; not 'starting', and not active because of the restart."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel()
        await gateway.run(kernel_id, "1")
        before = await wait_for_state(gateway, kernel_id, "idle")
        await gateway.roll()
        after = await gateway.model(kernel_id)
        assert (after["execution_state"], after["last_activity"]) == ("idle", before["last_activity"])
        await asyncio.sleep(1.5)
        after = await wait_for_state(gateway, kernel_id, "idle")  # silent for a second: considered busy
        assert after["last_activity"] == before["last_activity"]


@pytest.mark.parametrize("kill", [False, True])
async def test_a_long_cell_goes_on(tmp_path: Path, kill: bool) -> None:
    """Its kernel is busy, its reply and later output reach the client that reconnects, and the gap is shown."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel()
        socket = await gateway.client.websocket(kernel_id, session_id="the-client")
        await socket.execute("import time, pathlib")
        marker = tmp_path / "go-on"
        code = f"print('before')\nwhile not pathlib.Path({str(marker)!r}).exists(): time.sleep(0.05)\nprint('after')"
        request = await begin(socket, code)
        await socket.receive_until("stream", parent=request)
        await gateway.roll(kill=kill)
        await wait_for_state(gateway, kernel_id, "busy", 3)
        socket = await gateway.client.websocket(kernel_id, session_id="the-client")
        await offload(marker.touch)
        messages = await socket.receive_until("execute_reply", parent=request)
        assert messages[-1]["content"]["status"] == "ok"
        text = "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")
        assert "after\n" in text
        assert "The gateway was restarted while this cell was running" in text
        await wait_for_state(gateway, kernel_id, "idle")
        assert (await socket.execute("print(6 * 7)"))[0] == "42\n"


@pytest.mark.r
async def test_a_long_cell_in_r_goes_on(tmp_path: Path) -> None:
    """The same with a kernel that polls its sockets between two cells only."""
    argv = ["R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"]
    write_kernelspec("ir", argv=argv, language="R")
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel("ir")
        socket = await gateway.client.websocket(kernel_id, session_id="the-client")
        await socket.execute("x <- 41")
        marker = tmp_path / "go-on"
        request = await begin(socket, f"while (!file.exists('{marker}')) 0\nx <- x + 1")
        await gateway.roll()
        await wait_for_state(gateway, kernel_id, "busy", 3)
        socket = await gateway.client.websocket(kernel_id, session_id="the-client")
        await offload(marker.touch)
        messages = await socket.receive_until("execute_reply", parent=request)
        assert messages[-1]["content"]["status"] == "ok"
        await wait_for_state(gateway, kernel_id, "idle")
        assert "42" in (await socket.execute("cat(x)"))[0]


async def test_a_cell_that_ended_while_no_gateway_ran_gets_a_reply(tmp_path: Path) -> None:
    """The kernel's reply is lost while no gateway runs: the client gets an error instead of waiting for ever."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel()
        socket = await gateway.client.websocket(kernel_id, session_id="the-client")
        await socket.execute("import time, pathlib")
        marker, done = tmp_path / "go-on", tmp_path / "done"
        code = (
            f"while not pathlib.Path({str(marker)!r}).exists(): time.sleep(0.05)\n"
            f"x = 42\npathlib.Path({str(done)!r}).touch()"
        )
        request = await begin(socket, code)
        await gateway.stop()
        await offload(marker.touch)
        await eventually(done.exists)
        await asyncio.sleep(0.5)
        await gateway.start()
        socket = await gateway.client.websocket(kernel_id, session_id="the-client")
        messages = await socket.receive_until("execute_reply", parent=request)
        assert messages[-1]["content"]["ename"] == "GatewayRestarted"
        text = "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")
        assert "The gateway was restarted while this cell was running" in text
        await wait_for_state(gateway, kernel_id, "idle", 3)
        assert (await socket.execute("print(x)"))[0] == "42\n"


async def test_ports_files_and_restarts_go_on(tmp_path: Path) -> None:
    """A revived kernel keeps its ports and its connection file, is restarted when it dies, and leaves nothing."""
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel()
        await gateway.run(kernel_id, "1")
        await gateway.roll(kill=True)
        info = record_of(kernel_id)["connection_info"]
        (process,) = await offload(processes_with, f"KERNEL_ID={kernel_id}")
        process.kill()
        await eventually(lambda: "restart 1 of 5" in gateway.output)
        assert await gateway.run(kernel_id, "print(6 * 7)") == "42\n"
        assert record_of(kernel_id)["restarts"] == 1
        other = await gateway.client.start_kernel()
        names = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")
        assert not {info[name] for name in names} & {record_of(other)["connection_info"][name] for name in names}
        await gateway.client.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        assert await offload(traces_of, kernel_id) == []


async def test_time_under_an_earlier_gateway_counts_towards_stability(tmp_path: Path) -> None:
    """Its restart under the earlier gateway and the next one are not counted as restarts in a row."""
    limits = ("--KernelRestarter.restart_limit=1", "--KernelRestarter.stable_start_time=5")
    async with rolling_gateway(tmp_path, (*STANDALONE, *limits)) as gateway:
        kernel_id = await gateway.client.start_kernel()

        async def is_restarted_after_a_death() -> None:
            (process,) = await offload(processes_with, f"KERNEL_ID={kernel_id}")
            process.kill()
            await eventually(lambda: "restart 1 of 1" in gateway.output)
            await gateway.run(kernel_id, "1")

        await is_restarted_after_a_death()
        await asyncio.sleep(5)
        await gateway.roll(kill=True)
        await is_restarted_after_a_death()


@pytest.mark.ssh
async def test_a_kernel_whose_host_cannot_be_asked_is_not_unknown(
    tmp_path: Path, lab: HostLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 while its host is cut off, not 404; recovered without a restart of the gateway when the host is back."""
    monkeypatch.setenv("EG_SSH_CONNECT_TIMEOUT", "2")
    prepare_hosts(lab, monkeypatch, tmp_path)
    monkeypatch.setenv("EG_REMOTE_HOSTS", lab.hosts[0].address)
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel("distributed")
        await gateway.run(kernel_id, "x = 42")
        await gateway.stop()
        await offload(lab.hosts[0].link_down)
        try:
            await gateway.start()
            answer = await gateway.client.fetch(f"/api/kernels/{kernel_id}")
            assert answer.code == 503
            assert f"Kernel {kernel_id} cannot be reached now".encode() in answer.body
        finally:
            await offload(lab.hosts[0].link_up)

        async def is_back() -> bool:
            return await gateway.status(f"/api/kernels/{kernel_id}") == 200

        await eventually(is_back, 30)
        assert await gateway.run(kernel_id, "print(x)") == "42\n"


async def test_a_kernel_that_cannot_be_checked_does_not_prevent_the_recovery_of_others(tmp_path: Path) -> None:
    """Neither when the gateway starts nor when those that were kept are checked again, however its back end fails."""
    failing = {
        "cannot-load": write_fussy_kernelspec("cannot-load", tmp_path, "load"),
        "cannot-poll": write_fussy_kernelspec("cannot-poll", tmp_path, "poll"),
        "late": write_fussy_kernelspec("late", tmp_path, "poll"),
    }
    async with rolling_gateway(tmp_path) as gateway:
        ids = {name: await gateway.client.start_kernel(name) for name in (*failing, "python3")}
        for kernel_id in ids.values():
            await gateway.run(kernel_id, "x = 42")
        await gateway.stop()
        for files in failing.values():
            files[0].touch()
        await gateway.start()
        assert await gateway.kernel_ids() == {ids["python3"]}
        assert await gateway.run(ids["python3"], "print(x)") == "42\n"
        assert gateway.output.count("could not be recovered and stays recorded: The cluster wants no") == 3

        failing["late"][0].unlink()
        expected = {ids["python3"], ids["late"]}

        async def is_taken_up() -> bool:
            return await gateway.kernel_ids() == expected

        await eventually(is_taken_up, 20)
        assert await gateway.run(ids["late"], "print(x)") == "42\n"
        for name in ("cannot-load", "cannot-poll"):
            assert await gateway.status(f"/api/kernels/{ids[name]}") == 503
            failing[name][0].unlink()
            assert await gateway.run(ids[name], "print(x)") == "42\n"


def prepare_hosts(lab: HostLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have the gateway find the lab's hosts, and a kernelspec for them."""
    for name, value in {**lab.environment(), "EG_KERNEL_LOG_DIR": str(tmp_path / "logs")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EG_RESPONSE_PORT", "0")
    stanza = {"class_name": DISTRIBUTED, "config": {"payload_version": 2}}
    write_kernelspec("distributed", argv=LAUNCHER_ARGV, metadata={"process_proxy": stanza})


@pytest.mark.ssh
@pytest.mark.timeout(300)
async def test_twenty_kernels_outlive_a_stop_and_a_kill(
    tmp_path: Path, lab: HostLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten on this machine and ten over SSH: 20 usable with the same variables after SIGTERM, and after SIGKILL."""
    prepare_hosts(lab, monkeypatch, tmp_path)
    async with rolling_gateway(tmp_path) as gateway:
        names = ["python3"] * 10 + ["distributed"] * 10
        kernel_ids = []
        for start in range(0, 20, 4):
            some = (
                gateway.client.start_kernel(name, env={"KERNEL_LAUNCH_TIMEOUT": "60"})
                for name in names[start : start + 4]
            )
            kernel_ids += await asyncio.gather(*some)
        for kernel_id in kernel_ids:
            await gateway.run(kernel_id, f"x = {kernel_id!r}")
        for kill in (False, True):
            await gateway.roll(kill=kill)
            assert await gateway.kernel_ids() == set(kernel_ids)
            found = [await gateway.run(kernel_id, "print(x)") for kernel_id in kernel_ids]
            assert found == [f"{kernel_id}\n" for kernel_id in kernel_ids]


async def test_two_hundred_kernels_are_recovered_in_three_seconds(tmp_path: Path) -> None:
    """The gateway says how long it took; stubs stand for the kernels, each a recorded living process."""
    write_kernelspec("stub", argv=["sh", "-c", "exec sleep 600", "{connection_file}"])
    async with rolling_gateway(tmp_path) as gateway:
        for _ in range(20):
            await asyncio.gather(*(gateway.client.start_kernel("stub") for _ in range(10)))
        await gateway.roll(kill=True)
        line = next(line for line in gateway.output.splitlines() if "Recovered" in line)
        assert "Recovered 200 of 200 recorded kernels (0 removed, 0 kept for later)" in line
        assert float(line.split(" in ")[-1].removesuffix(" s.")) <= 3.0, line
        assert len(await gateway.kernel_ids()) == 200
        await gateway.stop()
        await gateway.start("--EnterpriseGatewayApp.keep_kernels_on_stop=False")
        await gateway.stop()


async def test_output_that_bypasses_jupyter_is_bounded_and_its_last_lines_stay(tmp_path: Path) -> None:
    """Under the gateway that started the kernel, and under the next one; the kernel never notices."""
    script = (
        'i=0; while :; do yes 0123456789 | head -c 8000000; echo "round $i"; echo $i >"$0"; i=$((i+1)); sleep 1; done'
    )
    write_kernelspec("chatty", argv=["sh", "-c", script, str(tmp_path / "rounds")])
    async with rolling_gateway(tmp_path) as gateway:
        kernel_id = await gateway.client.start_kernel("chatty")
        (output,) = Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob(f"kernel-{kernel_id}.*log")
        for _ in range(2):
            said = int((tmp_path / "rounds").read_text()) if (tmp_path / "rounds").exists() else 0

            def is_small_and_new(said: int = said) -> bool:
                text = output.read_bytes()
                last = text[-4096:].rpartition(b"round ")[2].split(b"\n")[0]
                return len(text) <= 1024 * 1024 and last.isdigit() and int(last) > said

            await eventually(is_small_and_new, 30)
            assert (await offload(output.read_bytes)).startswith(b"0123456789\n" * 1000)
            await gateway.roll(kill=True)
