"""Another account on a kernel's host wants the code of its clients: it reports in place of the launcher."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from enterprise_gateway.services.processproxies.launchers import marked_version
from tests.clusters.ssh_hosts import HostLab
from tests.support.gateway import Gateway, running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.launchers import eventually
from tests.support.processes import REPOSITORY

LAUNCHER = REPOSITORY / "etc" / "kernel-launchers" / "python" / "scripts" / "launch_ipykernel.py"
SUPPORT = REPOSITORY / "tests" / "support"
PROXY = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
OPTIONS = ("--kernel-id", "{kernel_id}", "--port-range", "{port_range}", "--response-address", "{response_address}")
OVERTAKEN = "/tmp/overtaken-{kernel_id}"  # exists when the attacker has reported
WHEN_OVERTAKEN = ("sh", "-c", 'until [ -e "$0" ]; do sleep 0.05; done; exec "$@"', OVERTAKEN)
OURS = (sys.executable, str(LAUNCHER), *OPTIONS, "--public-key", "{public_key}")
OLD = ("env", "-u", "EG_LAUNCH_SECRET", *OURS)  # without a secret it reports as launchers of version 3 do
CLUMSY = (sys.executable, str(SUPPORT / "bad_launcher.py"))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have launchers of this machine report to it."""
    monkeypatch.setenv("EG_RESPONSE_IP", "127.0.0.1")
    monkeypatch.setenv("EG_RESPONSE_PORT", "0")
    monkeypatch.setenv("EG_KERNEL_LOG_DIR", str(tmp_path))


def spec(name: str, argv: Sequence[str], *, proxy: str = PROXY, **config: Any) -> None:
    """Write a kernelspec that says nothing of versions unless ``config`` does."""
    stanza = {"class_name": proxy, "config": {"remote_hosts": "127.0.0.1", **config}}
    write_kernelspec(name, argv=argv, metadata={"process_proxy": stanza})


@asynccontextmanager
async def attacker(kernel_id: str, *prefix: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run an attacker that waits for the kernel's launcher, which goes on when the attacker has reported."""
    mark = Path(OVERTAKEN.format(kernel_id=kernel_id))

    async def wait_for_report() -> None:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"reported\n"
        mark.touch()

    command = (*prefix, sys.executable, str(SUPPORT / "overtaker.py"), kernel_id)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
        report = asyncio.create_task(wait_for_report())
        yield process
        await report
    finally:
        mark.unlink(missing_ok=True)
        with suppress(ProcessLookupError):  # the test has ended it
            process.kill()
        await process.wait()


async def attack(gateway: Gateway, expect_log: Any, name: str, refusal: str, *prefix: str) -> None:
    """Start a kernel that an attacker reports first for; the client's code goes to the kernel, and only there."""
    kernel_id = str(uuid.uuid4())
    async with attacker(kernel_id, *prefix) as process:
        assert process.stdout is not None
        with expect_log(refusal):
            await gateway.start_kernel(name, env={"KERNEL_ID": kernel_id})
        socket = await gateway.websocket(kernel_id)
        text, _ = await socket.execute("import os; print(os.environ['KERNEL_ID'], 'my password')")
        assert text == f"{kernel_id} my password\n"
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        process.kill()
        assert await process.stdout.read() == b"", "the attacker was given code"


async def refused(gateway: Gateway, expect_log: Any, name: str) -> str:
    """Return the error of a start that fails, after which there is no kernel."""
    with expect_log(""):
        answer = await gateway.call("/api/kernels", "POST", {"name": name}, status=500)
    assert gateway.app.kernel_manager.list_kernel_ids() == []
    return str(answer["message"])


async def test_a_launcher_of_ours_is_not_overtaken(expect_log: Any) -> None:
    """The mark in its file is enough: version 1 is refused, though the kernelspec does not demand version 2."""
    spec("ours", (*WHEN_OVERTAKEN, *OURS))
    async with running_gateway() as gateway:
        await attack(gateway, expect_log, "ours", "payload version 1 is refused")


async def test_a_kernel_that_turns_out_to_be_anothers_is_ended(tmp_path: Path, expect_log: Any) -> None:
    """A launcher that is not marked is overtaken, but its own report has the secret: the other one is disconnected."""
    unmarked = tmp_path / "launch.py"
    unmarked.write_text(LAUNCHER.read_text().replace("# eg-payload-version: 2\n", ""))
    spec("unmarked", (*WHEN_OVERTAKEN, sys.executable, str(unmarked), *OPTIONS, "--public-key", "{public_key}"))
    kernel_id = str(uuid.uuid4())
    async with running_gateway() as gateway, attacker(kernel_id):
        with expect_log("the kernel was taken over"), expect_log("is dead: another launcher, at 127.0.0.1"):
            await gateway.start_kernel("unmarked", env={"KERNEL_ID": kernel_id})
            socket = await gateway.websocket(kernel_id)
            while (await socket.receive())["content"].get("execution_state") != "dead":
                pass
        assert (await socket.execute("my password"))[1]["ename"] == "KernelDied"
        model = await gateway.call(f"/api/kernels/{kernel_id}")
        assert "has reported in its place" in model["reason"]
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)


