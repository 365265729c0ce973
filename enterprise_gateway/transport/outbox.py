"""What waits to be sent to one websocket, and what was sent and may not have arrived.

Bounded, merged when it piles up, many frames to a write.
"""

from __future__ import annotations

from asyncio import Future
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple, Protocol

from .frames import frame_head, is_final
from .messages import KernelMessage
from .receipts import Receipts

MAX_WRITE_BYTES = 256 << 10
MAX_WHOLE_BYTES = 1 << 20  # of a message; a larger one is sent in fragments
MAX_MERGED_BYTES = 1 << 20
MAX_UNRECEIVED_BYTES = 8 << 20  # sent, and not known to have arrived
JUPYTER_MESSAGE_LIMIT = 10_000_000  # a bit less than what tornado's websocket client takes, Jupyter Server's
TRY_AGAIN_LATER = 1013  # websocket close codes
MESSAGE_TOO_BIG = 1009

_RECHECK_SECONDS = 0.5  # after which a ping that was not answered is followed by another
_ANSWER_SECONDS = 1.0  # that a client which lives and reads may take to answer a ping
_NEVER = 1 << 62  # a position that no stream comes to


class ByteStream(Protocol):
    """The connection below a websocket. Positions are numbers of bytes since it was opened."""

    def write(self, data: bytes) -> Future[None]:
        """Accept ``data``; the future is done when all of it has been handed to the operating system."""

    def close(self) -> None:
        """Cut the connection."""

    @property
    def accepted(self) -> int:
        """The position after what was given to ``write`` so far."""

    def acknowledged(self) -> Acknowledged:
        """Return how far the peer's TCP layer follows; of a closed connection, what was the case then."""


class Acknowledged(NamedTuple):
    """How far the peer's TCP layer follows.

    Parameters
    ----------
    position
        Up to where it has acknowledged.
    expected
        The same, with what was sent so shortly ago that an acknowledgement may be on its way.
    is_line_dead
        Whether acknowledgements are overdue.
    """

    position: int
    expected: int
    is_line_dead: bool


