"""The state of many things by few questions: one query for all that is watched on one cluster or host."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from ..core.errors import GatewayError

Key = TypeVar("Key", bound=Hashable)
State = TypeVar("State")


class Registration(Generic[Key, State]):
    """Something that is watched; made by :meth:`StateWatch.register`."""

    def __init__(
        self,
        watch: StateWatch[Key, State],
        key: Key,
        on_change: Callable[[State | None], None],
        eager: bool,
    ) -> None:
        self.key = key
        self.on_change = on_change
        self.eager = eager
        self.told: tuple[State | None] | None = None
        self._watch = watch

    def cancel(self) -> None:
        """Stop watching; ``on_change`` is not called any more."""
        self._watch.forget(self)


class StateWatch(Generic[Key, State]):
    """Asks for the states of all registered keys in one query, again and again, as long as there are any.

    While the query fails nothing is known, and nobody is told anything. Neither an error of the query nor one of
    somebody's ``on_change`` ends the watch for the others.

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
    """

    def __init__(
        self,
        name: str,
        query: Callable[[AbstractSet[Key]], Mapping[Key, State]],
        *,
        interval: float,
        eager_interval: float,
        log: logging.Logger | None = None,
    ) -> None:
        self._name = name
        self._query = query
        self._interval = interval
        self._eager_interval = eager_interval
        self._log = log or logging.getLogger(__name__)
        self._registered: set[Registration[Key, State]] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._logged = ""

    def register(
        self, key: Key, on_change: Callable[[State | None], None], *, eager: bool = False, exists: bool = False
    ) -> Registration[Key, State]:
        """Have ``on_change`` called, in the watch's thread, with the first state that is seen and each later one."""
        registration = Registration(self, key, on_change, eager)
        with self._changed:
            self._registered.add(registration)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"eg-watch-{self._name}", daemon=True)
                self._thread.start()
            self._changed.notify()
        return registration

    def forget(self, registration: Registration[Key, State]) -> None:
        """Stop watching; the last one takes the thread with it."""
        with self._changed:
            self._registered.discard(registration)
            self._changed.notify()

    def close(self) -> None:
        """Stop watching everything; called when the gateway ends."""
        with self._changed:
            self._registered.clear()
            self._changed.notify()

    def _run(self) -> None:
        asked = time.monotonic()
        while True:
            with self._changed:
                while self._registered and (wait := asked + self._patience() - time.monotonic()) > 0:
                    self._changed.wait(wait)
                registered = list(self._registered)
                if not registered:
                    self._thread = None
                    return
            asked = time.monotonic()
            try:
                states = self._query({registration.key for registration in registered})
            except GatewayError as error:
                self._log.debug("The state of %d on %s is not known: %s", len(registered), self._name, error)
            except Exception as error:  # noqa: BLE001 -- a defect must not end the watch
                if self._logged != (reason := repr(error)):  # once, not at every query
                    self._logged = reason
                    self._log.exception("The state of %d on %s cannot be asked for", len(registered), self._name)
            else:
                self._logged = ""
                self._tell(registered, states)

    def _patience(self) -> float:
        eager = any(registration.eager for registration in self._registered)
        return self._eager_interval if eager else self._interval

    def _tell(self, registered: list[Registration[Key, State]], states: Mapping[Key, State]) -> None:
        for registration in registered:
            state = states.get(registration.key)
            if registration.told != (state,) and registration in self._registered:
                registration.told = (state,)
                try:
                    registration.on_change(state)
                except Exception:  # noqa: BLE001 -- of one listener; the others are to be told
                    self._log.exception("What happened to %s on %s was not taken", registration.key, self._name)