@pytest.mark.ssh
async def test_an_old_launcher_is_not_overtaken_from_another_host(
    lab: HostLab, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """Version 1 is accepted only from the host that the kernel was started on."""
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    spec("old", (*WHEN_OVERTAKEN, *OLD), remote_hosts=lab.hosts[0].address, payload_version=1)
    elsewhere = ("ip", "netns", "exec", lab.hosts[1]._namespace)
    async with running_gateway() as gateway:
        await attack(gateway, expect_log, "old", f"from {lab.hosts[1].address} .* is taken from .* only", *elsewhere)


@pytest.mark.ssh
async def test_a_launcher_that_reports_from_another_address_is_told_how_to_have_it_accepted(
    lab: HostLab, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """A launcher of version 1 behind an address that the gateway does not know fails with the word that helps."""
    monkeypatch.setenv("EG_RESPONSE_IP", lab.gateway_address)
    argv = ("ip", "netns", "exec", lab.hosts[1]._namespace, *CLUMSY, "late", *OPTIONS, "--public-key", "{public_key}")
    spec("behind", argv, launch_timeout=6)
    async with running_gateway() as gateway:
        message = await refused(gateway, expect_log, "behind")
        assert f"if {lab.hosts[1].address} is an address of it, add it to payload_v1_from" in message
        network = lab.hosts[1].address.rpartition(".")[0] + ".0/24"
        spec("behind", argv, payload_v1_from=f"192.0.2.1, {network}")
        kernel_id = await gateway.start_kernel("behind")
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)


async def test_version_1_can_be_refused_altogether(expect_log: Any) -> None:
    """With allow_payload_v1 off, a launcher that only speaks version 1 starts no kernel, for any kernelspec."""
    spec("old", OLD, payload_version=1, launch_timeout=3)
    spec("ours", OURS)
    async with running_gateway(config={"EnterpriseGatewayApp": {"allow_payload_v1": False}}) as gateway:
        assert "allow_payload_v1 is off" in await refused(gateway, expect_log, "old")
        kernel_id = await gateway.start_kernel("ours")
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)


@pytest.mark.parametrize("word", ["two", 3, [2]])
async def test_an_unknown_version_is_reported(word: Any, expect_log: Any) -> None:
    """A payload_version that cannot be used is not taken for none."""
    spec("odd", OURS, payload_version=word)
    async with running_gateway() as gateway:
        assert "payload_version of the kernelspec must be 1 or 2" in await refused(gateway, expect_log, "odd")


async def test_invalid_networks_are_reported(expect_log: Any) -> None:
    """A payload_v1_from that cannot be used does not let everybody report."""
    spec("odd", OLD, payload_v1_from="the office")
    async with running_gateway() as gateway:
        assert "payload_v1_from of the kernelspec cannot be used" in await refused(gateway, expect_log, "odd")


CONTRADICTED = "has already reported from 127.0.0.1; another report for it from 127.0.0.1 was refused"


