"""What restarts and stops of kernels consist of."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...core.errors import ConflictError, LaunchTimeoutError, LeaseLostError, StoreUnavailableError
from ...core.offload import OwnThreads, uninterrupted
from ..processproxies.choice import launch_timeout

if TYPE_CHECKING:
    from .records import KernelRecords
    from .remotekernel import RemoteKernelManager
    from .restarter import KernelRestarter
    from .sharing import KernelSharing
    from .transitions import Transitions

ENDING_SECONDS = 30.0  # that kernels may take to end


class KernelChanges:
    """Interrupts, restarts and stops kernels, restarts and stops recorded before they begin.

    Parameters
    ----------
    transitions
        Lets one change of a kernel happen at a time.
    records
        Where changes are recorded.
    sharing
        Says whether a kernel is ours to change.
    restarter
        Watches kernels that are not being changed.
    remove
        Takes the kernel of an id out of the table.
    """

    def __init__(
        self,
        transitions: Transitions,
        records: KernelRecords,
        sharing: KernelSharing,
        restarter: KernelRestarter,
        remove: Callable[[str], RemoteKernelManager | None],
    ) -> None:
        self._transitions = transitions
        self._records = records
        self._sharing = sharing
        self._restarter = restarter
        self._remove = remove

    async def interrupt(self, kernel: RemoteKernelManager) -> None:
        """Interrupt what a kernel executes.

        Raises
        ------
        ConflictError
            The kernel is dead, or is being restarted or stopped: it executes nothing.
        """
        kernel_id = str(kernel.kernel_id)
        state = self._transitions.under_way(kernel_id)
        if kernel.life.is_dead and not state:
            state = f"is dead ({kernel.life.died_because})"
        if state or not kernel.has_kernel:
            raise ConflictError(f"Kernel {kernel_id} cannot be interrupted: it {state or 'has no process'}.")
        await kernel.interrupt_kernel()

    async def restart(self, kernel: RemoteKernelManager, now: bool) -> None:
        """Restart a kernel because somebody has asked for it; done when its new process is launched.

        Raises
        ------
        LaunchTimeoutError
            It takes too long; it goes on, and is done when what it waits for has ended.
        """
        kernel_id = str(kernel.kernel_id)
        threads = OwnThreads(kernel_id)
        env: Any = (kernel.launch_args or {}).get("env") or {}
        seconds = ENDING_SECONDS + launch_timeout(kernel.spec, env)
        restart = functools.partial(self._restart, kernel, now, threads)
        try:
            await asyncio.wait_for(self._transitions.restart(kernel_id, restart), seconds)
        except asyncio.TimeoutError:
            waits_for = threads.waits_for or "its process"
            raise LaunchTimeoutError(
                f"Kernel {kernel_id} is still being restarted after {seconds:g}s: it waits for {waits_for}."
            ) from None

    async def _restart(self, kernel: RemoteKernelManager, now: bool, threads: OwnThreads) -> None:
        is_used_elsewhere = self._sharing.is_used_elsewhere(str(kernel.kernel_id))
        kernel = await self._sharing.begin(kernel, self._records.restarting)
        self._restarter.unwatch(kernel)
        if is_used_elsewhere:
            await self._sharing.let_others_notice()
        kernel.life.restarted_by_client()
        await self._replace(kernel, now or kernel.life.is_dead, False, threads)
        self._restarter.watch(kernel)

    async def relaunch(self, kernel: RemoteKernelManager, now: bool, newports: bool) -> None:
        """Restart a kernel that has died; one that cannot be launched again is dead. Called by the restarter."""
        relaunch = functools.partial(self._relaunch, kernel, now, newports)
        await self._transitions.restart(str(kernel.kernel_id), relaunch)

    async def _relaunch(self, kernel: RemoteKernelManager, now: bool, newports: bool) -> None:
        await self._records.restarting_after_death(kernel)
        await self._replace(kernel, now, newports, OwnThreads(str(kernel.kernel_id)))

    async def _replace(self, kernel: RemoteKernelManager, now: bool, newports: bool, threads: OwnThreads) -> None:
        confirm = functools.partial(self._sharing.confirm, str(kernel.kernel_id))
        # A replica that does not know yet must not reach the new process by the old connection.
        newports = newports or self._sharing.is_shared
        try:
            await confirm()
            await threads.run(functools.partial(kernel.restart_kernel, now=now, newports=newports, confirm=confirm))
        except LeaseLostError:
            kernel.recorded.replaced()  # whatever the other replica does with it, it is to be attached to anew
            raise
        except Exception as error:
            kernel.mark_dead(f"it could not be restarted: {error}")
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
        shut_down = functools.partial(self._shut_down, kernel, now, restart)
        await self._transitions.stop(str(kernel.kernel_id), shut_down)

    async def _shut_down(self, kernel: RemoteKernelManager, now: bool, restart: bool) -> None:
        try:
            kernel = await self._sharing.begin(kernel, self._records.stopping)
        except StoreUnavailableError:
            if kernel.execution_state == "restarting":  # which was cancelled for this, and must not be left half done
                self._restarter.unwatch(kernel)
                self._restarter.finish_restart(kernel)
            raise
        self._restarter.unwatch(kernel)  # a restart that could no longer be cancelled has it watched again
        try:
            await kernel.shutdown_kernel(now=now or kernel.life.is_dead, restart=restart)
        finally:
            self._remove(str(kernel.kernel_id))
            await self._records.gone(str(kernel.kernel_id))
