"""How several gateways on one store share kernels: each is served by all of them and managed by one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ...core.deadline import Deadline
from ...core.errors import ConflictError, LeaseLostError, NotFoundError, StoreUnavailableError
from ...core.offload import uninterrupted
from ..sessions.sessionmanager import SharedTable
from .attachments import Attachments
from .heartbeat import Heartbeat
from .jobs import Jobs, cancelled
from .leases import PATIENCE_SECONDS, Leases
from .overview import Overview
from .pulse import Pulse
from .sharing import KernelSharing, Step
from .takeovers import Takeovers

if TYPE_CHECKING:
    from ...core.sessionrecords import StoredKernel
    from ..processproxies.remnants import Remnant
    from ..sessions.revival import RevivalReport, RevivalRules
    from ..sessions.sharingstore import SharingStore
    from .listing import KernelListing
    from .loader import KernelLoader
    from .remotekernel import RemoteKernelManager
    from .restarter import KernelRestarter
    from .table import KernelTable

PLACE_SECONDS = 60.0  # a place under the limits counts as long as its kernel is not recorded, this long at most


@dataclass(frozen=True)
class OwnKernels:
    """What replicas use of the gateway that they are part of."""

    table: KernelTable
    listing: KernelListing
    loader: KernelLoader
    restarter: KernelRestarter
    enter: Callable[[RemoteKernelManager], None]
    """Connects to a kernel and enters it in the table."""
    is_changing: Callable[[str], bool]
    """Whether a kernel is being started, restarted or stopped here."""
    recover: Callable[[Iterable[str]], Awaitable[RevivalReport]]
    """Recovers kernels from their records, or removes what is left of them."""
    limits: Callable[[], tuple[int | None, int | None]]
    """Returns how many kernels there may be, in total and per user."""
    find_files: Callable[[Collection[str]], list[Remnant]]
    """Returns the files in the runtime directory of kernels other than those given; blocks."""


class Replicas(KernelSharing):
    """What this gateway publishes to the others, and what it learns from them.

    One task, the heartbeat, prolongs the leases of this replica's kernels, tells what has changed here and learns what
    has changed elsewhere, for all kernels in one transaction. Requests need not wait for it: they ask the store about
    the one kernel they are for.

    Parameters
    ----------
    store
        The store that all replicas use.
    own
        The kernels of this gateway.
    """

    is_shared = True

    def __init__(self, store: SharingStore, own: OwnKernels, log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self.sessions = SharedTable(store)
        self._store = store
        self._own = own
        self._pulse = Pulse(store)
        self._leases = leases = Leases(store, self._pulse)
        self.owner = leases.owner
        self._overview = overview = Overview(leases.owner)
        self._jobs = Jobs(log)
        self._attachments = attachments = Attachments(
            store,
            leases,
            overview,
            table=own.table,
            loader=own.loader,
            restarter=own.restarter,
            enter=own.enter,
            forget=self.forget,
            log=log,
        )
        takeovers = Takeovers(
            leases,
            overview,
            attachments,
            table=own.table,
            recover=own.recover,
            is_changing=own.is_changing,
            forget=self.forget,
            log=log,
        )
        self._heartbeat = Heartbeat(
            store,
            self._pulse,
            leases,
            overview,
            attachments,
            takeovers,
            self._jobs,
            table=own.table,
            is_changing=own.is_changing,
            find_files=own.find_files,
            log=log,
        )
        self._tasks: list[asyncio.Task[None]] = []

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to share; called when the gateway starts to serve."""
        self._store.leases_required = True
        self._leases.be_patient()  # the store may have been away until just now
        self._tasks = [
            asyncio.create_task(self._heartbeat.run(), name="heartbeat of this replica"),
            asyncio.create_task(self._leases.clock.run(), name="check for standstills of this replica"),
        ]

    async def retire(self) -> None:
        """Stop taking over kernels and following other replicas; called when the gateway begins to stop."""
        self._attachments.is_retiring = True
        await self._jobs.close()

    async def leave(self) -> None:
        """End the heartbeat and release all leases for others; called when the gateway has stopped."""
        await cancelled(self._tasks)
        with contextlib.suppress(StoreUnavailableError):  # the leases expire
            await self._store.leave(self.owner)

    # -- who manages a kernel -------------------------------------------------------------------------------------

    def holds(self, kernel_id: str) -> bool:
        """Whether this replica manages the kernel, and has told so in time."""
        return self._leases.holds(kernel_id)

    def yield_lease(self, kernel_id: str) -> None:
        """Note that another replica has taken the kernel's lease over."""
        self._leases.yield_lease(kernel_id)

    async def claim(self, kernel_id: str) -> bool:
        """Take the lease of a recorded kernel that nobody else manages, before it is touched."""
        return await self._leases.claim(kernel_id)

    async def claim_new(self, kernel_id: str) -> None:
        """Take the lease of a kernel that is about to be started."""
        await self._leases.claim_new(kernel_id)

    async def confirm(self, kernel_id: str) -> None:
        """Make sure that we still manage a kernel before its process is touched, or used by clients."""
        await self._leases.confirm(kernel_id)

    async def in_charge_of_dead(self, kernel: RemoteKernelManager) -> bool:
        """Wait until it is clear which replica handles a kernel that has ended; return whether it is this one.

        False: another replica has restarted it, which it is attached to anew by now, or removed it, or given it up.
        """
        kernel_id = str(kernel.kernel_id)
        while self._own.table.has(kernel) and not kernel.life.is_dead:
            with contextlib.suppress(StoreUnavailableError):
                if self.holds(kernel_id) and await self._leases.renew(kernel_id):
                    return True
                await self._attachments.refresh(kernel_id)
            await self._pulse.next_beat()
        return False

    async def begin(self, kernel: RemoteKernelManager, record: Step) -> RemoteKernelManager:
        """Manage a kernel from now on, because a client wants it restarted or deleted here, and record that.

        What another replica does with it at the moment is waited for. Returns the kernel as it is then.

        Raises
        ------
        NotFoundError
            It is gone.
        ConflictError
            Another replica does not get done with it.
        """
        deadline = Deadline(PATIENCE_SECONDS)
        kernel_id = str(kernel.kernel_id)
        await self._attachments.pay(kernel_id)
        while True:
            kernel = await self._take_charge(kernel_id, deadline)
            try:
                await record(kernel)
                return kernel
            except LeaseLostError:  # another replica was asked the same at the same time
                self.yield_lease(kernel_id)
                if deadline.expired:
                    raise

    async def _take_charge(self, kernel_id: str, deadline: Deadline) -> RemoteKernelManager:
        while not await self._leases.seize(kernel_id, by_force=True):
            if await self._attachments.refresh(kernel_id) is None:
                raise NotFoundError(f"Kernel does not exist: {kernel_id}")
            if deadline.expired:
                raise ConflictError(f"Kernel {kernel_id} is being started, restarted or stopped; please try again.")
            await self._pulse.next_beat()
        await self._attachments.catch_up(kernel_id)
        return self._own.table.find(kernel_id)

    def revival_rules(self) -> RevivalRules:
        """Return the rules: change only kernels whose lease is ours, and restart those that died a moment ago."""
        return {"is_wanted": self._overview.is_wanted, "claim": self.claim}

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that is gone."""
        self._leases.yield_lease(kernel_id)
        self._overview.forget(kernel_id)
        self._attachments.forget(kernel_id)
        self._heartbeat.forget(kernel_id)

    # -- what all replicas have together ------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def place(self, user: str, kernel_id: str) -> AsyncIterator[None]:
        """Hold a place under the limits of all replicas until the block ends: by then the kernel is recorded."""
        place = await self._store.reserve(self.owner, user, *self._own.limits(), PLACE_SECONDS, kernel_id=kernel_id)
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            with contextlib.suppress(StoreUnavailableError):  # it expires
                await uninterrupted(self._store.commit(place) if succeeded else self._store.cancel(place))

    def alone(self, name: str) -> AbstractAsyncContextManager[None]:
        """Let no other replica run a block of this name until ours ends; a dead replica's lock expires."""
        return self._leases.alone(name)

    def connections_elsewhere(self, kernel_id: str) -> int:
        """Return how many websockets the other replicas have for a kernel."""
        return self._overview.connections_elsewhere(kernel_id)

    def is_used_elsewhere(self, kernel_id: str) -> bool:
        """Whether another replica manages a kernel, or has websockets for it, as far as we know."""
        return self._overview.is_used_elsewhere(kernel_id)

    async def let_others_notice(self) -> None:
        """Wait for the heartbeat of the others: what their clients send is kept then for a kernel's new process."""
        await asyncio.sleep(self._pulse.interval)

    async def models(self) -> list[dict[str, Any]]:
        """Return the models of the kernels of all replicas, in the order of their start."""
        kernels = await self._store.fetch_kernels(self.owner)
        self._overview.update(kernels)
        told = [kernel_id for kernel_id, stored in kernels.items() if stored.state != "starting"]
        return self._own.listing.listed(told, lambda kernel_id: self._model(kernels[kernel_id]))

    def _model(self, stored: StoredKernel) -> dict[str, Any]:
        if stored.kernel_id in self._own.table:
            return self._own.listing.model(stored.kernel_id)
        active = datetime.fromtimestamp(stored.last_activity or stored.version, timezone.utc)
        return {
            "id": stored.kernel_id,
            "name": stored.kernel_name,
            "last_activity": active.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "execution_state": stored.execution_state or "starting",
            "connections": stored.connections,
        }

    # -- attachments --------------------------------------------------------------------------------------------------

    async def attach(self, record: Mapping[str, Any]) -> bool:
        """Enter the kernel of a record in the table, if it is not there already."""
        return await self._attachments.attach(record)

    async def consult(self, kernel_id: str) -> None:
        """Update this gateway's connection to a kernel from the store; called for every request about it.

        Without the store, what is attached is used as it is. A kernel that another replica is restarting, or may be, is
        waited for unless this one is attached to it.
        """
        is_attached = kernel_id in self._own.table
        if is_attached and not self._store.store_available:
            return
        try:
            stored = await self._attachments.refresh(kernel_id)
        except StoreUnavailableError:
            if is_attached:
                return
            raise
        deadline = Deadline(PATIENCE_SECONDS)
        while kernel_id not in self._own.table and self._is_restarted_elsewhere(stored) and not deadline.expired:
            await self._pulse.next_beat()
            stored = await self._attachments.refresh(kernel_id)

    def _is_restarted_elsewhere(self, stored: StoredKernel | None) -> bool:
        if stored is None or stored.state != "restarting" or stored.execution_state == "dead":
            return False
        return self._leases.is_patient if stored.owner is None else stored.owner != self.owner
