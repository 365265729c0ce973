"""A ZMQ socket driven by the asyncio loop: drained in batches, never blocking, no tasks or timers of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import cast

import zmq

from ..core.connection import ConnectionInfo
from .frames import Part

MAX_BATCH_MESSAGES = 128
MAX_BATCH_BYTES = 4 << 20
MAX_BATCH_SECONDS = 0.01
MAX_FRAMES = 10_000  # of one message
LARGE_MESSAGE = 64 << 10  # of which it is known whether libzmq still keeps it
_COPIED_BYTES = 64 << 10  # of a frame that was received: larger ones stay where libzmq has put them

# Messages. A kernel that publishes faster than we read is slowed down by TCP once this many wait in our memory.
RECEIVE_HIGH_WATER_MARK = 50_000
SEND_HIGH_WATER_MARK = 1_000

_EVENTS, _POLLIN, _POLLOUT = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.POLLOUT)
_NOBLOCK, _SENDMORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)


def make_context(max_sockets: int = 65_535) -> zmq.Context[zmq.Socket[bytes]]:
    """Return a ZMQ context for all kernels of a process; libzmq's own limit is 1,023 sockets."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, max_sockets)
    return context


class ZmqSocket:
    """One connected DEALER or SUB socket.

    ZMQ's file descriptor only reports that something changed (it is edge-triggered in effect): after each report, and
    after each send, the socket's real state has to be asked and everything be received. That is all this class does.

    Parameters
    ----------
    kind
        ``zmq.DEALER`` or ``zmq.SUB``.
    port
        The port of ``info.ip`` to connect to.
    identity
        Under which the kernel's ROUTER sockets know a DEALER; all of one kernel's share it.
    on_message
        Gets each received message's frames, and their size in bytes.
    on_batch
        Called after each batch of messages.
    on_connected
        Called once, when the first handshake with the peer has succeeded.
    """

    __slots__ = (
        "_fd",
        "_get",
        "_held",
        "_is_cut",
        "_is_paused",
        "_log",
        "_loop",
        "_monitor",
        "_on_batch",
        "_on_message",
        "_scheduled",
        "_socket",
        "_waiting",
        "waiting_bytes",
    )

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        info: ConnectionInfo,
        port: int,
        *,
        identity: bytes = b"",
        max_frame_bytes: int = -1,
        on_message: Callable[[list[Part], int], None],
        on_batch: Callable[[], None],
        on_connected: Callable[[], None] | None = None,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_batch = on_batch
        self._log = log
        self._waiting: list[list[Part]] = []  # an empty deque would take 600 bytes
        self._held: list[tuple[zmq.MessageTracker, int]] = []
        self._is_cut = False  # what comes next is the rest of a message with too many frames
        self._is_paused = False
        self.waiting_bytes = 0
        self._scheduled = False
        self._monitor: zmq.Socket[bytes] | None = None
        self._socket = context.socket(kind)
        self._get = cast("Callable[[int], int]", self._socket.get)
        _set_options(self._socket, info, identity, max_frame_bytes)
        if kind == zmq.SUB:
            self._socket.subscribe(b"")
        if on_connected is not None:
            self._watch_handshake(on_connected)
        self._fd = self._get(zmq.FD)
        self._loop.add_reader(self._fd, self.drain)
        host = f"[{info.ip}]" if ":" in info.ip else info.ip
        self._socket.connect(f"{info.transport}://{host}:{port}")
        self._reschedule()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called."""
        return self._socket.closed

    @property
    def held_bytes(self) -> int:
        """What libzmq keeps of large messages."""
        if not self._held:
            return 0
        self._held = [(tracker, size) for tracker, size in self._held if not tracker.done]
        return sum(size for _, size in self._held)

    def send(self, frames: list[Part]) -> None:
        """Send a message, or keep it until the peer takes more; ``waiting_bytes`` says how much is kept."""
        if self._waiting or not self._try_send(frames):
            self._waiting.append(frames)
            self.waiting_bytes += sum(map(len, frames))
        self._reschedule()

    def drain(self) -> None:
        """Receive what has come, up to a bound; the rest gets its turn after other work of the loop.

        The bound is one of time, too: each receiving lets go of the interpreter lock, and while another thread of the
        process computes, it takes 5 ms to get it back.
        """
        self._scheduled = False
        taken = messages = 0
        end = time.monotonic() + MAX_BATCH_SECONDS
        while not self._is_paused and not self.closed and self._get(_EVENTS) & _POLLIN:
            if messages == MAX_BATCH_MESSAGES or taken > MAX_BATCH_BYTES or (messages and time.monotonic() > end):
                self._schedule()
                break
            taken += self._receive_one()
            messages += 1
        if messages:
            self._on_batch()
        if self._waiting:
            self._send_waiting()
            self._reschedule()

    def pause(self) -> None:
        """Receive nothing until :meth:`resume`; libzmq does, up to its own limit."""
        self._is_paused = True

    def resume(self) -> None:
        """Receive again."""
        self._is_paused = False
        if not self.closed:
            self._schedule()

    def close(self) -> None:
        """Close the socket at once; what was not sent is dropped."""
        if self._socket.closed:
            return
        self._stop_monitor()
        self._loop.remove_reader(self._fd)
        self._waiting.clear()
        self.waiting_bytes = 0
        self._socket.close(linger=0)

    def _receive_one(self) -> int:
        receive = self._socket.recv
        frames: list[Part] = []
        size = 0
        try:
            frame = receive(_NOBLOCK, False)
            while True:
                length = len(frame)
                size += length
                frames.append(frame.bytes if length <= _COPIED_BYTES else frame.buffer)
                if not frame.more or len(frames) == MAX_FRAMES:
                    break
                frame = receive(_NOBLOCK, False)
        except zmq.Again:
            return 0
        if frame.more or self._is_cut:
            if not self._is_cut:
                self._log.warning("A message of the kernel was dropped: it has more than %d parts", MAX_FRAMES)
            self._is_cut = frame.more
            return size
        try:
            self._on_message(frames, size)
        except Exception:  # noqa: BLE001
            # Raising here would end the draining for good: no further report comes for messages already here.
            self._log.exception("A message of the kernel could not be handled")
        return size

    def _try_send(self, frames: list[Part]) -> bool:
        send, size = self._socket.send, sum(map(len, frames))
        try:
            if size >= LARGE_MESSAGE:
                self._send_large(frames, size)
            else:
                for frame in frames[:-1]:
                    send(frame, _SENDMORE)
                send(frames[-1], _NOBLOCK)
        except zmq.Again:  # only ever at the first frame: a message is taken as a whole
            return False
        return True

    def _send_large(self, frames: list[Part], size: int) -> None:
        """Send without copying the large frames, and note how to tell when all is gone: when the last one is."""
        for frame in frames[:-1]:
            self._socket.send(frame, _SENDMORE, len(frame) < LARGE_MESSAGE)
        tracker = self._socket.send(zmq.Frame(frames[-1], track=True, copy=False), _NOBLOCK, False, True)
        self._held.append((tracker, size))

    def _send_waiting(self) -> None:
        sent = 0
        for frames in self._waiting:
            if not self._try_send(frames):
                break
            sent += 1
            self.waiting_bytes -= sum(map(len, frames))
        del self._waiting[:sent]

    def _reschedule(self) -> None:
        """Drain again soon if asking for the state has swallowed the report of it."""
        if self._scheduled:
            return
        events = self._get(_EVENTS)
        if (events & _POLLIN and not self._is_paused) or (self._waiting and events & _POLLOUT):
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.drain)

    def _watch_handshake(self, callback: Callable[[], None]) -> None:
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._loop.add_reader(_descriptor(self._monitor), self._on_handshake, callback)
        self._loop.call_soon(self._on_handshake, callback)

    def _on_handshake(self, callback: Callable[[], None]) -> None:
        if self._monitor is None or not self._monitor.poll(0):
            return
        self._stop_monitor()
        callback()

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._loop.remove_reader(_descriptor(self._monitor))
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None


def _descriptor(socket: zmq.Socket[bytes]) -> int:
    return cast("int", socket.get(zmq.FD))


def _set_options(socket: zmq.Socket[bytes], info: ConnectionInfo, identity: bytes, max_frame_bytes: int) -> None:
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
    socket.set(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
    socket.set(zmq.MAXMSGSIZE, max_frame_bytes)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 60)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 20)
    socket.set(zmq.TCP_KEEPALIVE_CNT, 4)
    socket.set(zmq.RECONNECT_IVL, 50)  # milliseconds: a kernel that starts binds its ports any moment
    socket.set(zmq.RECONNECT_IVL_MAX, 500)
    if ":" in info.ip:
        socket.set(zmq.IPV6, 1)
    if identity:
        socket.set(zmq.IDENTITY, identity)
    if info.curve_publickey and info.curve_secretkey:
        # Jupyter's convention: the connection file's one key pair is the server's and the client's.
        socket.set(zmq.CURVE_SERVERKEY, info.curve_publickey)
        socket.set(zmq.CURVE_PUBLICKEY, info.curve_publickey)
        socket.set(zmq.CURVE_SECRETKEY, info.curve_secretkey)
