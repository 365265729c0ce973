"""Limits on the connections to the gateway: their number, and how long an unauthenticated one may stay open.

A connection is *pending* until a request on it has shown the token or, if no token is required, has arrived at all.
Anyone who can reach the port can open such connections, so they cost little, end after seconds, and when there are too
many the oldest is closed. Genuine clients send a request at once, so a flood does not keep them out. An authenticated
client may pause between two requests, but not in the middle of a header.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Collection
from typing import Any

from tornado import httpserver, httputil
from tornado.iostream import IOStream, StreamClosedError

from ..transport.ratelimit import RateLimitedWarnings

log = logging.getLogger(__name__)

HEADER_SECONDS = 10.0  # time-out of the TLS handshake and of a header, and between the requests of a pending connection
LINGER_SECONDS = 1.0  # a refused client may keep sending this long, because a reset could discard the refusal
LINGER_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 16
_IPV4_MAPPED = bytes(10) + b"\xff\xff"


class Connection:
    """One connection that a server has accepted."""

    __slots__ = ("network", "stream", "timer")

    def __init__(self, stream: IOStream, network: str) -> None:
        self.stream = stream
        self.network = network
        self.timer: asyncio.TimerHandle | None = None

    def stop_timer(self) -> None:
        """Cancel its time-out."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Connections:
    """All connections except websockets, which ``websockets`` counts; kept in the web application's settings.

    Parameters
    ----------
    websockets
        The open websockets, because the server forgets a connection that has become one.
    """

    def __init__(self, websockets: Collection[object] = ()) -> None:
        self.max_open = self.max_pending = self.max_pending_per_address = sys.maxsize
        self.header_seconds = HEADER_SECONDS
        self.open: dict[IOStream, Connection] = {}
        self.pending: dict[Connection, None] = {}  # the oldest first
        self._pending_of: dict[str, dict[Connection, None]] = {}
        self._websockets = websockets
        self._lingering: dict[IOStream, asyncio.Task[None]] = {}
        self._warnings = RateLimitedWarnings(log)

    def take(self, stream: IOStream, address: str) -> bool:
        """Count a new connection, closing an older one if necessary; if there is no room, close it and return False."""
        if len(self.open) + len(self._websockets) >= self.max_open:
            self._warnings.warn(
                "The limit of %d connections (max_connections) is reached: connections that have shown no token are "
                "closed to make room for new ones; if there are none, new ones are refused.",
                self.max_open,
            )
            if not self._drop_oldest(self.pending):
                stream.close()
                return False
        network = network_of(address)
        of_network = self._pending_of.get(network, {})
        if len(of_network) >= self.max_pending_per_address:
            self._warnings.warn(
                "More than %d connections from %s have shown no token: the oldest are closed "
                "(max_pending_connections_per_address).",
                self.max_pending_per_address,
                network,
            )
            self._drop_oldest(of_network)
        elif len(self.pending) >= self.max_pending:
            self._warnings.warn(
                "More than %d connections have shown no token: the oldest are closed (max_pending_connections).",
                self.max_pending,
            )
            self._drop_oldest(self.pending)
        connection = self.open[stream] = Connection(stream, network)
        self.pending[connection] = None
        self._pending_of.setdefault(network, {})[connection] = None
        self.await_header(stream)
        return True

    def await_header(self, stream: IOStream) -> Connection | None:
        """Close the connection unless its next request's header arrives in time; return None if it has ended.

        The time-out starts now for a pending connection, and otherwise with the first byte of the header. The receiver
        of the header stops the connection's timer.
        """
        connection = self.open.get(stream)
        if connection is None:
            return None
        # Tornado may have read some of the header together with the previous request. Only a private attribute tells,
        # because no public method tells it without consuming the data.
        if connection in self.pending or stream._read_buffer_size:
            self._start_timer(connection)
        else:
            self._await_first_byte(connection)
        return connection

    def admit(self, stream: IOStream) -> None:
        """Treat the connection as authenticated."""
        if (connection := self.open.get(stream)) is not None:
            self._settle(connection)

    def ended(self, stream: IOStream) -> None:
        """Forget a connection that was closed or has become a websocket."""
        if stream not in self._lingering and (connection := self.open.pop(stream, None)) is not None:
            self._settle(connection)

    def linger(self, stream: IOStream, written: Awaitable[Any], rest: Awaitable[None] | None = None) -> None:
        """Close the connection once the response is written and the client has had a moment to read it.

        Parameters
        ----------
        rest
            Ends when the rest of the request has been read elsewhere; if None, the rest is read here.
        """
        self._lingering[stream] = asyncio.ensure_future(self._linger(stream, written, rest))

    async def close(self) -> None:
        """Close lingering connections; the server closes the others."""
        for stream, task in list(self._lingering.items()):
            stream.close()
            await asyncio.wait([task])

    async def _linger(self, stream: IOStream, written: Awaitable[Any], rest: Awaitable[None] | None) -> None:
        timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, stream.close)
        try:
            await written
            if rest is not None:
                await rest
                return
            left = LINGER_BYTES
            while left > 0:
                left -= len(await stream.read_bytes(_CHUNK_BYTES, partial=True))
        except StreamClosedError:
            pass
        finally:
            timer.cancel()
            stream.close()
            del self._lingering[stream]
            self.ended(stream)

    def _await_first_byte(self, connection: Connection) -> None:
        # Tornado reports a header only when it is complete. This is the only method of a stream that is meant to be
        # overridden; after the first bytes tornado's own is restored, so that bodies and websockets pay nothing.
        stream = connection.stream
        read = stream.read_from_fd

        def read_first(buf: bytearray | memoryview) -> int | None:
            count = read(buf)
            if count:
                del stream.read_from_fd
                self._start_timer(connection)
            return count

        stream.read_from_fd = read_first  # type: ignore[method-assign]

    def _start_timer(self, connection: Connection) -> None:
        if connection.timer is None:
            loop = asyncio.get_running_loop()
            connection.timer = loop.call_later(self.header_seconds, self._drop, connection)

    def _drop_oldest(self, connections: dict[Connection, None]) -> bool:
        oldest = next(iter(connections), None)
        if oldest is None:
            return False
        self._drop(oldest)
        return True

    def _drop(self, connection: Connection) -> None:
        self.open.pop(connection.stream, None)
        self._settle(connection)
        connection.stream.close()

    def _settle(self, connection: Connection) -> None:
        connection.stop_timer()
        self.pending.pop(connection, None)
        of_network = self._pending_of.get(connection.network, {})
        of_network.pop(connection, None)
        if not of_network:
            self._pending_of.pop(connection.network, None)


