"""The Python launcher: real kernels that report to the real response server and are signalled by their comm port."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import runpy
import secrets
import signal
import socket
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipykernel
import pytest
import zmq

from enterprise_gateway.core.deadline import Deadline
from enterprise_gateway.core.errors import LaunchTimeoutError
from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.commport import CommPort, CommPortError, connection_ended
from enterprise_gateway.transport.response import ResponseServer
from tests.support.launchers import (
    LAUNCHERS,
    LaunchedKernel,
    eventually,
    launched,
    options,
    port_answers,
    send_raw,
    start,
)

pytestmark = pytest.mark.timeout(180)

SCRIPT = LAUNCHERS / "python" / "scripts" / "launch_ipykernel.py"
PYTHON = [sys.executable, str(SCRIPT)]
DASK = Path(__file__).parent / "dask"
CHANNELS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
CAN_ENCRYPT = ipykernel.version_info[:2] >= (7, 3)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def run_launcher(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher to its end."""
    return subprocess.run(
        [*PYTHON, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def connection_files(directory: Path) -> list[Path]:
    return list(directory.rglob("kernel-*.json"))


async def killed(kernel: LaunchedKernel) -> None:
    """Kill the kernel, and its listener must be gone with it."""
    assert await offload(kernel.comm.signal, signal.SIGKILL)
    await eventually(lambda: not port_answers(kernel.info.comm_port), 5)
    await kernel.wait_ended()


@pytest.mark.parametrize("version", [1, 2])
async def test_kernel_runs_and_is_signalled(version, log, tmp_path):
    """In either version a kernel reports, executes, is interrupted asleep and busy, is killed with its listener."""
    environment = {"TMPDIR": str(tmp_path), "LOG_LEVEL": "WARNING"}
    async with launched(PYTHON, log=log, version=version, env=environment) as kernel:
        assert len({getattr(kernel.info, name) for name in CHANNELS} | {kernel.info.comm_port}) == 6
        assert kernel.info.pid == kernel.info.pgid == kernel.process.pid
        (file,) = connection_files(tmp_path)
        assert file.stat().st_mode & 0o777 == 0o600
        assert json.loads(file.read_text())["key"] == kernel.info.key.decode()
        await kernel.connect(60)
        assert await kernel.run("x = 41\ndef f():\n    return x + 1\nprint(f())") == ("ok", "42\n")
        asleep = "import time; print('now', flush=True); time.sleep(60)"
        assert await kernel.interrupt_when_printed(asleep, "now") == "error"
        busy = "print('now', flush=True)\nwhile True: pass"
        assert await kernel.interrupt_when_printed(busy, "now") == "error"
        assert await offload(kernel.comm.probe)
        await killed(kernel)
        assert not await offload(kernel.comm.probe)
        await eventually(lambda: not connection_files(tmp_path))
        assert not list(tmp_path.glob("kernel-*"))


async def test_user_code_does_not_find_the_secret(log):
    """Neither the environment of the kernel, nor the initial one that the system shows, holds the launch secret."""
    async with launched(PYTHON, log=log, version=2) as kernel:
        await kernel.connect(60)
        code = (
            "import os, glob\n"
            "text = open('/proc/self/environ', 'rb').read().decode()\n"
            f"print(os.environ.get('EG_LAUNCH_SECRET'), {kernel.secret!r} in text)"
        )
        assert await kernel.run(code) == ("ok", "None False\n")
        assert kernel.secret not in kernel.output
        assert kernel.info.key.decode() not in kernel.output


async def test_orderly_shutdown_leaves_nothing(log, tmp_path):
    """After a shutdown request kernel, listener and connection file are gone, and the exit code is 0."""
    async with launched(PYTHON, log=log, version=2, env={"TMPDIR": str(tmp_path)}) as kernel:
        await kernel.connect(60)
        kernel.shut_down()
        assert await kernel.wait_ended() == 0
        await eventually(lambda: not connection_files(tmp_path))


@pytest.mark.parametrize("option", ["--cluster-type", "--RemoteProcessProxy.cluster-type"])
async def test_a_dask_cluster_is_the_users_until_the_kernel_ends(option, log, tmp_path):
    """In a container of Dask's the variable ``cluster`` is its cluster, connected to once, and closed at the end."""
    notes = tmp_path / "notes"
    environment = {"PYTHONPATH": str(DASK), "SKEIN_APPLICATION_ID": "application_7", "DASK_NOTES": str(notes)}
    async with launched([*PYTHON, option, "dask"], log=log, version=2, env=environment) as kernel:
        await kernel.connect(60)
        code = "print(type(cluster).__module__, cluster.app_id, 'spark' in globals())"
        assert await kernel.run(code) == ("ok", "dask_yarn application_7 False\n")
        connected = f"connected application_7 in {kernel.info.pid}\n"
        assert notes.read_text() == connected
        kernel.shut_down()
        assert await kernel.wait_ended() == 0
    assert notes.read_text() == f"{connected}closed application_7 in {kernel.info.pid}\n"


async def test_shutdown_command_ends_the_listener_only(log):
    """``{"shutdown": 1}`` closes the communication port while the kernel still runs."""
    async with launched(PYTHON, log=log, version=1) as kernel:
        await kernel.connect(60)
        assert await offload(kernel.comm.shutdown)
        await eventually(lambda: not port_answers(kernel.info.comm_port))
        assert await kernel.run("print(1)") == ("ok", "1\n")
        kernel.shut_down()
        await kernel.wait_ended()


@pytest.mark.parametrize("version", [1, 2])
async def test_listener_survives_nonsense(version, log):
    """Empty, garbage, oversized, silent connections and forged commands neither end the listener nor the kernel."""
    async with launched(PYTHON, log=log, version=version) as kernel:
        port = kernel.info.comm_port
        junk = [b"", b"\xff\xfe", b"[]", b"{}", b'{"signum": "9"}', b'{"signum": 99}', b"\n\n\n", b"{" * 5000]
        junk += [b"x" * 300_000, b'{"seq": 1, "command": "{\\"signum\\": 9}", "mac": "00"}\n', b'{"seq": []}\n']
        if version == 2:
            junk += [b'{"signum": 9}', b'{"signum": 9}\n', b'{"shutdown": 1}']
        for data in junk:
            try:
                await offload(send_raw, port, data)
            except ConnectionError:
                pass  # refused while still sending
        silent = [await offload(socket.create_connection, ("127.0.0.1", port), 5) for _ in range(100)]
        try:
            assert await offload(kernel.comm.probe)
        finally:
            for connection in silent:
                connection.close()
        await kernel.connect(60)
        assert await kernel.run("print('alive')") == ("ok", "alive\n")


async def test_commands_need_the_secret(log):
    """Who has another secret, or replays what was recorded on another connection, is refused and told so."""
    async with launched(PYTHON, log=log, version=2) as kernel:
        port = kernel.info.comm_port
        for wrong in (b"another", secrets.token_bytes(32)):
            stranger = CommPort("127.0.0.1", port, kernel_id="k", secret=wrong)
            with pytest.raises(CommPortError, match="not authentic"):
                await offload(stranger.signal, signal.SIGKILL)
            stranger.close()
        recorded = await offload(record_command, kernel)
        await offload(send_raw, port, recorded)
        await offload(send_raw, port, recorded * 2)
        assert await offload(kernel.comm.probe)
        with pytest.raises(CommPortError, match="not allowed"):
            await offload(kernel.comm.signal, signal.SIGSTOP)


def record_command(kernel: LaunchedKernel) -> bytes:
    """Return the bytes of an authentic SIGKILL that was made for a connection that exists no more."""

    def call(port: int) -> None:
        with suppress(OSError, EOFError):
            CommPort("127.0.0.1", port, kernel_id="k", secret=kernel.secret.encode()).signal(signal.SIGKILL)

    with socket.create_server(("127.0.0.1", 0)) as server:
        caller = threading.Thread(target=call, args=(server.getsockname()[1],))
        caller.start()
        with server.accept()[0] as connection:
            connection.sendall(b'{"version": 2, "challenge": "' + b"0" * 32 + b'"}\n')
            recorded = connection.recv(65536)
    caller.join()
    assert b"mac" in recorded
    return recorded


async def test_open_connection_tells_of_the_end(log):
    """The gateway keeps its connection open for many commands; its end tells that the kernel has ended."""
    async with launched(PYTHON, log=log, version=2) as kernel:
        for _ in range(50):
            assert await offload(kernel.comm.probe)
        ended = asyncio.create_task(connection_ended(kernel.comm.duplicate()))
        await asyncio.sleep(0.1)
        assert not ended.done()
        os.kill(kernel.info.pid, signal.SIGKILL)
        await asyncio.wait_for(ended, 2)
        await offload(kernel.process.wait)
        assert not await offload(kernel.comm.probe)


async def test_kill_reaches_the_kernels_children_and_not_its_neighbours(log):
    """A kernel leads its own process group, even when started in another's, and takes its children along."""
    neighbour = await offload(subprocess.Popen, ["sleep", "100"])
    try:
        command = ["sh", "-c", '"$0" "$@"; exit $?', *PYTHON]
        async with launched(command, log=log, version=2) as kernel:
            assert kernel.info.pid == kernel.info.pgid != kernel.process.pid
            await kernel.connect(60)
            child = "import subprocess; print(subprocess.Popen(['sleep', '100']).pid)"
            pid = int((await kernel.run(child))[1])
            await killed(kernel)
            await eventually(lambda: not is_running(pid))
            assert neighbour.poll() is None
    finally:
        neighbour.kill()
        neighbour.wait()


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_kernel_outlives_who_started_it(log):
    """A kernel whose parent ends at once, as over ssh, lives on, even with a stale JPY_PARENT_PID."""
    command = ["sh", "-c", '"$0" "$@" & exit 0', *PYTHON]
    async with launched(command, log=log, version=2, env={"JPY_PARENT_PID": str(os.getpid())}) as kernel:
        await offload(kernel.process.wait)
        await kernel.connect(60)
        await asyncio.sleep(2.5)  # ipykernel looks for its parent every second
        assert await kernel.run("print('alive')") == ("ok", "alive\n")
        assert await offload(kernel.comm.signal, signal.SIGTERM)
        await eventually(lambda: not port_answers(kernel.info.comm_port))


async def test_port_range_is_honoured(log):
    """All six ports lie in the range that was given."""
    lower = 21000 + os.getpid() % 1000 * 10
    environment = {"EG_MIN_PORT_RANGE_SIZE": "100", "EG_MAX_PORT_RANGE_RETRIES": "50"}
    kernel_id, secret = str(uuid.uuid4()), secrets.token_urlsafe(32)
    response = ResponseServer(ip="127.0.0.1", port=0)
    await response.start()
    try:
        with response.expect(kernel_id, secret=secret, minimum_version=2) as expectation:
            arguments = [*options(kernel_id, response)[:-1], f"{lower}..{lower + 200}"]
            process = start([*PYTHON, *arguments], log=log, env={**environment, "EG_LAUNCH_SECRET": secret})
            try:
                info = await expectation.wait(Deadline(60))
                assert all(lower <= getattr(info, name) <= lower + 200 for name in (*CHANNELS, "comm_port"))
            finally:
                process.kill()
                await offload(process.wait)
            await eventually(lambda: not port_answers(info.comm_port))
    finally:
        await response.stop()


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        ((), {}, "--kernel-id is required"),
        (("--kernel-id", "k", "--response-address", "127.0.0.1:9"), {}, "--public-key is required"),
        (("--kernel-id", "k", "--port-range", "1..2"), {}, "has size 1, the minimum is 1000"),
        (("--kernel-id", "k", "--port-range", "1..2000"), {}, "not within 1024..65535"),
        (("--kernel-id", "k", "--port-range", "9000..8000"), {}, "has size -1000"),
        (("--kernel-id", "k", "--port-range", "many"), {}, "must be lower..upper, not 'many'"),
        (("--kernel-id", "k", "--cluster-type", "abacus"), {}, "must be one of spark, dask, none"),
        (("--kernel-id", "k", "--cluster-type", "dask"), {}, "dask-yarn"),
        (("--kernel-id", "k", "--cluster-type", "dask"), {"PYTHONPATH": str(DASK)}, "Not running inside a container"),
        (("--kernel-id", "k", "--transport-encryption", "maybe"), {}, "disabled, auto, required"),
        (("--kernel-id", "k"), {"TRANSPORT_ENCRYPTION": "maybe"}, "disabled, auto, required"),
        (("--kernel-id", "k", "--kernel-class-name", "os.path"), {}, "kernel class os.path cannot be used"),
        (("--kernel-id", "k", "--kernel-class-name", "no.such.Kernel"), {}, "kernel class no.such.Kernel"),
        (
            ("--kernel-id", "k", "--public-key", "AAAA", "--response-address", "1.2.3"),
            {},
            "must be ip:port, not '1.2.3'",
        ),
        (
            ("--kernel-id", "k", "--public-key", "AAAA", "--response-address", "127.0.0.1:9"),
            {},
            "not a base64 encoded RSA",
        ),
        (("--kernel-id", "k", "--listener-only"), {}, "--listener-only needs --parent-pid"),
    ],
)
def test_failure_is_one_clear_line(arguments, environment, sentence, tmp_path):
    """A launcher that cannot do its work says why in its last line, exits with 1 and leaves no file."""
    ended = run_launcher(*arguments, TMPDIR=str(tmp_path), LOG_LEVEL="ERROR", **environment)
    assert ended.returncode == 1
    assert ended.stdout == ""
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("launch_ipykernel: ")
    assert sentence in line
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


