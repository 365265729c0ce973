"""The state of a kernel's life: when its process was started, how often it has died, whether and why it is dead."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone


class KernelLife:
    """The life of one kernel, which may have had many processes; updated by whatever starts, watches and stops it.

    Parameters
    ----------
    clock
        Returns seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._started = clock()
        self._restarts = 0
        self._died_because = ""
        self._ends_because = ""

    @property
    def started(self) -> datetime:
        """When the present process was started (UTC)."""
        return datetime.fromtimestamp(self._started, timezone.utc)

    @property
    def restarts(self) -> int:
        """How many times in a row the kernel was restarted because it had died; 0 after a restart on request."""
        return self._restarts

    @property
    def is_dead(self) -> bool:
        """Whether the kernel is dead, and only a request restarts it."""
        return bool(self._died_because)

    @property
    def died_because(self) -> str:
        """Why the kernel is dead; empty when it is not."""
        return self._died_because

    @property
    def ends_because(self) -> str:
        """Why the kernel is being stopped, where it was not a client that asked for it; empty elsewhere."""
        return self._ends_because

    def launching(self) -> None:
        """Note that a process is about to be started."""
        self._started = self._clock()

    def taken_over(self, started: float, restarts: int) -> None:
        """Take over what another gateway, which has started the process, has recorded (``started``: since 1970)."""
        self._started, self._restarts = started, restarts

    def restarted_by_client(self) -> None:
        """Note that a client has asked for another process."""
        self._restarts = 0

    def restarting_itself(self, was_stable: bool) -> None:
        """Count the death of a process that will be replaced; after a stable run the count starts again at 1."""
        self._restarts = 1 if was_stable else self._restarts + 1

    def restart_was_cut_short(self) -> None:
        """Note that the process of an unrecorded restart was ended; clients see it as a death of the kernel."""
        self._restarts = max(1, self._restarts)

    def died(self, reason: str) -> None:
        """Note that the process has ended and is not replaced; ``reason`` is part of a sentence for users."""
        self._died_because = reason

    def revived(self) -> None:
        """Note that there is a process again."""
        self._died_because = ""

    def ending(self, because: str) -> None:
        """Note that the gateway is about to stop the kernel; ``because`` is part of a sentence for users."""
        self._ends_because = because
