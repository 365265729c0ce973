"""Long computations on the event loop, a few milliseconds in each of its turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.004


class Slices:
    """Computes one at a time: however many there are, together they take one slice of each turn of the loop.

    A thread would not do: it keeps the interpreter lock, for which the loop has to wait longer and more often.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()  # first come, first served: each gets a slice in turn

    async def run(self, steps: Generator[None, None, T]) -> T:
        """Go through ``steps`` and return what they return."""
        while True:
            async with self._lock:
                end = time.perf_counter() + SLICE_SECONDS
                try:
                    while time.perf_counter() < end:
                        next(steps)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
            await asyncio.sleep(0)
