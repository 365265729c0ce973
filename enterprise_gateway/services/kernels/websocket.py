"""``/api/kernels/<id>/channels``: attaches a websocket to the kernel's channels."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from tornado import web
from tornado.httputil import HTTPHeaders
from tornado.iostream import IOStream, StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from ...base.handlers import GatewayHandler
from ...transport.frames import (
    V1_PROTOCOL,
    ClientMessage,
    FrameError,
    decode_legacy_binary,
    decode_legacy_text,
    decode_v1,
)
from ...transport.outbox import Outbox
from ...transport.ratelimit import RateLimitedWarnings
from .handlers import KERNEL_ID
from .keepalive import Keepalive

if TYPE_CHECKING:
    from ...base.traffic import Traffic
    from ...transport.channels import KernelChannels

log = logging.getLogger(__name__)

DEFAULT_MAX_MESSAGE_SIZE = 100 << 20
DEFAULT_QUEUE_LIMIT = 32 << 20
MAX_SESSION_ID_LENGTH = 256
MAX_REASON_BYTES = 123


class KernelChannelsHandler(GatewayHandler, WebSocketHandler):
    """One client's websocket, attached to the kernel's channels by its :class:`Outbox`.

    Checks in this order: token (401), kernel (404), upgrade (400), origin (403). Frames are written straight to the
    connection's stream, past tornado's ``write_message``, which takes a task for each message.
    """

    head = WebSocketHandler.head  # type: ignore[assignment]  # only GET opens a websocket
    heard = 0.0
    _channels: KernelChannels
    _outbox: Outbox | None = None
    _first_answer: asyncio.Task[None] | None = None
    _has_waited = False
    _v1 = False

    def check_cross_site(self) -> None:
        """Leave the origin to :meth:`check_origin`, which comes after the kernel was looked up."""

    def check_origin(self, origin: str) -> bool:
        """Whether a page of ``origin`` may connect: the gateway's own, or the one that ``allow_origin`` permits."""
        return self.is_allowed_origin(origin)

    def get_compression_options(self) -> None:
        """Compress nothing: kernels are near, and it would cost more than all the rest."""

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Choose the v1 protocol when the client offers it."""
        return V1_PROTOCOL if V1_PROTOCOL in subprotocols else None

    @property
    def ping_interval(self) -> float:
        """Seconds between tornado's own pings: none, see :class:`Keepalive`."""
        return 0.0

    @property
    def max_message_size(self) -> int:
        """Largest message in bytes that a client may send."""
        return int(self.settings.get("websocket_max_message_size", DEFAULT_MAX_MESSAGE_SIZE))

    async def get(self, kernel_id: str) -> None:
        """Open the websocket; that of a kernel which still starts when the kernel has answered for the first time.

        Clients take an open websocket for a kernel that will answer within a second, as Jupyter Server has it.
        """
        await self.authorize("execute", "kernels")
        self._channels = await self._find_channels(kernel_id)
        if self._channels.awaits_first_answer and self._may_upgrade():
            self._first_answer = asyncio.create_task(self._channels.first_answer())
            await asyncio.wait([self._first_answer])
            if self._first_answer.cancelled():
                self.set_status(499, "Client Closed Request")
                return
            self._first_answer = None
            self._has_waited = True
            self._channels = await self._find_channels(kernel_id)
        await super().get(kernel_id)

    async def _find_channels(self, kernel_id: str) -> KernelChannels:
        kernel = await self.kernel_manager.find_kernel(kernel_id)
        if kernel.channels is None:
            raise web.HTTPError(404, "Kernel does not exist: %s", kernel_id)
        return kernel.channels

    def _may_upgrade(self) -> bool:
        """Whether it is worth waiting: tornado, which decides, refuses others at once."""
        headers = self.request.headers
        is_websocket = headers.get("Upgrade", "").lower() == "websocket"
        return is_websocket and ("Origin" not in headers or self.check_origin(headers["Origin"]))

    def open(self, kernel_id: str) -> None:
        """Attach to the kernel; called by tornado after the handshake."""
        stream = self.ws_connection.stream if self.ws_connection is not None else None
        if stream is None:
            return
        traffic: Traffic | None = self.settings.get("eg_traffic")
        if traffic is not None:
            traffic.leave(self)  # the request is answered
            traffic.websockets.add(self)
        session_id = self.get_query_argument("session_id", "")[:MAX_SESSION_ID_LENGTH]
        if not session_id:
            session_id = uuid.uuid4().hex
            log.debug("A websocket of kernel %s has no session_id: its client cannot claim missed output", kernel_id)
        self._v1 = self.selected_subprotocol == V1_PROTOCOL
        stream.set_nodelay(True)
        stream.max_buffer_size = self.max_message_size + (1 << 20)
        self._outbox = Outbox(
            _CountedStream(stream),
            v1=self._v1,
            limit=self.settings.get("eg_ws_queue_limit", DEFAULT_QUEUE_LIMIT),
            close=self.close,
        )
        # Thousands of websockets may be open: let go of what only the handshake needed.
        self.request.headers = HTTPHeaders()
        self.request.connection = None
        self._keepalive.add(self)
        self._channels.attach(self._outbox, session_id, has_waited=self._has_waited)

    def on_message(self, message: str | bytes) -> None:
        """Pass a client's message on to the kernel; called by tornado."""
        self.heard = time.monotonic()
        if self._outbox is None or self.ws_connection is None:
            return  # we are closing it, and the client has not heard of that yet
        try:
            decoded = self._decode(message)
            self._channels.send(self._outbox, decoded.channel, decoded.parts, decoded.header)
        except FrameError as error:
            self._warnings.warn("A message from a websocket was dropped: %s", error)

    def on_pong(self, data: bytes) -> None:
        """Note that the client is alive; called by tornado."""
        self.heard = time.monotonic()

    def on_close(self) -> None:
        """Detach from the kernel; called by tornado when the connection is gone."""
        self.on_finish()
        if self._first_answer is not None:
            self._first_answer.cancel()
        if self._outbox is not None:
            self._keepalive.remove(self)
            self._outbox.stop()
            self._channels.detach(self._outbox)
            self._outbox = None

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin to close the websocket; tornado cuts the connection if the client does not answer within 5 s."""
        if self._outbox is not None:
            self._outbox.stop()
            self._channels.leave(self._outbox)
        # A close frame has room for 123 bytes.
        super().close(code, reason and reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))

    def send_ping(self) -> None:
        """Ask the client for a sign of life."""
        try:
            self.ping()
        except (WebSocketClosedError, StreamClosedError):
            log.debug("A websocket was closed before it was pinged")

    def _decode(self, message: str | bytes) -> ClientMessage:
        if isinstance(message, str):
            return decode_legacy_text(message)
        return decode_v1(message) if self._v1 else decode_legacy_binary(message)

    @property
    def _keepalive(self) -> Keepalive:
        """The one of this process; tornado's settings hold it."""
        # The option's value is kept in milliseconds since Enterprise Gateway 2.
        interval = self.settings.get("ws_ping_interval", 30_000) / 1000
        keepalive: Keepalive = self.settings.setdefault("eg_keepalive", Keepalive(interval))
        keepalive.change_interval(interval)
        return keepalive

    @property
    def _warnings(self) -> RateLimitedWarnings:
        """Shared by all websockets: clients can provoke these warnings at will."""
        warnings: RateLimitedWarnings = self.settings.setdefault("eg_websocket_warnings", RateLimitedWarnings(log))
        return warnings


class _CountedStream:
    """A tornado stream as :class:`~enterprise_gateway.transport.outbox.ByteStream`.

    Tornado counts both numbers but has no public name for them; they stay readable after the stream was closed.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream

    def write(self, data: bytes) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._stream.write(data)
        return future

    def close(self) -> None:
        self._stream.close()

    @property
    def accepted(self) -> int:
        return self._stream._total_write_index

    @property
    def handed_over(self) -> int:
        return self._stream._total_write_done_index


default_handlers: list[tuple[str, Any]] = [(rf"/api/kernels/{KERNEL_ID}/channels", KernelChannelsHandler)]
