"""The ZMQ sockets of one incarnation of a kernel, with its key: messages out, checked messages in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import zmq

from ..core.connection import ConnectionInfo
from ..core.offload import offload
from .frames import FrameError, Part, decode_header
from .messages import KernelMessage, Signer
from .ratelimit import RateLimitedWarnings
from .slices import Slices
from .zmqsocket import ZmqSocket

# As text: adapters cannot be subscripted at run time before Python 3.11.
Log: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"

_LARGE = 1 << 20  # bytes; signed or checked in a thread


class KernelSockets:
    """Shell and iopub are connected at once, control and stdin when first needed: each costs 31 kB in libzmq.

    While a large message of the kernel is being checked, nothing else of it is received: the order stays.

    Parameters
    ----------
    identity
        By which the kernel knows the sockets, and no others: of a second connection with an identity that it still
        has, ZMQ's ROUTER takes nothing (but for the option ROUTER_HANDOVER).
    max_frame_bytes
        Above this size libzmq cuts the connection; guards the gateway's memory.
    on_message
        Gets each authentic message of the kernel.
    on_batch
        Called when no more messages are at hand.
    slices
        In which large messages are taken apart.
    """

    __slots__ = (
        "_checking",
        "_context",
        "_heirs",
        "_identity",
        "_info",
        "_log",
        "_max_frame_bytes",
        "_on_batch",
        "_on_message",
        "_parent",
        "_parent_raw",
        "_signer",
        "_signing",
        "_slices",
        "_sockets",
        "_unsigned",
        "_warnings",
    )

    def __init__(
        self,
        info: ConnectionInfo,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: bytes,
        max_frame_bytes: int,
        on_message: Callable[[KernelMessage], None],
        on_batch: Callable[[], None],
        slices: Slices,
        log: Log,
        warnings: RateLimitedWarnings,
    ) -> None:
        self._info = info
        self._context = context
        self._max_frame_bytes = max_frame_bytes
        self._on_message = on_message
        self._on_batch = on_batch
        self._slices = slices
        self._log = log
        self._warnings = warnings
        self._signer = Signer(info.key, info.signature_scheme)
        # One for all DEALERs: kernels send a prompt on stdin to whom the request on shell came from.
        self._identity = identity
        self._parent_raw, self._parent = b"", dict[str, Any]()
        self._sockets: dict[str, ZmqSocket] = {}
        self._heirs: dict[bytes, list[ZmqSocket]] = {}
        self._unsigned: list[tuple[str, list[Part]]] = []  # a large message, and what came after it
        self._signing: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._open("iopub", info.iopub_port, self._on_iopub, on_batch)
        self._open("shell", info.shell_port, self._on_shell, self._after_shell)

    @property
    def has_stdin(self) -> bool:
        """Whether the stdin socket was opened."""
        return "stdin" in self._sockets

    @property
    def waiting_bytes(self) -> int:
        """What the kernel has not taken yet, beyond what libzmq keeps."""
        unsigned = sum(len(part) for _, parts in self._unsigned for part in parts)
        return unsigned + sum(socket.waiting_bytes for socket in self._sockets.values())

    @property
    def held_bytes(self) -> int:
        """What libzmq keeps of large messages that the kernel has not taken yet."""
        return sum(socket.held_bytes for socket in self._sockets.values())

    def send(self, channel: str, parts: Sequence[Part]) -> None:
        """Sign and send a message on ``shell``, ``control`` or ``stdin``; a large one is signed in a thread."""
        if self._unsigned or len(parts[3]) > _LARGE:
            self._unsigned.append((channel, list(parts)))
            if self._signing is None:
                self._signing = asyncio.create_task(self._sign_waiting(), name="sign")
        else:
            self._send(channel, self._signer.wrap(parts))

    async def _sign_waiting(self) -> None:
        while self._unsigned:
            channel, parts = self._unsigned[0]
            frames = await offload(self._signer.wrap, parts)
            if self._unsigned:  # not closed meanwhile
                del self._unsigned[0]
                self._send(channel, frames)
        self._signing = None

    def _send(self, channel: str, frames: list[Part]) -> None:
        socket = self._sockets.get(channel)
        if socket is None:
            socket = self.open_stdin() if channel == "stdin" else self._open_control()
        socket.send(frames)

    def open_stdin(self, on_connected: Callable[[], None] | None = None) -> ZmqSocket:
        """Connect the stdin socket; ``on_connected`` is called when the kernel can send to it."""
        return self._open("stdin", self._info.stdin_port, self._on_stdin, self._on_batch, on_connected)

    async def settle(self) -> None:
        """Wait until a large message that has come is handed on."""
        if self._checking is not None:
            await asyncio.wait([self._checking])

    def drain(self) -> None:
        """Take in what has arrived, output first."""
        for socket in self._all_sockets():
            socket.drain()

    def close(self) -> None:
        """Close all sockets at once."""
        self._unsigned.clear()
        if self._checking is not None:
            self._checking.cancel()
        for socket in self._all_sockets():
            socket.close()

    def inherit(self, identities: Iterable[bytes]) -> None:
        """Receive the replies and questions that are due to earlier gateways, too.

        Nothing is sent by these sockets: a kernel that has not noticed yet that the earlier connection is gone would
        misread what comes by a second one of the same identity.
        """
        for identity in set(identities) - self._heirs.keys():
            self._heirs[identity] = [
                self._make("shell", self._info.shell_port, self._on_shell, self._after_shell, identity),
                self._make("stdin", self._info.stdin_port, self._on_stdin, self._on_batch, identity),
            ]

    def end_inheritance(self) -> None:
        """Take in what is left for earlier gateways: nothing is due to them any more."""
        for socket in self._heir_sockets():
            socket.drain()
            socket.close()
        self._heirs.clear()

    def _all_sockets(self) -> list[ZmqSocket]:
        return [*self._sockets.values(), *self._heir_sockets()]

    def _heir_sockets(self) -> list[ZmqSocket]:
        return [socket for sockets in self._heirs.values() for socket in sockets]

    def _open_control(self) -> ZmqSocket:
        return self._open("control", self._info.control_port, self._on_control, self._on_batch)

    def _open(
        self,
        channel: str,
        port: int,
        on_message: Callable[[list[Part], int], None],
        on_batch: Callable[[], None],
        on_connected: Callable[[], None] | None = None,
    ) -> ZmqSocket:
        identity = b"" if channel == "iopub" else self._identity
        socket = self._sockets[channel] = self._make(channel, port, on_message, on_batch, identity, on_connected)
        return socket

    def _make(
        self,
        channel: str,
        port: int,
        on_message: Callable[[list[Part], int], None],
        on_batch: Callable[[], None],
        identity: bytes,
        on_connected: Callable[[], None] | None = None,
    ) -> ZmqSocket:
        socket = ZmqSocket(
            self._context,
            zmq.SUB if channel == "iopub" else zmq.DEALER,
            self._info,
            port,
            identity=identity,
            max_frame_bytes=self._max_frame_bytes,
            on_message=on_message,
            on_batch=on_batch,
            on_connected=on_connected,
            log=self._log,
        )
        if self._checking is not None:
            socket.pause()
        return socket

    def _on_iopub(self, frames: list[Part], size: int) -> None:
        self._take("iopub", frames, size)

    def _on_shell(self, frames: list[Part], size: int) -> None:
        self._take("shell", frames, size)

    def _on_control(self, frames: list[Part], size: int) -> None:
        self._take("control", frames, size)

    def _on_stdin(self, frames: list[Part], size: int) -> None:
        self._take("stdin", frames, size)

    def _after_shell(self) -> None:
        # Output that has arrived by now was sent before the reply: some clients stop listening at the reply.
        self._sockets["iopub"].drain()
        self._on_batch()

    def _take(self, channel: str, frames: list[Part], size: int) -> None:
        """Check and decode a message and hand it on."""
        if size > _LARGE:
            self._checking = asyncio.create_task(self._take_large(channel, frames), name="check")
            for socket in self._all_sockets():
                socket.pause()
            return
        try:
            message = self._decode(channel, self._signer.unwrap(frames))
        except FrameError as error:
            self._warn_of_drop(channel, error)
            return
        self._on_message(message)

    async def _take_large(self, channel: str, frames: list[Part]) -> None:
        message: KernelMessage | None = None
        try:
            message = self._decode(channel, await offload(self._signer.unwrap, frames))
            await self._slices.run(message.inspect())
        except FrameError as error:
            self._warn_of_drop(channel, error)
        self._checking = None
        for socket in self._all_sockets():
            socket.resume()
        if message is not None:
            self._on_message(message)
            self._on_batch()

    def _decode(self, channel: str, parts: list[Part]) -> KernelMessage:
        header = decode_header(parts[0])
        if not isinstance(header.get("msg_type"), str):
            raise FrameError("the header has no msg_type")
        if parts[1] != self._parent_raw:
            # One request's output has one parent: decoding it once does for all of it.
            self._parent = {} if bytes(parts[1][:5]) in {b"", b"null"} else decode_header(parts[1])
            self._parent_raw = bytes(parts[1])
        return KernelMessage(channel, header, self._parent, parts)

    def _warn_of_drop(self, channel: str, error: FrameError) -> None:
        self._warnings.warn("A message on the kernel's %s channel was dropped: %s", channel, error)
