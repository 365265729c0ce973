"""Websocket payloads to message parts and back, spliced: the JSON of a message is never encoded again.

*Parts* are ``[header, parent_header, metadata, content, *buffers]`` as bytes, the way ZMQ carries them. Two websocket
protocols exist. ``v1.kernel.websocket.jupyter.org`` is binary and carries the parts as they are. The legacy protocol
is one JSON text, or a binary frame when there are buffers; its parts are cut out of that text, or joined into it.

Everything here is a pure function; what a peer sends wrong raises :class:`FrameError` and nothing else.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

V1_PROTOCOL = "v1.kernel.websocket.jupyter.org"
CHANNELS = frozenset({"shell", "control", "stdin", "iopub"})

_DECODE = json.JSONDecoder().raw_decode
_QUOTE = json.encoder.encode_basestring_ascii
_SKIP_SPACE = re.compile(r"[ \t\r\n]*").match
_MAX_TEXT_KEY = 64
_HEAD, _CONTENT_END = 1, 5  # v1 offsets: where the header begins and where the content ends


class FrameError(ValueError):
    """A peer sent something that is no kernel message; the text says what, never its content."""


class ClientMessage(NamedTuple):
    """A message as a client sent it: ``header`` is the decoded ``parts[0]``."""

    channel: str
    header: dict[str, Any]
    parts: list[bytes]


def decode_header(raw: bytes) -> dict[str, Any]:
    """Decode a header or parent header, which has to be a JSON object.

    Raises
    ------
    FrameError
        It is not UTF-8, not JSON, or not an object.
    """
    try:
        text = raw.decode()
        value, end = _DECODE(text, _SKIP_SPACE(text).end())  # type: ignore[union-attr]
    except (ValueError, RecursionError) as error:
        raise FrameError("a header is not JSON") from error
    if not isinstance(value, dict) or _SKIP_SPACE(text, end).end() != len(text):  # type: ignore[union-attr]
        raise FrameError("a header is not a JSON object")
    return value


# -- from websockets -----------------------------------------------------------------------------------------------


def decode_v1(frame: bytes) -> ClientMessage:
    """Take a v1 frame apart.

    Raises
    ------
    FrameError
        An offset points outside the frame, a part is missing, or the channel is unknown.
    """
    if len(frame) < 8:
        raise FrameError("the frame is too short")
    count = int.from_bytes(frame[:8], "little")
    if not _CONTENT_END < count <= len(frame) // 8 - 1:
        raise FrameError("the frame's number of offsets is impossible")
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    _check_offsets(offsets, 8 * (count + 1), len(frame))
    channel = frame[offsets[0] : offsets[_HEAD]].decode("latin-1")
    if channel not in CHANNELS:
        raise FrameError("the channel is unknown")
    parts = [frame[start:end] for start, end in pairwise(offsets[_HEAD:])]
    return ClientMessage(channel, _checked(decode_header(parts[0])), parts)


def decode_legacy_text(text: str) -> ClientMessage:
    """Cut the parts out of a legacy JSON message; a message without ``channel`` is for the shell.

    Raises
    ------
    FrameError
        It is not a JSON object with a usable header, its channel is unknown, or it names buffers it cannot carry.
    """
    message, values = _split_object(text)
    if values.get("buffers"):
        raise FrameError("a text frame cannot carry buffers")
    return _assemble(message, values, [])


def decode_legacy_binary(frame: bytes) -> ClientMessage:
    """Take a legacy binary frame (JSON and buffers behind a table of offsets) apart.

    Raises
    ------
    FrameError
        As for :func:`decode_v1` and :func:`decode_legacy_text`.
    """
    if len(frame) < 8:
        raise FrameError("the frame is too short")
    count = int.from_bytes(frame[:4], "big")
    if not 0 < count <= len(frame) // 4 - 1:
        raise FrameError("the frame's number of offsets is impossible")
    offsets = (*struct.unpack_from(f">{count}I", frame, 4), len(frame))
    _check_offsets(offsets, 4 * (count + 1), len(frame))
    blobs = [frame[start:end] for start, end in pairwise(offsets)]
    try:
        text = blobs[0].decode()
    except UnicodeDecodeError as error:
        raise FrameError("the message is not UTF-8") from error
    message, values = _split_object(text)
    return _assemble(message, values, blobs[1:])


def _check_offsets(offsets: Sequence[int], first: int, end: int) -> None:
    """Refuse offsets that overlap the table, run backwards or leave the frame."""
    position = first
    for offset in offsets:
        if offset < position:
            raise FrameError("the frame's offsets are out of order")
        position = offset
    if position > end:
        raise FrameError("the frame's offsets leave the frame")


def _split_object(text: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the raw text and the decoded value of each member of the JSON object ``text``."""
    try:
        return _scan_object(text)
    except (ValueError, RecursionError, IndexError) as error:
        if isinstance(error, FrameError):
            raise
        raise FrameError("the message is not JSON") from error