def network_of(address: str) -> str:
    """Return the address or, for IPv6, its /64 network, because any client has 2^64 addresses in one."""
    if ":" not in address:
        return address
    packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    if packed.startswith(_IPV4_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


class GatewayServer(httpserver.HTTPServer):
    """Tornado's server, with its connections tracked by :class:`Connections`."""

    connections: Connections

    def initialize(self, *args: Any, connections: Connections, **options: Any) -> None:  # type: ignore[override]
        """Build the server; called by tornado in place of ``__init__``."""
        self.connections = connections
        super().initialize(*args, **options)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Serve a new connection, if there is room for it; called by tornado before the TLS handshake."""
        if self.connections.take(stream, str(address[0]) if address else ""):
            super().handle_stream(stream, address)

    def start_request(self, server_conn: Any, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Wait for the header of the connection's next request; called by tornado."""
        delegate = super().start_request(server_conn, request_conn)
        connection = self.connections.await_header(server_conn.stream)
        return _AwaitedRequest(delegate, connection) if connection is not None else delegate

    def on_close(self, server_conn: Any) -> None:
        """Forget a connection; called by tornado, also for connections that have become websockets."""
        super().on_close(server_conn)
        self.connections.ended(server_conn.stream)

    async def close_all_connections(self) -> None:
        """Close all connections except websockets, and wait until they are closed."""
        await super().close_all_connections()
        await self.connections.close()


class _AwaitedRequest(httputil.HTTPMessageDelegate):
    """Forwards a request, and stops the connection's timer once the header has arrived."""

    def __init__(self, delegate: httputil.HTTPMessageDelegate, connection: Connection) -> None:
        self._delegate = delegate
        self._connection = connection
        self.data_received = delegate.data_received  # type: ignore[method-assign]
        self.finish = delegate.finish  # type: ignore[method-assign]
        self.on_connection_close = delegate.on_connection_close  # type: ignore[method-assign]

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        self._connection.stop_timer()
        return self._delegate.headers_received(start_line, headers)
