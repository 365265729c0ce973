"""A gateway as a program that is stopped, killed and started again on the same store."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from tornado.simple_httpclient import HTTPStreamClosedError

from enterprise_gateway.core.offload import offload
from tests.support.gateway import Client, KernelSocket
from tests.support.processes import ServerProcess, gateway_process

STANDALONE = ("--EnterpriseGatewayApp.availability_mode=standalone", "--EnterpriseGatewayApp.list_kernels=True")


class RollingGateway:
    """One gateway after the other on the same port, and clients for whichever runs."""

    def __init__(
        self, folder: Path, argv: Sequence[str] = STANDALONE, env: Mapping[str, str | None] | None = None
    ) -> None:
        self._folder = folder
        self._argv = [*argv, "--port_retries=0"]
        self._port = free_port()
        self._env = dict(env or {})
        self._count = 0
        self._clients: list[Client] = []
        self._process: ServerProcess | None = None

    @property
    def process(self) -> ServerProcess:
        """The gateway that runs, or ran last."""
        assert self._process is not None
        return self._process

    @property
    def client(self) -> Client:
        """A client of the present gateway."""
        return self._clients[-1]

    @property
    def output(self) -> str:
        """What the present gateway has logged."""
        return self.process.output

    async def start(self, *argv: str) -> None:
        """Start the next gateway and wait until it serves."""
        self._count += 1
        log = self._folder / f"gateway-{self._count}.log"
        self._process = gateway_process(log, [*self._argv, *argv], env=self._env, port=self._port)
        await offload(self._process.start)
        self._clients.append(Client(self._process.url))

    async def stop(self) -> None:
        """Stop the gateway gracefully."""
        assert await offload(self.process.stop) == 0, self.output
        assert "Traceback" not in self.output, self.output

    async def kill(self) -> None:
        """End the gateway by SIGKILL."""
        self.process.process.kill()
        await offload(self.process.process.wait)

    async def roll(self, *, kill: bool = False) -> None:
        """End the gateway and start the next one."""
        await (self.kill() if kill else self.stop())
        await self.start()

    async def close(self) -> None:
        """End the gateway and all its kernels."""
        if self._process is not None and self.process.process.poll() is None:
            for model in await self.client.call("/api/kernels"):
                await self.client.fetch(f"/api/kernels/{model['id']}", "DELETE")
            await offload(self.process.stop)
        await asyncio.gather(*(socket.end() for client in self._clients for socket in client.sockets))
        for client in self._clients:
            client.close()

    async def status(self, path: str, method: str = "GET", body: Any = None) -> int:
        """Send a request and return the status of the answer, 0 when the gateway was gone before it answered."""
        try:
            return int((await self.client.fetch(path, method, body)).code)
        except (HTTPStreamClosedError, OSError):
            return 0

    async def run(self, kernel_id: str, code: str) -> str:
        """Run code in a kernel and return what it printed."""
        websocket = await self.client.websocket(kernel_id)
        text, reply = await websocket.execute(code)
        assert reply["status"] == "ok", reply
        await websocket.end()
        return text

    async def model(self, kernel_id: str) -> dict[str, Any]:
        """Return what the gateway says of a kernel."""
        model: dict[str, Any] = await self.client.call(f"/api/kernels/{kernel_id}")
        return model

    async def kernel_ids(self) -> set[str]:
        """Return the ids of the kernels that the gateway lists."""
        return {model["id"] for model in await self.client.call("/api/kernels")}


@asynccontextmanager
async def rolling_gateway(
    folder: Path, argv: Sequence[str] = STANDALONE, env: Mapping[str, str | None] | None = None
) -> AsyncIterator[RollingGateway]:
    """Run the first gateway; the last one is stopped, and its kernels with it."""
    gateway = RollingGateway(folder, argv, env)
    try:
        await gateway.start()
        yield gateway
    finally:
        await gateway.close()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_with(word: str) -> list[psutil.Process]:
    """Return the processes whose environment has ``word`` (``NAME=value``)."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
            if word.encode() in environment:
                found.append(psutil.Process(int(directory.name)))
        except (OSError, psutil.Error):
            continue
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def traces_of(kernel_id: str) -> list[str]:
    """Return everything that there is of a kernel on this machine: processes, files, its record."""
    files = [
        path
        for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")
        for path in Path(os.environ[variable]).rglob(f"*{kernel_id}*")
    ]
    return [*(f"process {process.pid}" for process in processes_with(f"KERNEL_ID={kernel_id}")), *map(str, files)]


async def eventually(condition: Any, seconds: float = 10, what: str = "it") -> None:
    """Wait until ``condition``, a function or a coroutine function, is true."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        result = await condition() if inspect.iscoroutinefunction(condition) else await offload(condition)
        if result:
            return
        assert asyncio.get_running_loop().time() < end, f"{what} did not happen within {seconds} s"
        await asyncio.sleep(0.05)


async def begin(socket: KernelSocket, code: str, **header: Any) -> str:
    """Send code to be run, wait until it runs, and return the request's id."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    request = await socket.send("execute_request", content, **header)
    await socket.receive_until("execute_input", parent=request)
    return request


def record_of(kernel_id: str) -> dict[str, Any]:
    """Return the record of a kernel."""
    path = Path(os.environ["JUPYTER_DATA_DIR"], "kernel_sessions", f"{kernel_id}.json")
    record: dict[str, Any] = json.loads(path.read_bytes())[kernel_id]
    return record
