"""What a gateway leaves to the next one about the conversation with a kernel that it cannot ask the kernel for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .messages import KernelMessage, MessageFactory

MAX_REQUESTS = 100
PROOF_SECONDS = 1.0  # an idle kernel answers sooner

GAP_NOTICE = "[The gateway was restarted while this cell was running; anything it wrote meanwhile is lost.]\n"
LOST_REPLY = (
    "The gateway was restarted before it had the kernel's reply to this request, and the reply is lost. The code has "
    "most likely run: variables and files are as it has left them."
)


@dataclass
class Memory:
    """What is known of a kernel besides how it is reached; put on record, so JSON values only.

    Parameters
    ----------
    execution_state
        By its last status message; empty when not known.
    last_activity, busy_since
        Seconds since the epoch; 0 when not known or not busy.
    last_cell
        Header (JSON text) of the request that was executed last.
    requests
        Headers (JSON text) of execute requests that were not replied to.
    sessions
        The sessions of each client that may come back.
    identity
        That of the gateway's sockets: replies still due reach the next gateway when it has the same one.
    """

    execution_state: str = ""
    last_activity: float = 0.0
    busy_since: float = 0.0
    last_cell: str = "{}"
    requests: tuple[str, ...] = ()
    sessions: tuple[tuple[str, ...], ...] = ()
    identity: str = ""

    @classmethod
    def from_record(cls, value: object) -> Memory:
        """Return what a record holds; entries of another type, as another version may write them, are left out."""
        known = value if isinstance(value, Mapping) else {}
        memory = cls()
        for name in (field.name for field in fields(cls)):
            entry = known.get(name)
            default = getattr(memory, name)
            if isinstance(default, tuple) and isinstance(entry, list):
                setattr(memory, name, tuple(tuple(part) if isinstance(part, list) else part for part in entry))
            elif isinstance(default, float) and isinstance(entry, (int, float)):
                setattr(memory, name, float(entry))
            elif isinstance(default, str) and isinstance(entry, str):
                setattr(memory, name, entry)
        return memory

    def to_record(self) -> dict[str, Any]:
        """Return the JSON values for the record."""
        return asdict(self)


class OpenRequests:
    """The execute requests that a kernel has not replied to, oldest first: their raw headers by message id."""

    __slots__ = ("_headers",)

    def __init__(self) -> None:
        self._headers: dict[str, bytes] = {}

    def note(self, msg_id: object, raw_header: bytes) -> None:
        """Note a request; the oldest is forgotten when there are too many."""
        if isinstance(msg_id, str):
            self._headers[msg_id] = raw_header
            if len(self._headers) > MAX_REQUESTS:
                del self._headers[next(iter(self._headers))]

    def has(self, msg_id: object) -> bool:
        """Whether a request is noted."""
        return msg_id in self._headers

    def answered(self, msg_id: object) -> None:
        """Forget a request."""
        self._headers.pop(msg_id, None)  # type: ignore[call-overload]

    def clear(self) -> None:
        """Forget all: the kernel that was asked is gone."""
        self._headers.clear()

    def texts(self) -> tuple[str, ...]:
        """Return the headers as text."""
        return tuple(header.decode("utf-8", "replace") for header in self._headers.values())

    def restore(self, texts: Iterable[str]) -> None:
        """Note again what an earlier gateway had noted."""
        for text in texts:
            try:
                header = json.loads(text)
            except ValueError:
                continue
            if isinstance(header, dict):
                self.note(header.get("msg_id"), text.encode())

    def take_all(self) -> list[bytes]:
        """Return all headers and forget them."""
        headers = list(self._headers.values())
        self._headers.clear()
        return headers


def lost_reply(factory: MessageFactory, request: bytes) -> list[KernelMessage]:
    """Return what ends the waiting for a request whose reply is lost: an error, then ``idle`` and the reply."""
    error = {"ename": "GatewayRestarted", "evalue": LOST_REPLY, "traceback": [LOST_REPLY]}
    return [
        factory.make("iopub", "error", error, request),
        factory.make("iopub", "status", {"execution_state": "idle"}, request),
        factory.make("shell", "execute_reply", {"status": "error", "execution_count": None, **error}, request),
    ]
