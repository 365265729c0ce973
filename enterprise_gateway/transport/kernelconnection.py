"""The gateway's side of the conversation with a kernel: what may be sent when, and the gateway's own requests."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from ..core.connection import ConnectionInfo
from .frames import FrameError, Part, decode_object
from .kernelsockets import KernelSockets, Log
from .limits import ChannelLimits
from .messages import KernelMessage, MessageFactory
from .ratelimit import RateLimitedWarnings
from .slices import Slices

STDIN_CONNECT_SECONDS = 5.0
MAX_HEIRS = 4  # earlier gateways, the last ones, whose replies are waited for
QUIET_SECONDS = 0.1
_SEARCHED_BYTES = 1 << 20  # of a request; what is larger may ask on stdin for all we know
_MAX_OWN_REPLY = 256 << 10

# Inside a JSON string the quotes would be escaped: this can only be the member itself.
_ALLOWS_STDIN = re.compile(rb'"allow_stdin"\s*:\s*true').search


class KernelConnection:
    """Survives restarts: holds back what clients send until the (new) kernel can take it without loss.

    A new subscription reaches the kernel some time after it was made; only output that arrives shows that it has. So
    after :meth:`connect` the kernel is *nudged* with ``kernel_info_request`` until a reply and any output have come
    (or ``info_timeout`` is over), and shell requests wait for that output.

    Parameters
    ----------
    identity
        Of the first connection's sockets; each later one has another.
    on_message
        Gets every message of the kernel but replies to the gateway's own requests.
    on_batch
        Called when no more messages are at hand.
    slices
        In which large messages are taken apart.
    """

    __slots__ = (
        "_context",
        "_identity",
        "_inherited",
        "_is_first",
        "_is_holding_stdin",
        "_is_live",
        "_is_up",
        "_limits",
        "_log",
        "_nudge_count",
        "_nudge_end",
        "_nudge_timer",
        "_on_batch",
        "_on_message",
        "_opening",
        "_pending",
        "_pending_bytes",
        "_received",
        "_requests",
        "_slices",
        "_sockets",
        "_stdin_timer",
        "_unopened",
        "_waiters",
        "_warnings",
        "answered_at",
        "awaits_proof",
        "connected_at",
        "factory",
        "kernel_info",
    )

    def __init__(
        self,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: str,
        limits: ChannelLimits,
        on_message: Callable[[KernelMessage], None],
        on_batch: Callable[[], None],
        slices: Slices,
        log: Log,
        warnings: RateLimitedWarnings,
    ) -> None:
        self.factory = MessageFactory()
        self.kernel_info: dict[str, Any] | None = None
        self.connected_at = 0.0  # seconds since 1970; 0: not yet
        self.answered_at = 0.0  # the same
        self._context = context
        self._identity = identity
        self._inherited: tuple[str, ...] = ()  # identities of earlier gateways
        self._limits = limits
        self._on_message = on_message
        self._on_batch = on_batch
        self._slices = slices
        self._log = log
        self._warnings = warnings
        self._sockets: KernelSockets | None = None
        self._unopened: ConnectionInfo | None = None  # where sockets are to be opened that were put off
        self._opening: asyncio.TimerHandle | None = None
        self.awaits_proof = False  # whether it is our kernel is in doubt until a message of it has the right signature
        self._is_first = False  # connected for the first time to a kernel that was started just now
        self._is_up = False  # connected, and no restart in progress
        self._is_live = False  # output is known to arrive
        self._is_holding_stdin = False  # a shell request waits for the stdin socket
        self._stdin_timer: asyncio.TimerHandle | None = None
        self._nudge_timer: asyncio.TimerHandle | None = None
        self._nudge_count = 0
        self._nudge_end = 0.0
        self._pending: list[tuple[str, list[Part], bool]] = []
        self._pending_bytes = 0
        self._received = 0
        self._waiters: list[asyncio.Future[dict[str, Any]]] = []
        self._requests: dict[str, asyncio.Future[dict[str, Any]]] = {}

    # -- life ----------------------------------------------------------------------------------------------------

    def connect(self, info: ConnectionInfo, *, is_contested: bool = False, delay: float = 0.0) -> None:
        """Connect to the kernel, in place of an earlier connection; returns at once.

        A contested kernel gets nothing of its clients before it has proved that it has the key.

        Parameters
        ----------
        delay
            Seconds until the sockets are opened, unless the kernel is needed before that.
        """
        is_first = self._nudge_end == 0.0
        self.disconnect("the kernel was restarted")
        if not is_first:
            self._identity, self._inherited = new_identity(), ()
        self._is_first = is_first
        self._unopened = info
        self._is_up = True
        self.awaits_proof = is_contested
        self.kernel_info = None
        self.connected_at = self.answered_at = 0.0
        self._nudge_count = 0
        self._nudge_end = time.monotonic() + self._limits.info_timeout
        if delay:
            self._opening = asyncio.get_running_loop().call_later(delay, self._opened)
        else:
            self._opened()

    def _opened(self) -> KernelSockets | None:
        """Return the sockets, opened now if that was put off; None without a connection."""
        self._cancel_opening()
        if self._unopened is None:
            return self._sockets
        info, self._unopened = self._unopened, None
        self._sockets = KernelSockets(
            info,
            context=self._context,
            identity=self._identity.encode(),
            max_frame_bytes=2 * self._limits.max_message,
            on_message=self._receive,
            on_batch=self._on_batch,
            slices=self._slices,
            log=self._log,
            warnings=self._warnings,
        )
        self.connected_at = time.time()
        if self._is_up:
            self._nudge()
            self._pump()
        return self._sockets

    def _cancel_opening(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None

    def contest(self) -> None:
        """Let the kernel have nothing of its clients before it has proved that it has the key, if it has not yet."""
        self.awaits_proof = self.kernel_info is None and not self._is_live

    def disconnect(self, reason: str) -> None:
        """Close the sockets after taking in what has arrived; requests of the gateway fail with ``reason``."""
        self.suspend(reason)
        self._unopened = None
        self._cancel_stdin_timer()
        self._is_holding_stdin = False
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None
        _fail(self._requests.values(), reason)

    def suspend(self, reason: str = "the kernel is restarted or dead") -> None:
        """Take in what has arrived; from now on keep what clients send until the next :meth:`connect`.

        Nobody waits for the kernel any longer: that fails with ``reason``.
        """
        if self._sockets is not None:
            self._sockets.drain()
        self._is_up = self._is_live = self._is_first = False
        self._cancel_opening()
        self._cancel_nudge()
        _fail(self._waiters, reason)

    def resume(self, identities: tuple[str, ...]) -> None:
        """Note that the kernel ran already when it was connected to, for gateways of these identities."""
        self._is_first = False
        self._inherited = identities[-MAX_HEIRS:]

    @property
    def identities(self) -> tuple[str, ...]:
        """Under which the kernel may reply, the present one last; for the next gateway."""
        return (*self._inherited, self._identity)

    def inherit(self) -> None:
        """Receive what is due to earlier gateways, too; called when the kernel is, or may be, busy for one of them."""
        if (sockets := self._opened()) is not None:
            sockets.inherit(identity.encode() for identity in self._inherited)

    def end_inheritance(self) -> None:
        """Take in what is left for earlier gateways: nothing is due to them any more."""
        self._inherited = ()
        if self._sockets is not None:
            self._sockets.end_inheritance()

    def held_back(self) -> set[int]:
        """Return the ids of the headers of what clients have sent and the kernel has not got."""
        return {id(parts[0]) for _, parts, _ in self._pending}

    async def quiet(self, patience_seconds: float) -> None:
        """Take in what still comes from a kernel whose process has ended, until nothing has come for a moment."""
        end = time.monotonic() + patience_seconds
        received = -1
        while received != self._received and time.monotonic() < end:
            if self._sockets is not None:
                await self._sockets.settle()
            received = self._received
            await asyncio.sleep(QUIET_SECONDS)

    def drop_pending(self) -> None:
        """Give up what clients have sent and the kernel has not got."""
        self._pending.clear()
        self._pending_bytes = 0

    # -- requests of the gateway ---------------------------------------------------------------------------------

    async def ready(self, timeout: float) -> dict[str, Any]:
        """Wait until the kernel has answered and its output arrives; see :meth:`KernelChannels.ready`."""
        if self.kernel_info is not None and self._is_live:
            return self.kernel_info
        self._opened()
        future = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        try:
            return await _within(future, timeout, "the kernel did not answer a kernel_info_request")
        finally:
            self._waiters.remove(future)

    @property
    def awaits_first_answer(self) -> bool:
        """Whether a kernel that was started just now has not answered yet, and has time left for it."""
        return self._is_first and self.kernel_info is None and time.monotonic() < self._nudge_end

    @property
    def is_waited_for(self) -> bool:
        """Whether a task waits for the kernel's answer."""
        return bool(self._waiters)

    async def first_answer(self) -> None:
        """Wait as long as :attr:`awaits_first_answer`, and until output arrives."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            await self.ready(self._nudge_end - time.monotonic())

    async def request(self, msg_type: str, content: dict[str, Any], channel: str, timeout: float) -> dict[str, Any]:
        """Send a request of the gateway and return the reply's content; see :meth:`KernelChannels.request`."""
        sockets = self._opened()
        if sockets is None:
            raise ConnectionError("the kernel is not connected")
        message = self.factory.make(channel, msg_type, content)
        future = asyncio.get_running_loop().create_future()
        self._requests[message.header["msg_id"]] = future
        try:
            sockets.send(channel, message.parts)
            return await _within(future, timeout, f"the kernel did not answer a {msg_type}")
        finally:
            del self._requests[message.header["msg_id"]]

    def post(self, msg_type: str, content: dict[str, Any], channel: str) -> None:
        """Send a request of the gateway without waiting for its reply, if there is a connection."""
        if (sockets := self._opened()) is not None:
            sockets.send(channel, self.factory.make(channel, msg_type, content).parts)

    # -- requests of clients -------------------------------------------------------------------------------------

    def submit(self, channel: str, msg_type: str, parts: list[Part]) -> bool:
        """Send a client's message now or as soon as possible; False when more waits than may wait.

        Of what libzmq has taken it does not say how much the kernel has taken, but for large messages. There is room
        for one more of those: it takes a moment until they are gone.
        """
        needs_stdin = msg_type == "execute_request" and (
            len(parts[3]) > _SEARCHED_BYTES or _ALLOWS_STDIN(parts[3]) is not None
        )
        sockets = self._opened()
        if sockets is not None and not self._pending and self._may_send(sockets, channel, needs_stdin):
            sockets.send(channel, parts)
        else:
            self._pending.append((channel, parts, needs_stdin))
            self._pending_bytes += sum(map(len, parts))
            if channel != "shell":
                self._pump()
        waiting, limit = self._pending_bytes, self._limits.pending
        if sockets is not None:
            waiting += sockets.waiting_bytes
            if sockets.held_bytes > limit + self._limits.max_message:
                return False
        return waiting <= limit or waiting <= sum(map(len, parts))

    def _may_send(self, sockets: KernelSockets, channel: str, needs_stdin: bool) -> bool:
        """Whether a message may go out now; opens the stdin socket when that is needed first."""
        if not self._is_up or self.awaits_proof:
            return False
        if channel != "shell":
            return True
        if not self._is_live or self._is_holding_stdin:
            return False
        if needs_stdin and not sockets.has_stdin:
            self._hold_for_stdin(sockets)
            return False
        return True

    def _pump(self) -> None:
        """Send what may go out now, keeping the order within each channel."""
        sockets = self._sockets
        if sockets is None:
            return
        entries, self._pending = self._pending, []
        for entry in entries:
            channel, parts, needs_stdin = entry
            if self._may_send(sockets, channel, needs_stdin):
                self._pending_bytes -= sum(map(len, parts))
                sockets.send(channel, parts)
            else:
                self._pending.append(entry)

    def _hold_for_stdin(self, sockets: KernelSockets) -> None:
        """Connect stdin; shell requests wait for it, for a kernel drops a prompt that it cannot route."""
        self._is_holding_stdin = True
        sockets.open_stdin(self._release_stdin)
        self._stdin_timer = asyncio.get_running_loop().call_later(STDIN_CONNECT_SECONDS, self._release_stdin)

    def _release_stdin(self) -> None:
        self._cancel_stdin_timer()
        self._is_holding_stdin = False
        self._pump()

    def _cancel_stdin_timer(self) -> None:
        if self._stdin_timer is not None:
            self._stdin_timer.cancel()
            self._stdin_timer = None

    # -- finding out that output arrives -------------------------------------------------------------------------

    def _nudge(self) -> None:
        """Ask for kernel info, and again later until a reply and some output have come."""
        if self._sockets is None:
            return
        if time.monotonic() >= self._nudge_end and not self.awaits_proof:
            self._log.warning(
                "The kernel has sent no %s within %g s; messages are passed on nevertheless",
                "output" if self.kernel_info is not None else "kernel_info_reply",
                self._limits.info_timeout,
            )
            self._cancel_nudge()
            self._go_live()
            return
        self._sockets.send("shell", self.factory.make("shell", "kernel_info_request", {}).parts)
        self._nudge_in(0.1 if self.kernel_info is not None else min(0.5 * 2**self._nudge_count, 5.0))
        self._nudge_count += 1

    def _nudge_in(self, delay: float) -> None:
        self._cancel_nudge()
        if not self.awaits_proof:
            delay = min(delay, max(0.0, self._nudge_end - time.monotonic()))
        self._nudge_timer = asyncio.get_running_loop().call_later(delay, self._nudge)

    def _cancel_nudge(self) -> None:
        if self._nudge_timer is not None:
            self._nudge_timer.cancel()
            self._nudge_timer = None

    def _go_live(self) -> None:
        self._is_live = True
        self.awaits_proof = False
        self._check_ready()
        self._pump()

    def _check_ready(self) -> None:
        if self.kernel_info is None or not self._is_live:
            return
        self._cancel_nudge()
        for future in self._waiters:
            if not future.done():
                future.set_result(self.kernel_info)

    # -- from the kernel -----------------------------------------------------------------------------------------

    def _receive(self, message: KernelMessage) -> None:
        self._received += 1
        if message.channel == "iopub":
            if not self._is_live and self._is_up:
                self._go_live()
            self._on_message(message)
        elif message.parent.get("session") == self.factory.session:
            self._on_own_reply(message)
        else:
            self._on_message(message)

    def _on_own_reply(self, message: KernelMessage) -> None:
        try:
            if len(message.parts[3]) > _MAX_OWN_REPLY:
                raise FrameError("it is too large")
            content = decode_object(message.parts[3])
        except FrameError as error:
            self._warnings.warn("A reply to the gateway was dropped: %s", error)
            return
        if message.msg_type == "kernel_info_reply":
            self.kernel_info = content
            self.answered_at = self.answered_at or time.time()
            self._check_ready()
            if self.awaits_proof:
                self.awaits_proof = False
                self._pump()
            if not self._is_live and self._is_up:
                self._nudge_in(0.02)
        future = self._requests.get(message.parent.get("msg_id", ""))
        if future is not None and not future.done():
            future.set_result(content)


def new_identity() -> str:
    """Return a name for the sockets of a connection."""
    return uuid.uuid4().hex


def _fail(futures: Iterable[asyncio.Future[dict[str, Any]]], reason: str) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(ConnectionError(reason))


async def _within(future: asyncio.Future[dict[str, Any]], timeout: float, failure: str) -> dict[str, Any]:
    try:
        return await asyncio.wait_for(future, timeout)
    except asyncio.TimeoutError:  # not the built-in TimeoutError before Python 3.11
        raise TimeoutError(f"{failure} within {timeout:g} s") from None