@pytest.fixture
def slow_gateway(tmp_path: Path) -> dict[str, str]:
    """What goes into a kernelspec to have the gateway pause with the first report in its hand."""
    (tmp_path / "hold-launched").touch()
    return {"proxy": "tests.support.proxies.SteppingDistributedProxy", "steps": str(tmp_path)}


async def release(folder: Path) -> None:
    """Let the gateway go on when the second report has come."""
    await eventually((folder / "at-launched").exists)
    await asyncio.sleep(0.5)
    (folder / "hold-launched").unlink()


async def test_a_second_report_is_logged_and_the_first_kernel_has_to_prove_its_key(
    slow_gateway: dict[str, str], tmp_path: Path, expect_log: Any
) -> None:
    """If it does, clients get it; the operator gets a warning with both addresses, and an event."""
    spec("old", (*CLUMSY, "is-contradicted", *OPTIONS, "--public-key", "{public_key}"), **slow_gateway)
    events = io.StringIO()
    handler = logging.StreamHandler(events)
    async with running_gateway(config={"EventLogger": {"handlers": [handler]}}) as gateway:
        with expect_log(CONTRADICTED):
            going_on = asyncio.create_task(release(tmp_path))
            kernel_id = await gateway.start_kernel("old")
            kernel = gateway.app.kernel_manager.get_kernel(kernel_id)
            assert kernel.channels.kernel_info is not None, "it has answered before the client was"
            await going_on
        socket = await gateway.websocket(kernel_id)
        assert (await socket.execute("6 * 7"))[0] == "42"
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
    event = json.loads(events.getvalue())
    assert event["__schema__"].endswith("/launch_conflict/v1")
    names = ("kernel_id", "accepted_from", "refused_from", "is_proven")
    assert [event[name] for name in names] == [kernel_id, "127.0.0.1", "127.0.0.1", False]


async def test_a_contested_kernel_without_its_key_is_not_handed_out(
    slow_gateway: dict[str, str], tmp_path: Path, expect_log: Any
) -> None:
    """The start fails with both addresses, and nothing of it is left."""
    spec(
        "old",
        (*CLUMSY, "contradicts-itself", *OPTIONS, "--public-key", "{public_key}"),
        launch_timeout=6,
        **slow_gateway,
    )
    async with running_gateway() as gateway:
        going_on = asyncio.create_task(release(tmp_path))
        message = await refused(gateway, expect_log, "old")
        await going_on
        assert "was reported twice, from 127.0.0.1 and then from 127.0.0.1, and has not proved" in message


async def test_kernelspecs_whose_reports_are_not_authenticated_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """One line when the gateway starts, without those that authenticate reports and those that need none."""
    spec("old", (sys.executable, str(SUPPORT / "bad_launcher.py"), "late", *OPTIONS))
    spec("demanding", ("run",), payload_version=2)
    spec("marked", OURS)
    spec("elsewhere", ("run",))
    spec("broken", OURS, payload_version="x")
    write_kernelspec("local")
    write_kernelspec("gone", metadata={"process_proxy": {"class_name": "no.such.Class"}})
    link = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", "marked", "launch.py")
    link.symlink_to(LAUNCHER)
    spec("marked", ("python", "{resource_dir}/launch.py"))
    for allowed in (True, False):
        lines: list[str] = []

        class Lines(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                lines.append(record.getMessage())  # noqa: B023 -- of this round

        async with running_gateway(config={"EnterpriseGatewayApp": {"allow_payload_v1": allowed}}) as gateway:
            gateway.app.log.addHandler(handler := Lines())
            await gateway.call("/api/kernelspecs")
            for _ in range(100):
                if any("allow_payload_v1" in line for line in lines):
                    break
                await asyncio.sleep(0.01)
            gateway.app.log.removeHandler(handler)
        named = [line.rpartition(": ")[2] for line in lines if "allow_payload_v1" in line]
        assert named == (["elsewhere, old"] if allowed else [])


def test_the_shipped_kernelspecs_are_marked() -> None:
    """Even without its payload_version, none of them is trusted without proof."""
    for file in (REPOSITORY / "etc" / "kernelspecs").glob("*/kernel.json"):
        content = json.loads(file.read_text())
        assert marked_version(content["argv"], str(file.parent)) == 2, file
