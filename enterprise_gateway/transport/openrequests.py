"""What clients have asked a kernel and have not been told yet: who asked, and what they get if the kernel cannot."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from .frames import MAX_HEADER_BYTES
from .messages import KernelMessage, MessageFactory

KERNEL_DIED = "KernelDied"  # names of errors
KERNEL_RESTARTED = "KernelRestarted"
KERNEL_SHUT_DOWN = "KernelShutDown"

MAX_REQUESTS = 1_000
MAX_BYTES = 1 << 20
MAX_ID_LENGTH = 256
MAX_RECORDED = 100
_MAX_REPLIED = 16
_MAX_WORK = 1_000

_CONTROL_TYPES = frozenset(
    f"{name}_request"
    for name in ("shutdown", "interrupt", "debug", "usage", "create_subshell", "delete_subshell", "list_subshell")
)

Key: TypeAlias = tuple[str, str]


def key_of(header: Mapping[str, Any]) -> Key | None:
    """Return session and message id of a request, by its header or by the parent header of what answers it.

    Two clients may use the same message ids. A session that is no text counts as none, and so does an id, of either
    kind, that is longer than any that is meant well.
    """
    session, msg_id = header.get("session"), header.get("msg_id")
    if not isinstance(msg_id, str) or len(msg_id) > MAX_ID_LENGTH:
        return None
    return (session if isinstance(session, str) and len(session) <= MAX_ID_LENGTH else "", msg_id)


class Request:
    """One request: its raw header, the websocket that sent it (None: an earlier gateway's) and how far it has come.

    ``session_id`` is the websocket's, with which its client may reconnect.
    """

    __slots__ = ("asker", "channel", "has_begun", "is_idle", "is_replied", "msg_type", "raw_header", "session_id")

    def __init__(
        self, channel: str, msg_type: str, raw_header: bytes, asker: object = None, session_id: str = ""
    ) -> None:
        self.channel = channel
        self.msg_type = msg_type
        self.raw_header = raw_header
        self.asker = asker
        self.session_id = session_id
        self.has_begun = False
        self.is_idle = False
        self.is_replied = False

    @property
    def has_reply(self) -> bool:
        """Whether the protocol has a reply to requests of this type: comm messages, say, have none."""
        return self.msg_type.endswith("_request")

    def failure(
        self, factory: MessageFactory, ename: str, text: str, kernel_info: Mapping[str, Any]
    ) -> list[KernelMessage]:
        """Return what the kernel has not yet sent for this request, as an error: its output, the reply, and ``idle``.

        ``kernel_info`` is what the kernel has said of itself. Who asks for that gets it with the error: papermill reads
        the language out of the reply whatever its status, when the cell that ended the kernel has failed.
        """
        error = {"ename": ename, "evalue": text, "traceback": [f"{ename}: {text}"]}  # notebooks show the last
        owed = []
        if self.has_reply and not self.is_replied:
            content: dict[str, Any] = {"status": "error", **error}
            if self.msg_type == "kernel_info_request":
                content = {**kernel_info, **content}
            elif self.msg_type == "execute_request":
                content["execution_count"] = None
                if self.has_begun:  # else a notebook that waited in line would have the error below each of its cells
                    owed.append(factory.make("iopub", "error", error, self.raw_header))
            reply_type = self.msg_type.removesuffix("request") + "reply"
            owed.append(factory.make(self.channel, reply_type, content, self.raw_header))
        if not self.is_idle:
            owed.append(factory.make("iopub", "status", {"execution_state": "idle"}, self.raw_header))
        return owed


class OpenRequests:
    """The requests that a kernel has not done with, oldest first; the oldest are forgotten when there are too many.

    Clients that number their messages without naming a session may use one key at the same time: kernels answer in
    turn, so the first answer is the first one's.
    """

    __slots__ = ("_bytes", "_count", "_open", "_replied")

    def __init__(self) -> None:
        self._open: dict[Key, list[Request]] = {}
        self._replied: dict[Key, Request] = {}  # those whose ``idle`` is still due
        self._count = 0
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._open or self._replied)

    def add(self, key: Key | None, request: Request) -> None:
        """Note a request that was sent."""
        if key is None or len(request.raw_header) > MAX_HEADER_BYTES:
            return
        self._open.setdefault(key, []).append(request)
        self._count += 1
        self._bytes += len(request.raw_header)
        while self._count > MAX_REQUESTS or self._bytes > MAX_BYTES:
            self._pop(next(iter(self._open)))

    def find(self, key: Key | None) -> Request | None:
        """Return the request that a message of the kernel belongs to, None when it is not replied to any more."""
        requests = self._open.get(key) if key is not None else None
        return requests[0] if requests else None

    def has(self, key: Key | None) -> bool:
        """Whether a request is noted, if only because ``idle`` is due."""
        return key in self._open or key in self._replied

    def awaits_reply(self, key: Key) -> bool:
        """Whether the kernel has not replied to a request that has a reply."""
        request = self.find(key)
        return request is not None and request.has_reply

    def note_reply(self, key: Key | None) -> Request | None:
        """Note that the kernel has replied to a request, and return it."""
        if key is None or key not in self._open:
            return None
        request = self._pop(key)
        request.is_replied = True
        if not request.is_idle:
            self._replied[key] = request
            if len(self._replied) > _MAX_REPLIED:
                del self._replied[next(iter(self._replied))]
        return request

    def note_state(self, key: Key | None, state: str) -> None:
        """Note that the kernel is ``busy`` with a request, or ``idle`` after it."""
        request = self.find(key)
        if state == "busy" and request is not None:
            request.has_begun = True
        elif state == "idle" and key is not None:
            if self._replied.pop(key, None) is not None or request is None:
                return
            request.is_idle = True
            if not request.has_reply:
                self._pop(key)

    def replied(self) -> list[Key]:
        """Return the requests that were replied to and whose ``idle`` has not come."""
        return list(self._replied)

    def take(self, spared: Collection[int] = ()) -> list[Request]:
        """Return all and forget them, but those that have not left the gateway: ``spared`` has their headers' ids."""
        taken = list(self._replied.values())
        kept: list[tuple[Key, Request]] = []
        for key, requests in self._open.items():
            for request in requests:
                if id(request.raw_header) in spared:
                    kept.append((key, request))
                else:
                    taken.append(request)
        self.clear()
        for key, request in kept:
            self.add(key, request)
        return taken

    def take_idle(self) -> list[Request]:
        """Return and forget those that the kernel is done with, and has not replied to."""
        taken = []
        for key in list(self._open):
            while (request := self.find(key)) is not None and request.is_idle:
                taken.append(self._pop(key))
        return taken

    def clear(self) -> None:
        """Forget all."""
        self._open.clear()
        self._replied.clear()
        self._count = self._bytes = 0

    def texts(self) -> tuple[str, ...]:
        """Return the headers of execute requests that were not replied to, as text for the record."""
        executed = [
            request for requests in self._open.values() for request in requests if request.msg_type == "execute_request"
        ]
        return tuple(request.raw_header.decode("utf-8", "replace") for request in executed[:MAX_RECORDED])

    def restore(self, texts: Iterable[str]) -> None:
        """Note again what an earlier gateway had noted."""
        for text in texts:
            try:
                header = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(header, dict):
                request = Request("shell", "execute_request", text.encode())
                request.has_begun = True  # as far as we know
                self.add(key_of(header), request)

    def _pop(self, key: Key) -> Request:
        requests = self._open[key]
        request = requests.pop(0)
        if not requests:
            del self._open[key]
        self._count -= 1
        self._bytes -= len(request.raw_header)
        return request


class OpenWork:
    """What a kernel works on by its status messages, also for clients of other gateways: the ids of their parents.

    A kernel has several shells - the main one, control, subshells - and is busy as long as one of them is. Each takes
    its requests in turn, so an ``idle`` that is lost keeps nothing: what the same shell says of a later request proves
    that the earlier one is over, unless its reply is still awaited, as from kernels that take several at once.
    """

    __slots__ = ("_requests", "_shells")

    def __init__(self, requests: OpenRequests) -> None:
        self._requests = requests
        self._shells: dict[Key, tuple[bool, object]] = {}

    def __bool__(self) -> bool:
        return bool(self._shells)

    def begin(self, parent: Mapping[str, Any]) -> None:
        """Note ``busy``."""
        self.end(parent)
        key = key_of(parent)
        if key is not None:
            self._shells[key] = _shell_of(parent)
            if len(self._shells) > _MAX_WORK:
                del self._shells[next(iter(self._shells))]

    def end(self, parent: Mapping[str, Any]) -> None:
        """Note ``idle``."""
        self.forget(key_of(parent))
        if self._shells:
            shell = _shell_of(parent)
            for key, other in list(self._shells.items()):
                if other == shell and not self._requests.awaits_reply(key):
                    del self._shells[key]

    def forget(self, key: Key | None) -> None:
        """Note that a request is over."""
        if key is not None:
            self._shells.pop(key, None)

    def clear(self) -> None:
        """Forget all: the kernel that worked is gone."""
        self._shells.clear()


def _shell_of(parent: Mapping[str, Any]) -> tuple[bool, object]:
    """Return which of a kernel's shells a request went to: control or not, and the subshell."""
    subshell_id = parent.get("subshell_id")
    return parent.get("msg_type") in _CONTROL_TYPES, subshell_id if isinstance(subshell_id, str) else None
