"""Kernel launchers of ``etc/kernel-launchers``, run against a real response server and used like the gateway does."""

from __future__ import annotations

import asyncio
import os
import queue
import secrets
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient

from enterprise_gateway.core.connection import ConnectionInfo
from enterprise_gateway.core.deadline import Deadline
from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.commport import CommPort
from enterprise_gateway.transport.response import ResponseServer
from tests.support.loops import loop_may_be_held

LAUNCHERS = Path(__file__).parents[2] / "etc" / "kernel-launchers"


class LaunchedKernel:
    """A kernel that has reported: its process, its connection, its communication port, and a client."""

    def __init__(
        self, process: subprocess.Popen[bytes], info: ConnectionInfo, log: Path, kernel_id: str, secret: str | None
    ) -> None:
        self.process = process
        self.info = info
        self.log = log
        self.secret = secret or ""
        self.comm = CommPort(
            "127.0.0.1", info.comm_port, kernel_id=kernel_id, secret=secret.encode() if secret else None
        )
        self.client = AsyncKernelClient()
        connection: Any = {**info.to_dict(), "ip": "127.0.0.1"}
        self.client.load_connection_info(connection)

    @property
    def output(self) -> str:
        """What the launcher and the kernel have written."""
        return self.log.read_text(errors="replace")

    async def connect(self, timeout: float) -> None:
        """Open the channels and wait until the kernel answers.

        Without jupyter_client's heartbeat, for which a busy single-threaded kernel counts as dead.
        """
        self.client.start_channels(hb=False)
        deadline = Deadline(timeout)
        while True:
            assert not deadline.expired, f"the kernel does not answer within {timeout} s:\n{self.output[-4000:]}"
            self.client.kernel_info()
            with suppress(queue.Empty):
                await self.client.get_shell_msg(timeout=1)
                await self.client.get_iopub_msg(timeout=1)
                return

    async def run(
        self, code: str, timeout: float = 30, on_output: Callable[[str], Awaitable[None]] | None = None
    ) -> tuple[str, str]:
        """Run code; return the reply's status and all that it printed or displayed as text."""
        texts: list[str] = []
        request = self.client.execute(code)
        async for message in self._messages_of(request, timeout):
            if text := _text(message):
                texts.append(text)
                if on_output:
                    await on_output(text)
        while (reply := await self.client.get_shell_msg(timeout=timeout))["parent_header"].get("msg_id") != request:
            pass  # a late answer to one of the questions that wait_for_ready asked
        return reply["content"]["status"], "".join(texts)

    async def result(self, code: str, timeout: float = 60) -> str:
        """Run code and return the first text it gives, which Toree may send after it has said that it is idle."""
        request, deadline = self.client.execute(code), Deadline(timeout)
        while True:
            message = await self.client.get_iopub_msg(timeout=deadline.remaining)
            if message["parent_header"].get("msg_id") == request:
                assert message["msg_type"] != "error", message["content"]
                if text := _text(message):
                    return text

    async def _messages_of(self, request: str, timeout: float) -> AsyncIterator[dict[str, Any]]:
        """Yield what the kernel publishes for a request until it is idle again."""
        deadline = Deadline(timeout)
        while True:
            message = await self.client.get_iopub_msg(timeout=deadline.remaining)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return
            yield message

    async def interrupt_when_printed(
        self, code: str, word: str, signum: int = signal.SIGINT, timeout: float = 30
    ) -> str:
        """Run code, interrupt it once it has printed ``word``, and return the reply's status."""

        async def interrupt(text: str) -> None:
            if word in text:
                assert await offload(self.comm.signal, signum)

        return (await self.run(code, timeout, interrupt))[0]

    def shut_down(self) -> None:
        """Ask the kernel itself to end, as a client does."""
        self.client.shutdown()

    async def wait_ended(self, timeout: float = 20) -> int:
        """Wait for the process, and for the communication port to be gone with it; return the exit code."""
        code = await offload(self.process.wait, timeout)
        await eventually(lambda: not port_answers(self.info.comm_port), timeout)
        return code

    def close(self) -> None:
        """Close the client's channels and the communication port's connection."""
        with loop_may_be_held("the client's context waits for what a dead kernel does not take"):
            self.client.stop_channels()
        self.comm.close()


def _text(message: dict[str, Any]) -> str:
    """Return what a message shows to the user, empty when it is not output."""
    if message["msg_type"] not in ("stream", "execute_result", "display_data"):
        return ""
    content = message["content"]
    return str(content.get("text") or content.get("data", {}).get("text/plain", ""))


async def eventually(condition: Callable[[], bool], timeout: float = 10) -> None:
    """Wait until the condition holds; it is looked at in a thread."""
    deadline = Deadline(timeout)
    while not await offload(condition):
        assert not deadline.expired, f"not within {timeout} s"
        await asyncio.sleep(0.05)


def files(directory: Path, pattern: str) -> list[str]:
    """Return the names of files below a directory."""
    return [path.name for path in directory.rglob(pattern)]


def port_answers(port: int) -> bool:
    """Tell whether something listens on a port of this host."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def send_raw(port: int, data: bytes) -> None:
    """Send bytes to a port and close."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(data)


@asynccontextmanager
async def launched(
    command: Sequence[str],
    *,
    log: Path,
    version: int,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> AsyncIterator[LaunchedKernel]:
    """Start a launcher and wait for its report.

    Parameters
    ----------
    command
        The launcher and options of its own; the gateway's options are added.
    version
        Of the payload: with 2 the launcher gets a secret and must use it, with 1 it gets none.
    """
    kernel_id = str(uuid.uuid4())
    secret = secrets.token_urlsafe(32) if version == 2 else None
    server = ResponseServer(ip="127.0.0.1", port=0)
    await server.start()
    try:
        with server.expect(kernel_id, secret=secret, minimum_version=version) as expectation:
            process = start(
                [*command, *options(kernel_id, server)],
                log=log,
                env={**(env or {}), **({"EG_LAUNCH_SECRET": secret} if secret else {})},
            )
            try:
                info = await expectation.wait(Deadline(timeout))
                assert expectation.payload_version == version
                kernel = LaunchedKernel(process, info, log, kernel_id, secret)
                try:
                    yield kernel
                finally:
                    kernel.close()
            finally:
                await offload(end, process)
    finally:
        await server.stop()


def options(kernel_id: str, server: ResponseServer) -> list[str]:
    """Return the options that the gateway gives to every launcher."""
    return [
        *("--kernel-id", kernel_id, "--public-key", server.public_key),
        *("--response-address", server.address, "--port-range", "0..0"),
    ]


def start(command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a launcher as the leader of its own process group, its output going to ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a launcher and its process group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
