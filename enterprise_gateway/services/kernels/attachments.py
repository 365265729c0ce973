"""A replica's connections to kernels that other replicas may restart and remove."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...core.errors import NotFoundError
from ...core.keyedlocks import KeyedLocks
from ...core.offload import uninterrupted

if TYPE_CHECKING:
    from ...core.sessionrecords import StoredKernel
    from ..sessions.sharingstore import SharingStore
    from .leases import Leases
    from .loader import KernelLoader
    from .overview import Overview
    from .remotekernel import RemoteKernelManager
    from .restarter import KernelRestarter
    from .table import KernelTable


class Attachments:
    """Applies here what other replicas have done with kernels, as recorded in the store.

    Parameters
    ----------
    store
        Has the kernels' records.
    leases, overview
        What is known of all replicas' kernels.
    table
        The kernels that this gateway is attached to.
    loader
        Makes managers for recorded kernels.
    restarter
        Watches the ends of kernels.
    enter
        Connects to a kernel and enters it in the table.
    forget
        Forgets what else is known of a kernel that is gone.
    """

    def __init__(
        self,
        store: SharingStore,
        leases: Leases,
        overview: Overview,
        *,
        table: KernelTable,
        loader: KernelLoader,
        restarter: KernelRestarter,
        enter: Callable[[RemoteKernelManager], None],
        forget: Callable[[str], None],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.log = log
        self.is_retiring = False
        self._store = store
        self._leases = leases
        self._overview = overview
        self._table = table
        self._loader = loader
        self._restarter = restarter
        self._enter = enter
        self._forget = forget
        self._seen: dict[str, float] = {}  # versions of records that our attachments agree with
        self._locks = KeyedLocks()

    # -- following others ---------------------------------------------------------------------------------------------

    def is_outdated(self, kernel: RemoteKernelManager) -> bool:
        """Whether the store has a change of a kernel that was not applied here yet."""
        stored = self._overview.get(str(kernel.kernel_id))
        if stored is None or (stored.execution_state == "dead") != kernel.life.is_dead:
            return True
        return stored.version != self._seen.get(stored.kernel_id)

    async def refresh(self, kernel_id: str) -> StoredKernel | None:
        """Ask the store about one kernel, update our connection accordingly, and return the answer."""
        async with self._locks.of(kernel_id):
            kernels = await self._store.fetch_kernels(self._leases.owner, kernel_id)
            stored = kernels.get(kernel_id)
            if stored is None:
                self._overview.forget(kernel_id)
            else:
                self._overview.update(kernels)
            if self.is_retiring:
                return stored  # our attachment is detached as it is
            kernel = self._table.get(kernel_id)
            if kernel is not None and stored is None:
                await uninterrupted(self.drop(kernel))
            elif kernel is not None and stored is not None and stored.owner not in {None, self._leases.owner}:
                await self._follow(kernel, stored)
            return stored

    async def _follow(self, kernel: RemoteKernelManager, stored: StoredKernel) -> None:
        """Apply what another replica has done with a kernel."""
        self._leases.yield_lease(stored.kernel_id)
        if not kernel.recorded.is_certain:
            await self._end_unrecorded(kernel)
        if stored.execution_state == "dead":
            if not kernel.life.is_dead:
                kernel.mark_dead("its process has ended")
        elif stored.version == self._seen.get(stored.kernel_id):
            return
        elif stored.state == "restarting":
            record = await self._store.fetch_session(stored.kernel_id)
            kernel.stop_relaying(has_died=record is not None and int(record.get("restarts") or 0) > 0)
        elif stored.state == "running":
            record = await self._store.fetch_session(stored.kernel_id)
            if record is None:
                return
            if not kernel.recorded.is_in(record) or kernel.execution_state == "restarting":
                await uninterrupted(self._reattach(kernel, await self._loader.load(record)))
        self._seen[stored.kernel_id] = stored.version

    # -- kernels that we manage -----------------------------------------------------------------------------------

    async def pay(self, kernel_id: str) -> None:
        """Write what could not be recorded of a kernel, under its lease of that time, before taking another."""
        if self._store.has_unsaved(kernel_id):
            await self._store.flush()

    async def catch_up(self, kernel_id: str) -> None:
        """Reconnect to a kernel that this replica manages from now on, if others have restarted it."""
        async with self._locks.of(kernel_id):
            record = await self._store.fetch_session(kernel_id)
            kernel = self._table.get(kernel_id)
            if record is not None and kernel is not None and not kernel.recorded.is_in(record):
                if not kernel.recorded.is_certain:
                    await self._end_unrecorded(kernel)
                await uninterrupted(self._reattach(kernel, await self._loader.load(record)))

    async def attach(self, record: Mapping[str, Any]) -> bool:
        """Enter the kernel of a record in the table, if it is not there already.

        Raises
        ------
        NotFoundError
            The kernel is dead.
        """
        kernel_id = record["kernel_id"]
        async with self._locks.of(kernel_id):  # requests and the heartbeat may want it at the same time
            attached = self._table.get(kernel_id)
            if attached is not None and attached.recorded.is_in(record) and not _waits(attached):
                if await attached.is_alive():
                    return True
                raise NotFoundError("its process is gone")
            kernel, is_alive = await self._loader.load_and_ask(record)
            if not is_alive and not self._overview.is_dead_elsewhere(kernel_id):
                await kernel.disconnect()
                raise NotFoundError("its process is gone")
            if attached is not None:
                await uninterrupted(self._reattach(attached, kernel))
                return True
            self._enter(kernel)
            if not is_alive:
                kernel.mark_dead("its process has ended")
            return True

    # -- both ---------------------------------------------------------------------------------------------------------

    async def _end_unrecorded(self, kernel: RemoteKernelManager) -> None:
        """End the process of a kernel if it was never recorded and another replica has started one."""
        await self.pay(str(kernel.kernel_id))
        record = await self._store.fetch_session(str(kernel.kernel_id))
        if record is None or not kernel.recorded.is_in(record):
            await uninterrupted(kernel.end_process())
        kernel.recorded.settled()

    async def _reattach(self, former: RemoteKernelManager, kernel: RemoteKernelManager) -> None:
        """Connect the websockets of a kernel to the process that another replica has started for it."""
        self._restarter.unwatch(former)
        channels = former.channels
        assert channels is not None  # it is in the table
        former.stop_relaying(has_died=kernel.life.restarts > 0)
        await former.disconnect()
        kernel.process.claim_ports()  # they may be the same ones
        self._table.replace(former, kernel)
        kernel.connect_channels(channels)
        self._restarter.watch(kernel)
        self.log.info("Kernel %s was restarted by another replica", kernel.kernel_id)

    async def drop(self, kernel: RemoteKernelManager) -> None:
        """Forget a kernel that another replica has removed."""
        kernel_id = str(kernel.kernel_id)
        self._restarter.unwatch(kernel)
        self._table.remove(kernel_id)
        self._forget(kernel_id)
        self._store.disown(kernel_id)
        if not kernel.recorded.is_certain:
            await kernel.end_process()
        await kernel.discard()
        self.log.info("Kernel %s was removed by another replica", kernel_id)

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that is gone."""
        self._seen.pop(kernel_id, None)


def _waits(kernel: RemoteKernelManager) -> bool:
    """Whether a kernel's clients wait for the end of a restart that another replica has begun."""
    return kernel.execution_state == "restarting"
