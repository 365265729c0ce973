"""Warnings that a peer can provoke, at a bounded rate."""

from __future__ import annotations

import logging
import time


class RateLimitedWarnings:
    """Logs each kind of warning at most once per ``interval`` seconds and counts the others.

    Parameters
    ----------
    log
        Where warnings go.
    interval
        Seconds.
    """

    __slots__ = ("_interval", "_log", "_seen")

    def __init__(self, log: logging.Logger | logging.LoggerAdapter[logging.Logger], interval: float = 10.0) -> None:
        self._log = log
        self._interval = interval
        self._seen: dict[str, tuple[float, int]] = {}

    def warn(self, message: str, *args: object) -> None:
        """Log ``message % args``, unless the same message (whatever its arguments) was logged a moment ago."""
        now = time.monotonic()
        last, suppressed = self._seen.get(message, (-self._interval, 0))
        if now - last < self._interval:
            self._seen[message] = (last, suppressed + 1)
            return
        self._seen[message] = (now, 0)
        if suppressed:
            message += " (and %d more like it)"
            args = (*args, suppressed)
        self._log.warning(message, *args)
