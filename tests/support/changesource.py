"""A cluster that says what changes, as the watch of one needs it; what happens there is what a test does."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping

from enterprise_gateway.core.errors import HostUnreachableError

Change = tuple[str, "str | None"]
_END = object()


class QueuedChanges:
    """States of a cluster with a stream of changes; see :class:`enterprise_gateway.drivers.watch.ChangeSource`."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.listed: list[float] = []
        self.cursors: list[int] = []
        self.list_fails = False
        self._queue: queue.Queue[object] = queue.Queue()

    def happens(self, key: str, state: str | None) -> None:
        """Change a state, and say so."""
        self.happens_unseen(key, state)
        self._queue.put((key, state))

    def happens_unseen(self, key: str, state: str | None) -> None:
        """Change a state that the stream says nothing of."""
        if state is None:
            self.states.pop(key, None)
        else:
            self.states[key] = state

    def beats(self) -> None:
        """Give a sign of life."""
        self._queue.put(None)

    def breaks(self, error: Exception | None = None) -> None:
        """End the stream, with an error perhaps."""
        self._queue.put(error or _END)

    def list(self) -> tuple[Mapping[str, str], int]:
        self._queue = queue.Queue()  # an interrupt before this is past
        self.listed.append(time.monotonic())
        if self.list_fails:
            raise HostUnreachableError("away")
        return dict(self.states), len(self.listed)

    def changes(self, cursor: int) -> Iterator[Change | None]:
        self.cursors.append(cursor)
        while (item := self._queue.get()) is not _END:
            if isinstance(item, Exception):
                raise item
            yield item  # type: ignore[misc]

    def interrupt(self) -> None:
        self._queue.put(_END)
