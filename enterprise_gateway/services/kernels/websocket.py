"""``/api/kernels/<id>/channels``: attaches a websocket to the kernel's channels."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from tornado import web
from tornado.httputil import HTTPHeaders
from tornado.iostream import IOStream, SSLIOStream
from tornado.websocket import WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from ...base.handlers import GatewayHandler, origin_host
from ...transport.frames import (
    SMALL_FRAME,
    V1_PROTOCOL,
    ClientMessage,
    FrameError,
    FrameTooLargeError,
    Part,
    decode_in_steps,
    decode_legacy_binary,
    decode_legacy_text,
    decode_v1,
    decode_v1_in_steps,
)
from ...transport.outbox import JUPYTER_MESSAGE_LIMIT, MESSAGE_TOO_BIG, Acknowledged, Outbox
from ...transport.pace import Pace
from ...transport.ratelimit import RateLimitedWarnings
from ...transport.receipts import Receipts
from ...transport.tcpstate import TcpState, keep_alive, read_tcp_state
from .handlers import KERNEL_ID
from .keepalive import Keepalive
from .largeframes import PatientProtocol

if TYPE_CHECKING:
    from ...base.traffic import Traffic
    from ...transport.channels import KernelChannels

log = logging.getLogger(__name__)

DEFAULT_MAX_MESSAGE_SIZE = 100 << 20
DEFAULT_QUEUE_LIMIT = 32 << 20
DEFAULT_RECEIVE_LIMIT = 1 << 30
MAX_SESSION_ID_LENGTH = 256
MAX_REASON_BYTES = 123
TLS_RECORD_BYTES = 16 << 10  # at most; part of a record cannot be read


class KernelChannelsHandler(GatewayHandler, WebSocketHandler):
    """One client's websocket, attached to the kernel's channels by its :class:`Outbox`.

    Checks in this order: token (401), kernel (404), upgrade (400), origin (403). Frames are written straight to the
    connection's stream, past tornado's ``write_message``, which takes a task for each message.
    """

    head = WebSocketHandler.head  # type: ignore[assignment]  # only GET opens a websocket
    heard = 0.0
    _channels: KernelChannels
    _outbox: Outbox | None = None
    _stream: _CountedStream
    _session_id = ""
    _received = 0  # of a large message
    _pace: Pace
    _user_pace: Pace
    _first_answer: asyncio.Task[None] | None = None
    _has_waited = False
    _v1 = False

    def check_cross_site(self) -> None:
        """Leave the check of the origin to :meth:`check_origin`, after the kernel was looked up."""
        if origin_host(self.request.headers.get("Origin", "")) is None:  # tornado would fail on it
            raise web.HTTPError(403, "Cross origin websockets not allowed")

    def check_origin(self, origin: str) -> bool:
        """Whether a page of ``origin`` may connect: the gateway's own, or the one that ``allow_origin`` permits."""
        return self.is_allowed_origin(origin)

    def get_compression_options(self) -> None:
        """Do not compress: it would cost more processor time than everything else."""

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """Return what speaks tornado's protocol, and takes large frames in pieces; called by tornado."""
        protocol = super().get_websocket_protocol()
        return protocol and PatientProtocol(self, False, cast("WebSocketProtocol13", protocol).params)

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
        if self._channels.awaits_proof:
            raise web.HTTPError(503, "The kernel was reported twice and has not proved that it has the key.")
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
        if stream is None or stream.closed():  # the client has gone meanwhile; tornado calls on_close next
            return
        traffic: Traffic | None = self.settings.get("eg_traffic")
        if traffic is not None:
            traffic.leave(self)  # the request is answered
            traffic.websockets.add(self)
        session_id = self.get_query_argument("session_id", "")[:MAX_SESSION_ID_LENGTH]
        if not session_id:
            session_id = uuid.uuid4().hex
            log.debug("A websocket of kernel %s has no session_id: its client cannot claim missed output", kernel_id)
        self._session_id = session_id
        self._pace = self._find_pace("ws_message_rate")
        self._user_pace = self._find_pace("ws_user_message_rate")
        self._v1 = self.selected_subprotocol == V1_PROTOCOL
        stream.set_nodelay(True)
        stream.max_buffer_size = self.max_message_size + (1 << 20)
        keep_alive(stream.socket)
        self._stream = _CountedStream(stream)
        self._outbox = Outbox(
            self._stream,
            v1=self._v1,
            limit=self.settings.get("eg_ws_queue_limit", DEFAULT_QUEUE_LIMIT),
            split=self.settings.get("eg_ws_split_size", JUPYTER_MESSAGE_LIMIT),
            close=self.close,
            receipts=self._receipts,
        )
        # Thousands of websockets may be open: free what only the handshake needed.
        self.request.headers = HTTPHeaders()
        self.request.connection = None
        self._keepalive.add(self)
        self._channels.attach(self._outbox, session_id, has_waited=self._has_waited)

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Pass a client's message on to the kernel; called by tornado, which reads on when that is done."""
        is_text = isinstance(message, str)
        delay = self._delay()
        if delay or len(message) > SMALL_FRAME:
            return self._take_later(message, is_text, delay)
        try:
            self._pass_on(self._decode(message))
        except FrameError as error:
            self._refuse(error)
        return None

    def note_received(self, count: int) -> bool:
        """Count received bytes of a large message; False when its user's websockets receive too much at once."""
        user, limit = self._channels.user, self.settings.get("eg_ws_receive_limit", DEFAULT_RECEIVE_LIMIT)
        self._received += count
        self._receiving[user] += count
        if self._receiving[user] <= limit:
            return True
        self._warn("A websocket was closed: user %s sends more than ws_receive_limit (%d)", user, limit)
        return False

    def note_handled(self) -> None:
        """Note that a large message was passed on, or will not be completed."""
        self._receiving[self._channels.user] -= self._received
        if not self._receiving[self._channels.user]:
            del self._receiving[self._channels.user]
        self._received = 0

    def on_large_message(self, message: memoryview, is_text: bool) -> Awaitable[None]:
        """Pass on a message that was received in pieces; called by :class:`PatientProtocol`."""
        return self._take_later(message, is_text, self._delay())

    async def _take_later(self, message: str | Part, is_text: bool, delay: float) -> None:
        """Pass a message on when it is its sender's turn, and decode a large one in slices between others' turns."""
        await asyncio.sleep(delay)
        try:
            if isinstance(message, str | bytes) and len(message) <= SMALL_FRAME:
                self._pass_on(self._decode(message))
            elif self._v1 and not isinstance(message, str) and not is_text:
                self._pass_on(await self._channels.slices.run(decode_v1_in_steps(message)))
            else:
                self._pass_on(await self._channels.slices.run(decode_in_steps(message, is_text)))
        except FrameError as error:
            self._refuse(error)

    def _pass_on(self, message: ClientMessage) -> None:
        if self._outbox is not None and self.ws_connection is not None:  # else we are closing it, or it is closed
            self._channels.send(self._outbox, message.channel, message.parts, message.header)

    def _refuse(self, error: FrameError) -> None:
        if isinstance(error, FrameTooLargeError) and self._outbox is not None:  # its client would wait for an answer
            self._warn("A websocket was closed: %s", error)
            self.close(MESSAGE_TOO_BIG, str(error))
        else:
            self._warn("A message from a websocket was dropped: %s", error)

    def _delay(self) -> float:
        """Return how long the message that has come has to wait because its client, or its user, sends so many."""
        self.heard = now = time.monotonic()
        delay = self._pace.delay(self._session_id, now)
        user_delay = self._user_pace.delay(self._channels.user, now)
        if delay:
            self._warn("A websocket sends more than ws_message_rate (%d a second): it waits", self._pace.rate)
        if user_delay:
            self._warn(
                "User %s sends more than ws_user_message_rate (%d a second): all of the user's websockets wait",
                self._channels.user,
                self._user_pace.rate,
            )
        return max(delay, user_delay)

    def on_pong(self, data: bytes) -> None:
        """Note that the client is alive and has got what was sent before the ping; called by tornado."""
        self.heard = time.monotonic()
        if self._outbox is not None:
            self._outbox.on_pong(data)

    def on_close(self) -> None:
        """Detach from the kernel; called by tornado when the connection is gone."""
        self.on_finish()
        if self._first_answer is not None:
            self._first_answer.cancel()
        if self._outbox is not None:
            self._keepalive.remove(self)
            self._outbox.note_end(self.close_code)
            self._outbox.stop()
            self._channels.detach(self._outbox)
            self._outbox = None
            self.note_handled()

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin to close the websocket; tornado cuts the connection if the client does not answer within 5 s."""
        if self._outbox is not None:
            self._outbox.stop()
            self._channels.leave(self._outbox)
        # A close frame has room for 123 bytes.
        super().close(code, reason and reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))

    def send_ping(self) -> None:
        """Ping the client, to learn whether it is alive and what it has received."""
        if self._outbox is not None:
            self._outbox.ping()

    def is_line_dead(self, seconds: float) -> bool:
        """Whether what was sent is not even acknowledged by the peer's system, which said nothing for ``seconds``."""
        state = self._stream.tcp_state()
        return state is not None and state.is_retransmitting and state.silence > seconds

    def abort(self) -> None:
        """Cut the connection: the client would not receive a close message."""
        if self._outbox is not None:
            self._outbox.abort()

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
        keepalive.timeout = self.settings.get("eg_ws_ping_timeout", 0)
        keepalive.change_interval(interval)
        return keepalive

    def _find_pace(self, option: str) -> Pace:
        """Return the one of this process for an option, which may have changed."""
        pace: Pace = self.settings.setdefault(f"eg_{option}_pace", Pace())
        pace.rate = self.settings.get(f"eg_{option}", 0)
        return pace

    @property
    def _receiving(self) -> Counter[str]:
        """Bytes of large messages that are being received, by user; the one of this process."""
        receiving: Counter[str] = self.settings.setdefault("eg_receiving", Counter())
        return receiving

    @property
    def _receipts(self) -> Receipts:
        """The one of this process; none are asked for when there are to be no pings."""
        receipts: Receipts = self.settings.setdefault("eg_receipts", Receipts())
        receipts.is_on = self.settings.get("ws_ping_interval", 30_000) > 0
        return receipts

    def _warn(self, message: str, *args: object) -> None:
        """Log a warning about the kernel's websocket; limited for all together, as clients can provoke it at will."""
        warnings: RateLimitedWarnings = self.settings.setdefault("eg_websocket_warnings", RateLimitedWarnings(log))
        warnings.warn(f"Kernel %s: {message}", self._channels.kernel_id, *args)


