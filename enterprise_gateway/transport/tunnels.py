"""Local ports that lead to a host's ports through the one connection there is to that host.

All tunnels of a host share one thread. Their listeners stay open while the connection below is down: what connects to
them meanwhile waits and is forwarded once the host is back, so ZeroMQ sockets heal by themselves.
"""

from __future__ import annotations

import logging
import math
import queue
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from ..core.connection import CHANNEL_PORTS, ConnectionInfo
from ..core.errors import GatewayError, PortRangeError
from ..core.ports import PortRange

_CHUNK = 128 * 1024
_BUFFER_LIMIT = 1024 * 1024  # bytes on their way in one direction of one connection, before reading pauses
_WINDOW_POLL = 0.005  # seconds; nothing tells when a full window opens again
_OPENERS = 4
_RETRY_FIRST, _RETRY_MOST = 0.5, 5.0  # seconds between attempts to reach a host that is away


class Channel(Protocol):
    """A forwarded connection that never blocks; :class:`..drivers.ssh_shell.Forward` is one."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent or received any more, but for what has arrived."""

    def recv(self, size: int) -> bytes | None:
        """Return what has arrived; None: nothing yet; empty: nothing more will come."""

    def send(self, data: memoryview) -> int:
        """Send what can be sent now and return how much it was; OSError when the channel is closed."""

    def shutdown_write(self) -> None:
        """Tell the other side that nothing more will come."""

    def close(self) -> None:
        """End the connection."""


OpenChannel = Callable[[str, int, Callable[[], None]], Channel]
"""Opens a channel to a host and port; the third argument is called, from any thread, when something may have arrived.

May block; raises ConnectionRefusedError when the port cannot be reached, a GatewayError when the way there is broken.
"""


class KernelTunnels:
    """The open tunnels of one kernel; made by :meth:`HostTunnels.open`.

    Attributes
    ----------
    connection
        The kernel's connection information with local address and ports.
    """

    def __init__(self, owner: HostTunnels, listeners: list[_Listener], connection: ConnectionInfo) -> None:
        self._owner = owner
        self._listeners = listeners
        self.connection = connection

    def close(self) -> None:
        """Close the listeners and what was connected through them; called when the kernel is gone."""
        self._owner.close_listeners(self._listeners)
        self._listeners = []


class HostTunnels:
    """All tunnels to one host.

    The thread runs as long as there is a tunnel.

    Parameters
    ----------
    name
        The host, for the log and the thread's name.
    open_channel
        How to get there.
    """

    def __init__(self, name: str, open_channel: OpenChannel, log: logging.Logger | None = None) -> None:
        self.name = name
        self.log = log or logging.getLogger(__name__)
        self._open_channel = open_channel
        self._lock = threading.Lock()
        self._forwarder: _Forwarder | None = None

    def open(self, connection: ConnectionInfo, port_range: PortRange, attempts: int) -> KernelTunnels:
        """Open a tunnel for each of a kernel's ports, the communication port included.

        Parameters
        ----------
        connection
            The kernel's ports, and their address as the host itself reaches it.
        port_range, attempts
            Where the local ports are chosen from; how many more candidates are tried for each.

        Raises
        ------
        PortRangeError
            No free local port was found.
        """
        names = [*CHANNEL_PORTS, *(["comm_port"] if connection.comm_port else [])]
        sockets = _listen(len(names), port_range, attempts)
        listeners = [
            _Listener(sock, connection.ip, getattr(connection, name)) for sock, name in zip(sockets, names, strict=True)
        ]
        with self._lock:
            if self._forwarder is None:
                self._forwarder = _Forwarder(self.name, self._open_channel, self.log)
            self._forwarder.add(listeners)
        ports = {name: sock.getsockname()[1] for name, sock in zip(names, sockets, strict=True)}
        return KernelTunnels(self, listeners, replace(connection, ip="127.0.0.1", **ports))

    def close_listeners(self, listeners: Sequence[_Listener]) -> None:
        """Close these and what is connected through them; the last ones take the thread with them."""
        with self._lock:
            if self._forwarder is not None and self._forwarder.remove(listeners):
                self._forwarder = None

    def close(self) -> None:
        """Close all tunnels; called when the gateway ends."""
        with self._lock:
            forwarder, self._forwarder = self._forwarder, None
        if forwarder is not None:
            forwarder.stop()


