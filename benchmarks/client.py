"""A lean HTTP and websocket client on plain sockets: it must cost less than the gateways it measures."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
import uuid
from collections.abc import Iterator
from typing import Any

V1 = "v1.kernel.websocket.jupyter.org"


class RequestError(Exception):
    """A gateway refused or did not answer; the message is its error."""


class HttpConnection:
    """One keep-alive connection; requests run one after the other."""

    def __init__(self, port: int, timeout: float = 60) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def send(self, method: str, path: str, body: object = None) -> None:
        """Send a request without waiting for its answer."""
        data = b"" if body is None else json.dumps(body).encode()
        kind = "" if body is None else f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{kind}\r\n"
        self.socket.sendall(head.encode() + data)

    def receive(self) -> tuple[int, bytes]:
        """Return status and body of the next answer."""
        while (answer := self.parse()) is None:
            chunk = self.socket.recv(1 << 18)
            if not chunk:
                raise RequestError("the gateway closed the connection")
            self._data += chunk
        return answer

    def feed(self) -> None:
        """Read what has arrived; for callers that wait with a selector."""
        self._data += self.socket.recv(1 << 18)

    def parse(self) -> tuple[int, bytes] | None:
        """Return the next answer, or None while it is not complete."""
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = self._data[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._data) < end + 4 + length:
            return None
        body, self._data = self._data[end + 4 : end + 4 + length], self._data[end + 4 + length :]
        return int(head[9:12]), body

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Send a request and return its decoded answer; any status from 400 is an error."""
        self.send(method, path, body)
        return checked(self.receive())

    def close(self) -> None:
        self.socket.close()


def checked(answer: tuple[int, bytes]) -> Any:
    """Return the decoded body of an answer, or raise its error."""
    status, body = answer
    if status >= 400:
        try:
            error = json.loads(body)
            text = error.get("message") or error.get("reason")
        except (ValueError, AttributeError):
            text = body[:200].decode(errors="replace")
        raise RequestError(f"HTTP {status}: {text}")
    return json.loads(body) if body else None


class WebSocket:
    """A kernel's channels, as a client opens them; ``v1`` offers the newer protocol, and the negotiated one is used."""

    def __init__(self, port: int, kernel_id: str, *, v1: bool, timeout: float = 30) -> None:
        self.session = uuid.uuid4().hex
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        offer = f"Sec-WebSocket-Protocol: {V1}\r\n" if v1 else ""
        self.socket.sendall(
            (
                f"GET /api/kernels/{kernel_id}/channels?session_id={self.session} HTTP/1.1\r\n"
                f"Host: 127.0.0.1:{port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{offer}\r\n"
            ).encode()
        )
        self._data = b""
        self._fragments: list[bytes] = []
        while (end := self._data.find(b"\r\n\r\n")) < 0:
            chunk = self.socket.recv(65536)
            if not chunk:
                break
            self._data += chunk
        head = self._data[:end]
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise RequestError(f"websocket refused: {head.split(chr(13).encode(), 1)[0].decode(errors='replace')}")
        self._data = self._data[end + 4 :]
        self.v1 = V1.encode() in head
        self._frames = {
            kind: self._template(kind, content)
            for kind, content in (
                ("kernel_info_request", {}),
                ("execute_request", {"code": "1", "silent": False, "store_history": False, "allow_stdin": False}),
            )
        }

    def request(self, kind: str) -> bytes:
        """Send a prepared request on the shell channel and return its message id."""
        before, after = self._frames[kind]
        msg_id = os.urandom(16).hex().encode()
        self.socket.sendall(before + msg_id + after)
        return msg_id

    def execute_code(self, code: str) -> bytes:
        """Send an execute request for ``code`` and return its message id."""
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        before, after = self._template("execute_request", content)
        msg_id = os.urandom(16).hex().encode()
        self.socket.sendall(before + msg_id + after)
        return msg_id

    def _template(self, kind: str, content: dict[str, object]) -> tuple[bytes, bytes]:
        """Return the parts before and after the message id in the frame of a request."""
        msg_id = "?" * 32
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        header = {
            "msg_id": msg_id,
            "msg_type": kind,
            "username": "bench",
            "session": self.session,
            "date": date,
            "version": "5.3",
        }
        if self.v1:
            parts = [b"shell", json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode()]
            offsets = [8 * (len(parts) + 2)]
            for part in parts:
                offsets.append(offsets[-1] + len(part))
            payload = struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)
        else:
            message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
            payload = json.dumps({**message, "buffers": []}).encode()
        before, after = frame(payload, 2 if self.v1 else 1).split(msg_id.encode())
        return before, after

    def feed(self) -> Iterator[bytes]:
        """Read what has arrived and yield each complete message; blocks if nothing has arrived."""
        chunk = self.socket.recv(1 << 18)
        if not chunk:
            raise RequestError("the gateway closed the websocket")
        data = self._data + chunk if self._data else chunk
        at, size = 0, len(data)
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length == 126:
                if size < start + 2:
                    break
                length, start = (data[start] << 8) | data[start + 1], start + 2
            elif length == 127:
                if size < start + 8:
                    break
                length, start = int.from_bytes(data[start : start + 8], "big"), start + 8
            if size < start + length:
                break
            first, payload = data[at], data[start : start + length]
            at = start + length
            if first in (0x81, 0x82):
                yield payload
            else:
                yield from self._special(first, payload)
        self._data = data[at:]

    def _special(self, first: int, payload: bytes) -> Iterator[bytes]:
        opcode = first & 15
        if opcode == 9:
            self.socket.sendall(frame(payload, 10))
        elif opcode == 8:
            raise RequestError(f"the gateway closed the websocket: {payload[2:].decode(errors='replace')}")
        elif opcode in (0, 1, 2):
            self._fragments.append(payload)
            if first & 0x80:
                whole, self._fragments = b"".join(self._fragments), []
                yield whole

    def complete(self, msg_id: bytes, kind: bytes = b"execute_reply") -> None:
        """Wait until the reply and the idle status that belong to a request have arrived."""
        missing = 2
        while missing:
            for message in self.feed():
                if msg_id in message and (kind in message or b'"idle"' in message):
                    missing -= 1

    def execute(self) -> None:
        """Execute once and wait for the reply and the idle status."""
        self.complete(self.request("execute_request"))

    def close(self) -> None:
        self.socket.close()


def frame(payload: bytes, opcode: int) -> bytes:
    """Return a masked websocket frame; the mask is zero, so the payload is unchanged."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65536:
        head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, length)
    return head + b"\0\0\0\0" + payload
