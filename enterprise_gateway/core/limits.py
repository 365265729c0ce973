"""How many kernels there may be, in total and per user, counting those that are starting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import LimitReachedError


class KernelLimits:
    """Counts running and pending kernels against the limits in force; asks for both anew at every start.

    Parameters
    ----------
    running
        Returns a counter of running kernels by user name.
    max_kernels
        Returns the total limit, None for no limit.
    max_kernels_per_user
        Returns the limit per user, negative for no limit; 0 forbids every start.
    """

    def __init__(
        self,
        running: Callable[[], Counter[str]],
        max_kernels: Callable[[], int | None],
        max_kernels_per_user: Callable[[], int],
    ) -> None:
        self._running = running
        self._max_kernels = max_kernels
        self._max_kernels_per_user = max_kernels_per_user
        self.pending: Counter[str] = Counter()

    @contextmanager
    def reserve(self, user: str) -> Iterator[None]:
        """Hold a place for one kernel of ``user`` until the block ends: then it runs, or has failed.

        Raises
        ------
        LimitReachedError
            One more kernel would exceed a limit.
        """
        self._check(user)
        self.pending[user] += 1
        try:
            yield
        finally:
            self.pending[user] -= 1
            if not self.pending[user]:
                del self.pending[user]

    def _check(self, user: str) -> None:
        counts = self._running() + self.pending
        total_limit = self._max_kernels()
        if total_limit is not None and counts.total() >= total_limit:
            raise LimitReachedError(f"Resource Limit: {total_limit} kernels may run at a time (max_kernels).")
        user_limit = self._max_kernels_per_user()
        if user_limit >= 0 and counts[user] >= user_limit:
            raise LimitReachedError(
                f"A max kernels per user limit has been set to {user_limit} and user '{user}' currently has "
                f"{counts[user]} active kernel(s)."
            )
