"""What a store of kernel sessions must be able to do for replicas of the gateway to share kernels by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from enterprise_gateway.core.sessionrecords import Activity, Beat, Record, StoredKernel


@runtime_checkable
class SharingStore(Protocol):
    """A :class:`KernelSessionManager` with leases, places and notebooks' sessions; see ``SQLKernelSessionManager``.

    Other stores keep the kernels of gateways that do not know each other.
    """

    leases_required: bool
    lease_seconds: float

    @property
    def store_available(self) -> bool:
        """Whether the last call of the store succeeded."""

    def owes(self, kernel_id: str | None = None) -> bool:
        """Whether the store has not yet what this gateway recorded of a kernel, or (None) of any."""

    async def flush(self) -> set[str]:
        """Try once more to write what the store has not yet."""

    async def fetch_session(self, kernel_id: str) -> Record | None:
        """Return the record of a kernel."""

    async def fetch_kernels(self, owner: str, kernel_id: str | None = None) -> dict[str, StoredKernel]:
        """Return what the store knows of all kernels, oldest first, or of one."""

    def disown(self, kernel_id: str) -> None:
        """Forget a kernel that another replica has removed."""

    async def acquire_lease(self, kernel_id: str, owner: str, seconds: float) -> int | None:
        """Take the lease of a kernel that is free, expired or one's own; return its fencing token."""

    async def renew_lease(self, kernel_id: str, owner: str, seconds: float) -> bool:
        """Prolong a lease; False when it is lost."""

    async def release_lease(self, kernel_id: str, owner: str) -> bool:
        """Give a lease up."""

    async def release_stray_lease(self, name: str, owner: str, token: int) -> None:
        """Give up a lease that nobody needs, if it still is the one with this token."""

    async def seize_lease(self, kernel_id: str, owner: str, *, by_force: bool = False) -> bool:
        """Take the lease of a recorded kernel, by force also from a replica that holds it."""

    async def clear_leases(self) -> None:
        """Give up the leases of all replicas."""

    async def beat(self, owner: str, activity: Mapping[str, Activity], connections: Mapping[str, int]) -> Beat:
        """Prolong this replica's leases, tell what has changed here, and learn what has changed elsewhere."""

    async def leave(self, owner: str) -> None:
        """Give up all leases and places of this replica."""

    async def reserve(
        self,
        owner: str,
        username: str,
        max_total: int | None,
        max_per_user: int | None,
        ttl: float,
        *,
        kernel_id: str | None = None,
    ) -> str:
        """Hold a place under the limits of all replicas; return its id."""

    async def commit(self, reservation_id: str) -> bool:
        """Turn a place into a kernel."""

    async def cancel(self, reservation_id: str) -> bool:
        """Give a place up."""

    async def fetch_notebooks(self) -> list[dict[str, Any]]:
        """Return the notebooks' sessions of all replicas."""

    async def save_notebook(self, entry: Mapping[str, Any]) -> None:
        """Insert or replace a notebook's session."""

    async def delete_notebook(self, session_id: str) -> None:
        """Remove a notebook's session."""
