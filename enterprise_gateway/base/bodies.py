"""Handlers that accept or refuse a request after its header, before its body takes up any memory."""

from __future__ import annotations

import asyncio
import sys
from asyncio import Future
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from tornado import web
from tornado.escape import utf8

from .connections import LINGER_BYTES

if TYPE_CHECKING:
    from .connections import Connections

DEFAULT_MAX_BODY_SIZE = 1 << 20
_PIECES_IN_A_TURN = 50
DROPPED_BODY_SECONDS = 2.0  # that a discarded body may take


@web.stream_request_body
class EarlyHandler(web.RequestHandler):
    """Runs ``prepare`` before the body is read, and the verb when ``request.body`` holds all of it.

    The body is kept if ``prepare`` has set ``keeps_body``, and otherwise discarded as it arrives. Forms in it are not
    parsed.
    """

    keeps_body = False
    _is_reading = False
    _received = 0
    _pieces = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._body = bytearray()

    @property
    def is_body_outstanding(self) -> bool:
        """Whether some part of the request, if only its end, has not arrived yet."""
        return not self.request._body_future.done()

    def expect_body(self) -> None:
        """Refuse with 413 a request whose ``Content-Length`` is too large; called by ``prepare``.

        Raises
        ------
        HTTPError
            It is too large.
        """
        if not self._has_body:
            return
        length, limit = self.request.headers.get("Content-Length", "0"), self.max_body_size
        if length.isdecimal() and (len(length) > len(str(limit)) or int(length) > limit):
            raise web.HTTPError(413, self._too_large)
        connection: Any = self.request.connection
        # Otherwise tornado would close the connection, without an answer, when a body exceeds its limit.
        connection.set_max_body_size(sys.maxsize)
        if not self.keeps_body:
            connection.set_body_timeout(DROPPED_BODY_SECONDS)
        self.request._body_future.add_done_callback(self._take_body)

    @property
    def max_body_size(self) -> int:
        """Maximum size of a body in bytes."""
        return int(self.settings.get("eg_max_body_size", DEFAULT_MAX_BODY_SIZE))

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep the next chunk of the body; called by tornado."""
        self._is_reading = True
        self._received += len(chunk)
        if self._received <= self.max_body_size:
            if self.keeps_body:
                self._body += chunk
            self._pieces += 1
            # Tornado before 6.6 handles all received chunks without yielding to the loop, even chunks of one byte.
            return asyncio.sleep(0) if self._pieces % _PIECES_IN_A_TURN == 0 else None
        if not self._finished:
            self._body.clear()
            self.send_error(413, exc_info=(web.HTTPError, web.HTTPError(413, self._too_large), None))
        elif self._received > self.max_body_size + LINGER_BYTES:
            self.request.connection.stream.close()  # type: ignore[union-attr]
        return asyncio.sleep(0)  # yield to the loop while discarding, however fast the chunks arrive

    def finish(self, chunk: Any = None) -> Future[None]:
        """Send the response; if the request has not arrived completely, close the connection afterwards."""
        if not self.is_body_outstanding:
            return super().finish(chunk)
        self.set_header("Connection", "close")
        connections: Connections | None = self.settings.get("eg_connections")
        if connections is None or not self._has_body:
            return super().finish(chunk)
        # Tornado would close the connection as soon as the response is written. If the client is still sending the
        # body, its system receives a reset, and may discard the response.
        answer = utf8(chunk or b"")
        self.set_header("Content-Length", str(len(answer)))
        self.write(answer)
        written = self.flush()
        self.application.log_request(self)
        if self._is_reading:
            stream = self.request.connection.stream  # type: ignore[union-attr]
            connections.linger(stream, written, self._give_body_up())
        else:
            connections.linger(self.detach(), written)
        self.on_finish()
        return written

    def _give_body_up(self) -> Future[None]:
        """Keep the verb from running, and return a future that ends when tornado has read the rest of the body."""
        self._finished = True
        web.RequestHandler.on_connection_close(self)  # ends the wait for the body
        self.request._body_future = Future()
        return self.request._body_future

    def on_connection_close(self) -> None:
        """Abandon the request if the client disconnects before its end; called by tornado."""
        if self.is_body_outstanding:
            self.on_finish()
            web.RequestHandler.on_connection_close(self)  # the method of websockets does not end the wait for the body
        super().on_connection_close()

    @property
    def _has_body(self) -> bool:
        headers = self.request.headers
        return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"

    @property
    def _too_large(self) -> str:
        return f"The body of the request has more than {self.max_body_size} bytes (max_body_size)."

    def _take_body(self, _: Awaitable[None]) -> None:
        self.request.body = bytes(self._body)
        self._body.clear()
