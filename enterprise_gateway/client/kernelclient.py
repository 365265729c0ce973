"""The client of :mod:`enterprise_gateway.client.kernelmanager`: a kernel's channels over one websocket to a gateway."""

from __future__ import annotations

import asyncio
import json
import queue
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.session import Session
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError, websocket_connect

from ..core.deadline import Deadline
from ..transport.frames import V1_PROTOCOL, ClientMessage, decode_legacy_binary, decode_legacy_text, decode_v1

Message = dict[str, Any]

_PING_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CLOSE_SECONDS = 5.0
# Number of message ids kept to recognize duplicates when a gateway replays messages.
_REMEMBERED = 1 << 16
# HTTP statuses after which a reconnect is not retried.
_FINAL = {400, 401, 403, 404, 405, 410}


class ManagedKernel(Protocol):
    """The part of a kernel's manager that its client uses."""

    kernel_id: str | None
    restarts: int
    launch_timeout: float
    reconnect_timeout: float
    shutting_down: bool

    def explain(self, purpose: str, error: Exception) -> Exception:
        """Return the error to raise when something failed because of ``error``."""

    async def request(self, path: str, *, timeout: float) -> HTTPRequest:
        """Return an authorized request for a path of the kernels' API."""


class Channel:
    """One of a kernel's channels; the interface is that of jupyter_client."""

    def __init__(self, name: str, send: Callable[[str, Message], None]) -> None:
        self.name = name
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self._send = send
        self._is_alive = False

    def start(self) -> None:
        """Mark the channel as alive."""
        self._is_alive = True

    def stop(self) -> None:
        """Mark the channel as stopped."""
        self._is_alive = False

    def is_alive(self) -> bool:
        """Whether the channel was started and not stopped."""
        return self._is_alive

    def is_beating(self) -> bool:
        """Whether the channel is alive; the gateway checks the heartbeat."""
        return self._is_alive

    def send(self, message: Message) -> None:
        """Send a message, now or once there is a connection."""
        self._send(self.name, message)

    async def get_msg(self, timeout: float | None = None) -> Message:
        """Return the next message; raise :exc:`queue.Empty` if none arrives within ``timeout`` seconds."""
        if not self.messages.empty():
            return self.messages.get_nowait()
        try:
            return await asyncio.wait_for(self.messages.get(), timeout)
        except asyncio.TimeoutError:
            raise queue.Empty from None

    async def get_msgs(self) -> list[Message]:
        """Return all messages that have arrived."""
        return [self.messages.get_nowait() for _ in range(self.messages.qsize())]

    async def msg_ready(self) -> bool:
        """Whether a message has arrived."""
        return not self.messages.empty()


class _Probe(NamedTuple):
    """A request of the client's own: ``earlier`` are the open requests that must be answered before it."""

    earlier: set[str]
    restarts: int


