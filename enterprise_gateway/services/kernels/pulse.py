"""Schedules a replica's heartbeat, and wakes the tasks that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..sessions.sharingstore import SharingStore

BEATS_PER_LEASE = 3
HURRIED_SECONDS = 0.2


class Pulse:
    """The interval of the heartbeat: shorter while a task waits for it.

    Parameters
    ----------
    store
        Says how long a lease lasts.
    """

    def __init__(self, store: SharingStore) -> None:
        self._store = store
        self._hurry = asyncio.Event()
        self._beaten = asyncio.Event()

    @property
    def interval(self) -> float:
        """Seconds between heartbeats that no task waits for."""
        return self._store.lease_seconds / BEATS_PER_LEASE

    async def pause(self) -> None:
        """Wait until the next heartbeat is due; called by the heartbeat."""
        is_hurried = self._hurry.is_set()
        self._hurry.clear()
        if is_hurried:
            await asyncio.sleep(HURRIED_SECONDS)
        else:
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self.interval)

    def beat(self) -> None:
        """Wake the tasks that wait for a heartbeat; called after each one."""
        self._beaten.set()
        self._beaten.clear()

    async def next_beat(self) -> None:
        """Wait for the next heartbeat, which comes sooner for that reason."""
        self._hurry.set()
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(self._beaten.wait(), self._store.lease_seconds)
