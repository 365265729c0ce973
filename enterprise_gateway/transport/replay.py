"""What clients missed: one bounded log per kernel, and for each detached session how far it had come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import chain

from .messages import KernelMessage
from .replaybudget import ReplayBudget

_NOBODY = ""  # addressed to no session in particular
_MAX_SERVED = 1_000


class DetachedSession:
    """A session whose websocket is gone: it has seen everything up to number ``cursor``, except ``unsent``."""

    __slots__ = ("aliases", "cursor", "dropped", "dropped_parent", "session_id", "since", "unsent", "unsent_bytes")

    def __init__(self, session_id: str, aliases: Collection[str], cursor: int, since: float) -> None:
        self.session_id = session_id
        self.aliases = frozenset(aliases) | {session_id}
        self.cursor = cursor
        self.since = since
        self.unsent: list[KernelMessage] = []
        self.unsent_bytes = 0
        self.dropped = 0
        self.dropped_parent = b"{}"

    def wants(self, recipient: str | None) -> bool:
        """Whether a message to ``recipient`` (None: everybody) is for this session."""
        return recipient is None or recipient in self.aliases

    def keep_unsent(self, messages: Collection[KernelMessage]) -> None:
        """Keep what had been queued for the websocket."""
        self.unsent.extend(messages)
        self.unsent_bytes += sum(message.size for message in messages)

    def drop_unsent(self, excess: int) -> int:
        """Drop the oldest of those, ``excess`` bytes or a bit more if there is so much; return how many bytes."""
        count = dropped = 0
        while count < len(self.unsent) and dropped < excess:
            message = self.unsent[count]
            self.count_dropped(message)
            dropped += message.size
            count += 1
        del self.unsent[:count]
        self.unsent_bytes -= dropped
        return dropped

    def count_dropped(self, message: KernelMessage) -> None:
        """Note that a message is lost for this session, and in which cell to say so."""
        self.dropped += 1
        if message.parent.get("msg_type") == "execute_request":
            self.dropped_parent = message.raw_parent


class Missed:
    """What one client has to be sent: the messages that are left, and how many are not.

    ``sessions`` are the other sessions that the client's earlier websocket carried.
    """

    __slots__ = ("dropped", "dropped_parent", "messages", "sessions")

    def __init__(self) -> None:
        self.sessions: Collection[str] = ()
        self.messages: list[KernelMessage] = []
        self.dropped = 0
        self.dropped_parent = b"{}"


class ReplayLog:
    """Messages that a client may still reconnect for, numbered in the order of their arrival.

    Among them are the gateway's own *notices* of what has become of the kernel's process. They are not for a session
    that a later process has served, through another gateway: it would take them for news. Nor has nobody seen them,
    then.

    Parameters
    ----------
    max_bytes
        The oldest messages go when more than this is kept, and the same for unsent ones; 0 keeps nothing.
    max_sessions
        How many detached sessions are remembered.
    max_age
        Seconds after which a detached session is forgotten.
    budget
        Is told of what is kept, of the kernels of ``user`` among others, and may ask for less.
    clock
        Returns seconds; tests inject their own.
    """

    __slots__ = (
        "_began",
        "_budget",
        "_bytes",
        "_clock",
        "_detached",
        "_entries",
        "_essential",
        "_essential_bytes",
        "_max_age",
        "_max_bytes",
        "_max_sessions",
        "_notices",
        "_number",
        "_served",
        "_unattended",
        "user",
    )

    def __init__(
        self,
        max_bytes: int,
        max_sessions: int,
        max_age: float,
        budget: ReplayBudget,
        user: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.user = user
        self._budget = budget
        self._max_bytes = max_bytes
        self._max_sessions = max_sessions
        self._max_age = max_age
        self._clock = clock
        self._entries: deque[tuple[int, str | None, KernelMessage]] = deque()
        self._bytes = 0
        # Replies and states that have outlived the output around them: without them a cell would stay busy for ever.
        self._essential: list[tuple[int, str | None, KernelMessage]] = []
        self._essential_bytes = 0
        self._number = 0
        self._notices: set[int] = set()
        self._began = 0  # the newest message when the present process began
        # Sessions that processes have served through other gateways, and the newest message before the last of those.
        self._served: dict[str, int] = {}
        self._detached: dict[str, DetachedSession] = {}
        # Represents the first client to connect after none was connected.
        self._unattended: DetachedSession | None = None
        self.start_unattended()

    @property
    def is_needed(self) -> bool:
        """Whether any client may reconnect for messages that arrive now."""
        return bool(self._max_bytes and (self._unattended is not None or self._detached))

    @property
    def has_sessions(self) -> bool:
        """Whether any detached session is remembered."""
        return bool(self._detached)

    @property
    def size(self) -> int:
        """Bytes that are kept now."""
        return self._bytes + self._essential_bytes + sum(session.unsent_bytes for session in self._detached.values())

    @property
    def session_count(self) -> int:
        """How many ids of sessions are remembered."""
        return sum(len(session.aliases) for session in self._detached.values())

    @property
    def number(self) -> int:
        """The number of the newest message."""
        return self._number

    def append(self, message: KernelMessage, recipient: str | None = None, *, is_notice: bool = False) -> None:
        """Keep a message for the sessions that are away: for all (None), or for the one named ``recipient``."""
        self._forget_expired()
        if not self.is_needed:
            return
        if recipient is not None and self._unattended is None and not self._is_known(recipient):
            return
        self._number += 1
        if is_notice:
            self._notices.add(self._number)
        self._entries.append((self._number, recipient, message))
        self._bytes += message.size
        while self._bytes > self._max_bytes:
            self._drop_oldest()
        self._budget.note(self)

    def begin_process(self) -> None:
        """Note that the kernel has a new process: notices so far are about former ones."""
        self._began = self._number

    def note_served_elsewhere(self, session_id: str) -> None:
        """Note that the present process works on a request which another gateway has passed on."""
        self._served.pop(session_id, None)
        self._served[session_id] = self._began
        if len(self._served) > _MAX_SERVED:
            del self._served[next(iter(self._served))]

    def detach(self, session_id: str, aliases: Collection[str]) -> None:
        """Remember a session whose websocket is closed, or being closed."""
        if not self._max_bytes:
            return
        self._detached.pop(session_id, None)
        while len(self._detached) >= self._max_sessions:
            del self._detached[next(iter(self._detached))]
        self._detached[session_id] = DetachedSession(session_id, aliases, self._number, self._clock())
        self._budget.note(self)

    def detached_sessions(self) -> list[tuple[str, ...]]:
        """Return the sessions that may reconnect, each as its id and its further ones."""
        return [(session.session_id, *sorted(session.aliases)) for session in self._detached.values()]

    def keep_unsent(self, session_id: str, messages: Collection[KernelMessage]) -> None:
        """Keep what had been queued for a detached session's websocket and did not go out."""
        session = self._detached.get(session_id)
        if session is None:
            return
        session.keep_unsent(messages)
        excess = sum(other.unsent_bytes for other in self._detached.values()) - self._max_bytes
        for other in self._detached.values():
            excess -= other.drop_unsent(excess)
        self._budget.note(self)

    def give_way(self, size: int) -> None:
        """Drop the oldest messages until no more than ``size`` bytes are left; for the budget."""
        for session in self._detached.values():
            session.drop_unsent(self.size - size)
        while self._entries and self.size > size:
            self._drop_oldest()
        while self._essential and self.size > size:
            self._drop_essential()

    def forget_oldest(self) -> None:
        """Forget the session that has been away longest; for the budget."""
        del self._detached[next(iter(self._detached))]
        self._trim()

    def start_unattended(self) -> None:
        """Note that no client is connected any more: what arrives now is for the next one."""
        if self._max_bytes:
            self._unattended = DetachedSession(_NOBODY, (), self._number, self._clock())

    def attach(self, session_id: str) -> Missed:
        """Return what a client that connects must get: its own gap, or else what no client has seen."""
        unattended, self._unattended = self._unattended, None
        own = self._pop(session_id)
        missed = self._collect(own or unattended, self._number, session_id)
        self._trim()
        self._budget.note(self)
        return missed

    def claim(self, session_id: str, up_to: int) -> Missed | None:
        """Return the gap of a detached session that shows up on a websocket attached at number ``up_to``."""
        own = self._pop(session_id)
        if own is None:
            return None
        missed = self._collect(own, up_to, session_id)
        self._trim()
        self._budget.note(self)
        return missed

    def is_detached(self, session_id: str) -> bool:
        """Whether the session of this very id is remembered as one without a websocket."""
        return session_id in self._detached

    def clear(self) -> None:
        """Forget messages and sessions."""
        self._entries.clear()
        self._essential.clear()
        self._notices.clear()
        self._detached.clear()
        self._bytes = self._essential_bytes = 0
        self._budget.note(self)

    def _forget_expired(self) -> None:
        """Forget sessions that have been away too long; the longest away comes first."""
        while self._detached:
            session = next(iter(self._detached.values()))
            if self._clock() - session.since <= self._max_age:
                return
            del self._detached[session.session_id]
            self._trim()

    def _pop(self, session_id: str) -> DetachedSession | None:
        for name, session in self._detached.items():
            if session_id in session.aliases:
                return self._detached.pop(name)
        return None

    def _is_known(self, recipient: str) -> bool:
        return any(recipient in session.aliases for session in self._detached.values())

    def _collect(self, session: DetachedSession | None, up_to: int, session_id: str) -> Missed:
        missed = Missed()
        if session is None:
            return missed
        missed.messages.extend(session.unsent)
        missed.dropped, missed.dropped_parent = session.dropped, session.dropped_parent
        anything = session.session_id == _NOBODY
        missed.sessions = () if anything else session.aliases
        stale = self._stale_notices(self._served if anything else {session_id, *session.aliases})
        for number, recipient, message in chain(self._essential, self._entries):
            # Broadcasts end where the new websocket's own began; replies have waited for this session alone.
            is_new = number > session.cursor and (number <= up_to or recipient is not None)
            if is_new and number not in stale and (anything or session.wants(recipient)):
                missed.messages.append(message)
        return missed

    def _stale_notices(self, sessions: Collection[str]) -> Collection[int]:
        """Return the numbers of the notices that are not for a client of these sessions any more."""
        newest = max((self._served[session] for session in sessions if session in self._served), default=0)
        return {number for number in self._notices if number <= newest} if newest else ()

    def _drop_oldest(self) -> None:
        """Drop the oldest output; what is not output is moved aside, within an eighth of the limit."""
        entry = self._entries.popleft()
        self._bytes -= entry[2].size
        if entry[2].channel == "iopub" and entry[2].msg_type != "status":
            self._count_dropped(entry)
            return
        self._essential.append(entry)
        self._essential_bytes += entry[2].size
        while self._essential_bytes > self._max_bytes // 8:
            self._drop_essential()

    def _drop_essential(self) -> None:
        entry = self._essential.pop(0)
        self._essential_bytes -= entry[2].size
        self._count_dropped(entry)

    def _count_dropped(self, entry: tuple[int, str | None, KernelMessage]) -> None:
        number, recipient, message = entry
        self._notices.discard(number)
        for session in self._everyone():
            if number > session.cursor and (session.session_id == _NOBODY or session.wants(recipient)):
                session.count_dropped(message)

    def _everyone(self) -> Iterator[DetachedSession]:
        yield from self._detached.values()
        if self._unattended is not None:
            yield self._unattended

    def _trim(self) -> None:
        """Drop what all clients that may reconnect have seen."""
        seen = min((session.cursor for session in self._everyone()), default=self._number)
        while self._entries and self._entries[0][0] <= seen:
            self._bytes -= self._entries.popleft()[2].size
        self._notices = {number for number in self._notices if number > seen}
        if self._essential:
            self._essential = [entry for entry in self._essential if entry[0] > seen]
            self._essential_bytes = sum(message.size for _, _, message in self._essential)
