"""What waits to be sent to one websocket: bounded, merged when it piles up, many frames to a write."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from typing import Protocol

from .messages import KernelMessage

MAX_WRITE_BYTES = 256 << 10
MAX_MERGED_BYTES = 1 << 20
TRY_AGAIN_LATER = 1013  # websocket close code


class ByteStream(Protocol):
    """The connection below a websocket; ``accepted`` and ``handed_over`` count bytes since it was opened."""

    def write(self, data: bytes) -> Future[None]:
        """Accept ``data``; the future is done when all of it has been handed to the operating system."""

    def close(self) -> None:
        """Cut the connection."""

    @property
    def accepted(self) -> int:
        """Bytes given to ``write`` so far."""

    @property
    def handed_over(self) -> int:
        """Bytes of them that the operating system has taken."""


class Outbox:
    """Queue of one websocket.

    As long as the peer keeps up, everything put in is joined into one write by :meth:`flush`. While a write is
    unfinished, messages wait here and not in the stream: consecutive texts of one output stream become one message,
    and when more than ``limit`` bytes wait, the websocket is closed. ``close`` is what begins to close it: it gets the
    close code and the reason.

    This is the :class:`~enterprise_gateway.transport.channels.ChannelsClient` that attaches to a kernel's channels.
    """

    __slots__ = (
        "_bytes",
        "_close",
        "_flight",
        "_largest",
        "_limit",
        "_queue",
        "_stopped",
        "_stream",
        "_v1",
        "_writing",
    )

    def __init__(self, stream: ByteStream, *, v1: bool, limit: int, close: Callable[[int, str], None]) -> None:
        self._stream = stream
        self._v1 = v1
        self._limit = limit
        self._close = close
        self._queue: list[KernelMessage | _MergedStream] = []  # an empty deque would take 600 bytes
        self._bytes = 0
        self._largest = 0  # the largest message since the queue was last empty
        self._writing = False
        self._stopped = False
        self._flight: list[tuple[int, KernelMessage]] = []

    @property
    def waiting_bytes(self) -> int:
        """What waits here, not counting the write that is under way."""
        return self._bytes

    def put(self, message: KernelMessage, *, unlimited: bool = False) -> None:
        """Add a message; it is sent by the next :meth:`flush`.

        One message is always taken, however large it is, and all are that are replayed (``unlimited``): those are
        bounded already.
        """
        if self._writing and self._merge(message):
            return
        if not self._queue:
            self._largest = 0
        self._queue.append(message)
        self._bytes += message.size
        self._largest = max(self._largest, message.size)
        if self._is_over() and not unlimited:
            self.flush()  # as long as no write is under way nothing shows whether the peer keeps up
            if self._is_over():
                self._overflow()

    def flush(self) -> None:
        """Write what waits, unless a write is under way."""
        while self._queue and not self._writing and not self._stopped:
            batch, data = self._take()
            try:
                future = self._stream.write(data)
            except OSError:  # the stream is closed; the handler hears of it by itself
                self._flight = [(1 << 62, message) for message, _ in batch]
                self._writing = True
                return
            if not future.done():
                self._writing = True
                start = self._stream.accepted - len(data)
                self._flight = [(start + end, message) for message, end in batch]
                future.add_done_callback(self._on_written)

    def unsent(self) -> list[KernelMessage]:
        """Return the messages of which the operating system has not taken every byte, in order."""
        done = self._stream.handed_over
        messages = [message for end, message in self._flight if end > done]
        return messages + [_plain(entry) for entry in self._queue]

    def stop(self) -> None:
        """Start no further write; what waits stays for :meth:`unsent`."""
        self._stopped = True

    def close(self, code: int, reason: str) -> None:
        """Begin to close the websocket."""
        self.stop()
        self._close(code, reason)

    def abort(self) -> None:
        """Cut the connection at once; nothing more goes out."""
        self.stop()
        self._stream.close()

    def _is_over(self) -> bool:
        return self._bytes > self._limit + self._largest

    def _overflow(self) -> None:
        self.close(TRY_AGAIN_LATER, "the client takes its messages too slowly")

    def _take(self) -> tuple[list[tuple[KernelMessage, int]], bytes]:
        """Take messages for one write: a list with the offset where each one ends, and their bytes."""
        batch: list[tuple[KernelMessage, int]] = []
        frames: list[bytes] = []
        length = 0
        for entry in self._queue:
            if length and length + entry.size > MAX_WRITE_BYTES:
                break
            self._bytes -= entry.size
            message = _plain(entry)
            frame = message.frame(self._v1)
            length += len(frame)
            frames.append(frame)
            batch.append((message, length))
        del self._queue[: len(batch)]
        return batch, frames[0] if len(frames) == 1 else b"".join(frames)

    def _on_written(self, future: Future[None]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        if self._flight:
            self._flight = []
            self._writing = False
            self.flush()

    def _merge(self, message: KernelMessage) -> bool:
        """Append stream text to the last message that waits, if it is of the same stream and parent."""
        stream = message.stream_text()
        if stream is None:
            return False
        name, text = stream
        last = self._queue[-1] if self._queue else None
        if not isinstance(last, _MergedStream) or not last.accepts(name, message):
            last = _MergedStream(message, name)
            self._queue.append(last)
            self._bytes += message.size
            last.texts.append(text)
        else:
            last.texts.append(text)
            last.size += len(text)
            self._bytes += len(text)
        if self._is_over():
            self._overflow()
        return True


class _MergedStream:
    """Consecutive ``stream`` messages of one name and parent; sent under the header of the first."""

    __slots__ = ("first", "name", "size", "texts")

    def __init__(self, first: KernelMessage, name: str) -> None:
        self.first = first
        self.name = name
        self.texts: list[str] = []
        self.size = first.size

    def accepts(self, name: str, message: KernelMessage) -> bool:
        return name == self.name and self.size < MAX_MERGED_BYTES and message.parts[1:3] == self.first.parts[1:3]

    def message(self) -> KernelMessage:
        if len(self.texts) == 1:
            return self.first
        return self.first.with_content({"name": self.name, "text": "".join(self.texts)})


def _plain(entry: KernelMessage | _MergedStream) -> KernelMessage:
    return entry.message() if isinstance(entry, _MergedStream) else entry