def _listen(count: int, port_range: PortRange, attempts: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(_listen_once(port_range, attempts))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _listen_once(port_range: PortRange, attempts: int) -> socket.socket:
    for port in port_range.candidates(attempts + 1) if port_range else [0]:
        with suppress(OSError):
            sock = socket.create_server(("127.0.0.1", port), backlog=32)
            sock.setblocking(False)
            return sock
    raise PortRangeError(f"No free port for a tunnel found within {port_range} after {attempts + 1} attempts.")


class _Openers:
    """A few threads that open channels, made when there is work for them.

    No ThreadPoolExecutor: while one waits for the thread it has just made, no other of the process accepts work, and
    the event loop offers them some all the time.
    """

    def __init__(self, name: str, connect: Callable[[_Link], None]) -> None:
        self._name = f"eg-tunnel-open-{name}"
        self._connect = connect
        self._links: queue.SimpleQueue[_Link | None] = queue.SimpleQueue()
        self._threads = 0

    def open(self, link: _Link) -> None:
        """Have a thread connect ``link``."""
        self._links.put(link)
        if self._threads < _OPENERS:
            threading.Thread(target=self._run, name=f"{self._name}_{self._threads}", daemon=True).start()
            self._threads += 1

    def close(self) -> None:
        """End the threads; what none of them has begun is forgotten."""
        with suppress(queue.Empty):
            while True:
                self._links.get_nowait()
        for _ in range(self._threads):
            self._links.put(None)

    def _run(self) -> None:
        while (link := self._links.get()) is not None:
            self._connect(link)


class _Listener:
    """A local port and where it leads."""

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        self.sock = sock
        self.host = host
        self.port = port
        self.links: set[_Link] = set()


class _Forwarder:
    """The thread of a host's tunnels: it alone touches listeners and links."""

    def __init__(self, name: str, open_channel: OpenChannel, log: logging.Logger) -> None:
        self.name = name
        self.log = log
        self.selector = selectors.DefaultSelector()
        self.blocked: set[_Link] = set()
        self._open_channel = open_channel
        self._listeners: set[_Listener] = set()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self.selector.register(self._wake_receiver, selectors.EVENT_READ, self._on_wake)
        self._openers = _Openers(name, self._connect)
        self._waiting: dict[_Link, None] = {}  # an ordered set
        self._retry_at = math.inf
        self._retry_seconds = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"eg-tunnels-{name}", daemon=True)
        self._thread.start()

    # -- called from other threads -----------------------------------------------------------------------------------

    @property
    def is_interrupted(self) -> bool:
        """Whether the host could not be reached when last tried."""
        return self._retry_seconds > 0

    def add(self, listeners: Sequence[_Listener]) -> None:
        self.call(lambda: self._add(listeners))

    def remove(self, listeners: Sequence[_Listener]) -> bool:
        """Close ``listeners``; return whether these were the last and the thread has ended."""
        removed = threading.Event()
        self.call(lambda: self._remove(listeners))
        self.call(removed.set)
        removed.wait()
        if self._listeners:
            return False
        self.stop()
        return True

    def stop(self) -> None:
        self.call(self._stop)
        self._thread.join()

    def call(self, function: Callable[[], None]) -> None:
        """Have the thread call ``function``."""
        self._calls.append(function)
        with suppress(BlockingIOError, OSError):  # full: it will wake up anyway; closed: it has ended
            self._wake_sender.send(b"\0")

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self.selector.select(self._patience()):
                key.data()
            for link in list(self.blocked):
                link.pump()
            if self._waiting and time.monotonic() >= self._retry_at:
                self._retry()
        self._openers.close()
        self.selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _patience(self) -> float | None:
        if self.blocked:
            return _WINDOW_POLL
        if not self._waiting or self._retry_at == math.inf:
            return None
        return max(0.0, self._retry_at - time.monotonic())

    def _on_wake(self) -> None:
        with suppress(BlockingIOError):
            self._wake_receiver.recv(4096)
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def _add(self, listeners: Sequence[_Listener]) -> None:
        for listener in listeners:
            self._listeners.add(listener)
            self.selector.register(
                listener.sock, selectors.EVENT_READ, lambda listener=listener: self._on_connect(listener)
            )

    def _remove(self, listeners: Sequence[_Listener]) -> None:
        for listener in self._listeners.intersection(listeners):
            self._listeners.discard(listener)
            self.selector.unregister(listener.sock)
            listener.sock.close()
            for link in list(listener.links):
                link.close()

    def _stop(self) -> None:
        self._remove(list(self._listeners))
        self._stopping = True

    def _on_connect(self, listener: _Listener) -> None:
        try:
            sock, _ = listener.sock.accept()
        except OSError:  # gone again, or no descriptors left: then it is tried again
            return
        link = _Link(self, listener, sock)
        if self.is_interrupted:
            self._wait(link)
        else:
            self._openers.open(link)

    def _connect(self, link: _Link) -> None:
        """Open a link's channel; runs in one of the openers' threads."""
        listener = link.listener
        try:
            channel = self._open_channel(listener.host, listener.port, link.on_readable)
        except OSError as error:
            self.log.debug("Tunnel to port %d of %s: %s", listener.port, self.name, error)
            self.call(lambda: self._on_answer(link, None))
        except GatewayError as error:
            reason = str(error)
            self.call(lambda: self._on_unreachable(link, reason))
        except Exception as error:
            self.log.exception("Tunnel to port %d of %s:", listener.port, self.name)
            reason = repr(error)
            self.call(lambda: self._on_unreachable(link, reason))
        else:
            self.call(lambda: self._on_answer(link, channel))

    def _on_answer(self, link: _Link, channel: Channel | None) -> None:
        """Go on with a host that has answered: with a channel, or with no."""
        if self.is_interrupted:
            self._retry_seconds = 0.0
            self.log.info("The tunnels to %s work again.", self.name)
            waiting, self._waiting = list(self._waiting), {}
            for each in waiting:
                self._openers.open(each)
        if channel is None:
            link.close()
        else:
            link.opened(channel)

    def _on_unreachable(self, link: _Link, reason: str) -> None:
        if not self.is_interrupted:
            self.log.warning("The tunnels to %s are interrupted: %s", self.name, reason)
        if not self.is_interrupted or self._retry_at == math.inf:
            self._retry_seconds = min(self._retry_seconds * 2 or _RETRY_FIRST, _RETRY_MOST)
            self._retry_at = time.monotonic() + self._retry_seconds
        self._wait(link)

    def _wait(self, link: _Link) -> None:
        if not link.closed:
            self._waiting[link] = None
            link.pump()  # which ends it, if nothing reads at its other end

    def _retry(self) -> None:
        """Let one of the waiting find out whether the host is back."""
        self._retry_at = math.inf  # until the answer is there
        link = next(iter(self._waiting))
        del self._waiting[link]
        self._openers.open(link)

    def forget(self, link: _Link) -> None:
        self.blocked.discard(link)
        self._waiting.pop(link, None)


