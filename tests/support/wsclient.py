"""A websocket client that reads only when asked to, so that tests decide how slow it is."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import struct
import uuid
from itertools import pairwise
from typing import Any

ABSENT = "<absent>"  # for members of a header that it is not to have
V1 = "v1.kernel.websocket.jupyter.org"


class HandshakeError(Exception):
    """The server answered something else than 101."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(status, body)
        self.status, self.headers, self.body = status, headers, body


class WebSocketClient:
    """Speaks either kernel protocol; messages are dicts with the members of the legacy protocol.

    ``closed`` is the close code and reason once the server's close frame was read, or ``(1006, "")``. ``lengths`` are
    the sizes of the messages in ``history`` on the wire. For a message over ``max_size`` it cuts the connection, if it
    ``says_too_big`` after a close frame (1009), as tornado's client does.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, v1: bool) -> None:
        self._reader, self._writer, self.v1 = reader, writer, v1
        self.session = uuid.uuid4().hex
        self.closed: tuple[int, str] | None = None
        self.history: list[dict[str, Any]] = []
        self._opcode = 0  # of the message that is coming in fragments
        self._fragments = bytearray()
        self.lengths: list[int] = []
        self.answers_pings = True
        self.max_size = 1 << 62
        self.says_too_big = True
        self._count = 0

    @classmethod
    async def connect(
        cls,
        port: int,
        path: str,
        *,
        v1: bool = True,
        headers: dict[str, str] | None = None,
        buffer: int = 1 << 16,
        sock: socket.socket | None = None,
        context: ssl.SSLContext | None = None,
    ) -> WebSocketClient:
        options: dict[str, Any] = {"limit": buffer}
        options |= {"host": "127.0.0.1", "port": port} if sock is None else {"sock": sock}
        if context is not None:
            options |= {"ssl": context, "server_hostname": "127.0.0.1"}
        reader, writer = await asyncio.open_connection(**options)
        lines = {
            "Host": f"127.0.0.1:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            **({"Sec-WebSocket-Protocol": f"other, {V1}"} if v1 else {}),
            **(headers or {}),
        }
        request = f"GET {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items() if v) + "\r\n"
        writer.write(request.encode())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except BaseException:
            writer.transport.abort()
            raise
        status = int(head.split()[1])
        fields = (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        received = {name.lower(): value for name, value in fields}
        if status != 101:
            body = await reader.readexactly(int(received.get("content-length", 0)))
            writer.close()
            raise HandshakeError(status, received, body)
        assert received.get("sec-websocket-protocol") == (V1 if v1 else None)
        return cls(reader, writer, v1)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close properly, unless the server has closed."""
        if self.closed is None:
            self.answers_pings = False  # nothing may follow a close frame
            self.send_frame(8, struct.pack(">H", 1000))
            while self.closed is None:
                await self.receive(timeout=5)
        self.cut()

    def cut(self) -> None:
        """Drop the connection without a word."""
        self.closed = self.closed or (1006, "")
        if not self._writer.transport.is_closing():  # else an SSL transport of Python 3.11 has nothing left to abort
            self._writer.transport.abort()

    def send_frame(self, opcode: int, payload: bytes) -> None:
        head = bytes((0x80 | opcode,))
        length = len(payload)
        if length < 126:
            head += bytes((0x80 | length,))
        else:
            head += struct.pack(">BH", 0xFE, length) if length < 65536 else struct.pack(">BQ", 0xFF, length)
        self._writer.write(head + b"\0\0\0\0" + payload)  # masked with zeros

    def send(
        self, channel: str, msg_type: str, content: dict[str, Any], buffers: list[bytes] | None = None, **header: Any
    ) -> str:
        """Send a message and return its id; ``header`` has members of the header that differ, or are :data:`ABSENT`."""
        self._count += 1
        header = {
            "msg_id": f"{self.session}_{self._count}",
            "msg_type": msg_type,
            "session": self.session,
            "username": "user",
            "date": "2026-01-01T00:00:00.000Z",
            "version": "5.4",
            **header,
        }
        header = {name: value for name, value in header.items() if value != ABSENT}
        if self.v1:
            parts = [
                channel.encode(),
                *(json.dumps(part).encode() for part in (header, {}, {}, content)),
                *(buffers or []),
            ]
            offsets = [8 * (len(parts) + 2)]
            for part in parts:
                offsets.append(offsets[-1] + len(part))
            self.send_frame(2, struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts))
            return header["msg_id"]
        message = {"channel": channel, "header": header, "parent_header": {}, "metadata": {}, "content": content}
        if not buffers:
            self.send_frame(1, json.dumps({**message, "buffers": []}).encode())
            return header["msg_id"]
        blobs = [json.dumps(message).encode(), *buffers]
        offsets = [4 * (len(blobs) + 1)]
        for blob in blobs[:-1]:
            offsets.append(offsets[-1] + len(blob))
        self.send_frame(2, struct.pack(f">{len(blobs) + 1}I", len(blobs), *offsets) + b"".join(blobs))
        return header["msg_id"]

    def execute(self, code: str, *, allow_stdin: bool = False, **header: Any) -> str:
        return self.send(
            "shell", "execute_request", {"code": code, "silent": False, "allow_stdin": allow_stdin}, **header
        )

    async def receive(self, timeout: float = 5.0) -> dict[str, Any] | None:
        """Return the next message, None when the websocket is closed."""
        while self.closed is None:
            try:
                opcode, payload = await asyncio.wait_for(self._frame(), timeout)
            except (asyncio.IncompleteReadError, ConnectionError):
                self.cut()
                break
            if opcode == 8:
                self.closed = (int.from_bytes(payload[:2], "big") or 1005, payload[2:].decode())
                self.send_frame(8, payload[:2])
                self._writer.close()
            elif opcode == 9 and self.answers_pings:
                self.send_frame(10, payload)
            elif opcode in {1, 2}:
                self.lengths.append(len(payload))
                self.history.append(self._decode(opcode, payload))
                if len(self.history) % 20 == 0:
                    await asyncio.sleep(0)  # what is buffered already would not let go of the loop
                return self.history[-1]
        return None

    async def until_closed(self) -> None:
        """Receive what comes before the end."""
        while await self.receive() is not None:
            pass

    async def until(self, msg_type: str, msg_id: str | None = None, timeout: float = 5.0) -> list[dict[str, Any]]:
        """Return the messages up to and including the first one of a type and parent."""
        messages = []
        while True:
            message = await self.receive(timeout)
            if message is None:
                raise AssertionError(f"closed {self.closed} before {msg_type}, after {types(messages)}")
            messages.append(message)
            parent = message["parent_header"].get("msg_id")
            if message["header"]["msg_type"] == msg_type and msg_id in {None, parent}:
                return messages

    async def until_state(self, state: str) -> dict[str, Any]:
        """Return the first status message of an execution state; those of others before it are passed over."""
        while True:
            message = (await self.until("status"))[-1]
            if message["content"]["execution_state"] == state:
                return message

    async def run(self, code: str, timeout: float = 5.0, **header: Any) -> list[dict[str, Any]]:
        """Execute and return the messages that answer it."""
        return await self.finish(self.execute(code, **header), timeout)

    async def finish(self, msg_id: str, timeout: float = 5.0) -> list[dict[str, Any]]:
        """Return the messages that answer a request, once its reply and the idle state have come."""
        answers: list[dict[str, Any]] = []
        missing, start = {"execute_reply", "idle"}, 0
        while True:
            new = [m for m in self.history[start:] if m["parent_header"].get("msg_id") == msg_id]
            answers += new
            start = len(self.history)
            missing.difference_update(types(new))
            if not missing:
                return answers
            if await self.receive(timeout) is None:
                raise AssertionError(f"closed {self.closed}")

    async def pending(self, seconds: float = 0.1) -> list[dict[str, Any]]:
        """Return what comes within some time."""
        messages = []
        try:
            while (message := await self.receive(seconds)) is not None:
                messages.append(message)
        except asyncio.TimeoutError:
            pass
        return messages

    async def _frame(self) -> tuple[int, bytes]:
        first, length = await self._read(2)
        assert first & 0x70 == 0, "no extensions"
        assert length < 128, "servers do not mask"
        if length >= 126:
            length = int.from_bytes(await self._read(2 if length == 126 else 8), "big")
        if length + len(self._fragments) > self.max_size:
            if self.says_too_big:
                self.send_frame(8, struct.pack(">H", 1009))
                await asyncio.sleep(0)
            raise ConnectionAbortedError
        payload = await self._read(length)
        opcode, is_final = first & 15, first & 0x80
        if opcode & 8 or (is_final and opcode):
            return opcode, payload
        self._opcode = opcode or self._opcode
        self._fragments += payload
        if not is_final:
            return 0, b""
        payload, self._fragments = bytes(self._fragments), bytearray()
        return self._opcode, payload

    async def _read(self, count: int) -> bytes:
        """Return that many bytes; what came before a reset, as after a pong that nobody reads any more, counts."""
        try:
            return await self._reader.readexactly(count)
        except ConnectionError:
            self._reader.set_exception(None)  # type: ignore[arg-type]
            self._reader.feed_eof()
            return await self._reader.readexactly(count)

    def _decode(self, opcode: int, payload: bytes) -> dict[str, Any]:
        if self.v1:
            count = int.from_bytes(payload[:8], "little")
            offsets = struct.unpack_from(f"<{count}Q", payload, 8)
            assert offsets[-1] == len(payload)
            parts = [payload[start:end] for start, end in pairwise(offsets)]
            names = ("header", "parent_header", "metadata", "content")
            message = {name: json.loads(part) for name, part in zip(names, parts[1:5], strict=True)}
            return {"channel": parts[0].decode(), **message, "buffers": parts[5:]}
        if opcode == 1:
            message = json.loads(payload)
            assert message["buffers"] == []
        else:
            count = int.from_bytes(payload[:4], "big")
            offsets = (*struct.unpack_from(f">{count}I", payload, 4), len(payload))
            blobs = [payload[start:end] for start, end in pairwise(offsets)]
            message = {**json.loads(blobs[0]), "buffers": blobs[1:]}
        header = message["header"]
        assert (message.pop("msg_id"), message.pop("msg_type")) == (header["msg_id"], header["msg_type"])
        return message


def texts(messages: list[dict[str, Any]], name: str = "stdout") -> str:
    """Return the text of all stream messages of a name."""
    streams = [m["content"] for m in messages if m["header"]["msg_type"] == "stream"]
    return "".join(content["text"] for content in streams if content["name"] == name)


def types(messages: list[dict[str, Any]]) -> list[str]:
    """Return each message's type, with the state in case of a status."""
    return [m["content"].get("execution_state") or m["header"]["msg_type"] for m in messages]


def random_id() -> str:
    """Return an id for a session or a kernel."""
    return str(uuid.UUID(bytes=os.urandom(16)))
