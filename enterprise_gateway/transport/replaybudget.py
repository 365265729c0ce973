"""What all kernels together keep for clients that are away: bounded, and who keeps most gives way first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from .kernelsockets import Log
from .ratelimit import RateLimitedWarnings

_SLACK = 128  # so much less than the limit is left, as a fraction, that room need not be made for each message


class Keeper(Protocol):
    """What one kernel keeps."""

    @property
    def user(self) -> str:
        """Whose kernel it is."""

    @property
    def size(self) -> int:
        """How many bytes of messages it keeps."""

    @property
    def session_count(self) -> int:
        """How many ids of sessions it remembers."""

    def give_way(self, size: int) -> None:
        """Drop the oldest messages until no more than ``size`` bytes are left."""

    def forget_oldest(self) -> None:
        """Forget the session that has been away longest."""


class ReplayBudget:
    """Counts what the kernels keep, as they tell, against the limits in force.

    Parameters
    ----------
    log
        Where is said which limit was met by whom.
    max_bytes
        Returns the limit for all kernels together, 0 for no limit.
    max_sessions
        Returns the limit for the session ids that are remembered for one user, 0 for no limit.
    """

    def __init__(
        self, log: Log, max_bytes: Callable[[], int] = lambda: 0, max_sessions: Callable[[], int] = lambda: 0
    ) -> None:
        self._max_bytes = max_bytes
        self._max_sessions = max_sessions
        self._warnings = RateLimitedWarnings(log)
        self._sizes: dict[Keeper, int] = {}
        self._sessions: dict[Keeper, int] = {}
        self._sessions_of: Counter[str] = Counter()
        self._total = 0

    def note(self, keeper: Keeper) -> None:
        """Take in that a kernel keeps more or less than before, and make room if that is too much."""
        self._note_size(keeper)
        sessions = keeper.session_count
        if sessions != self._sessions.get(keeper, 0):
            self._note_sessions(keeper, sessions)
            limit = self._max_sessions()
            while limit and self._sessions_of[keeper.user] > limit:
                self._forget_session(keeper.user, limit)
        limit = self._max_bytes()
        if limit and self._total > limit:
            self._make_room(limit)

    def _note_size(self, keeper: Keeper) -> None:
        size = keeper.size
        self._total += size - self._sizes.pop(keeper, 0)
        if size:
            self._sizes[keeper] = size

    def _note_sessions(self, keeper: Keeper, sessions: int) -> None:
        self._sessions_of[keeper.user] += sessions - self._sessions.pop(keeper, 0)
        if sessions:
            self._sessions[keeper] = sessions
        elif not self._sessions_of[keeper.user]:
            del self._sessions_of[keeper.user]

    def _forget_session(self, user: str, limit: int) -> None:
        keeper = max((keeper for keeper in self._sessions if keeper.user == user), key=self._sessions.__getitem__)
        self._warnings.warn("User %s has more than replay_user_sessions (%d) sessions: one was forgotten", user, limit)
        keeper.forget_oldest()
        self._note_sessions(keeper, keeper.session_count)
        self._note_size(keeper)

    def _make_room(self, limit: int) -> None:
        kept: Counter[str] = Counter()
        for keeper, size in self._sizes.items():
            kept[keeper.user] += size
        while self._total > limit - limit // _SLACK:
            user, _ = max(kept.items(), key=lambda item: item[1])
            keeper = max((keeper for keeper in self._sizes if keeper.user == user), key=self._sizes.__getitem__)
            self._warnings.warn(
                "All kernels keep more than replay_total_limit (%d bytes): user %s, whose keep most, loses output",
                *(limit, user),
            )
            before = self._sizes[keeper]
            keeper.give_way(before - min(before, self._total - limit + limit // _SLACK))
            self._note_size(keeper)
            kept[user] -= before - self._sizes.get(keeper, 0)
