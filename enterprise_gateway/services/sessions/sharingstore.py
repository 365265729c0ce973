"""What a store of kernel sessions must support so that replicas of the gateway can share kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from enterprise_gateway.core.sessionrecords import Activity, Beat, Record, StoredKernel


@runtime_checkable
class SharingStore(Protocol):
    """A :class:`KernelSessionManager` with leases, reservations and notebook sessions; see ``SQLKernelSessionManager``.

    Gateways with other stores do not know of each other's kernels.
    """

    leases_required: bool
    lease_seconds: float

    @property
    def store_available(self) -> bool:
        """Whether the last call to the store succeeded."""

    def has_unsaved(self, kernel_id: str | None = None) -> bool:
        """Whether a write for a kernel, or (None) for any kernel, is still pending."""

    async def flush(self) -> set[str]:
        """Retry all pending writes once."""

    async def fetch_session(self, kernel_id: str) -> Record | None:
        """Return the record of a kernel."""

    async def fetch_kernels(self, owner: str, kernel_id: str | None = None) -> dict[str, StoredKernel]:
        """Return what the store knows of all kernels, oldest first, or of one."""

    def disown(self, kernel_id: str) -> None:
        """Forget a kernel that another replica has removed."""

    async def acquire_lease(self, kernel_id: str, owner: str, seconds: float) -> int | None:
        """Acquire the lease of a kernel if it is free, expired or the owner's own; return its fencing token."""

    async def renew_lease(self, kernel_id: str, owner: str, seconds: float) -> bool:
        """Renew a lease; False when it is lost."""

    async def release_lease(self, kernel_id: str, owner: str) -> bool:
        """Release a lease."""

    async def release_stray_lease(self, name: str, owner: str, token: int) -> None:
        """Release a lease that is no longer needed, if it still has this token."""

    async def seize_lease(self, kernel_id: str, owner: str, *, by_force: bool = False) -> bool:
        """Take the lease of a recorded kernel; with ``by_force``, even from a replica that holds it."""

    async def clear_leases(self) -> None:
        """Release the leases of all replicas."""

    async def beat(self, owner: str, activity: Mapping[str, Activity], connections: Mapping[str, int]) -> Beat:
        """Renew this replica's leases, publish the changes made here, and fetch those made elsewhere."""

    async def leave(self, owner: str) -> None:
        """Release all leases and reservations of this replica."""

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
        """Reserve a place under the limits that all replicas share; return its id."""

    async def commit(self, reservation_id: str) -> bool:
        """End the reservation of a kernel that has started."""

    async def cancel(self, reservation_id: str) -> bool:
        """Cancel a reservation."""

    async def fetch_notebooks(self) -> list[dict[str, Any]]:
        """Return the notebooks' sessions of all replicas."""

    async def save_notebook(self, entry: Mapping[str, Any]) -> None:
        """Insert or replace a notebook's session."""

    async def delete_notebook(self, session_id: str) -> None:
        """Remove a notebook's session."""
