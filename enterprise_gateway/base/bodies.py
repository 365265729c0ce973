"""Handlers that decide about a request when its header has come, before its body takes any room."""

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
DROPPED_BODY_SECONDS = 2.0  # that a body which nobody keeps may take


@web.stream_request_body
class EarlyHandler(web.RequestHandler):
    """Runs ``prepare`` before the body is read, and the verb when ``request.body`` holds all of it.

    A body is kept if ``keeps_body`` is set by then, and dropped as it comes otherwise. Forms in it are not parsed.
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
        """Whether some of the request, if only its end, is still to come."""
        return not self.request._body_future.done()

    def expect_body(self) -> None:
        """Refuse with 413 what says that it is too large; called by ``prepare``.

        Raises
        ------
        HTTPError
            It does.
        """
        if not self._has_body:
            return
        length, limit = self.request.headers.get("Content-Length", "0"), self.max_body_size
        if length.isdecimal() and (len(length) > len(str(limit)) or int(length) > limit):
            raise web.HTTPError(413, self._too_large)
        connection: Any = self.request.connection
        # Tornado ends the connection without an answer for what turns out to be too large.
        connection.set_max_body_size(sys.maxsize)
        if not self.keeps_body:
            connection.set_body_timeout(DROPPED_BODY_SECONDS)
        self.request._body_future.add_done_callback(self._take_body)

    @property
    def max_body_size(self) -> int:
        """Most bytes of a body."""
        return int(self.settings.get("eg_max_body_size", DEFAULT_MAX_BODY_SIZE))

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep some more of the body; called by tornado."""
        self._is_reading = True
        self._received += len(chunk)
        if self._received <= self.max_body_size:
            if self.keeps_body:
                self._body += chunk
            self._pieces += 1
            # Tornado before 6.6 goes through all chunks that have come in one turn, be they of one byte.
            return asyncio.sleep(0) if self._pieces % _PIECES_IN_A_TURN == 0 else None
        if not self._finished:
            self._body.clear()
            self.send_error(413, exc_info=(web.HTTPError, web.HTTPError(413, self._too_large), None))
        elif self._received > self.max_body_size + LINGER_BYTES:
            self.request.connection.stream.close()  # type: ignore[union-attr]
        return asyncio.sleep(0)  # however fast it comes, the moment in which it is dropped has to end

    def finish(self, chunk: Any = None) -> Future[None]:
        """Send the answer; if the request has not come to its end, the connection ends with it."""
        if not self.is_body_outstanding:
            return super().finish(chunk)
        self.set_header("Connection", "close")
        connections: Connections | None = self.settings.get("eg_connections")
        if connections is None or not self._has_body:
            return super().finish(chunk)
        # Tornado would close the connection as soon as the answer is written. If the body is under way then, the
        # client's system hears that nobody takes it, and may throw the answer away.
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
        """Keep the verb from running, and return what is done when tornado has read the rest of the body."""
        self._finished = True
        web.RequestHandler.on_connection_close(self)  # ends the wait for the body
        self.request._body_future = Future()
        return self.request._body_future

    def on_connection_close(self) -> None:
        """Give the request up if the client goes in the middle of it; called by tornado."""
        if self.is_body_outstanding:
            self.on_finish()
            web.RequestHandler.on_connection_close(self)  # that of websockets does not end the wait for the body
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
