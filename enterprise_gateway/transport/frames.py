"""Websocket payloads to message parts and back, spliced: the JSON of a message is never encoded again.

*Parts* are ``[header, parent_header, metadata, content, *buffers]`` as bytes, the way ZMQ carries them. Two websocket
protocols exist. ``v1.kernel.websocket.jupyter.org`` is binary and carries the parts as they are. The legacy protocol
is one JSON text, or a binary frame when there are buffers; its parts are cut out of that text, or joined into it.

Everything here is a pure function; what a peer sends wrong raises :class:`FrameError` and nothing else. No frame costs
more than a small multiple of its size: the content of a legacy message that is not small is never built, only found in
its text, in steps between which others have their turn (:func:`decode_in_steps`).
"""

from __future__ import annotations

import codecs
import json
import re
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias

V1_PROTOCOL = "v1.kernel.websocket.jupyter.org"
CHANNELS = frozenset({"shell", "control", "stdin", "iopub"})

SMALL_FRAME = 16 << 10  # what no content makes expensive to decode: 1.5 ms at most
MAX_HEADER_BYTES = 64 << 10
MAX_BUFFERS = 4_096
MAX_MEMBERS = 64  # of a legacy message, which has eight
FRAGMENT_BYTES = 256 << 10  # of a large message to a websocket

_DECODE = json.JSONDecoder().raw_decode
_QUOTE = json.encoder.encode_basestring_ascii
_SKIP_SPACE = re.compile(r"[ \t\r\n]*").match
_MAX_TEXT_KEY = 64
_HEAD, _CONTENT_END = 1, 5  # v1 offsets: where the header begins and where the content ends
_COPIED_BYTES = 64 << 10  # larger parts stay where they are in their frame

_CONTINUATION, _TEXT, _BINARY = 0, 1, 2  # opcodes of websocket frames

_CHUNK_BYTES = 16 << 10  # of JSON, gone through in one step: 4 ms at most
_ENCODED_CHARACTERS = 1 << 20
_BEGIN = re.compile(rb"[ \t\r\n]{0,1000}\{").match
_KEY = re.compile(rb'[ \t\r\n]{0,1000}("(?:[^"\\]|\\.){0,64}")[ \t\r\n]{0,1000}:[ \t\r\n]{0,1000}').match
_NEXT = re.compile(rb"[ \t\r\n]{0,1000}([,}])").match
_END = re.compile(rb"[ \t\r\n]{0,1000}\Z").match
_LITERAL = re.compile(rb"[a-zA-Z0-9+.-]{1,400}").match
_TOKENS = re.compile(rb'["[\]{}]').finditer
_DEPTHS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # how each bracket changes the depth, as signed bytes
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_DECODED_MEMBERS = frozenset({"channel", "header", "buffers"})

Part: TypeAlias = "bytes | memoryview"


class FrameError(ValueError):
    """A peer sent something that is no kernel message; the text says what, never its content."""


class FrameTooLargeError(FrameError):
    """A part of a message is larger than any that is meant well, or there are too many."""


class ClientMessage(NamedTuple):
    """A message as a client sent it: ``header`` is the decoded ``parts[0]``.

    A part that makes up most of its frame is a view of it.
    """

    channel: str
    header: dict[str, Any]
    parts: list[Part]


def decode_header(raw: Part) -> dict[str, Any]:
    """Decode a header or parent header, which has to be a JSON object.

    Raises
    ------
    FrameError
        It is too large, not UTF-8, not JSON, or not an object.
    """
    if len(raw) > MAX_HEADER_BYTES:
        raise FrameTooLargeError("a header is over 64 kB")
    return decode_object(raw)


def decode_object(raw: Part) -> dict[str, Any]:
    """Decode a JSON object of any size: for what the caller knows to be small, or text for the most part.

    Raises
    ------
    FrameError
        It is not UTF-8, not JSON, or not an object.
    """
    try:
        text = bytes(raw).decode()
        value, end = _DECODE(text, _SKIP_SPACE(text).end())  # type: ignore[union-attr]
    except (ValueError, RecursionError) as error:
        raise FrameError("a header is not JSON") from error
    if not isinstance(value, dict) or _SKIP_SPACE(text, end).end() != len(text):  # type: ignore[union-attr]
        raise FrameError("a header is not a JSON object")
    return value


