"""Websocket clients in threads: one sends what no client would, one hears what is large. Neither holds a loop."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from .wsclient import V1

PONG = 0
HEADER = {"msg_id": "1", "msg_type": "comm_msg", "session": "attacker", "username": "", "date": "", "version": "5.4"}


def attack(port: int, path: str, payloads: Iterable[bytes], *, opcode: int = 1, v1: bool = False) -> int:
    """Send frames and a ping; return the close code, or :data:`PONG` when the gateway has gone through all of them."""
    with _opened(port, path, v1=v1) as (connection, received):
        try:
            for payload in payloads:
                connection.sendall(_head(opcode, len(payload)))
                connection.sendall(payload)
            connection.sendall(_head(9, 0))
        except ConnectionError:
            pass  # it was closed meanwhile
        while True:
            opcode, _, content = _receive(received)
            if opcode == 10:
                return PONG
            if opcode == 8:
                return int.from_bytes(content[:2], "big")


class Heard(NamedTuple):
    """A message that has come: the lengths of its frames, and its payload."""

    frames: list[int]
    payload: bytearray


def hear(port: int, path: str, size: int, *, v1: bool) -> list[Heard]:
    """Return the messages that come until they are ``size`` bytes together, and close; pings are answered."""
    messages: list[Heard] = []
    with _opened(port, path, v1=v1) as (connection, received):
        message = Heard([], bytearray())
        while sum(len(message.payload) for message in messages) < size:
            opcode, is_final, content = _receive(received)
            if opcode == 9:
                connection.sendall(_head(10, len(content)) + content)
                continue
            assert opcode in ({0} if message.frames else {1, 2})
            message.frames.append(len(content))
            message.payload.extend(content)
            if is_final:
                messages.append(message)
                message = Heard([], bytearray())
        connection.sendall(_head(8, 2) + struct.pack(">H", 1000))
        while _receive(received)[0] != 8:
            pass
    return messages


def hear_a_bit(port: int, path: str, size: int, *, v1: bool) -> None:
    """Receive ``size`` bytes and be gone."""
    with _opened(port, path, v1=v1) as (_, received):
        while size > 0:
            size -= len(_receive(received)[2])


@contextlib.contextmanager
def _opened(port: int, path: str, *, v1: bool) -> Iterator[tuple[socket.socket, BinaryIO]]:
    """Open a websocket."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            *([f"Sec-WebSocket-Protocol: {V1}"] if v1 else []),
        ]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        with connection.makefile("rb") as received:
            assert b" 101 " in received.readline()
            while received.readline() != b"\r\n":
                pass
            yield connection, received


def _receive(received: BinaryIO) -> tuple[int, bool, bytes]:
    """Return the next frame's opcode, whether it ends its message, and its payload."""
    first, length = received.read(2)
    if length >= 126:
        length = int.from_bytes(received.read(2 if length == 126 else 8), "big")
    return first & 15, bool(first & 0x80), received.read(length)


def _head(opcode: int, length: int) -> bytes:
    """Return the head of a frame that is masked with zeros."""
    if length < 126:
        return struct.pack(">BBI", 0x80 | opcode, 0x80 | length, 0)
    return struct.pack(">BBQI", 0x80 | opcode, 0xFF, length, 0)


def text_frame(content: str = "{}", header: str = json.dumps(HEADER), more: str = "", channel: str = "stdin") -> bytes:
    """Return a legacy message; on stdin nobody but the kernel looks at it, and a tiny kernel does not."""
    return (
        f'{{"channel":"{channel}","header":{header},"parent_header":{{}},"metadata":{{}}'
        f',"content":{content},"buffers":[]{more}}}'
    ).encode()


def v1_frame(parts: Iterable[bytes], channel: str = "stdin") -> bytes:
    """Return a v1 message of these parts."""
    pieces = [channel.encode(), *parts]
    offsets = [8 * (len(pieces) + 2)]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(pieces)


def binary_frame(text: bytes, buffers: Iterable[bytes]) -> bytes:
    """Return a legacy message with buffers."""
    blobs = [text, *buffers]
    offsets = [4 * (len(blobs) + 1)]
    for blob in blobs[:-1]:
        offsets.append(offsets[-1] + len(blob))
    return struct.pack(f">{len(blobs) + 1}I", len(blobs), *offsets) + b"".join(blobs)
