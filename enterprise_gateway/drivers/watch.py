"""The state of many things by few questions: one watch for all that is on one cluster or host."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from .watchloops import ChangeSource, Following, Polling
from .watchtable import Registration, StateTable

__all__ = ["ChangeSource", "Registration", "StateWatch"]

Key = TypeVar("Key", bound=Hashable)
State = TypeVar("State")


class StateWatch(Generic[Key, State]):
    """Knows the states of all registered keys, from one query asked again and again as long as there are any.

    While the query fails nothing is known, and no callback is called. Neither an error of the query nor one of
    somebody's ``on_change`` ends the watch for the others. Where a cluster says itself what changes, use
    :meth:`following`.

    Parameters
    ----------
    name
        For the thread's name.
    query
        Returns the states of the keys it is given, in a thread; absent ones are None. Fails with a GatewayError.
    interval
        Seconds between two queries.
    eager_interval
        The same while something is registered as eager: a kernel that is starting.
    clock
        Returns seconds, for :attr:`age`.
    """

    def __init__(
        self,
        name: str,
        query: Callable[[AbstractSet[Key]], Mapping[Key, State]],
        *,
        interval: float,
        eager_interval: float,
        log: logging.Logger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table: StateTable[Key, State] = StateTable(
            name, keeps_all=False, log=log or logging.getLogger(__name__), clock=clock
        )
        self._loop: Polling[Key, State] | Following[Key, State] = Polling(
            self._table, query, interval=interval, eager_interval=eager_interval
        )

    @classmethod
    def following(
        cls,
        name: str,
        source: ChangeSource[Key, State],
        *,
        pause: float = 0.5,
        longest_pause: float = 30.0,
        log: logging.Logger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> StateWatch[Key, State]:
        """Return a watch that lists all states once and then follows the changes, until it is closed.

        When the stream ends or fails everything is listed again. Keys are kept that nobody has registered (yet), but
        none that are gone.

        Parameters
        ----------
        source
            Lists the states, and waits for changes.
        pause
            Seconds from the end of a stream until everything is listed again; doubled as long as nothing is received.
        longest_pause
            Beyond this the pause is not doubled.
        """
        watch = cls.__new__(cls)
        watch._table = StateTable(name, keeps_all=True, log=log or logging.getLogger(__name__), clock=clock)
        watch._loop = Following(watch._table, source, pause=pause, longest_pause=longest_pause)
        return watch

    @property
    def age(self) -> float:
        """Seconds since the states were last known to be right; infinity before the first time."""
        return self._table.age

    def get(self, key: Key) -> State | None:
        """Return the last known state of ``key`` without asking; None if it is gone or was not seen yet."""
        return self._table.get(key)

    def seen(self, key: Key) -> bool:
        """Tell whether ``key`` is there or was there since it was registered; what is not there now is gone then."""
        return self._table.seen(key)

    def register(
        self, key: Key, on_change: Callable[[State | None], None], *, eager: bool = False, exists: bool = False
    ) -> Registration[Key, State]:
        """Have ``on_change`` called with the state of ``key`` and with each later one; with None when it is gone.

        A known state is reported before this returns, in the caller's thread; later ones are reported in the watch's
        thread. An absent ``key`` is reported only if it was seen since it was registered, or is known to exist.

        Parameters
        ----------
        eager
            It is going to change soon: it is asked for more often. Streams do not need it.
        exists
            ``key`` is known to exist, so that it is gone when it is not found. For what was started earlier; a stream
            tells what was just started without it, and may have to be listed again with it.
        """
        registration = Registration(self._table, key, on_change, eager=eager, exists=exists)
        with self._table.changed:
            self._table.add(registration)
            self._loop.wake(registration)
        self._table.tell([registration])
        return registration

    def close(self) -> None:
        """Stop watching everything; called when the gateway ends."""
        with self._table.changed:
            self._table.clear()
            self._loop.stop()