async def test_full_port_range_is_reported(tmp_path):
    """When every port that is tried is taken, the launcher gives up and names the range."""
    port = 30000 + os.getpid() % 2000
    held = [socket.create_server(("0.0.0.0", candidate)) for candidate in (port, port + 1)]
    try:
        ended = await offload(
            run_launcher, "--kernel-id", "k", "--port-range", f"{port}..{port + 1}",
            MIN_PORT_RANGE_SIZE="1", MAX_PORT_RANGE_RETRIES="3", TMPDIR=str(tmp_path),
        )  # fmt: skip
    finally:
        for server in held:
            server.close()
    assert ended.returncode == 1
    assert f"found no free port in {port}..{port + 1} after 3 retries" in ended.stderr.splitlines()[-1]


def test_new_spelling_wins():
    """Each option is understood in both spellings, may come without value, and the new one wins."""
    parse = runpy.run_path(str(SCRIPT))["parse_arguments"]
    old = ["--RemoteProcessProxy.kernel-id", "old", "--RemoteProcessProxy.port-range", "1..2"]
    assert (parse(old).kernel_id, parse(old).port_range) == ("old", "1..2")
    both = parse([*old, "--kernel-id", "new", "--port-range"])
    assert (both.kernel_id, both.port_range) == ("new", "1..2")
    assert parse(["--kernel-id", "k", "--transport-encryption", ""]).transport_encryption == "disabled"
    spark = ["--kernel-id", "k", "--RemoteProcessProxy.spark-context-initialization-mode"]
    assert parse([*spark, "lazy"]).cluster_type == "spark"
    assert parse([*spark, "none"]).cluster_type == parse(spark).cluster_type == "none"


