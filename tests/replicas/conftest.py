"""Replicas of the gateway as programs, on one database, behind a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tornado.httpclient import HTTPClientError

from tests.clusters.load_balancers import LOAD_BALANCERS, free_ports
from tests.clusters.postgres import PostgresServer, running_postgres
from tests.support.gateway import Client, KernelSocket
from tests.support.processes import ServerProcess, gateway_process
from tests.support.requirements import skip_without

STORE = "enterprise_gateway.services.sessions.kernelsessionmanager.SQLKernelSessionManager"


async def eventually(condition: Callable[[], Awaitable[Any]], seconds: float = 10.0) -> Any:
    """Wait until ``condition`` holds, and return what it returned."""
    end = time.monotonic() + seconds
    while not (result := await condition()):
        assert time.monotonic() < end, f"it did not happen within {seconds} s"
        await asyncio.sleep(0.1)
    return result


async def connected(client: Client, kernel_id: str, session_id: str | None = None) -> KernelSocket:
    """Open a websocket as soon as a replica accepts it; until then the answer is that there is no replica."""
    while True:
        try:
            return await client.websocket(kernel_id, session_id)
        except HTTPClientError as error:
            if error.code not in {502, 503}:
                raise
            await asyncio.sleep(0.05)


def processes_of(kernel_id: str) -> list[int]:
    """Return the processes of a kernel on this machine."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as environ:
                    if f"KERNEL_ID={kernel_id}".encode() in environ.read():
                        found.append(int(entry))
            except OSError:
                continue
    return found


class Replicas:
    """Some replicas; ``options`` are command-line arguments of all of them.

    In front of them is HAProxy, unless ``load_balancer`` is set to another one before they are started.
    """

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory
        self.database_url = database_url
        self.options: list[str] = []
        self.env: dict[str, str] = {}
        self.ports: list[int] = []
        self.processes: list[ServerProcess] = []
        self.clients: list[Client] = []
        self.load_balancer = "haproxy"
        self.proxy: ServerProcess | None = None
        self.through_proxy: Client = None  # type: ignore[assignment]
        self._runs = 0
        self._restarting: asyncio.Future[None] | None = None

    async def start(self, count: int = 2, *options: str, **env: str) -> list[Client]:
        """Start replicas and the proxy; return a client for each replica."""
        self.options, self.env = list(options), env
        self.ports = free_ports(count)
        self.processes = [self._process(number) for number in range(count)]
        await asyncio.gather(*(asyncio.to_thread(process.start) for process in self.processes))
        self.proxy = LOAD_BALANCERS[self.load_balancer](self.directory, self.ports)
        url = self.proxy.url
        await asyncio.to_thread(self.proxy.start)
        self.proxy.url = url
        self.through_proxy = Client(url)
        self.clients = [Client(f"http://127.0.0.1:{port}") for port in self.ports]
        await eventually(self._proxy_answers)
        return self.clients

    async def _proxy_answers(self) -> bool:
        try:
            return (await self.through_proxy.fetch("/api")).code == 200
        except OSError:
            return False

    def _process(self, number: int) -> ServerProcess:
        self._runs += 1
        argv = [
            "--port_retries=0",
            "--EnterpriseGatewayApp.availability_mode=replication",
            "--EnterpriseGatewayApp.list_kernels=True",
            f"--EnterpriseGatewayApp.kernel_session_manager_class={STORE}",
            *self.options,
        ]
        env = {"EG_SESSION_DATABASE_URL": self.database_url, "EG_UNAUTHORIZED_USERS": "", **self.env}
        # Replicas stand for different machines: they share no directory but the database's.
        runtime = self.directory / f"runtime{number}"
        runtime.mkdir(mode=0o700, exist_ok=True)
        env["JUPYTER_RUNTIME_DIR"] = str(runtime)
        return gateway_process(
            self.directory / f"gateway{number}-{self._runs}.log", argv, port=self.ports[number], env=env
        )

    def kill(self, number: int) -> None:
        """End a replica at once."""
        self.processes[number].process.send_signal(signal.SIGKILL)
        self.processes[number].process.wait()

    @contextlib.contextmanager
    def frozen(self, number: int) -> Iterator[None]:
        """Suspend a replica in the block."""
        process = self.processes[number].process
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def start_again(self, number: int) -> None:
        """Start a replica that has ended; blocks."""
        self.processes[number] = self._process(number)
        self.processes[number].start()

    async def restart(self, number: int) -> None:
        """Stop a replica gracefully and start it again; ``close`` waits for one that was abandoned."""
        self._restarting = asyncio.ensure_future(asyncio.to_thread(self._restart, number))
        await asyncio.shield(self._restarting)

    def _restart(self, number: int) -> None:
        assert self.processes[number].stop() == 0
        self.start_again(number)

    @property
    def output(self) -> str:
        """What all replicas have said so far."""
        logs = sorted(self.directory.glob("gateway*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in logs)

    async def close(self) -> None:
        """Delete all kernels and stop everything."""
        if self._restarting is not None:
            await asyncio.gather(self._restarting, return_exceptions=True)
        clients = [client for client in (self.through_proxy, *self.clients) if client is not None]
        await asyncio.gather(*(socket.end() for client in clients for socket in client.sockets))
        for client in clients:
            client.close()
        processes = [process for process in self.processes if process._process is not None]
        alive = [process for process in processes if process.process.poll() is None]
        if alive:
            async with Client(alive[0].url) as client:
                kernels = await client.call("/api/kernels")
                await asyncio.gather(*(client.fetch(f"/api/kernels/{kernel['id']}", "DELETE") for kernel in kernels))
        await asyncio.gather(*(asyncio.to_thread(process.stop) for process in alive))
        if self.proxy is not None and self.proxy._process is not None:
            await asyncio.to_thread(self.proxy.stop)
        self._kill_what_is_left()

    def _kill_what_is_left(self) -> None:
        """End kernels that a test that failed has left."""
        marker = str(self.directory).encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if any(marker in (entry / name).read_bytes() for name in ("environ", "cmdline")):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return a server that all tests of the session share."""
    skip_without("postgres")
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a new database, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'kernels.sqlite'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield f"{server.url.removesuffix('postgres')}{name}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
async def replicas(tmp_path: Path, database_url: str) -> AsyncIterator[Replicas]:
    """Return replicas that are not started yet."""
    skip_without("haproxy")
    running = Replicas(tmp_path, database_url)
    try:
        yield running
    finally:
        await running.close()
        print(running.output)  # pytest shows it when the test has failed
