"""The last known states of what is watched, and the callbacks to call when they change."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
State = TypeVar("State")


class Registration(Generic[Key, State]):
    """Something that is watched; made by :meth:`.StateWatch.register`."""

    def __init__(
        self,
        table: StateTable[Key, State],
        key: Key,
        on_change: Callable[[State | None], None],
        *,
        eager: bool,
        exists: bool,
    ) -> None:
        self.key = key
        self.on_change = on_change
        self.eager = eager
        self.exists = exists
        self.seen = False
        # Tuples of one, since None is a state (gone) and not the lack of one.
        self.latest: tuple[State | None] | None = None
        self.told: tuple[State | None] | None = None
        self.being_told = False
        self._table = table

    def cancel(self) -> None:
        """Stop watching; ``on_change`` is not called any more."""
        self._table.remove(self)

    def learn(self, state: State | None) -> None:
        """Take the state that is to be told; called with the table's lock held.

        That something is absent is no news as long as it was never there: it may be about to come.
        """
        self.seen = self.seen or state is not None
        if self.seen or self.exists:
            self.latest = (state,)


class StateTable(Generic[Key, State]):
    """States by key, and the registrations of those who want to hear of changes; safe to use from all threads.

    No lock is held during a callback, and no callback is called twice at once.

    Parameters
    ----------
    name
        Of the cluster or host, for the log.
    keeps_all
        Whether states of unregistered keys are kept; those that are gone are never kept.
    log
        Where errors of listeners are logged.
    clock
        Returns seconds, for :attr:`age`.
    """

    def __init__(self, name: str, *, keeps_all: bool, log: logging.Logger, clock: Callable[[], float]) -> None:
        self.name = name
        self.log = log
        self.clock = clock
        self.changed = threading.Condition()
        """Guards the table, and is notified when a registration comes or goes."""
        self._keeps_all = keeps_all
        self._states: dict[Key, State] = {}
        self._registered: dict[Key, set[Registration[Key, State]]] = {}
        self._right_at = -math.inf

    @property
    def age(self) -> float:
        """Seconds since the table was last known to be right; infinity before the first time."""
        with self.changed:
            return self.clock() - self._right_at

    def get(self, key: Key) -> State | None:
        """Return the last known state of ``key``, or None."""
        with self.changed:
            return self._states.get(key)

    def seen(self, key: Key) -> bool:
        """Return whether ``key`` exists, or has existed since one of its present listeners registered."""
        with self.changed:
            return key in self._states or any(registration.seen for registration in self._registered.get(key, ()))

    def registrations(self) -> set[Registration[Key, State]]:
        """Return everything that is registered now."""
        with self.changed:
            return {registration for registrations in self._registered.values() for registration in registrations}

    def add(self, registration: Registration[Key, State]) -> None:
        """Take a registration, which learns the state that is known; :meth:`tell` it then."""
        with self.changed:
            self._registered.setdefault(registration.key, set()).add(registration)
            # That its key is absent now says nothing: the table may be older than what it stands for.
            if (state := self._states.get(registration.key)) is not None:
                registration.learn(state)
            self.changed.notify_all()

    def remove(self, registration: Registration[Key, State]) -> None:
        """Drop a registration, and what only it wanted to know."""
        with self.changed:
            registrations = self._registered.get(registration.key, set())
            registrations.discard(registration)
            if not registrations:
                self._registered.pop(registration.key, None)
                if not self._keeps_all:
                    self._states.pop(registration.key, None)
            self.changed.notify_all()

    def clear(self) -> None:
        """Forget everything."""
        with self.changed:
            self._registered.clear()
            self._states.clear()
            self._right_at = -math.inf
            self.changed.notify_all()

    def replace(
        self, states: Mapping[Key, State], asked_for: Collection[Registration[Key, State]], asked_at: float
    ) -> None:
        """Take the answer to a question that was asked at ``asked_at``, and tell what has changed.

        What is absent from it is gone for those in ``asked_for`` only: who has registered since the question was
        asked may stand for something newer.
        """
        with self.changed:
            self._right_at = asked_at
            self._states = {
                key: state
                for key, state in states.items()
                if state is not None and (self._keeps_all or key in self._registered)
            }
            registered = self.registrations()
            for registration in registered:
                state = self._states.get(registration.key)
                if state is not None or registration in asked_for:
                    registration.learn(state)
        self.tell(registered)

    def put(self, key: Key, state: State | None) -> None:
        """Take one change, and tell it."""
        with self.changed:
            self._right_at = self.clock()
            if state is None:
                self._states.pop(key, None)
            elif self._keeps_all or key in self._registered:
                self._states[key] = state
            registered = list(self._registered.get(key, ()))
            for registration in registered:
                registration.learn(state)
        self.tell(registered)

    def freshen(self) -> None:
        """Note that the table is right."""
        with self.changed:
            self._right_at = self.clock()

    def tell(self, registrations: Iterable[Registration[Key, State]]) -> None:
        """Call the ``on_change`` of those who do not know the latest yet."""
        for registration in registrations:
            while (news := self._news_for(registration)) is not None:
                try:
                    registration.on_change(news[0])
                except Exception:  # of one listener; the others are to be told
                    self.log.exception(
                        "The change of state of %s on %s could not be handled", registration.key, self.name
                    )
                finally:
                    registration.being_told = False

    def _news_for(self, registration: Registration[Key, State]) -> tuple[State | None] | None:
        """Return what is to be told now; None as well while another thread tells, which then comes back for more."""
        with self.changed:
            wanted = registration in self._registered.get(registration.key, ())
            if not wanted or registration.being_told or registration.told == registration.latest:
                return None
            registration.being_told = True
            registration.told = registration.latest
            return registration.latest