class GatewayKernelClient(AsyncKernelClient):
    """Talks to one kernel through a gateway; created by ``GatewayKernelManager.client()``.

    After a lost connection, the client reconnects with the same session id, and the gateway replays what was missed. A
    request is answered with an error if it, or its reply, was lost with the connection. :meth:`is_alive` returns False
    after the kernel has died, was restarted without a request of this program, or could not be found again.
    """

    parent: ManagedKernel

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._channels = {name: Channel(name, self._queue) for name in ("shell", "iopub", "stdin", "control", "hb")}
        self._outgoing: asyncio.Queue[tuple[str, Message]] = asyncio.Queue()
        self._unsent: tuple[str, Message] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._websocket: WebSocketClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._death = ""
        self._restarts_known = 0
        self._open: dict[str, Message] = {}
        """Headers of the shell requests that have no reply yet."""
        self._probes: dict[str, _Probe] = {}
        self._seen: dict[str, None] = {}

    def _session_default(self) -> Session:
        session = Session(parent=self)
        session.auth = None  # messages are not signed here: the gateway signs what it sends to the kernel
        return session

    shell_channel = property(lambda self: self._channels["shell"])
    iopub_channel = property(lambda self: self._channels["iopub"])
    stdin_channel = property(lambda self: self._channels["stdin"])
    control_channel = property(lambda self: self._channels["control"])
    hb_channel = property(lambda self: self._channels["hb"])

    @property
    def channels_running(self) -> bool:
        """Whether any channel was started and not stopped."""
        return any(channel.is_alive() for channel in self._channels.values())

    async def start_channels(  # type: ignore[override]
        self, shell: bool = True, iopub: bool = True, stdin: bool = True, hb: bool = True, control: bool = True
    ) -> None:
        """Open the websocket.

        Raises
        ------
        GatewayError
            The gateway refused it or cannot be reached.
        """
        self._loop = asyncio.get_running_loop()
        self._restarts_known = self.parent.restarts
        try:
            websocket = await self._connect()
        except (HTTPClientError, WebSocketError, OSError) as error:
            raise self.parent.explain(f"open the websocket of kernel {self.parent.kernel_id}", error) from error
        super().start_channels(shell=shell, iopub=iopub, stdin=stdin, hb=hb, control=control)
        self._task = asyncio.create_task(self._run(websocket), name=f"gateway-kernel-client-{self.session.session}")
        self._task.add_done_callback(self._run_ended)

    async def stop_channels(self) -> None:  # type: ignore[override]
        """Close the websocket; may be called repeatedly."""
        for channel in self._channels.values():
            channel.stop()
        self._is_stopping = True
        if self._task is None:
            return
        if self._websocket is not None:
            self._websocket.close()
            await asyncio.wait([self._task], timeout=_CLOSE_SECONDS)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def is_alive(self) -> bool:
        """Whether the kernel is alive, to the knowledge of this client."""
        return not self._death

    _async_is_alive = is_alive

    # -- the websocket -------------------------------------------------------------------------------------------------

    async def _connect(self) -> WebSocketClientConnection:
        path = f"/{quote(str(self.parent.kernel_id))}/channels?session_id={self.session.session}"
        request = await self.parent.request(path, timeout=self.parent.launch_timeout)
        request.url = "ws" + request.url.removeprefix("http")
        return await websocket_connect(
            request, subprotocols=[V1_PROTOCOL], ping_interval=_PING_SECONDS, max_message_size=sys.maxsize
        )

    async def _run(self, websocket: WebSocketClientConnection | None) -> None:
        while websocket is not None:
            self._websocket = websocket
            writer = asyncio.create_task(self._write(websocket))
            try:
                while (frame := await websocket.read_message()) is not None:
                    self._receive(_decode(frame, websocket.selected_subprotocol))
            finally:
                self._websocket = None
                websocket.close()
                writer.cancel()
                await asyncio.wait([writer])
            websocket = await self._reconnect()

    def _run_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._die(f"its messages cannot be read ({error!r})")

    async def _reconnect(self) -> WebSocketClientConnection | None:
        """Return a new websocket, to which the gateway replays what was missed; None if the kernel is gone."""
        deadline = Deadline(self.parent.reconnect_timeout)
        pause = _FIRST_PAUSE
        while not (self._death or self._is_ending):
            try:
                websocket = await self._connect()
            except (HTTPClientError, WebSocketError, OSError) as error:
                if getattr(error, "code", 0) == 404:
                    self._die("the gateway no longer has it")
                elif deadline.expired or getattr(error, "code", 0) in _FINAL:
                    self._die(str(self.parent.explain("reconnect to it", error)))
                else:
                    self.log.debug("Kernel %s: %s", self.parent.kernel_id, error)
                    await asyncio.sleep(min(pause, deadline.remaining))
                    pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self.log.info("Reconnected to kernel %s", self.parent.kernel_id)
                self.probe()
                return websocket
        return None

    @property
    def _is_ending(self) -> bool:
        return self._is_stopping or self.parent.shutting_down

    async def _write(self, websocket: WebSocketClientConnection) -> None:
        while True:
            channel, message = self._unsent = self._unsent or await self._outgoing.get()
            try:
                if websocket.selected_subprotocol == V1_PROTOCOL:
                    written = websocket.write_message(_encode_v1(channel, self._parts(message)), binary=True)
                else:
                    written = websocket.write_message(_encode_legacy(channel, self._parts(message)))
                self._unsent = None  # it may have reached the gateway from here on, and must not be sent twice
                await written
            except WebSocketClosedError:
                return

    def _parts(self, message: Message) -> list[bytes]:
        return [*self.session.serialize(message)[2:], *message.get("buffers", ())]

    # -- messages ------------------------------------------------------------------------------------------------------

    def _queue(self, channel: str, message: Message) -> None:
        """Hand a message to the writer; programs call this from any thread."""
        if self._loop is None:
            raise RuntimeError("The client's channels are not started")
        self._loop.call_soon_threadsafe(self._enqueue, channel, message)

    def _enqueue(self, channel: str, message: Message) -> None:
        if channel == "shell":
            self._open[message["header"]["msg_id"]] = message["header"]
        self._outgoing.put_nowait((channel, message))

    def _receive(self, received: ClientMessage) -> None:
        channel, header, parts = received
        if header["msg_id"] in self._seen:
            return
        self._seen[header["msg_id"]] = None
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        message = self.session.deserialize([b"", *parts])
        parent = message["parent_header"].get("msg_id", "")
        if channel == "shell":
            self._open.pop(parent, None)
            if (probe := self._probes.pop(parent, None)) is not None:
                self._probe_answered(probe)
                return
        if channel == "iopub" and header["msg_type"] == "status":
            self._hear(message["content"])
        self._channels[channel].messages.put_nowait(message)

    def _hear(self, status: Message) -> None:
        if status["execution_state"] == "dead":
            self._die(status.get("reason") or "the gateway says so")
        elif status["execution_state"] == "restarting":
            if self._restarts_known == self.parent.restarts:
                self._die(status.get("reason") or "it was restarted, and its variables are gone")
            self._restarts_known = self.parent.restarts

    def _die(self, reason: str) -> None:
        if not (self._death or self._is_ending):
            self.log.error("Kernel %s died: %s", self.parent.kernel_id, reason)
            self._death = reason

    def probe(self) -> None:
        """Find out which open requests will never be answered; called after a reconnect and a requested restart.

        The kernel answers shell requests in order, so every earlier request has its reply before the probe has one.
        """
        if self._task is not None:
            message = self.session.msg("kernel_info_request")
            self._probes[message["header"]["msg_id"]] = _Probe(set(self._open), self.parent.restarts)
            self._enqueue("shell", message)

    def _probe_answered(self, probe: _Probe) -> None:
        self._restarts_known = max(self._restarts_known, probe.restarts)
        for msg_id in probe.earlier:
            request = self._open.pop(msg_id, None)
            if request is not None and self._probes.pop(msg_id, None) is None:
                self._report_loss(request)

    def _report_loss(self, request: Message) -> None:
        """Answer in place of the kernel, because otherwise the program would wait for ever."""
        text = "The request or its reply was lost, with the connection to the gateway or with a restart of the kernel."
        error = {"ename": "ReplyLostError", "evalue": text, "traceback": [text]}
        reply_type = request["msg_type"].replace("_request", "_reply")
        for channel, msg_type, content in (
            ("iopub", "error", error),
            ("iopub", "status", {"execution_state": "idle"}),
            ("shell", reply_type, {"status": "error", **error}),
        ):
            message = self.session.msg(msg_type, content, parent={"header": request})
            self._channels[channel].messages.put_nowait({**message, "buffers": []})


def _decode(frame: str | bytes, protocol: str | None) -> ClientMessage:
    if isinstance(frame, str):
        return decode_legacy_text(frame)
    return decode_v1(frame) if protocol == V1_PROTOCOL else decode_legacy_binary(frame)


def _encode_v1(channel: str, parts: list[bytes]) -> bytes:
    pieces = [channel.encode(), *parts]
    offset = 8 * (len(pieces) + 2)
    offsets = [offset, *(offset := offset + len(piece) for piece in pieces)]
    return b"".join((struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets), *pieces))


def _encode_legacy(channel: str, parts: list[bytes]) -> str:
    names = ("header", "parent_header", "metadata", "content")
    return json.dumps(
        {"channel": channel, **{name: json.loads(part) for name, part in zip(names, parts, strict=False)}}
    )
