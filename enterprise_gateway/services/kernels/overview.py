"""What a replica knows of the kernels of all replicas."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...core.sessionrecords import StoredKernel

RECENTLY_SECONDS = 60.0  # a kernel that is found dead is restarted if its replica was there so shortly ago


class Overview:
    """What the store said last, without asking it again.

    Parameters
    ----------
    owner
        The name of this replica.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._stored: dict[str, StoredKernel] = {}
        self._managed: dict[str, float] = {}  # when another replica was last seen to hold each kernel's lease

    def get(self, kernel_id: str) -> StoredKernel | None:
        """Return what the store knows of a kernel."""
        return self._stored.get(kernel_id)

    def update(self, kernels: Mapping[str, StoredKernel]) -> None:
        """Learn what the store has said of some kernels."""
        self._stored.update(kernels)

    def replace(self, kernels: dict[str, StoredKernel], moment: float) -> None:
        """Learn what the store has said of all kernels; ``moment`` is when it was asked."""
        self._stored = dict(kernels)
        held = {each.kernel_id for each in kernels.values() if each.owner not in {None, self._owner}}
        known = {each: at for each, at in self._managed.items() if each in kernels}
        self._managed = known | dict.fromkeys(held, moment)

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that is gone."""
        self._stored.pop(kernel_id, None)

    def connections_elsewhere(self, kernel_id: str) -> int:
        """Return how many websockets the other replicas have for a kernel."""
        stored = self._stored.get(kernel_id)
        return stored.connections if stored is not None else 0

    def is_used_elsewhere(self, kernel_id: str) -> bool:
        """Whether another replica manages a kernel, or has websockets for it."""
        stored = self._stored.get(kernel_id)
        return stored is not None and (stored.connections > 0 or stored.owner not in {None, self._owner})

    def is_dead_elsewhere(self, kernel_id: str) -> bool:
        """Whether the replica that manages a kernel has given it up, but keeps it as dead."""
        stored = self._stored.get(kernel_id)
        return stored is not None and stored.execution_state == "dead" and stored.owner is not None

    def is_wanted(self, kernel_id: str) -> bool:
        """Whether a kernel that has died is to be restarted: its replica lived a moment ago, or somebody is connected.

        Not what is found dead when the gateway comes back after a night: nobody waits for that.
        """
        is_recent = time.monotonic() < self._managed.get(kernel_id, -math.inf) + RECENTLY_SECONDS
        return is_recent or self.connections_elsewhere(kernel_id) > 0
