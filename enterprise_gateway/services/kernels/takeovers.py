"""How a replica takes over the kernels of one that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from ...core.errors import StoreUnavailableError
from ...core.offload import uninterrupted
from .leases import CLAIM_SECONDS, StateCheck

if TYPE_CHECKING:
    from ...core.sessionrecords import StoredKernel
    from ..sessions.revival import RevivalReport
    from .attachments import Attachments
    from .leases import Leases
    from .overview import Overview
    from .table import KernelTable


class Takeovers:
    """Takes expired leases, and checks whether the kernels are alive.

    Parameters
    ----------
    leases, overview
        What is known of all replicas' kernels.
    attachments
        Attaches to kernels that others have restarted.
    table
        The kernels that this gateway is attached to.
    recover
        Recovers kernels from their records, or removes what is left of them.
    is_changing
        Whether a kernel is being started, restarted or stopped here.
    forget
        Forgets what is known of a kernel that is gone.
    """

    def __init__(
        self,
        leases: Leases,
        overview: Overview,
        attachments: Attachments,
        *,
        table: KernelTable,
        recover: Callable[[Iterable[str]], Awaitable[RevivalReport]],
        is_changing: Callable[[str], bool],
        forget: Callable[[str], None],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.log = log
        self._leases = leases
        self._overview = overview
        self._attachments = attachments
        self._table = table
        self._recover = recover
        self._is_changing = is_changing
        self._forget = forget

    async def take_over(self, orphans: Iterable[StoredKernel]) -> None:
        """Manage the kernels of a replica that is gone."""
        with contextlib.suppress(StoreUnavailableError):  # the next heartbeat tries again
            taken = [kernel_id for kernel_id in await asyncio.gather(*map(self._seize, orphans)) if kernel_id]
            if taken:
                self.log.info("This replica took over %d kernels.", len(taken))
                await self.check(taken)

    async def _seize(self, orphan: StoredKernel) -> str:
        kernel_id = orphan.kernel_id
        if not await self._leases.seize(kernel_id):
            return ""
        self._leases.state_unconfirmed[kernel_id] = StateCheck(time.monotonic() + CLAIM_SECONDS)
        return kernel_id

    def due(self) -> list[str]:
        """Return the kernels that are to be checked now."""
        now = time.monotonic()
        return [kernel_id for kernel_id, check in self._leases.state_unconfirmed.items() if check.due <= now]

    async def check(self, kernel_ids: list[str]) -> None:
        """Check kernels that we have taken over; one that cannot be checked now is checked again later."""
        checked: set[str] = set()
        try:
            checked = await self._settle(kernel_ids)
        except StoreUnavailableError:
            pass
        finally:
            unconfirmed = self._leases.state_unconfirmed
            for kernel_id in kernel_ids:
                if kernel_id in checked:
                    unconfirmed.pop(kernel_id, None)
                elif kernel_id in unconfirmed:
                    unconfirmed[kernel_id].try_later()

    async def _settle(self, kernel_ids: list[str]) -> set[str]:
        """Check kernels with no replica connected, or an interrupted start, restart or stop; return which."""
        checked = set()
        unclear = []
        for kernel_id in kernel_ids:
            if self._is_changing(kernel_id):
                checked.add(kernel_id)  # we are at it
                continue
            stored = self._overview.get(kernel_id)
            if kernel_id not in self._table or stored is None or stored.state != "running":
                unclear.append(kernel_id)
                continue
            try:
                await self._attachments.catch_up(kernel_id)
                checked.add(kernel_id)
            except Exception as error:  # noqa: BLE001 -- of one kernel: a host, a back end
                self.log.warning("Kernel %s could not be taken over and will be retried: %s", kernel_id, error)
        if not unclear:
            return checked
        report = await self._recover(unclear)
        for kernel_id in report.removed:
            kernel = self._table.get(kernel_id)
            if kernel is not None:
                await uninterrupted(self._attachments.drop(kernel))
            else:
                self._forget(kernel_id)
        return checked | (set(unclear) - report.kept.keys())
