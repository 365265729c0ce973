"""A kernel's message on its way to clients, and the signatures that guard the wire."""

from __future__ import annotations

import hmac
import json
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from .frames import SMALL_FRAME, FrameError, Part, decode_header, decode_object, encode_legacy, encode_v1

DELIMITER = b"<IDS|MSG>"
PROTOCOL_VERSION = "5.4"
_OVERHEAD = 400  # bytes that a message's objects take beside its parts, and more than a frame adds to them
_SMALLEST_PIECE = 1 << 10
_JOINED_BYTES = 64 << 10


class KernelMessage:
    """One message of a kernel, ready to be sent to any number of websockets.

    ``size`` is what it takes in memory, about. Each protocol's frame is made when the first websocket needs it.
    """

    __slots__ = ("_legacy", "_v1", "channel", "header", "msg_type", "parent", "parts", "size")

    def __init__(self, channel: str, header: dict[str, Any], parent: dict[str, Any], parts: list[bytes]) -> None:
        self.channel = channel
        self.header = header
        self.parent = parent
        self.parts = parts
        self.msg_type: str = header["msg_type"]
        self.size = sum(map(len, parts)) + _OVERHEAD
        self._v1: bytes | None = None
        self._legacy: bytes | None = None

    def frame(self, v1: bool) -> bytes:
        """Return the complete websocket frame for either protocol."""
        if v1:
            if self._v1 is None:
                self._v1 = encode_v1(self.channel, self.parts)
            return self._v1
        if self._legacy is None:
            self._legacy = encode_legacy(self.channel, self.header, self.parts)
        return self._legacy

    def forget_frames(self) -> None:
        """Free the frames made so far; called once every websocket that keeps up has its own."""
        self._v1 = self._legacy = None

    def stream_text(self) -> tuple[str, str] | None:
        """Return name and text when this is an iopub ``stream`` message that can be merged with another."""
        if self.msg_type != "stream" or len(self.parts) != 4 or not _is_plain(self.parts[3]):
            return None
        try:
            content = decode_object(self.parts[3])
        except FrameError:
            return None
        name, text = content.get("name"), content.get("text")
        return (name, text) if isinstance(name, str) and isinstance(text, str) else None

    def with_content(self, content: dict[str, Any]) -> KernelMessage:
        """Return a copy of this message with other content; the only place where content is encoded anew."""
        parts = [*self.parts[:3], _encode(content), *self.parts[4:]]
        return KernelMessage(self.channel, self.header, self.parent, parts)

    def pieces(self, limit: int) -> list[KernelMessage]:
        """Return ``stream`` messages of ``limit`` bytes at most that have this one's text; others as they are."""
        stream = self.stream_text()
        if stream is None or self.size <= limit:
            return [self]
        name, text = stream
        room = max(limit - (self.size - len(self.parts[3])) - len(name) - 40, _SMALLEST_PIECE)
        step = max(1, len(text) * room // len(self.parts[3]))  # characters; they are not all equally long
        pieces: list[KernelMessage] = []
        start = 0
        while start < len(text):
            piece = self._part(name, text[start : start + step], len(pieces))
            while len(piece.parts[3]) > room:
                step = max(1, step * room // len(piece.parts[3]))
                piece = self._part(name, text[start : start + step], len(pieces))
            pieces.append(piece)
            start += step
        return pieces

    def _part(self, name: str, text: str, number: int) -> KernelMessage:
        """Return a message for a part of this one's text; all but the first get a message id of their own."""
        part = self.with_content({"name": name, "text": text})
        if number:
            part.header = {**self.header, "msg_id": f"{self.header.get('msg_id', '')}_{number}"}
            part.parts[0] = _encode(part.header)
        return part


def _is_plain(raw: bytes) -> bool:
    """Whether JSON is small, or an object of two texts: whatever else a kernel sends may take minutes to decode."""
    if len(raw) <= SMALL_FRAME:
        return True
    pieces = raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', 9)
    return len(pieces) == 9 and sum(map(len, pieces[::2])) < 100


def _encode(value: dict[str, Any]) -> bytes:
    """Return JSON that is never longer than any other spelling of the same."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value).encode()


class MessageFactory:
    """Makes the gateway's own messages: requests to a kernel, and notices to its clients."""

    __slots__ = ("_count", "session")

    def __init__(self) -> None:
        self.session = uuid.uuid4().hex
        self._count = 0

    def make(self, channel: str, msg_type: str, content: dict[str, Any], raw_parent: bytes = b"{}") -> KernelMessage:
        """Return a new message of the gateway's own session, with the parent header given as raw JSON."""
        self._count += 1
        header = {
            "msg_id": f"{self.session}_{self._count}",
            "msg_type": msg_type,
            "username": "gateway",
            "session": self.session,
            "date": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z"),
            "version": PROTOCOL_VERSION,
        }
        parts = [json.dumps(header).encode(), raw_parent, b"{}", json.dumps(content).encode()]
        return KernelMessage(channel, header, decode_header(raw_parent), parts)


class Signer:
    """Signs outgoing messages and checks incoming ones with a kernel's key; holds no state of its own."""

    __slots__ = ("_base",)

    def __init__(self, key: bytes, scheme: str) -> None:
        self._base = hmac.new(key, digestmod=scheme.removeprefix("hmac-"))

    def sign(self, parts: Sequence[Part]) -> bytes:
        """Return the hexadecimal signature over header, parent header, metadata and content."""
        digest = self._base.copy()
        if len(parts[3]) < _JOINED_BYTES:  # one call is quicker than four
            digest.update(b"".join(parts[:4]))
        else:
            for part in parts[:4]:
                digest.update(part)
        return digest.hexdigest().encode()

    def wrap(self, parts: Sequence[Part]) -> list[Part]:
        """Return the frames to send: delimiter, signature, parts."""
        return [DELIMITER, self.sign(parts), *parts]

    def unwrap(self, frames: list[bytes]) -> list[bytes]:
        """Return the parts of a received message.

        Raises
        ------
        FrameError
            The delimiter or a part is missing, or the signature is not the kernel's.
        """
        try:
            start = frames.index(DELIMITER, 0, 8) + 1
        except ValueError:
            raise FrameError("the delimiter is missing") from None
        parts = frames[start + 1 :]
        if len(parts) < 4:
            raise FrameError("the message has too few parts")
        if not hmac.compare_digest(frames[start], self.sign(parts)):
            raise FrameError("the signature is wrong")
        return parts