# -- from websockets -----------------------------------------------------------------------------------------------


def decode_v1(frame: Part) -> ClientMessage:
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
    if count > _CONTENT_END + 1 + MAX_BUFFERS:
        raise FrameTooLargeError(f"the message has more than {MAX_BUFFERS} buffers")
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    _check_offsets(offsets, 8 * (count + 1), len(frame))
    if offsets[_HEAD] - offsets[0] > _MAX_TEXT_KEY:
        raise FrameError("the channel is unknown")
    channel = bytes(frame[offsets[0] : offsets[_HEAD]]).decode("latin-1")
    if channel not in CHANNELS:
        raise FrameError("the channel is unknown")
    if isinstance(frame, bytes) and len(frame) <= _COPIED_BYTES:
        parts: list[Part] = [frame[start:end] for start, end in pairwise(offsets[_HEAD:])]
    else:
        parts = [_part(frame, start, end) for start, end in pairwise(offsets[_HEAD:])]
    if len(parts[1]) > MAX_HEADER_BYTES:
        raise FrameTooLargeError("a parent header is over 64 kB")
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
    blobs = _split_binary(frame)
    try:
        text = bytes(blobs[0]).decode()
    except UnicodeDecodeError as error:
        raise FrameError("the message is not UTF-8") from error
    message, values = _split_object(text)
    return _assemble(message, values, blobs[1:])


def decode_v1_in_steps(frame: Part) -> Generator[None, None, ClientMessage]:
    """Take a v1 frame apart in its turn: the header may take 6 ms to decode.

    Raises
    ------
    FrameError
        As for :func:`decode_v1`.
    """
    yield
    return decode_v1(frame)


def decode_in_steps(frame: str | Part, is_text: bool) -> Generator[None, None, ClientMessage]:
    """Take a legacy frame of any size apart; each step takes 4 ms at most. The text may not have been decoded yet.

    What stands in content and metadata is not looked at beyond finding where they end: to check that is for the
    kernel, as with v1 frames.

    Raises
    ------
    FrameError
        As for the functions that take small frames apart.
    """
    buffers: list[Part] = []
    text: Part
    if isinstance(frame, str):
        text = yield from _encode_in_steps(frame)
    elif is_text:
        text = frame
    else:
        text, *buffers = _split_binary(frame)
    message = yield from _cut_object(text)
    values = {name: _value(name, raw) for name, raw in message.items()}
    if is_text and values.get("buffers"):
        raise FrameError("a text frame cannot carry buffers")
    return _assemble(message, values, buffers)


def _part(frame: Part, start: int, end: int) -> Part:
    """Return a piece of a frame: a view of it if that keeps little else in memory and saves much copying."""
    if end - start <= _COPIED_BYTES or 2 * (end - start) < len(frame):
        return bytes(frame[start:end])
    return memoryview(frame)[start:end]


def _split_binary(frame: Part) -> list[Part]:
    if len(frame) < 8:
        raise FrameError("the frame is too short")
    count = int.from_bytes(frame[:4], "big")
    if not 0 < count <= len(frame) // 4 - 1:
        raise FrameError("the frame's number of offsets is impossible")
    if count > 1 + MAX_BUFFERS:
        raise FrameTooLargeError(f"the message has more than {MAX_BUFFERS} buffers")
    offsets = (*struct.unpack_from(f">{count}I", frame, 4), len(frame))
    _check_offsets(offsets, 4 * (count + 1), len(frame))
    return [_part(frame, start, end) for start, end in pairwise(offsets)]


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
    count = 0
    while separator == ",":
        count += 1
        if count > MAX_MEMBERS:
            raise FrameTooLargeError(f"the message has more than {MAX_MEMBERS} members")
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


def _encode_in_steps(text: str) -> Generator[None, None, memoryview]:
    data = bytearray()
    try:
        for position in range(0, len(text), _ENCODED_CHARACTERS):
            data += text[position : position + _ENCODED_CHARACTERS].encode()
            yield
    except UnicodeEncodeError as error:
        raise FrameError("the message is not UTF-8") from error
    return memoryview(data)


