"""Which of the hosts gets the next kernel: plain objects that contact nobody."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

AVOID_SECONDS = 30.0


class TrackKernelOnHost:
    """How many kernels there are on each host, those included that are being started."""

    def __init__(self) -> None:
        self._hosts: dict[str, str] = {}  # by kernel id
        self._lock = threading.Lock()

    def add_kernel_id(self, host: str, kernel_id: str) -> None:
        """Count a kernel on ``host``, and on no other."""
        with self._lock:
            self._hosts[kernel_id] = host

    def delete_kernel_id(self, kernel_id: str) -> None:
        """Stop counting a kernel: it has ended, or could not be started."""
        with self._lock:
            self._hosts.pop(kernel_id, None)

    def counts(self) -> Counter[str]:
        """Return the numbers of kernels by host."""
        with self._lock:
            return Counter(self._hosts.values())


class HostChoice:
    """Puts hosts into the order in which they are to be tried; one for all kernels of a gateway.

    Parameters
    ----------
    clock
        Returns seconds; tests inject their own.
    avoid_seconds
        How long a host that failed is tried after all others only.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, avoid_seconds: float = AVOID_SECONDS) -> None:
        self.load = TrackKernelOnHost()
        self._clock = clock
        self._avoid_seconds = avoid_seconds
        self._avoid_until: dict[str, float] = {}
        self._turns: Counter[tuple[str, ...]] = Counter()

    def order(self, hosts: Sequence[str], algorithm: str) -> list[str]:
        """Return ``hosts`` in the order in which they are to be tried for one kernel; called once for each launch.

        Parameters
        ----------
        hosts
            The allowed hosts; only these take part, whatever kernels there are elsewhere.
        algorithm
            ``round-robin``: each host in its turn; ``least-connection``: that with the fewest kernels first.
        """
        hosts = list(dict.fromkeys(hosts))
        if algorithm == "least-connection":
            counts = self.load.counts()
            ordered = sorted(hosts, key=lambda host: counts[host])
        else:
            turn = self._turns[tuple(hosts)]
            self._turns[tuple(hosts)] += 1
            start = turn % len(hosts) if hosts else 0
            ordered = hosts[start:] + hosts[:start]
        return sorted(ordered, key=self.is_avoided)

    def is_avoided(self, host: str) -> bool:
        """Tell whether a host has failed a short while ago."""
        return self._avoid_until.get(host, float("-inf")) > self._clock()

    def failed(self, host: str) -> None:
        """Note that a host could not be reached: it is avoided for a while."""
        self._avoid_until[host] = self._clock() + self._avoid_seconds

    def reached(self, host: str) -> None:
        """Note that a host could be reached."""
        self._avoid_until.pop(host, None)
