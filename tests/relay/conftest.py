"""The channels handler on a real HTTP server, with kernels that the test brings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import zmq
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from enterprise_gateway.core.errors import NotFoundError
from enterprise_gateway.core.offload import offload
from enterprise_gateway.services.kernels.websocket import default_handlers
from enterprise_gateway.transport.channels import ChannelLimits, KernelChannels
from enterprise_gateway.transport.resumption import Memory
from enterprise_gateway.transport.zmqsocket import make_context
from tests.support.certificates import Authority
from tests.support.tinykernel import TinyKernel
from tests.support.wsclient import WebSocketClient, random_id


class Kernel:
    """What the handler needs of a kernel manager."""

    def __init__(self, channels: KernelChannels) -> None:
        self.channels = channels


class Relay:
    """A gateway that only relays; also what the handler needs of the kernels' manager."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.kernels: dict[str, Kernel] = {}
        self.when_asked: Callable[[], None] = lambda: None
        self._context = context
        self._stack = contextlib.ExitStack()
        self._client_context: ssl.SSLContext | None = None

    async def find_kernel(self, kernel_id: str) -> Kernel:
        self.when_asked()
        if kernel_id not in self.kernels:
            raise NotFoundError(f"Kernel does not exist: {kernel_id}")
        return self.kernels[kernel_id]

    def listen(self, authority: Authority | None = None) -> None:
        """Listen on loopback; over TLS, with a certificate of ``authority``, if there is one."""
        self._application = Application(default_handlers, kernel_manager=self)
        certificate = None
        if authority is not None:
            certificate = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            certificate.load_cert_chain(*authority.issue("127.0.0.1"))
            self._client_context = authority.client_context()
        self._server = HTTPServer(self._application, ssl_options=certificate)
        self.port = self.listen_on("127.0.0.1")

    def listen_on(self, address: str) -> int:
        """Listen on another address, too; return the port."""
        sockets = bind_sockets(0, address)
        self._server.add_sockets(sockets)
        return int(sockets[0].getsockname()[1])

    def configure(self, **settings: Any) -> None:
        """Change settings of the web application."""
        self._application.settings.update(settings)

    def tiny_kernel(self, **options: Any) -> TinyKernel:
        """Start a tiny kernel that ends with the test."""
        kernel = TinyKernel(**options)
        kernel.start()
        self._stack.callback(kernel.stop)
        return kernel

    async def add(
        self,
        kernel: Any = None,
        *,
        ready: bool = True,
        memory: Memory | None = None,
        user: str = "",
        delay: float = 0.0,
        **limits: Any,
    ) -> tuple[str, KernelChannels]:
        """Connect to a kernel, which an earlier gateway has left with that memory, and serve it under a new id."""
        kernel_id = random_id()
        kernel = kernel or self.tiny_kernel()
        log = logging.getLogger("enterprise_gateway.test")
        channels = KernelChannels(kernel_id, context=self._context, limits=ChannelLimits(**limits), log=log, user=user)
        self.kernels[kernel_id] = Kernel(channels)
        channels.connect(kernel.info, delay=delay)
        if memory is not None:
            channels.resume(memory)
        if ready:
            await channels.ready(5)
        return kernel_id, channels

    async def open(
        self, kernel_id: str, session_id: str = "", *, port: int | None = None, **options: Any
    ) -> WebSocketClient:
        query = f"?session_id={session_id}" if session_id else ""
        path = f"/api/kernels/{kernel_id}/channels{query}"
        return await WebSocketClient.connect(port or self.port, path, context=self._client_context, **options)

    def is_owed_receipts(self) -> bool:
        """Whether a client has yet to confirm what it was sent."""
        clients = [client for kernel in self.kernels.values() for client in kernel.channels._clients]
        return any(client._queue or client._flight for client in clients)

    async def close(self) -> None:
        for kernel in self.kernels.values():
            kernel.channels.close()
        await asyncio.sleep(0.02)  # clients that still read answer the close
        self._server.stop()
        await self._server.close_all_connections()
        await offload(self._stack.close)


@pytest.fixture
def zmq_context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Yield the context for the gateway's own sockets; its end shows that all were closed."""
    context = make_context()
    yield context
    context.term()


@pytest.fixture
async def relay(request, zmq_context, tmp_path) -> AsyncIterator[Relay]:
    """Yield a relay that listens on loopback; over TLS where the test is parametrized by ``relay="tls"``."""
    relay = Relay(zmq_context)
    relay.listen(Authority(tmp_path) if getattr(request, "param", "plain") == "tls" else None)
    yield relay
    await relay.close()