def _cut_object(text: Part) -> Generator[None, None, dict[str, Part]]:
    """Return the raw text of each member of the JSON object ``text``."""
    raw: dict[str, Part] = {}
    found = _BEGIN(text)
    for _ in range(MAX_MEMBERS):
        key = _KEY(text, found.end()) if found is not None else None
        if key is None:
            raise FrameError("the message is not a JSON object")
        end = yield from find_end(text, key.end())
        raw[_decode_key(key[1])] = _part(text, key.end(), end)
        found = _NEXT(text, end)
        if found is not None and found[1] == b"}":
            if _END(text, found.end()) is None:
                raise FrameError("the message is not a JSON object")
            return raw
    raise FrameTooLargeError(f"the message has more than {MAX_MEMBERS} members")


def find_end(text: Part, start: int) -> Generator[None, None, int]:
    """Return where the JSON value that begins at ``start`` ends, by its brackets and quotes alone.

    No step takes time by what stands in a chunk, but for the last one: all of it is done by functions of the
    interpreter that go through bytes.

    Raises
    ------
    FrameError
        It does not end.
    """
    first = bytes(text[start : start + 1])
    if first not in {b"{", b"[", b'"'}:
        literal = _LITERAL(text, start)
        if literal is None:
            raise FrameError("the message is not JSON")
        return literal.end()
    is_inside = first == b'"'  # a string
    depth = 0 if is_inside else 1
    position = start + 1
    while position < len(text):
        chunk = bytes(text[position : position + _CHUNK_BYTES])
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:  # ends within an escape
            chunk = chunk[:-1] or chunk
        plain = chunk.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        pieces = plain.split(b'"')
        if depth == 0:
            if len(pieces) > 1:
                return position + len(pieces[0]) + 1
        else:
            brackets = b"".join(pieces[is_inside::2]).translate(_DEPTHS, _NO_BRACKETS)
            closing = brackets.count(b"\xff")
            if depth <= closing and min(accumulate(memoryview(brackets).cast("b"), initial=depth)) <= 0:
                return position + _end_within(plain, is_inside, depth)
            depth += len(brackets) - 2 * closing
            is_inside ^= len(pieces) % 2 == 0
        position += len(chunk)
        yield
    raise FrameError("the message is not JSON")


def _end_within(plain: bytes, is_inside: bool, depth: int) -> int:
    for token in _TOKENS(plain):
        if token[0] == b'"':
            is_inside = not is_inside
        elif not is_inside:
            depth += 1 if token[0] in b"[{" else -1
            if depth == 0:
                return token.end()
    raise AssertionError("the end is in here")


def _decode_key(raw: bytes) -> str:
    try:
        key, _ = _DECODE(raw.decode())
    except ValueError as error:
        raise FrameError("the message is not JSON") from error
    return str(key)


def _value(name: str, raw: Part) -> Any:
    """Return a member's value if routing needs it; of the others, only whether it is null, an object or neither."""
    if raw == b"null":
        return None
    if name not in _DECODED_MEMBERS:
        return {} if raw[:1] == b"{" else True
    if len(raw) > MAX_HEADER_BYTES:
        if name == "header":
            raise FrameTooLargeError("a header is over 64 kB")
        return True
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise FrameError("the message is not JSON") from error


def _assemble(raw: Mapping[str, str | Part], values: dict[str, Any], buffers: list[Part]) -> ClientMessage:
    channel = values.get("channel")
    channel = "shell" if channel is None else channel
    if not isinstance(channel, str) or channel not in CHANNELS:
        raise FrameError("the channel is unknown")
    parts: list[Part] = []
    for name in ("header", "parent_header", "metadata", "content"):
        value = values.get(name)
        if value is not None and not isinstance(value, dict):
            raise FrameError("a part of the message is not a JSON object")
        part = raw[name] if value is not None else b"{}"
        try:
            parts.append(part.encode() if isinstance(part, str) else part)
        except UnicodeEncodeError as error:
            raise FrameError("the message is not UTF-8") from error
    if max(len(parts[0]), len(parts[1])) > MAX_HEADER_BYTES:
        raise FrameTooLargeError("a header is over 64 kB")
    return ClientMessage(channel, _checked(values.get("header") or {}), parts + buffers)


