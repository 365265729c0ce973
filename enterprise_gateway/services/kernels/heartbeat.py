"""The heartbeat of a replica: what it tells the others, and what it learns from them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from ...core.errors import StoreUnavailableError
from ...core.offload import offload
from ...core.sessionrecords import Activity, Beat, StoredKernel

if TYPE_CHECKING:
    from ..processproxies.remnants import Remnant
    from ..sessions.sharingstore import SharingStore
    from .attachments import Attachments
    from .jobs import Jobs
    from .leases import Leases
    from .overview import Overview
    from .pulse import Pulse
    from .table import KernelTable
    from .takeovers import Takeovers

ACTIVITY_SECONDS = 5.0  # how much newer a kernel's activity must be before it alone is told to the others


class Heartbeat:
    """One task that renews leases and exchanges news for all kernels in one transaction; the rest runs as jobs.

    Parameters
    ----------
    store
        Where all replicas' hearts beat.
    pulse
        When this one's does.
    leases, overview, attachments, takeovers, jobs
        What is changed by what was learned.
    table
        The kernels that this gateway is attached to.
    is_changing
        Whether a kernel is being started, restarted or stopped here.
    find_files
        Returns the files in this gateway's runtime directory of kernels other than those given; blocks.
    """

    def __init__(
        self,
        store: SharingStore,
        pulse: Pulse,
        leases: Leases,
        overview: Overview,
        attachments: Attachments,
        takeovers: Takeovers,
        jobs: Jobs,
        *,
        table: KernelTable,
        is_changing: Callable[[str], bool],
        find_files: Callable[[Collection[str]], list[Remnant]],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.log = log
        self._store = store
        self._pulse = pulse
        self._leases = leases
        self._overview = overview
        self._attachments = attachments
        self._takeovers = takeovers
        self._jobs = jobs
        self._table = table
        self._is_changing = is_changing
        self._find_files = find_files
        self._told_connections: dict[str, int] = {}
        self._untellable: set[str] = set()  # kernels of which that has been logged
        self._recorded: set[str] = set()  # kernels that were recorded at the last heartbeat
        self._is_untidy = True  # whether kernels have ended since files were looked for

    async def run(self) -> None:
        """Beat for ever; the task of a replica."""
        while True:
            try:
                await self._beat()
            except StoreUnavailableError:
                self._leases.cut_off()  # logged once by the store; our leases, and others', expire
            except Exception:
                self.log.exception("The heartbeat of this replica failed")
            await self._pulse.pause()

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that is gone."""
        self._told_connections.pop(kernel_id, None)
        self._untellable.discard(kernel_id)

    async def _beat(self) -> None:
        asked_at = time.monotonic()
        was_cut_off = self._leases.is_cut_off
        before = self._leases.held()
        activity, connections = self._changed_activity(), self._changed_connections()
        beat = await self._store.beat(self._leases.owner, activity, connections)
        for kernel_id, told in activity.items():
            before[kernel_id].told = told  # if it was taken anew meanwhile, that lease is another one
        self._told_connections.update(connections)
        if was_cut_off:
            self._leases.be_patient()
        self._leases.learn(beat.tokens, asked_at, before)
        self._learn(beat, asked_at)
        self._pulse.beat()

    # -- what is told -------------------------------------------------------------------------------------------------

    def _changed_activity(self) -> dict[str, Activity]:
        changed = {}
        for kernel_id, lease in self._leases.held().items():
            kernel = self._table.get(kernel_id)
            if kernel is None:
                continue
            try:
                now = Activity(kernel.execution_state, kernel.last_activity.timestamp())
            except Exception as error:  # noqa: BLE001 -- of one kernel: the others' leases are to be prolonged
                if kernel_id not in self._untellable:
                    self._untellable.add(kernel_id)
                    self.log.warning(
                        "The activity of kernel %s cannot be published to other replicas: %r", kernel_id, error
                    )
                continue
            if (
                lease.told is None
                or lease.told.execution_state != now.execution_state
                or now.last_activity - lease.told.last_activity > ACTIVITY_SECONDS
            ):
                changed[kernel_id] = now
        return changed

    def _changed_connections(self) -> dict[str, int]:
        changed = {}
        for kernel in self._table:
            kernel_id = str(kernel.kernel_id)
            count = kernel.channels.connections if kernel.channels is not None else 0
            if count != self._told_connections.get(kernel_id, 0):
                changed[kernel_id] = count
        return changed

    # -- what is learned ----------------------------------------------------------------------------------------------

    def _learn(self, beat: Beat, asked_at: float) -> None:
        self._is_untidy = self._is_untidy or bool(self._recorded - beat.kernels.keys())
        self._recorded = set(beat.kernels)
        self._overview.replace(beat.kernels, asked_at)
        held = self._leases.held()
        for kernel in self._table:
            kernel_id = str(kernel.kernel_id)
            if kernel_id not in held and self._attachments.is_outdated(kernel):
                self._jobs.do(kernel_id, self._refresh(kernel_id))
        if self._store.has_unsaved():
            self._jobs.do("owed", self._flush())
        strays = {name: token for name, token in beat.unrecorded.items() if not self._is_needed(name)}
        if strays:
            self._jobs.do("strays", self._release(strays))
        orphans = [stored for stored in beat.kernels.values() if self._is_orphan(stored, held)]
        if orphans:
            self._jobs.do("orphans", self._takeovers.take_over(orphans))
        due = self._takeovers.due()
        if due:
            self._jobs.do("state unconfirmed", self._takeovers.check(due))
        if self._is_untidy:
            self._jobs.do("files", self._tidy())

    def _is_needed(self, name: str) -> bool:
        """Whether somebody here needs the lease of this name."""
        is_known = name in self._table or name in self._leases.names or name in self._leases.state_unconfirmed
        return is_known or self._is_changing(name) or self._store.has_unsaved(name)

    def _is_orphan(self, stored: StoredKernel, held: Collection[str]) -> bool:
        """Whether nobody manages a kernel, or we should and do not know: the answer to a claim was lost."""
        kernel_id = stored.kernel_id
        if stored.owner is None:
            return not self._leases.is_patient
        if stored.owner != self._leases.owner or self._is_changing(kernel_id) or self._store.has_unsaved(kernel_id):
            return False
        return kernel_id not in held or not self._is_needed(kernel_id)

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def _refresh(self, kernel_id: str) -> None:
        with contextlib.suppress(StoreUnavailableError):  # the next heartbeat tries again
            await self._attachments.refresh(kernel_id)

    async def _flush(self) -> None:
        await self._store.flush()

    async def _release(self, strays: Mapping[str, int]) -> None:
        """Release leases of starts that were abandoned before they were recorded, and of names no longer needed."""
        with contextlib.suppress(StoreUnavailableError):  # the next heartbeat tries again
            for name, token in strays.items():
                await self._store.release_stray_lease(name, self._leases.owner, token)

    async def _tidy(self) -> None:
        """Remove what kernels that ended elsewhere have left in this replica's runtime directory."""
        self._is_untidy = False
        files = await offload(self._find_files, list(self._recorded))
        if not files:
            return
        try:
            # After the search: of what is started now, no file was found.
            known = await self._store.fetch_kernels(self._leases.owner)
        except StoreUnavailableError:
            self._is_untidy = True
            return
        for file in files:
            if file.kernel_id not in known and not self._is_needed(file.kernel_id):
                await offload(file.remove)