class Outbox:
    """Queue of one websocket.

    As long as the peer keeps up, everything put in is joined into one write by :meth:`flush`, but for large messages,
    which go out in fragments, one in each turn of the loop. While a write is unfinished, messages wait here and not in
    the stream: consecutive texts of one output stream become one message, and when more than ``limit`` bytes wait, the
    websocket is closed. ``close`` is what begins to close it: it gets the close code and the reason. Output streams'
    texts over ``split`` bytes go out as several messages (0: as they are).

    What was written is kept until it is known to have arrived. Proof is the answer to a later ping, which comes from
    the client itself, through any proxy. What TCP has acknowledged since has arrived at the peer's system: that
    counts where pings are not answered at all, where the last one is too young to tell, and where the line to the
    peer is what broke. Not if the peer acknowledges but does not answer: that is a proxy whose client is gone.

    This is the :class:`~enterprise_gateway.transport.channels.ChannelsClient` that attaches to a kernel's channels.
    """

    __slots__ = (
        "_answers",
        "_asked",
        "_asked_at",
        "_bytes",
        "_close",
        "_flight",
        "_is_ended",
        "_is_held",
        "_largest",
        "_limit",
        "_queue",
        "_receipts",
        "_received",
        "_split",
        "_stopped",
        "_stream",
        "_transfer",
        "_v1",
        "_whole",
        "_writing",
        "refused",
    )

    def __init__(
        self,
        stream: ByteStream,
        *,
        v1: bool,
        limit: int,
        split: int,
        close: Callable[[int, str], None],
        receipts: Receipts,
    ) -> None:
        self.refused: KernelMessage | None = None  # because of which the client has ended the connection
        self._stream = stream
        self._v1 = v1
        self._limit = limit
        self._split = split or _NEVER
        self._whole = min(MAX_WHOLE_BYTES, self._split)
        self._close = close
        self._receipts = receipts
        self._queue: list[KernelMessage | _MergedStream] = []  # an empty deque would take 600 bytes
        self._transfer: _Transfer | None = None  # comes before what waits
        self._bytes = 0
        self._largest = 0  # the largest message since the queue was last empty
        self._writing = False
        self._stopped = False
        self._is_ended = False  # by the peer
        self._is_held = False  # until a receipt comes
        self._flight: list[tuple[int, KernelMessage]] = []  # written, by the position where each ends
        self._received = 0  # everything before this position has arrived
        self._answers = False  # whether the client has answered any ping
        self._asked = 0  # the position of the newest ping
        self._asked_at: float | None = None  # when the oldest ping was sent that was not answered

    @property
    def waiting_bytes(self) -> int:
        """What waits here, not counting the write in progress."""
        return self._bytes

    def put(self, message: KernelMessage, *, unlimited: bool = False) -> None:
        """Add a message; it is sent by the next :meth:`flush`.

        One message is always taken, however large it is, and all are that are replayed (``unlimited``): those are
        bounded already.
        """
        if (self._writing or self._is_held) and self._merge(message):
            return
        if not self._queue:
            self._largest = 0
        self._queue.append(message)
        self._bytes += message.size
        self._largest = max(self._largest, message.size)
        if self._is_over() and not unlimited:
            self.flush()  # without a write in progress it is not known whether the peer keeps up
            if self._is_over():
                self._overflow()

    def flush(self) -> None:
        """Write what waits, unless a write is in progress or too much was not received yet."""
        while (self._queue or self._transfer is not None) and not self._writing and not self._stopped:
            self._is_held = self._is_full() and (self._transfer is None or not self._transfer.has_begun)
            if self._is_held:
                return
            first = len(self._flight)
            frames, end = self._take()
            if self._asked_at is None:
                if self._may_ask(end):
                    frames.append(self._ping(end))
                self._receipts.later(self)
            try:
                future = self._stream.write(frames[0] if len(frames) == 1 else b"".join(frames))
            except OSError:  # the stream is closed; the handler hears of it by itself
                self._flight[first:] = [(_NEVER, message) for _, message in self._flight[first:]]
                self._writing = True
                return
            if self._transfer is not None or not future.done():
                self._writing = True
                future.add_done_callback(self._on_written)  # in another turn, be it done already

    def ask(self) -> bool:
        """Ask for a receipt if any is missing; called by :class:`Receipts` until this returns False."""
        if self._stopped or not self._flight:
            return False
        if self._asked_at is None:
            self.ping()
        elif self._receipts.clock() - self._asked_at >= _RECHECK_SECONDS:
            self.ping()  # whether TCP acknowledges this one tells a dead line from a client that is busy
            return False
        return True

    def ping(self) -> None:
        """Send a ping; also the way to hear whether an idle client lives."""
        with suppress(OSError):  # the stream is closed
            self._stream.write(self._ping(self._stream.accepted))

    def on_pong(self, payload: bytes) -> None:
        """Take in the answer to a ping: all that was sent before it has arrived."""
        position = int.from_bytes(payload, "big") if len(payload) == 8 else 0
        if not self._received < position <= self._asked:
            return
        self._answers = True
        self._set_received(position)
        self._asked_at = None if position == self._asked else self._receipts.clock()
        if self._asked_at is None and self._flight:
            if self._is_full():
                self.ping()
            self._receipts.later(self)
        self._flush_alone()

    def unsent(self) -> list[KernelMessage]:
        """Return the messages that are not known to have arrived, in order; called when the connection is closed."""
        self._set_received(self._find_received())
        under_way = self._transfer.messages() if self._transfer is not None else []
        return [message for _, message in self._flight] + under_way + [_plain(entry) for entry in self._queue]

    def note_end(self, code: int | None) -> None:
        """Find the message (:attr:`refused`) for which the client has closed, with ``code``, or cut the connection.

        A client that meets a message over its limit says so by the code, or does not get to say it: what it had not
        read by then makes the system reset the connection. Messages up to there have arrived.
        """
        if self._stopped:
            return  # it was we who ended it
        self._is_ended = True
        if code not in {None, MESSAGE_TOO_BIG}:
            return
        if not self._answers:
            self._set_received(0 if code == MESSAGE_TOO_BIG else self._stream.acknowledged().position)
        messages = [message for _, message in self._flight]
        if self._transfer is not None and self._transfer.has_begun:
            messages.append(self._transfer.message)
        suspects = [message for message in messages if message.size >= JUPYTER_MESSAGE_LIMIT]
        if not suspects and code == MESSAGE_TOO_BIG and messages:
            suspects = [max(messages, key=lambda message: message.size)]
        if suspects:
            self.refused = suspects[0]
            del self._flight[: messages.index(self.refused)]

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

    def _is_full(self) -> bool:
        """Whether to wait for a receipt before more is written."""
        if not self._is_beyond_window(self._stream.accepted):
            return False
        if not self._answers:
            self._set_received(self._stream.acknowledged().position)
        return self._answers

    def _is_beyond_window(self, position: int) -> bool:
        return position - self._received > min(self._limit, MAX_UNRECEIVED_BYTES)

    def _may_ask(self, position: int) -> bool:
        """Whether a ping follows a write that ends at ``position``: always when no more may follow without one."""
        if self._answers and self._is_beyond_window(position):
            return True
        return not self._queue and self._receipts.take_turn()

    def _ping(self, position: int) -> bytes:
        self._asked = position
        if self._asked_at is None:
            self._asked_at = self._receipts.clock()
        return _PING_HEAD + position.to_bytes(8, "big")

    def _set_received(self, position: int) -> None:
        self._received = max(self._received, position)
        del self._flight[: bisect_right(self._flight, self._received, key=itemgetter(0))]

    def _find_received(self) -> int:
        if self.refused is not None:
            return self._received
        tcp = self._stream.acknowledged()
        if self._answers and self._asked_at is not None and not tcp.is_line_dead:
            waited = self._receipts.clock() - self._asked_at
            if waited >= _ANSWER_SECONDS:
                return self._received
        return tcp.position if self._is_ended else tcp.expected

    def _take(self) -> tuple[list[bytes], int]:
        """Move messages for one write to the list of those in flight; return their frames and where the last ends."""
        frames: list[bytes] = []
        start = position = self._stream.accepted
        count = 0
        for entry in self._queue if self._transfer is None else ():
            size = entry.size
            if frames and position - start + size > MAX_WRITE_BYTES:
                break
            if size > self._whole:
                if not frames:
                    self._begin_transfer(entry)
                break
            count += 1
            self._bytes -= size
            message = _plain(entry)
            frame = message.frame(self._v1)
            frames.append(frame)
            position += len(frame)
            self._flight.append((position, message))
            if message is not entry or message.channel != "iopub":
                message.forget_frames()  # no other websocket is sent this one
        del self._queue[:count]
        if self._transfer is not None:
            frames.append(self._take_fragment(self._transfer))
            position += len(frames[0])
        return frames, position

    def _begin_transfer(self, entry: KernelMessage | _MergedStream) -> None:
        del self._queue[0]
        self._bytes -= entry.size
        self._transfer = _Transfer(_plain(entry), self._split, self._v1)

    def _take_fragment(self, transfer: _Transfer) -> bytes:
        frame, is_last = transfer.next_frame()
        if is_last:
            self._flight.append((self._stream.accepted + len(frame), transfer.message))
            if not transfer.next_piece():
                self._transfer = None
        return frame

    def _on_written(self, future: Future[None]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        self._writing = False
        self._flush_alone()

    def _flush_alone(self) -> None:
        """Flush when no other websocket does."""
        start = len(self._flight)
        self.flush()
        for _, message in self._flight[start:]:
            message.forget_frames()

    def _merge(self, message: KernelMessage) -> bool:
        """Append stream text to the last message that waits, if it is of the same stream and parent."""
        stream = message.stream_text() if message.size <= MAX_MERGED_BYTES else None
        if stream is None:
            return False
        name, text = stream
        size = len(message.parts[3])
        last = self._queue[-1] if self._queue else None
        if not isinstance(last, _MergedStream) or not last.accepts(name, message, self._split):
            last = _MergedStream(message, name)
            self._queue.append(last)
            self._bytes += message.size
        else:
            last.size += size
            self._bytes += size
        last.texts.append(text)
        if self._is_over():
            self._overflow()
        return True


_PING_HEAD = frame_head(9, 8)


class _MergedStream:
    """Consecutive ``stream`` messages of one name and parent; sent under the header of the first."""

    __slots__ = ("first", "name", "size", "texts")

    def __init__(self, first: KernelMessage, name: str) -> None:
        self.first = first
        self.name = name
        self.texts: list[str] = []
        self.size = first.size

    def accepts(self, name: str, message: KernelMessage, limit: int) -> bool:
        size = self.size + len(message.parts[3])
        if name != self.name or size > min(MAX_MERGED_BYTES, limit):
            return False
        return message.parts[1:3] == self.first.parts[1:3]

    def message(self) -> KernelMessage:
        if len(self.texts) == 1:
            return self.first
        return self.first.with_content({"name": self.name, "text": "".join(self.texts)})


class _Transfer:
    """A large message that is being sent: in pieces if it is an output stream's text, each in fragments."""

    __slots__ = ("_fragments", "_rest", "_split", "_v1", "message")

    def __init__(self, message: KernelMessage, split: int, v1: bool) -> None:
        self._split = split
        self._v1 = v1
        self._fragments: Iterator[bytes] | None = None
        self.message, self._rest = message.cut(split)  # the piece whose turn it is

    @property
    def has_begun(self) -> bool:
        """Whether some of the present piece was sent."""
        return self._fragments is not None

    def next_frame(self) -> tuple[bytes, bool]:
        """Return the next frame, and whether it is the piece's last."""
        if self._fragments is None:
            self._fragments = self.message.fragments(self._v1)
        frame = next(self._fragments)
        return frame, is_final(frame)

    def next_piece(self) -> bool:
        """Go on to the next piece; False when there is none."""
        if self._rest is None:
            return False
        self.message, self._rest = self._rest.cut(self._split)
        self._fragments = None
        return True

    def messages(self) -> list[KernelMessage]:
        """Return what was not sent as a whole."""
        rest = self._rest
        if rest is not None and rest.size <= JUPYTER_MESSAGE_LIMIT:
            rest, _ = rest.cut(_NEVER)  # of more, for which copying takes too long, it does for all that is kept
        return [self.message] if rest is None else [self.message, rest]


def _plain(entry: KernelMessage | _MergedStream) -> KernelMessage:
    return entry.message() if isinstance(entry, _MergedStream) else entry
