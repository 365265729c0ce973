"""One websocket to a kernel's channels, read by a thread that hands each message to its requester."""

from __future__ import annotations

import json
import logging
import queue
import struct
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

Message = dict[str, Any]

# The parent of the final message that every waiting request gets when the websocket has closed.
DEAD_MSG_ID = "00000000-dead-dead-dead-000000000000"


class KernelChannel:
    """Sends requests over one websocket, and sorts the responses by request.

    Parameters
    ----------
    url
        The ``ws://…/api/kernels/<id>/channels`` address.
    headers
        Sent with the handshake; holds the token.
    timeout
        Seconds allowed for the handshake.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float, log: logging.Logger) -> None:
        # The gateway itself, which shares this distribution, does not need it: the extra "client" installs it.
        import websocket

        self.session_id = uuid.uuid4().hex
        self.log = log
        self._waiting: dict[str, queue.SimpleQueue[Message]] = {}
        self._lock = threading.Lock()
        self._websocket = websocket.create_connection(
            f"{url}?session_id={self.session_id}",
            header=[f"{name}: {value}" for name, value in headers.items()],
            timeout=timeout,
            enable_multithread=True,
        )
        self._websocket.settimeout(None)
        self._reader = threading.Thread(target=self._read, name=f"kernel-channel-{self.session_id}", daemon=True)
        self._reader.start()

    @contextmanager
    def request(self, msg_type: str, content: Message, channel: str = "shell") -> Iterator[queue.SimpleQueue[Message]]:
        """Send a request and yield the queue in which its replies and outputs arrive, in order."""
        msg_id = uuid.uuid4().hex
        replies: queue.SimpleQueue[Message] = queue.SimpleQueue()
        with self._lock:
            self._waiting[msg_id] = replies
        try:
            self._websocket.send(json.dumps(self._message(msg_id, msg_type, content, channel)))
            if not self._reader.is_alive():
                replies.put(_end_message())
            yield replies
        finally:
            with self._lock:
                del self._waiting[msg_id]

    def close(self) -> None:
        """Close the websocket and wait for the reader thread to end; may be called repeatedly."""
        self._websocket.close(timeout=3)
        self._reader.join(timeout=5)

    def _message(self, msg_id: str, msg_type: str, content: Message, channel: str) -> Message:
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "session": self.session_id,
            "username": "",
            "date": datetime.now(timezone.utc).isoformat(),
            "version": "5.4",
        }
        return {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": channel}

    def _read(self) -> None:
        import websocket

        try:
            while True:
                data = self._websocket.recv()
                if not data:
                    break
                self._dispatch(_decode(data))
        except (websocket.WebSocketException, OSError, ValueError) as error:
            self.log.debug("The websocket of session %s ended: %s", self.session_id, error)
        with self._lock:
            for replies in self._waiting.values():
                replies.put(_end_message())

    def _dispatch(self, message: Message) -> None:
        parent = (message.get("parent_header") or {}).get("msg_id", "")
        with self._lock:
            replies = self._waiting.get(parent)
            everybody = list(self._waiting.values())
        if replies is not None:
            replies.put(message)
        elif message["header"]["msg_type"] == "status" and message["content"]["execution_state"] in _ENDS:
            for each in everybody:
                each.put(message)


_ENDS = {"dead", "restarting"}


def _end_message() -> Message:
    return {"header": {"msg_type": "closed"}, "parent_header": {"msg_id": DEAD_MSG_ID}, "content": {}, "channel": ""}


def _decode(data: str | bytes) -> Message:
    """Return the message of a text frame, or of a binary one (offsets, then JSON, then buffers) without its buffers."""
    if isinstance(data, bytes):
        count = struct.unpack_from("!I", data)[0]
        offsets = struct.unpack_from(f"!{count}I", data, 4)
        data = data[offsets[0] : offsets[1] if count > 1 else None].decode()
    message: Message = json.loads(data)
    return message