async def test_version_1_is_refused_where_2_is_demanded(log, expect_log):
    """A launcher without the secret cannot report a kernel whose kernelspec demands version 2."""
    response = ResponseServer(ip="127.0.0.1", port=0)
    await response.start()
    try:
        kernel_id = str(uuid.uuid4())
        demanding = response.expect(kernel_id, secret="secret", minimum_version=2)
        with demanding as expectation, expect_log("payload version 1 is refused"):
            process = start([*PYTHON, *options(kernel_id, response)], log=log, env={})
            try:
                await eventually(lambda: bool(expectation.rejections), 60)
                with pytest.raises(LaunchTimeoutError, match="payload version 1 is refused"):
                    await expectation.wait(Deadline(0.1))
            finally:
                process.kill()
                await offload(process.wait)
    finally:
        await response.stop()


async def test_unreachable_gateway_is_tried_again(log):
    """A launcher whose gateway cannot be reached at first reports as soon as it can."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    response = ResponseServer(ip="127.0.0.1", port=0)
    await response.start()
    key, kernel_id = response.public_key, str(uuid.uuid4())
    await response.stop()
    arguments = ["--kernel-id", kernel_id, "--public-key", key, "--response-address", f"127.0.0.1:{port}"]
    process = start([*PYTHON, *arguments], log=log, env={})
    try:
        await eventually(lambda: b"retrying" in log.read_bytes(), 60)
        response.port = port
        await response.start()
        with response.expect(kernel_id) as expectation:
            await expectation.wait(Deadline(10))
    finally:
        process.kill()
        await offload(process.wait)
        await response.stop()


async def test_pull_mode_writes_the_connection_file(tmp_path, log):
    """Without a response address the launcher only writes the given file, and removes it at the end."""
    file = tmp_path / "given" / "connection.json"
    file.parent.mkdir()
    process = start([*PYTHON, "--kernel-id", "k", str(file)], log=log, env={})
    try:
        await eventually(file.is_file, 60)
        info: dict[str, Any] = json.loads(file.read_text())
        assert {*CHANNELS, "key", "ip", "transport", "signature_scheme"} <= info.keys()
        assert file.stat().st_mode & 0o777 == 0o600
        assert all(port_answers(info[name]) for name in CHANNELS)
    finally:
        process.terminate()
        await offload(process.wait)


@pytest.mark.skipif(not CAN_ENCRYPT, reason="not applicable: ipykernel before 7.3")
async def test_encrypted_transport(log):
    """With encryption required the reported Curve keys open the kernel, and a client without them gets no answer."""
    async with launched([*PYTHON, "--transport-encryption", "required"], log=log, version=2) as kernel:
        assert kernel.info.curve_publickey
        await kernel.connect(60)
        assert await kernel.run("print('secret')") == ("ok", "secret\n")
        with socket.create_connection(("127.0.0.1", kernel.info.hb_port), 5) as raw:
            greeting = await offload(raw.recv, 64)
        assert greeting[0] == 0xFF
        plain = {**kernel.info.to_dict(), "ip": "127.0.0.1"}
        del plain["curve_publickey"], plain["curve_secretkey"]
        assert not await answers(plain)


async def answers(connection: dict[str, Any]) -> bool:
    """Tell whether the kernel answers a client with this connection information."""
    from jupyter_client.asynchronous.client import AsyncKernelClient

    client = AsyncKernelClient()
    client.load_connection_info(connection)
    client.start_channels(hb=False)
    client.shell_channel.socket.setsockopt(zmq.SNDTIMEO, 1500)  # sending waits while there is no connection
    try:
        await offload(client.kernel_info)
        await client.get_shell_msg(timeout=1.5)
    except (queue.Empty, zmq.Again):
        return False
    finally:
        client.stop_channels()
    return True


@pytest.mark.skipif(CAN_ENCRYPT, reason="not applicable: ipykernel 7.3 encrypts")
def test_encryption_is_not_pretended():
    """An ipykernel that cannot encrypt fails the launch when encryption is required."""
    ended = run_launcher("--kernel-id", "k", "--transport-encryption", "required")
    assert ended.returncode == 1
    assert "transport encryption is required, but ipykernel 7.3" in ended.stderr


async def test_ipv6_gateway(log):
    """A launcher reports to an IPv6 address, and its kernel can then be reached over IPv6 and IPv4."""
    kernel_id = str(uuid.uuid4())
    response = ResponseServer(ip="::1", port=0)
    await response.start()
    try:
        with response.expect(kernel_id) as expectation:
            process = start([*PYTHON, *options(kernel_id, response)], log=log, env={})
            try:
                info = await expectation.wait(Deadline(60))
                for ip in ("::1", "127.0.0.1"):
                    for name in (*CHANNELS, "comm_port"):
                        with socket.create_connection((ip, getattr(info, name)), 5):
                            pass
            finally:
                process.kill()
                await offload(process.wait)
    finally:
        await response.stop()


async def test_working_directory_is_not_imported_from(tmp_path, log):
    """A module in the working directory is not run in place of one that the launcher needs; user code does find it."""
    for name in ("json", "zmq", "ipykernel", "Cryptodome", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "helper.py").write_text("answer = 42")
    command = ["sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path), *PYTHON]
    async with launched(command, log=log, version=2) as kernel:
        await kernel.connect(60)
        assert await kernel.run("import helper; print(helper.answer)") == ("ok", "42\n")


@pytest.mark.parametrize("version", [1, 2])
async def test_listener_only(version, tmp_path, log):
    """Another language's kernel gets ports, file and report, is signalled, and the listener ends with it."""
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *a: print('interrupted', flush=True))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    other = await offload(
        subprocess.Popen, [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert other.stdout
    file = tmp_path / "connection.json"
    try:
        assert await offload(other.stdout.readline) == "ready\n"
        mode = ["--listener-only", "--parent-pid", str(other.pid), "--connection-file", str(file)]
        async with launched([*PYTHON, *mode], log=log, version=version) as kernel:
            assert kernel.info.pid == other.pid
            await eventually(file.is_file)
            written = json.loads(file.read_text())
            assert [written[name] for name in CHANNELS] == [getattr(kernel.info, name) for name in CHANNELS]
            assert written["key"] == kernel.info.key.decode()
            assert await offload(kernel.comm.signal, signal.SIGINT)
            assert await offload(other.stdout.readline) == "interrupted\n"
            assert await offload(kernel.comm.signal, signal.SIGTERM)
            await offload(other.wait)
            assert await kernel.wait_ended() == 0
            await eventually(lambda: not file.exists())
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


async def test_listener_only_for_a_process_that_is_gone(tmp_path):
    """A listener for a kernel that has ended already says so, and leaves no file."""
    gone = await offload(subprocess.Popen, ["true"])
    await offload(gone.wait)
    file = tmp_path / "connection.json"
    ended = await offload(
        run_launcher,
        "--kernel-id",
        "k",
        "--listener-only",
        "--parent-pid",
        str(gone.pid),
        "--connection-file",
        str(file),
    )
    assert ended.returncode == 1
    assert f"there is no process {gone.pid}" in ended.stderr
    assert not file.exists()
