"""A kernel's message on its way to clients, and the signatures that guard the wire."""

from __future__ import annotations

import hmac
import json
import re
import uuid
from collections.abc import Generator, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from .frames import (
    SMALL_FRAME,
    FrameError,
    Part,
    decode_header,
    decode_object,
    encode_legacy,
    encode_v1,
    fragments_legacy,
    fragments_v1,
)
from .streamtext import StreamText, find_text

DELIMITER = b"<IDS|MSG>"
PROTOCOL_VERSION = "5.4"
_OVERHEAD = 400  # bytes that a message's objects take beside its parts, and more than a frame adds to them
_JOINED_BYTES = 64 << 10
_ID_SUFFIX_BYTES = 16
_SEARCHED_BYTES = 1 << 20  # in one step

# Inside a JSON string the quotes would be escaped: this is the member, or one of the same name further inside.
_SAYS_ERROR = re.compile(rb'"status"\s{0,99}:\s{0,99}"error"').search
_ERROR_BYTES = 256  # more than the above takes


class KernelMessage:
    """One message of a kernel, ready to be sent to any number of websockets.

    ``size`` is what it takes in memory, about. Each protocol's frame is made when the first websocket needs it.
    """

    __slots__ = (
        "_is_inspected",
        "_legacy",
        "_number",
        "_says_error",
        "_text",
        "_v1",
        "channel",
        "header",
        "msg_type",
        "parent",
        "parts",
        "size",
    )

    def __init__(self, channel: str, header: dict[str, Any], parent: dict[str, Any], parts: list[Part]) -> None:
        self.channel = channel
        self.header = header
        self.parent = parent
        self.parts = parts
        self.msg_type: str = header["msg_type"]
        self.size = sum(map(len, parts)) + _OVERHEAD
        self._v1: bytes | None = None
        self._legacy: bytes | None = None
        self._is_inspected = False
        self._text: StreamText | None = None
        self._number = 0  # of the next piece, if this is the rest of a text
        self._says_error = False

    @property
    def raw_parent(self) -> bytes:
        """The parent header as it came."""
        return bytes(self.parts[1])

    def inspect(self) -> Generator[None, None, None]:
        """Compute in steps what would block everything later; called first for large messages."""
        content = self.parts[3]
        if self.msg_type == "stream" and len(self.parts) == 4:
            self._text = yield from find_text(content)
        elif self.msg_type == "execute_reply":
            for start in range(0, len(content), _SEARCHED_BYTES):
                if _SAYS_ERROR(content, start, start + _SEARCHED_BYTES + _ERROR_BYTES):
                    self._says_error = True
                    break
                yield
        self._is_inspected = True

    @property
    def says_error(self) -> bool:
        """Whether an ``execute_reply`` has the status ``error``, or something further inside has."""
        self._inspect_now()
        return self._says_error

    def frame(self, v1: bool) -> bytes:
        """Return the complete websocket frame for either protocol."""
        if v1:
            if self._v1 is None:
                self._v1 = encode_v1(self.channel, self.parts)
            return self._v1
        if self._legacy is None:
            self._legacy = encode_legacy(self.channel, self.header, self.parts)
        return self._legacy

    def fragments(self, v1: bool) -> Iterator[bytes]:
        """Return several websocket frames that are the message together, made one after the other."""
        if v1:
            return fragments_v1(self.channel, self.parts)
        return fragments_legacy(self.channel, self.header, self.parts)

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
        return self._copy(self.header, self.parts[0], _encode(content))

    def cut(self, limit: int) -> tuple[KernelMessage, KernelMessage | None]:
        """Return the beginning of a ``stream`` message's text as one of ``limit`` bytes at most, and the rest.

        The rest is to be cut in its turn, not sent; its pieces have message ids of their own. Others stay as they are.
        """
        self._inspect_now()
        if self._text is None or (self.size <= limit and not self._number):
            return self, None
        content, text = self._text.cut(limit - (self.size - self._text.size) - _ID_SUFFIX_BYTES)
        header, raw_header = self.header, self.parts[0]
        if self._number:
            header = {**header, "msg_id": f"{header.get('msg_id', '')}_{self._number}"}
            raw_header = _encode(header)
        piece = self._copy(header, raw_header, content)
        return piece, self._rest(text) if text.start < text.end else None

    def _rest(self, text: StreamText) -> KernelMessage:
        rest = self._copy(self.header, self.parts[0], self.parts[3])
        rest.size += text.size - len(self.parts[3])
        rest._text = text
        rest._number = self._number + 1
        rest._is_inspected = True
        return rest

    def _copy(self, header: dict[str, Any], raw_header: Part, content: Part) -> KernelMessage:
        parts = [raw_header, *self.parts[1:3], content, *self.parts[4:]]
        return KernelMessage(self.channel, header, self.parent, parts)

    def _inspect_now(self) -> None:
        if not self._is_inspected:
            for _ in self.inspect():
                pass


def _is_plain(raw: Part) -> bool:
    """Whether JSON is small, or an object of two texts: whatever else a kernel sends may take minutes to decode."""
    if len(raw) <= SMALL_FRAME:
        return True
    pieces = bytes(raw).replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', 9)
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
        parts: list[Part] = [json.dumps(header).encode(), raw_parent, b"{}", json.dumps(content).encode()]
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

    def unwrap(self, frames: list[Part]) -> list[Part]:
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
