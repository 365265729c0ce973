"""Chooses the host for the next kernel, without any network access."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

AVOID_SECONDS = 30.0


class TrackKernelOnHost:
    """Counts the kernels on each host, including those being started."""

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
    """Puts hosts in the order in which to try them; one instance serves all kernels of a gateway.

    Parameters
    ----------
    clock
        Returns seconds; tests inject their own.
    avoid_seconds
        How long a host that failed is tried only after all others.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, avoid_seconds: float = AVOID_SECONDS) -> None:
        self.load = TrackKernelOnHost()
        self._clock = clock
        self._avoid_seconds = avoid_seconds
        self._avoid_until: dict[str, float] = {}
        self._turns: Counter[tuple[str, ...]] = Counter()

    def order(self, hosts: Sequence[str], algorithm: str) -> list[str]:
        """Return ``hosts`` in the order in which to try them for one kernel; called once per launch.

        Parameters
        ----------
        hosts
            The allowed hosts; kernels on other hosts do not matter.
        algorithm
            ``round-robin``: each host in turn; ``least-connection``: the host with the fewest kernels first.
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
        """Whether a host has failed recently."""
        return self._avoid_until.get(host, float("-inf")) > self._clock()

    def failed(self, host: str) -> None:
        """Note that a host could not be reached, and avoid it for a while."""
        self._avoid_until[host] = self._clock() + self._avoid_seconds

    def reached(self, host: str) -> None:
        """Note that a host could be reached."""
        self._avoid_until.pop(host, None)
