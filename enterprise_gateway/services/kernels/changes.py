"""What restarts and stops of kernels consist of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core.errors import LeaseLostError, StoreUnavailableError
from ...core.offload import Errand, uninterrupted

if TYPE_CHECKING:
    from .records import KernelRecords
    from .remotekernel import RemoteKernelManager
    from .restarter import KernelRestarter
    from .sharing import KernelSharing


class KernelChanges:
    """Restarts and stops kernels, each recorded before it begins; :class:`Transitions` lets one at a time happen.

    Parameters
    ----------
    records
        Where changes are recorded.
    sharing
        Says whether a kernel is ours to change.
    restarter
        Watches kernels that are not being changed.
    mark_dead, remove
        Keep a kernel in the table as dead, and take one of an id out of it.
    """

    def __init__(
        self,
        records: KernelRecords,
        sharing: KernelSharing,
        restarter: KernelRestarter,
        *,
        mark_dead: Callable[[RemoteKernelManager, str], None],
        remove: Callable[[str], RemoteKernelManager | None],
    ) -> None:
        self._records = records
        self._sharing = sharing
        self._restarter = restarter
        self._mark_dead = mark_dead
        self._remove = remove

    async def restart(self, kernel: RemoteKernelManager, now: bool, errand: Errand) -> None:
        """Restart a kernel because somebody has asked for it."""
        is_used_elsewhere = self._sharing.is_used_elsewhere(str(kernel.kernel_id))
        kernel = await self._sharing.begin(kernel, self._records.restarting)
        self._restarter.unwatch(kernel)
        if is_used_elsewhere:
            await self._sharing.let_others_notice()
        kernel.life.restarted_by_client()
        await self._replace(kernel, now or kernel.life.is_dead, False, errand)
        self._restarter.watch(kernel)

    async def relaunch(self, kernel: RemoteKernelManager, now: bool, newports: bool) -> None:
        """Restart a kernel that has died; one that cannot be launched again is dead."""
        await self._records.restarting_after_death(kernel)
        await self._replace(kernel, now, newports, Errand(str(kernel.kernel_id)))

    async def _replace(self, kernel: RemoteKernelManager, now: bool, newports: bool, errand: Errand) -> None:
        confirm = functools.partial(self._sharing.confirm, str(kernel.kernel_id))
        # A replica that does not know yet must not reach the new process by the old connection.
        newports = newports or self._sharing.is_shared
        try:
            await confirm()
            await errand.run(functools.partial(kernel.restart_kernel, now=now, newports=newports, confirm=confirm))
        except LeaseLostError:
            kernel.recorded.replaced()  # whatever the other replica does with it, it is to be attached to anew
            raise
        except Exception as error:
            self._mark_dead(kernel, f"it could not be restarted: {error}")
            raise
        kernel.life.revived()
        await self._record_replacement(kernel)

    async def _record_replacement(self, kernel: RemoteKernelManager) -> None:
        """Record the new process of a kernel: it is there, so a store that is away is told later."""
        try:
            await self._records.running(kernel, required=False)
        except LeaseLostError:
            # We were away for so long that another replica has checked the kernel: this process is one too many.
            kernel.recorded.replaced()
            await uninterrupted(kernel.end_process())
            raise

    async def shut_down(self, kernel: RemoteKernelManager, now: bool, restart: bool) -> None:
        """Stop a kernel and remove all that belongs to it."""
        try:
            kernel = await self._sharing.begin(kernel, self._records.stopping)
        except StoreUnavailableError:
            if kernel.execution_state == "restarting":  # which was given up for this, and is not to be left half done
                self._restarter.unwatch(kernel)
                self._restarter.finish_restart(kernel)
            raise
        self._restarter.unwatch(kernel)  # a restart that could not be given up any more has it watched again
        try:
            await kernel.shutdown_kernel(now=now or kernel.life.is_dead, restart=restart)
        finally:
            self._remove(str(kernel.kernel_id))
            await self._records.gone(str(kernel.kernel_id))
