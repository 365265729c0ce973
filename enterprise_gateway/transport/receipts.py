"""When websockets are asked for a receipt: a ping whose answer tells that everything before it has arrived."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

_SHORTEST_GAP = 0.01  # seconds between two receipts asked for at once, of all websockets: each costs 40 µs
_TICK = 0.2


class ReceiptGiver(Protocol):
    """The outbox of a websocket."""

    def ask(self) -> bool:
        """Ask for what is missing; return whether to be called again."""


class Receipts:
    """Shared by all websockets of a process.

    A receipt is asked for together with the output, as long as not too many are; else within a fifth of a second.

    Parameters
    ----------
    clock
        Returns seconds; tests inject their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.is_on = True
        self._last = 0.0
        self._pending: dict[ReceiptGiver, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take_turn(self) -> bool:
        """Whether a receipt may be asked for at once."""
        now = self.clock()
        if not self.is_on or now - self._last < _SHORTEST_GAP:
            return False
        self._last = now
        return True

    def later(self, giver: ReceiptGiver) -> None:
        """Call ``giver.ask`` soon, until it returns False."""
        if self.is_on:
            self._pending[giver] = None
            self._schedule()

    def _schedule(self) -> None:
        if self._timer is None and self._pending:
            self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for giver in list(self._pending):
            if not self.is_on or not giver.ask():
                del self._pending[giver]
        self._schedule()
