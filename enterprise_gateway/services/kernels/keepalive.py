"""Pings for all websockets of a process from one timer; a timer and a task for each would cost 3 kB a websocket."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

_TOGETHER_SECONDS = 0.25  # websockets due within this time share one wake-up


class Pinged(Protocol):
    """A websocket that is pinged."""

    heard: float

    def send_ping(self) -> None:
        """Send a ping; must not raise."""

    def is_line_dead(self, seconds: float) -> bool:
        """Whether the peer's system has not acknowledged what was sent, nor said anything else for ``seconds``."""

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close the websocket."""

    def abort(self) -> None:
        """Cut the connection."""


class Keepalive:
    """Pings each websocket every ``interval`` seconds.

    Those whose peer's system has acknowledged nothing for three intervals, ``patience`` at least, are cut. A client
    that reads nothing meanwhile, and so answers no ping, stays: its system acknowledges. Only with a ``timeout`` (0 is
    none) those that were not heard of for so long are closed; anything that comes counts, not only the answer to a
    ping. All are seconds.
    """

    def __init__(self, interval: float, *, patience: float = 30.0) -> None:
        self.interval = interval
        self.timeout = 0.0
        self._patience = patience
        self._due: dict[Pinged, float] = {}  # all wait equally long: the order of insertion is the order in time
        self._timer: asyncio.TimerHandle | None = None

    def change_interval(self, interval: float) -> None:
        """Set the interval of pings; called for each websocket that opens, so it rarely changes anything."""
        if interval == self.interval:
            return
        self.interval = interval
        due = time.monotonic() + interval
        self._due = dict.fromkeys(self._due, due) if interval > 0 else {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._schedule()

    def add(self, websocket: Pinged) -> None:
        """Begin to ping a websocket that was just opened."""
        websocket.heard = time.monotonic()
        if self.interval > 0:
            self._due[websocket] = websocket.heard + self.interval
            self._schedule()

    def remove(self, websocket: Pinged) -> None:
        """Stop pinging a websocket."""
        self._due.pop(websocket, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        if self._timer is None and self._due:
            delay = max(0.0, next(iter(self._due.values())) - time.monotonic()) + _TOGETHER_SECONDS
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        for websocket in [websocket for websocket, due in self._due.items() if due <= now]:
            del self._due[websocket]
            if websocket.is_line_dead(max(3 * self.interval, self._patience)):
                websocket.abort()
            elif 0 < self.timeout < now - websocket.heard:
                websocket.close(1001, "no answer to pings")
            else:
                self._due[websocket] = now + self.interval
                websocket.send_ping()
        self._schedule()