class _CountedStream:
    """A tornado stream as :class:`~enterprise_gateway.transport.outbox.ByteStream`.

    Tornado counts what it is given and what the system took but has no public names for that; both numbers stay
    readable after the stream was closed. What the system knows of the peer does not: it is noted just before.
    """

    __slots__ = ("_close_fd", "_last_state", "_stream")

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream
        self._last_state: TcpState | None = None
        self._close_fd = stream.close_fd
        stream.close_fd = self._note_and_close_fd  # type: ignore[method-assign]

    def write(self, data: bytes) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._stream.write(data)
        return future

    def close(self) -> None:
        self._stream.close()

    @property
    def accepted(self) -> int:
        return self._stream._total_write_index

    def acknowledged(self) -> Acknowledged:
        taken, state = self._stream._total_write_done_index, self.tcp_state()
        if state is None or not state.unacknowledged:
            return Acknowledged(taken, taken, False)
        missing = state.unacknowledged
        if isinstance(self._stream, SSLIOStream):
            missing += TLS_RECORD_BYTES  # counted are encrypted bytes, which are no fewer
        position = max(0, taken - missing)
        return Acknowledged(position, taken if state.is_fresh else position, state.is_retransmitting)

    def tcp_state(self) -> TcpState | None:
        return self._last_state if self._stream.closed() else read_tcp_state(self._stream.socket)

    def _note_and_close_fd(self) -> None:
        self._last_state = read_tcp_state(self._stream.socket)
        del self._stream.close_fd  # a circle of references
        self._close_fd()


default_handlers: list[tuple[str, Any]] = [(rf"/api/kernels/{KERNEL_ID}/channels", KernelChannelsHandler)]
