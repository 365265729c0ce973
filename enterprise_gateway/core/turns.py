"""Lets steps that hold the event loop go one at a time."""

from __future__ import annotations

import asyncio

ROUNDS = 4
"""Rounds of the loop between two steps: what a request needs from its arrival to its answer."""


class Turns:
    """A queue of tasks before steps that hold the event loop for milliseconds.

    Twenty kernels that start at once are then twenty short holds, between which requests are answered, and not
    one that is twenty times as long.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def wait(self) -> None:
        """Wait for the caller's turn, which comes after the loop has run everything else since the previous one."""
        async with self._lock:
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