def _checked(header: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(header.get("msg_type"), str) or not isinstance(header.get("msg_id"), str):
        raise FrameError("the header has no msg_type or no msg_id")
    return header


# -- to websockets -------------------------------------------------------------------------------------------------


def frame_head(opcode: int, length: int, *, is_final: bool = True) -> bytes:
    """Return the head of an unmasked websocket frame (RFC 6455) with a payload of ``length`` bytes."""
    first = 0x80 | opcode if is_final else opcode
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return struct.pack(">BBH", first, 126, length)
    return struct.pack(">BBQ", first, 127, length)


def is_final(frame: bytes) -> bool:
    """Whether a websocket frame is the last one of its message."""
    return bool(frame[0] & 0x80)


def encode_v1(channel: str, parts: Sequence[Part]) -> bytes:
    """Return the message as a complete v1 websocket frame."""
    length, pieces = _v1_payload(channel, parts)
    return b"".join((frame_head(_BINARY, length), *pieces))


def encode_legacy(channel: str, header: dict[str, Any], parts: Sequence[Part]) -> bytes:
    """Return the message as a complete legacy websocket frame: binary when it has buffers, else text.

    ``header`` is the decoded ``parts[0]``. A text frame must be UTF-8 or browsers drop the connection, so bytes that
    are not are replaced.
    """
    opcode, pieces = _legacy_payload(channel, header, parts)
    payload = b"".join(pieces)
    if opcode == _TEXT and not payload.isascii():
        payload = payload.decode(errors="replace").encode()
    return frame_head(opcode, len(payload)) + payload


def fragments_v1(channel: str, parts: Sequence[Part]) -> Iterator[bytes]:
    """Return the message as v1 websocket frames of ``FRAGMENT_BYTES``, each made when it is needed."""
    _, pieces = _v1_payload(channel, parts)
    return _fragments(_BINARY, _chunks(pieces))


def fragments_legacy(channel: str, header: dict[str, Any], parts: Sequence[Part]) -> Iterator[bytes]:
    """Return the message as legacy websocket frames, like :func:`encode_legacy` and :func:`fragments_v1`."""
    opcode, pieces = _legacy_payload(channel, header, parts)
    chunks = _chunks(pieces)
    return _fragments(opcode, _repaired(chunks) if opcode == _TEXT else chunks)


def _v1_payload(channel: str, parts: Sequence[Part]) -> tuple[int, tuple[Part, ...]]:
    """Return the length and the pieces."""
    name = channel.encode()
    count = len(parts) + 2
    offset = 8 * (count + 1)
    offsets = [offset, offset := offset + len(name)]
    offsets += [offset := offset + len(part) for part in parts]
    return offset, (struct.pack(f"<{count + 1}Q", count, *offsets), name, *parts)


def _legacy_payload(channel: str, header: dict[str, Any], parts: Sequence[Part]) -> tuple[int, list[Part]]:
    """Return the opcode and the pieces."""
    text: list[Part] = [
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
    ]
    if len(parts) == 4:
        return _TEXT, [*text, b',"buffers":[]}']
    text.append(b"}")
    buffers = parts[4:]
    offset = 4 * (len(buffers) + 2)
    offsets = [offset, offset := offset + sum(map(len, text))]
    offsets += [offset := offset + len(buffer) for buffer in buffers]
    if offset >= 1 << 32:
        raise FrameError("the message is too large for the legacy protocol")
    return _BINARY, [struct.pack(f">{len(buffers) + 2}I", len(buffers) + 1, *offsets[:-1]), *text, *buffers]


def _chunks(pieces: Iterable[Part]) -> Iterator[bytes]:
    """Join and cut, so that each is of ``FRAGMENT_BYTES``, but for the last one."""
    gathered: list[Part] = []
    room = FRAGMENT_BYTES
    for piece in pieces:
        start = 0
        while len(piece) - start >= room:
            gathered.append(memoryview(piece)[start : start + room])
            yield b"".join(gathered)
            gathered, start, room = [], start + room, FRAGMENT_BYTES
        gathered.append(memoryview(piece)[start:])
        room -= len(piece) - start
    yield b"".join(gathered)


def _repaired(chunks: Iterable[bytes]) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in chunks:
        is_left = bool(decoder.getstate()[0])  # the beginning of a character
        yield chunk if chunk.isascii() and not is_left else decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()


def _fragments(opcode: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Return the frames of one message."""
    last = b""
    for chunk in filter(None, chunks):
        if last:
            yield frame_head(opcode, len(last), is_final=False) + last
            opcode = _CONTINUATION
        last = chunk
    yield frame_head(opcode, len(last)) + last
