"""Recovers kernels from their records: at start, on request, and when the replica in charge of them is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...core.deadline import Deadline
from ...core.errors import StoreUnavailableError
from ...core.sessionrecords import phase_of
from ..sessions.revival import Revival, RevivalReport
from ..sessions.sharingstore import SharingStore

if TYPE_CHECKING:
    from ..sessions.kernelsessionmanager import KernelSessionManager
    from .loader import KernelLoader
    from .remotekernel import RemoteKernelManager
    from .restarter import KernelRestarter
    from .sharing import KernelSharing
    from .table import KernelTable

STORE_PATIENCE_SECONDS = 30.0
CHECK_SECONDS = 20.0  # for one kernel; a gateway that starts is not kept longer by hosts that do not answer


class KernelRecovery:
    """Connects to recorded kernels that are alive, completes interrupted restarts, and removes the rest.

    Parameters
    ----------
    store
        Has the records.
    sharing
        Attaches to kernels, and says which of them are ours to change.
    table
        The kernels of this gateway.
    loader
        Makes managers for recorded kernels.
    enter
        Connects to a kernel and enters it in the table.
    restarter
        Finishes restarts.
    """

    def __init__(
        self,
        store: KernelSessionManager,
        sharing: KernelSharing,
        table: KernelTable,
        loader: KernelLoader,
        enter: Callable[[RemoteKernelManager], None],
        restarter: KernelRestarter,
    ) -> None:
        self._store = store
        self._table = table
        self._loader = loader
        self._enter = enter
        self._restarter = restarter
        self._revival = Revival(
            store,
            revive_one=sharing.attach,
            remove_one=self._remove_one,
            relaunch_one=self._relaunch_one,
            timeout_seconds=CHECK_SECONDS,
            **sharing.revival_rules(),
        )
        self._settling: asyncio.Task[None] | None = None

    async def revive_all(self) -> None:
        """Recover every recorded kernel; called at start in standalone mode."""
        if isinstance(self._store, SharingStore):
            await self._clear_leases(self._store)
        await self._revival.run(store_patience_seconds=STORE_PATIENCE_SECONDS)
        if self._revival.unsettled:
            self._settling = asyncio.create_task(self._revival.settle(), name="check recorded kernels again")

    async def _clear_leases(self, store: SharingStore) -> None:
        """Remove leases that replicas left in the records: a single gateway does not use them."""
        deadline = Deadline(STORE_PATIENCE_SECONDS)
        while True:
            try:
                return await store.clear_leases()
            except StoreUnavailableError:
                if deadline.expired:
                    raise
                await asyncio.sleep(1)

    async def revive(self, kernel_id: str) -> bool:
        """Recover one kernel on request; False when there is no such kernel.

        Raises
        ------
        StoreUnavailableError
            The store could not be asked, or the kernel not be checked.
        """
        return await self._revival.revive(kernel_id) is not None

    async def revive_some(self, kernel_ids: Iterable[str]) -> RevivalReport:
        """Check the kernels of a replica that is gone; StoreUnavailableError if their records cannot be read."""
        return await self._revival.run(kernel_ids)

    def is_unsettled(self, kernel_id: str) -> bool:
        """Whether the kernel is recorded but could not be checked at start: it must not be reported as unknown."""
        return kernel_id in self._revival.unsettled

    async def close(self) -> None:
        """Stop the background tasks; kernels that could not be checked stay recorded."""
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.wait([self._settling])

    async def _relaunch_one(self, record: Mapping[str, Any]) -> None:
        """Complete an interrupted restart, or restart a kernel that has died, in the background."""
        kernel = self._table.get(record["kernel_id"])
        if kernel is None:
            kernel = await self._loader.load(record)
            self._enter(kernel)
        if phase_of(record) == "running":
            return  # the restarter finds that it has ended
        self._restarter.unwatch(kernel)
        kernel.stop_relaying(has_died=int(record.get("restarts") or 0) > 0)
        self._restarter.finish_restart(kernel)

    async def _remove_one(self, record: Mapping[str, Any]) -> None:
        """Remove all leftovers of a kernel: those that its record describes, and those that carry its id."""
        kernel = await self._loader.load_process(record)
        await kernel.remove_leftovers()