def _scan_object(text: str) -> tuple[dict[str, str], dict[str, Any]]:
    skip, decode = _SKIP_SPACE, _DECODE
    raw: dict[str, str] = {}
    values: dict[str, Any] = {}
    position = skip(text).end()  # type: ignore[union-attr]
    if text[position] != "{":
        raise FrameError("the message is not a JSON object")
    position = skip(text, position + 1).end()  # type: ignore[union-attr]
    separator = "," if text[position] != "}" else "}"
    while separator == ",":
        key, position = decode(text, position)
        position = skip(text, position).end()  # type: ignore[union-attr]
        if not isinstance(key, str) or len(key) > _MAX_TEXT_KEY or text[position] != ":":
            raise FrameError("the message is not a JSON object")
        start = skip(text, position + 1).end()  # type: ignore[union-attr]
        values[key], end = decode(text, start)
        raw[key] = text[start:end]
        position = skip(text, end).end()  # type: ignore[union-attr]
        separator = text[position]
        position = skip(text, position + 1).end()  # type: ignore[union-attr]
    if separator != "}" or (values and position != len(text)):
        raise FrameError("the message is not a JSON object")
    return raw, values


def _assemble(raw: dict[str, str], values: dict[str, Any], buffers: list[bytes]) -> ClientMessage:
    channel = values.get("channel")
    channel = "shell" if channel is None else channel
    if not isinstance(channel, str) or channel not in CHANNELS:
        raise FrameError("the channel is unknown")
    parts = []
    for name in ("header", "parent_header", "metadata", "content"):
        value = values.get(name)
        if value is not None and not isinstance(value, dict):
            raise FrameError("a part of the message is not a JSON object")
        try:
            parts.append(raw[name].encode() if value is not None else b"{}")
        except UnicodeEncodeError as error:
            raise FrameError("the message is not UTF-8") from error
    return ClientMessage(channel, _checked(values.get("header") or {}), parts + buffers)


def _checked(header: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(header.get("msg_type"), str) or not isinstance(header.get("msg_id"), str):
        raise FrameError("the header has no msg_type or no msg_id")
    return header


# -- to websockets -------------------------------------------------------------------------------------------------


def frame_head(opcode: int, length: int) -> bytes:
    """Return the head of a whole, unmasked websocket frame (RFC 6455) with a payload of ``length`` bytes."""
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 65536:
        return struct.pack(">BBH", 0x80 | opcode, 126, length)
    return struct.pack(">BBQ", 0x80 | opcode, 127, length)


def encode_v1(channel: str, parts: Sequence[bytes]) -> bytes:
    """Return the message as a complete v1 websocket frame."""
    name = channel.encode()
    count = len(parts) + 2
    offset = 8 * (count + 1)
    offsets = [offset, offset := offset + len(name)]
    offsets += [offset := offset + len(part) for part in parts]
    return b"".join((frame_head(2, offset), struct.pack(f"<{count + 1}Q", count, *offsets), name, *parts))


def encode_legacy(channel: str, header: dict[str, Any], parts: Sequence[bytes]) -> bytes:
    """Return the message as a complete legacy websocket frame: binary when it has buffers, else text.

    ``header`` is the decoded ``parts[0]``. A text frame must be UTF-8 or browsers drop the connection, so bytes that
    are not are replaced.
    """
    pieces = (
        b'{"channel":"',
        channel.encode(),
        b'","header":',
        parts[0],
        b',"parent_header":',
        parts[1],
        b',"metadata":',
        parts[2],
        b',"content":',
        parts[3],
        b',"msg_id":',
        _QUOTE(str(header.get("msg_id", ""))).encode(),
        b',"msg_type":',
        _QUOTE(str(header.get("msg_type", ""))).encode(),
    )
    if len(parts) == 4:
        length = sum(map(len, pieces)) + 14
        frame = b"".join((frame_head(1, length), *pieces, b',"buffers":[]}'))
        return frame if all(map(_is_utf8, parts)) else _repaired(b"".join((*pieces, b',"buffers":[]}')))
    blobs = [b"".join((*pieces, b"}")), *parts[4:]]
    offset = 4 * (len(blobs) + 1)
    offsets = [offset]
    offsets += [offset := offset + len(blob) for blob in blobs]
    if offset >= 1 << 32:
        raise FrameError("the message is too large for the legacy protocol")
    return b"".join((frame_head(2, offset), struct.pack(f">{len(blobs) + 1}I", len(blobs), *offsets[:-1]), *blobs))


def _is_utf8(part: bytes) -> bool:
    if part.isascii():
        return True
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


def _repaired(payload: bytes) -> bytes:
    payload = payload.decode(errors="replace").encode()
    return frame_head(1, len(payload)) + payload
