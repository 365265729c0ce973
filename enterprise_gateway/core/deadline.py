"""A point in time by which something must have happened."""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """Counts down from ``seconds`` on a monotonic clock.

    Parameters
    ----------
    seconds
        Time allowed from now on.
    clock
        Returns seconds; tests inject their own.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self._clock() >= self._end
