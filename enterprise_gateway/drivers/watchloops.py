"""What fills a table of states, in a thread of its own: a query asked again and again, or a stream of changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Generic, Protocol, TypeVar

from ..core.errors import GatewayError
from .watchtable import Registration, StateTable

Key = TypeVar("Key", bound=Hashable)
State = TypeVar("State")
State_co = TypeVar("State_co", covariant=True)


class ChangeSource(Protocol[Key, State_co]):
    """A cluster that says what changes; all but :meth:`interrupt` is called in the watch's thread.

    Errors are GatewayErrors; after any error, and after each end of :meth:`changes`, everything is listed again.
    """

    def list(self) -> tuple[Mapping[Key, State_co], Any]:
        """Return all states there are, and the cursor from which :meth:`changes` goes on; has a time-out of its own."""

    def changes(self, cursor: Any) -> Iterator[tuple[Key, State_co | None] | None]:
        """Wait for changes since ``cursor``: a key with its new state, None for gone; or None, a sign of life."""

    def interrupt(self) -> None:
        """Let the :meth:`changes` that runs end, or the one that begins next if :meth:`list` is not called before.

        Called in any thread, the event loop's too, and at any time; must not block.
        """


class Failures:
    """Logs what keeps the states from being known; what is a defect once only, as long as it stays the same."""

    def __init__(self, table: StateTable[Any, Any]) -> None:
        self._table = table
        self._logged = ""

    def add(self, error: Exception) -> None:
        """Note that the states could not be had."""
        count, name, log = len(self._table.registrations()), self._table.name, self._table.log
        if isinstance(error, GatewayError):
            log.debug("The state of %d on %s is not known: %s", count, name, error)
        elif self._logged != (reason := repr(error)):
            self._logged = reason
            log.error("The state of %d on %s cannot be queried", count, name, exc_info=error)

    def end(self) -> None:
        """Note that the states are known again."""
        self._logged = ""


class Polling(Generic[Key, State]):
    """Asks for the states of all registered keys in one query, as long as there are any.

    The parameters are those of :class:`.StateWatch`.
    """

    def __init__(
        self,
        table: StateTable[Key, State],
        query: Callable[[AbstractSet[Key]], Mapping[Key, State]],
        *,
        interval: float,
        eager_interval: float,
    ) -> None:
        self._table = table
        self._query = query
        self._interval = interval
        self._eager_interval = eager_interval
        self._failures = Failures(table)
        self._thread: threading.Thread | None = None

    def wake(self, registration: Registration[Key, State]) -> None:
        """Run from now on, for ``registration`` too; called with the table's lock held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"eg-watch-{self._table.name}", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Do nothing: an empty table has ended the thread. Called with the table's lock held."""

    def _run(self) -> None:
        asked = time.monotonic()
        while registered := self._due(asked):
            asked, asked_at = time.monotonic(), self._table.clock()
            try:
                states = self._query({registration.key for registration in registered})
            except Exception as error:  # noqa: BLE001 -- a defect must not end the watch
                self._failures.add(error)
            else:
                self._failures.end()
                self._table.replace(states, registered, asked_at)

    def _due(self, asked: float) -> set[Registration[Key, State]]:
        """Wait until the next query is due, and return its keys; no keys end the thread."""
        with self._table.changed:
            while registered := self._table.registrations():
                eager = any(registration.eager for registration in registered)
                wait = asked + (self._eager_interval if eager else self._interval) - time.monotonic()
                if wait <= 0:
                    return registered
                self._table.changed.wait(wait)
            self._thread = None
            return set()


class Following(Generic[Key, State]):
    """Lists all states and follows what changes then, from the first registration until it is stopped.

    It goes on while nothing is registered: an open stream costs less than to list everything for each kernel.
    The parameters are those of :meth:`.StateWatch.following`.
    """

    def __init__(
        self, table: StateTable[Key, State], source: ChangeSource[Key, State], *, pause: float, longest_pause: float
    ) -> None:
        self._table = table
        self._source = source
        self._pause = pause
        self._longest_pause = longest_pause
        self._delay = 0.0
        self._failures = Failures(table)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._list_again = False

    def wake(self, registration: Registration[Key, State]) -> None:
        """Run from now on, for ``registration`` too; called with the table's lock held."""
        self._stopped = False
        if self._thread is None:
            self._delay = 0.0
            self._thread = threading.Thread(target=self._run, name=f"eg-watch-{self._table.name}", daemon=True)
            self._thread.start()
        elif registration.exists and not registration.seen:
            # Gone, or too new for the table: no change needs to come that would tell which.
            self._list_again = True
            self._source.interrupt()

    def stop(self) -> None:
        """End the thread soon; called with the table's lock held."""
        self._stopped = True
        self._source.interrupt()

    def _run(self) -> None:
        while self._may_list():
            try:
                self._follow()
            except Exception as error:  # noqa: BLE001 -- a defect must not end the watch
                if not self._is_interrupted():  # that a stream fails when it is interrupted is no news
                    self._failures.add(error)

    def _may_list(self) -> bool:
        """Wait until it is time to list everything (again); False is the end of the thread."""
        with self._table.changed:
            if not self._list_again:
                end = time.monotonic() + self._delay
                self._delay = min(max(2 * self._delay, self._pause), self._longest_pause)
                while not self._stopped and (wait := end - time.monotonic()) > 0:
                    self._table.changed.wait(wait)
            if self._stopped:
                self._thread = None
            return not self._stopped

    def _follow(self) -> None:
        with self._table.changed:
            self._list_again = False
            registered = self._table.registrations()
        asked_at = self._table.clock()
        states, cursor = self._source.list()
        self._table.replace(states, registered, asked_at)
        # Between an interrupt and the call of `changes` there may have been that of `list`, which undoes it.
        if self._is_interrupted():
            return
        for change in self._source.changes(cursor):
            self._delay = self._pause
            self._failures.end()
            if change is None:
                self._table.freshen()
            else:
                self._table.put(*change)
            if self._is_interrupted():
                return

    def _is_interrupted(self) -> bool:
        with self._table.changed:
            return self._stopped or self._list_again
