"""Detaches from all kernels, or stops them, when the gateway ends."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ...core.errors import NotFoundError
from ...core.steps import take_all
from .changes import ENDING_SECONDS

if TYPE_CHECKING:
    from .launches import Launches
    from .records import KernelRecords
    from .remotekernel import RemoteKernelManager
    from .restarter import KernelRestarter
    from .sharing import KernelSharing
    from .table import KernelTable
    from .transitions import Transitions

RESTART_PATIENCE_SECONDS = 10.0  # that a gateway which ends gives restarts under way


class Leaving:
    """Leaves kernels running, or stops them.

    Parameters
    ----------
    table
        The kernels; those that are left running are taken out of it.
    launches, transitions
        Starts and restarts that are under way.
    sharing
        Says which kernels are ours to stop.
    records
        Keeps what only this gateway knows of kernels that live on.
    restarter
        Watches kernels until then.
    shut_down
        Stops the kernel of an id, also one that is starting.
    """

    def __init__(
        self,
        table: KernelTable,
        launches: Launches,
        transitions: Transitions,
        sharing: KernelSharing,
        records: KernelRecords,
        restarter: KernelRestarter,
        *,
        shut_down: Callable[..., Awaitable[None]],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.log = log
        self._table = table
        self._launches = launches
        self._transitions = transitions
        self._sharing = sharing
        self._records = records
        self._restarter = restarter
        self._shut_down = shut_down

    async def keep_all(self) -> None:
        """Detach from all kernels, which live on."""
        await self._launches.give_up(*self._launches.under_way)
        await self._transitions.give_up_restarts(RESTART_PATIENCE_SECONDS)
        await asyncio.gather(*map(self._detach, self._table))
        for kernel_id in self._table.ids():
            self._table.remove(kernel_id)

    async def stop_all(self, now: bool) -> None:
        """Stop all kernels at once that this gateway is in charge of; a failure of one does not keep the others."""
        for kernel in [kernel for kernel in self._table if not self._sharing.holds(str(kernel.kernel_id))]:
            self._table.remove(str(kernel.kernel_id))
            await self._detach(kernel)
        stops = {
            asyncio.ensure_future(self._shut_down(kernel_id, now=now)): kernel_id
            for kernel_id in [*self._launches.under_way, *self._table.ids()]
        }
        late = (await asyncio.wait(stops, timeout=ENDING_SECONDS))[1] if stops else set()
        for stop, kernel_id in stops.items():
            error = TimeoutError("a thread hangs") if stop in late else stop.exception()
            if isinstance(error, Exception) and not isinstance(error, NotFoundError):
                self.log.error("Kernel %s could not be shut down: %s", kernel_id, error)

    async def _detach(self, kernel: RemoteKernelManager) -> None:
        """Leave a kernel running; any error is logged and does not stop the others from being detached."""
        steps: list[Callable[[], Any]] = [
            functools.partial(self._restarter.unwatch, kernel),
            kernel.detach,
            functools.partial(self._records.left, kernel),
        ]
        await take_all(steps, f"Kernel {kernel.kernel_id}", self.log)
