"""Websocket frames of megabytes: received piece by piece, so that others have their turn in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol, cast

from tornado.util import _websocket_mask
from tornado.websocket import WebSocketProtocol13

PIECE_BYTES = 1 << 20  # a multiple of 4, the length of a mask
_NO_MASK = bytes(4)
_TEXT, _BINARY = 1, 2


class LargeMessageHandler(Protocol):
    """What a websocket's handler has, beside tornado's methods."""

    def note_received(self, count: int) -> bool:
        """Count what has come of a message in pieces; False when it, with others, takes too much memory."""

    def note_handled(self) -> None:
        """Note that the message is complete and was taken."""

    def on_large_message(self, message: memoryview, is_text: bool) -> Awaitable[None] | None:
        """Take a message of more than ``PIECE_BYTES``, whose text was not decoded."""


class PatientProtocol(WebSocketProtocol13):
    """Tornado's protocol of the server, but for how frames are received.

    Tornado reads a frame as a whole, and then copies, unmasks and decodes all of it in one turn of the loop: 2 ms for
    each megabyte, for which nobody else is served. Here that is done with a piece at a time, and with no copy left over
    but the message itself. Frames up to ``PIECE_BYTES`` go tornado's way, and so does everything but the receiving.
    """

    _message: bytearray | None = None  # what has come of one that is large or in fragments
    _opcode = 0

    async def _receive_frame(self) -> None:
        first, second = await self._read_bytes(2)
        opcode, is_final, length = first & 0x0F, bool(first & 0x80), second & 0x7F
        is_control = opcode & 8
        if first & 0x70 or (is_control and (length > 125 or not is_final)):
            self._abort()
            return
        if length > 125:
            length = int.from_bytes(await self._read_bytes(2 if length == 126 else 8), "big")
        mask = await self._read_bytes(4) if second & 0x80 else _NO_MASK
        if not is_control and not self._begin(opcode, length):
            return
        if is_control or (opcode and is_final and length <= PIECE_BYTES):
            await self._handle(opcode, _websocket_mask(mask, await self._read_bytes(length)))
            return
        message = self._message = bytearray() if self._message is None else self._message
        handler = cast("LargeMessageHandler", self.handler)
        while length:
            piece = await self._read_bytes(min(length, PIECE_BYTES))
            if not handler.note_received(len(piece)):
                self.close(1013, "too many large messages at once")
                self._abort()
                return
            message += _websocket_mask(mask, piece)
            length -= len(piece)
            await asyncio.sleep(0)
        if is_final:
            self._message = None
            await self._handle(self._opcode, message)
            handler.note_handled()

    def _begin(self, opcode: int, length: int) -> bool:
        """Whether a frame of data may come now; the connection is ended if not."""
        is_continuation = opcode == 0
        if is_continuation != (self._message is not None):
            self._abort()
            return False
        if len(self._message or b"") + length > self.params.max_message_size:
            self.close(1009, "message too big")
            self._abort()
            return False
        if not is_continuation:
            self._opcode = opcode
        return True

    async def _handle(self, opcode: int, message: bytes | bytearray) -> None:
        if len(message) <= PIECE_BYTES:
            handled = self._handle_message(opcode, bytes(message))
        elif opcode in {_TEXT, _BINARY}:
            handler = cast("LargeMessageHandler", self.handler)
            handled = self._run_callback(handler.on_large_message, memoryview(message), opcode == _TEXT)
        else:
            self._abort()
            return
        if handled is not None:
            await handled
