"""Our gateway in the test's own process and loop, where the checks of ``conftest.py`` see all that it does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import tornado.platform.asyncio  # noqa: F401  # else the first client reads it while the loop runs
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.queues import QueueEmpty
from tornado.websocket import WebSocketClientConnection, websocket_connect
from traitlets.config import Config
from typing_extensions import Self

from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp

from .loops import loop_may_be_held

V1_PROTOCOL = "v1.kernel.websocket.jupyter.org"


def _http_client() -> AsyncHTTPClient:
    return AsyncHTTPClient(force_instance=True, defaults={"connect_timeout": 20}, max_clients=1000)


@dataclass
class Client:
    """A client of the REST and websocket API that the gateway shares with Jupyter Server."""

    url: str
    http: AsyncHTTPClient = field(default_factory=_http_client)
    sockets: list[KernelSocket] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all websockets and connections."""
        for socket in self.sockets:
            socket.drop()
        self.http.close()

    async def fetch(
        self,
        path: str,
        method: str = "GET",
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> HTTPResponse:
        """Send one request and return the response whatever its status; ``body`` is sent as it is, or as JSON."""
        if body is not None and not isinstance(body, bytes | str):
            body = json.dumps(body)
        options = {"allow_nonstandard_methods": True, "request_timeout": 60, "follow_redirects": False, **options}
        request = HTTPRequest(self.url + path, method=method, body=body, headers=dict(headers or {}), **options)
        return await self.http.fetch(request, raise_error=False)

    async def call(self, path: str, method: str = "GET", body: Any = None, *, status: int = 200, **options: Any) -> Any:
        """Send one request, check the status, and return the JSON of the answer."""
        response = await self.fetch(path, method, body, **options)
        assert response.code == status, f"{method} {path}: {response.code} {response.body!r}"
        return json.loads(response.body) if response.body else None

    async def start_kernel(self, name: str = "python3", **body: Any) -> str:
        """Start a kernel and return its id."""
        model = await self.call("/api/kernels", "POST", {"name": name, **body}, status=201)
        return str(model["id"])

    async def websocket(
        self, kernel_id: str, session_id: str | None = None, protocol: str | None = None, **headers: str
    ) -> KernelSocket:
        """Open a websocket to a kernel's channels; it is closed with the gateway."""
        session_id = session_id or uuid.uuid4().hex
        url = f"{self.url}/api/kernels/{kernel_id}/channels?session_id={session_id}".replace("http", "ws", 1)
        connection = await websocket_connect(
            HTTPRequest(url, headers=headers), subprotocols=[protocol] if protocol else None
        )
        socket = KernelSocket(connection, session_id)
        self.sockets.append(socket)
        return socket


@dataclass
class Gateway(Client):
    """A gateway that runs in this process, and a client for it."""

    app: EnterpriseGatewayApp = None  # type: ignore[assignment]


@dataclass
class KernelSocket:
    """One websocket to a kernel; its methods speak the legacy JSON protocol, ``connection`` any."""

    connection: WebSocketClientConnection
    session_id: str
    has_ended: bool = False
    """Whether :meth:`receive` has seen the end; nothing comes any more, not even the end once more."""

    async def send(
        self, msg_type: str, content: Any = None, *, channel: str = "shell", parent: Any = None, **more: Any
    ) -> str:
        """Send a message, with ``more`` in its header, and return its id."""
        msg_id = uuid.uuid4().hex
        header = {"msg_id": msg_id, "msg_type": msg_type, "session": self.session_id, "username": "", "version": "5.4"}
        message = {
            "header": {**header, **more},
            "parent_header": parent or {},
            "metadata": {},
            "content": content or {},
        }
        await self.connection.write_message(json.dumps({**message, "channel": channel, "buffers": []}))
        return msg_id

    async def receive(self, timeout: float = 30) -> Any:
        """Return the next message; None when the gateway has closed the websocket."""
        data = await asyncio.wait_for(self.connection.read_message(), timeout)
        self.has_ended = data is None
        return None if data is None else json.loads(data)

    async def receive_until(self, msg_type: str, *, parent: str | None = None, timeout: float = 30) -> list[Any]:
        """Return all messages up to the first of that type (that answers ``parent``)."""
        messages: list[Any] = []

        async def collect() -> None:
            while True:
                message = await self.receive(timeout)
                assert message is not None, f"closed while waiting for {msg_type}"
                messages.append(message)
                about = message["parent_header"].get("msg_id")
                if message["msg_type"] == msg_type and (parent is None or about == parent):
                    return

        await asyncio.wait_for(collect(), timeout)
        return messages

    async def execute(self, code: str, timeout: float = 30, **header: Any) -> tuple[str, Any]:
        """Run code; return its printed and returned text, and the content of the reply.

        Again, if the kernel has aborted it: ipykernel does so with what comes in the moment after an error.
        """
        while True:
            text, reply = await self._execute(code, timeout, header)
            if reply["status"] != "aborted":
                return text, reply

    async def _execute(self, code: str, timeout: float, header: Mapping[str, Any]) -> tuple[str, Any]:
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        msg_id = await self.send("execute_request", content, **header)
        text, reply, idle = "", None, False

        async def collect() -> None:
            nonlocal text, reply, idle
            while reply is None or not idle:
                message = await self.receive(timeout)
                assert message is not None, "closed while the code was running"
                if message["parent_header"].get("msg_id") != msg_id:
                    continue
                kind, answer = message["msg_type"], message["content"]
                text += answer.get("text", "") if kind == "stream" else ""
                text += answer["data"].get("text/plain", "") if kind == "execute_result" else ""
                idle = idle or (kind == "status" and answer["execution_state"] == "idle")
                reply = answer if kind == "execute_reply" else reply

        await asyncio.wait_for(collect(), timeout)
        return text, reply

    def close(self) -> None:
        """Close the websocket."""
        self.connection.close()

    def drop(self) -> None:
        """Close the websocket; what still comes is dropped.

        Else tornado's client would wait for somebody to take it before it reads on, and see the end.
        """
        self.connection._on_message_callback = lambda _: None
        with contextlib.suppress(QueueEmpty):
            while True:
                self.connection.read_queue.get_nowait()
        self.close()

    async def end(self) -> None:
        """Close the websocket and wait until it is closed; what comes until then is dropped."""
        self.close()
        with contextlib.suppress(asyncio.TimeoutError):
            while not self.has_ended:
                await self.receive(10)


@asynccontextmanager
async def running_gateway(
    argv: Sequence[str] = (), *, config: Mapping[str, Any] | None = None
) -> AsyncIterator[Gateway]:
    """Run a gateway on the test's loop, on a free port of 127.0.0.1, until the block ends.

    Parameters
    ----------
    argv
        More command-line arguments.
    config
        Options by class name: ``{"EnterpriseGatewayApp": {"auth_token": "x"}}``.
    """
    with loop_may_be_held("the gateway is built before its loop runs"), _logging_kept():
        app = EnterpriseGatewayApp(config=Config({name: Config(options) for name, options in (config or {}).items()}))
        app.initialize(["--ip=127.0.0.1", "--port=0", *argv])
    serving = asyncio.create_task(app.serve(), name="gateway")
    assert app.http_server is not None
    scheme = "https" if app.http_server.ssl_options is not None else "http"
    prefix = "/" + app.base_url.strip("/") if app.base_url.strip("/") else ""
    gateway = Gateway(f"{scheme}://127.0.0.1:{app.port}{prefix}", app=app)
    try:
        await asyncio.sleep(0)
        yield gateway
    finally:
        gateway.close()
        app.request_stop()
        await serving
        for configurable in (app.kernel_spec_cache, app):
            type(configurable).clear_instance()


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Put the root logger's handlers back: the application configures the whole process's logging, pytest's too."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in handlers:
        if handler not in root.handlers:
            root.addHandler(handler)
    root.setLevel(level)