class _Link:
    """One connection to a listener, and the channel it is forwarded through."""

    def __init__(self, forwarder: _Forwarder, listener: _Listener, sock: socket.socket) -> None:
        self.listener = listener
        self.closed = False
        self._forwarder = forwarder
        self._sock = sock
        self._channel: Channel | None = None
        self._outward, self._inward = bytearray(), bytearray()  # to the channel, to the socket
        self._local_ended = self._remote_ended = False
        self._told_remote = self._told_local = False
        self._interest = 0
        self._queued = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.links.add(self)
        self._update_interest()

    def opened(self, channel: Channel) -> None:
        """Take over the channel; forwarding begins."""
        if self.closed:
            channel.close()
        else:
            self._channel = channel
            self.pump()

    def on_readable(self) -> None:
        """Note that the channel has data; called by its connection's thread, for every packet."""
        if not self._queued:
            self._queued = True
            self._forwarder.call(self._on_channel)

    def close(self) -> None:
        """End both sides."""
        if not self.closed:
            self.closed = True
            if self._interest:
                self._forwarder.selector.unregister(self._sock)
            self._sock.close()
            if self._channel is not None:
                self._channel.close()
            self.listener.links.discard(self)
            self._forwarder.forget(self)

    def pump(self) -> None:
        """Forward what can be forwarded now, in both directions."""
        if self.closed:
            return
        try:
            if self._channel is not None:
                self._send_outward(self._channel)
                self._send_inward(self._channel)
        except OSError:
            self.close()
            return
        if self._is_over():
            self.close()
        else:
            self._update_interest()

    def _on_channel(self) -> None:
        self._queued = False
        self.pump()

    def _on_socket(self) -> None:
        if len(self._outward) < _BUFFER_LIMIT and not self._local_ended:
            try:
                data = self._sock.recv(_CHUNK)
            except BlockingIOError:
                data = None
            except OSError:
                self.close()
                return
            if data:
                self._outward += data
            elif data is not None:
                self._local_ended = True
        self.pump()

    def _send_outward(self, channel: Channel) -> None:
        self._forwarder.blocked.discard(self)
        while self._outward:
            with memoryview(self._outward) as view, view[:_CHUNK] as part:
                sent = channel.send(part)
            if not sent:
                self._forwarder.blocked.add(self)
                return
            del self._outward[:sent]
        if self._local_ended and not self._told_remote:
            self._told_remote = True
            channel.shutdown_write()

    def _send_inward(self, channel: Channel) -> None:
        self._flush_inward()
        for _ in range(16):  # then the others' turn
            if len(self._inward) >= _BUFFER_LIMIT or self._remote_ended:
                break
            data = channel.recv(_CHUNK)
            if data is None:
                break
            if not data:
                self._remote_ended = True
            self._inward += data
            self._flush_inward()
        else:
            self.on_readable()
        if self._remote_ended and not self._inward and not self._told_local:
            self._told_local = True
            self._sock.shutdown(socket.SHUT_WR)

    def _flush_inward(self) -> None:
        with suppress(BlockingIOError):
            while self._inward:
                del self._inward[: self._sock.send(self._inward)]

    def _is_over(self) -> bool:
        if self._channel is None:
            # Who has said all is worth opening a channel for, but not worth waiting for a host that is away.
            return self._local_ended and (not self._outward or self._forwarder.is_interrupted)
        if self._remote_ended and not self._inward:
            return (self._local_ended and not self._outward) or self._channel.closed
        return False

    def _update_interest(self) -> None:
        interest = selectors.EVENT_WRITE if self._inward else 0
        if not self._local_ended and len(self._outward) < _BUFFER_LIMIT:
            interest |= selectors.EVENT_READ
        selector = self._forwarder.selector
        if interest == self._interest:
            return
        if not self._interest:
            selector.register(self._sock, interest, self._on_socket)
        elif not interest:
            selector.unregister(self._sock)
        else:
            selector.modify(self._sock, interest, self._on_socket)
        self._interest = interest
