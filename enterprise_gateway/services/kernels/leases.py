"""Which kernels a replica manages: their leases, and whether they count at the moment."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...core.deadline import Deadline
from ...core.errors import ConflictError, LeaseLostError, StoreUnavailableError
from ...core.keyedlocks import KeyedLocks
from ...core.offload import uninterrupted

if TYPE_CHECKING:
    from ...core.sessionrecords import Activity
    from ..sessions.sharingstore import SharingStore
    from .pulse import Pulse

CHECKS_PER_BEAT = 4  # of the clock, by which a replica notices that it has stood still
CLAIM_SECONDS = 30.0  # after which a kernel that was claimed is checked once more, should that not have been done
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 60.0  # between two checks of a kernel that cannot be checked
PATIENCE_SECONDS = 30.0  # for another replica to finish what it does with a kernel


@dataclass
class Lease:
    """The lease of a kernel that this replica manages."""

    asked_at: float
    """When the store was asked for it last: from then on it counts."""

    told: Activity | None = None
    """What the other replicas were told of the kernel under this lease."""


@dataclass
class StateCheck:
    """When it is to be found out whether a kernel lives that this replica has taken over."""

    due: float
    pause: float = FIRST_PAUSE_SECONDS

    def try_later(self) -> None:
        """Wait for the next attempt, longer each time."""
        self.due = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE_SECONDS)


class StandstillClock:
    """Detects that this process, or its machine, was suspended so long that others may have taken its leases.

    Parameters
    ----------
    pulse
        Says how often it is to be seen that time passes.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._checked_at = self._woke_at = time.monotonic()  # counts the time in which a process is stopped, too

    def has_stood_still_since(self, moment: float) -> bool:
        """Whether it has stood still after ``moment``."""
        self._check()
        return moment < self._woke_at

    def _check(self) -> None:
        now = time.monotonic()
        if now > self._checked_at + self._pulse.interval:
            self._woke_at = now
        self._checked_at = now

    async def run(self) -> None:
        """Check for ever; a task of replicas."""
        while True:
            self._check()
            await asyncio.sleep(self._pulse.interval / CHECKS_PER_BEAT)


class Leases:
    """Takes, renews and releases leases in the store, and knows when they expire.

    Parameters
    ----------
    store
        Gives the leases.
    pulse
        Tells when they were prolonged.
    """

    def __init__(self, store: SharingStore, pulse: Pulse) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        self.clock = StandstillClock(pulse)
        self.names: set[str] = set()  # other than kernels, for which leases are taken
        self.state_unconfirmed: dict[str, StateCheck] = {}
        self._store = store
        self._pulse = pulse
        self._held: dict[str, Lease] = {}
        self._locks = KeyedLocks()
        self._patient_until = 0.0

    # -- what is held -------------------------------------------------------------------------------------------------

    def holds(self, kernel_id: str) -> bool:
        """Whether this replica manages the kernel, and has told so in time."""
        lease = self._held.get(kernel_id)
        return lease is not None and time.monotonic() < lease.asked_at + self._store.lease_seconds

    def held(self) -> dict[str, Lease]:
        """Return the leases that were not lost so far as we know, also those that may have expired."""
        return dict(self._held)

    def hold(self, kernel_id: str, asked_at: float) -> None:
        """Note that the store has given us a kernel's lease; it may have expired since it was asked."""
        self._held[kernel_id] = Lease(asked_at)

    def yield_lease(self, kernel_id: str) -> None:
        """Note that another replica has taken the kernel's lease over, or that the kernel is gone."""
        self._held.pop(kernel_id, None)
        self.state_unconfirmed.pop(kernel_id, None)

    def learn(self, prolonged: Iterable[str], asked_at: float, before: Mapping[str, Lease]) -> None:
        """Take over what a heartbeat has said; of leases that were taken since ``before``, it does not know."""
        recent = {kernel_id: lease for kernel_id, lease in self._held.items() if before.get(kernel_id) is not lease}
        known = {each: replace(self._held.get(each, Lease(asked_at)), asked_at=asked_at) for each in prolonged}
        self._held = {**known, **recent}
        self.state_unconfirmed = {each: check for each, check in self.state_unconfirmed.items() if each in self._held}

    # -- patience with those who may be there -------------------------------------------------------------------------

    @property
    def is_patient(self) -> bool:
        """Whether a kernel that nobody seems to manage may have a replica that could not say so."""
        return time.monotonic() < self._patient_until

    @property
    def is_cut_off(self) -> bool:
        """Whether the store is away, so that nobody's leases are prolonged."""
        return self._patient_until == math.inf

    def cut_off(self) -> None:
        """Note that the store is away."""
        self._patient_until = math.inf

    def be_patient(self) -> None:
        """Let those who are there prolong their leases, and write what they owe, before anybody checks kernels."""
        self._patient_until = time.monotonic() + self._store.lease_seconds

    # -- taking and keeping -------------------------------------------------------------------------------------------

    async def claim(self, kernel_id: str) -> bool:
        """Take the lease of a kernel that nobody else manages; called before one that may be dead is touched."""
        if self.is_patient and not self.holds(kernel_id):
            return False
        if not await self._acquire(kernel_id):
            return False
        self.state_unconfirmed.setdefault(kernel_id, StateCheck(time.monotonic() + CLAIM_SECONDS))
        return True

    async def claim_new(self, kernel_id: str) -> None:
        """Take the lease of a kernel that is about to be started.

        Raises
        ------
        ConflictError
            Another kernel has this id.
        """
        try:
            # To its end: a client that goes away must not leave a lease behind.
            if await uninterrupted(self._acquire(kernel_id)) and not await self._is_recorded(kernel_id):
                return
            raise ConflictError(f"Kernel id {kernel_id} is in use; choose another KERNEL_ID.")
        except BaseException:
            self._held.pop(kernel_id, None)
            with contextlib.suppress(StoreUnavailableError):  # the heartbeat gives it up
                await uninterrupted(self._store.release_lease(kernel_id, self.owner))
            raise

    async def seize(self, kernel_id: str, *, by_force: bool = False) -> bool:
        """Take the lease of a recorded kernel, by force also from a replica that holds it; whether we have it."""
        asked_at = time.monotonic()
        if not await self._store.seize_lease(kernel_id, self.owner, by_force=by_force):
            return False
        self.hold(kernel_id, asked_at)
        return True

    async def renew(self, kernel_id: str) -> bool:
        """Prolong a lease; False when another replica has it."""
        asked_at = time.monotonic()
        renewed = await self._store.renew_lease(kernel_id, self.owner, self._store.lease_seconds)
        if renewed:
            self._held[kernel_id] = replace(self._held.get(kernel_id, Lease(asked_at)), asked_at=asked_at)
        else:
            self.yield_lease(kernel_id)
        return renewed

    async def confirm(self, kernel_id: str) -> None:
        """Make sure that we still manage a kernel before its process is touched, or used by clients.

        While the store is away nobody can take the kernel over, so that what was begun with it is done. Who has stood
        still cannot know that the store was away all the time, and waits until it answers.

        Raises
        ------
        LeaseLostError
            Another replica does: this one, or its machine, has stood still meanwhile.
        """
        while not self.holds(kernel_id):
            with contextlib.suppress(StoreUnavailableError):
                if not await self.renew(kernel_id):
                    raise LeaseLostError(f"Kernel {kernel_id} is managed by another replica of the gateway.")
            lease = self._held.get(kernel_id)
            if not self.clock.has_stood_still_since(lease.asked_at if lease is not None else -math.inf):
                return
            await self._pulse.next_beat()

    @contextlib.asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        """Let no other replica run a block of this name until ours ends; a dead replica's lock expires.

        Parameters
        ----------
        name
            Stands among the kernels' leases; no kernel's id.

        Raises
        ------
        ConflictError
            Another replica does not get done with it.
        """
        deadline = Deadline(PATIENCE_SECONDS)
        async with self._locks.of(name):  # the lease does not keep our own requests apart
            self.names.add(name)
            try:
                # Else a caller who is gone could leave a lease until the next heartbeat.
                while await uninterrupted(self._ask_for(name)) is None:
                    if deadline.expired:
                        raise ConflictError(
                            "Another replica of the gateway is making the same change; please try again."
                        )
                    await self._pulse.next_beat()
                yield
            finally:
                self.names.discard(name)
                with contextlib.suppress(StoreUnavailableError):  # the heartbeat gives it up
                    await uninterrupted(self._store.release_lease(name, self.owner))

    async def _acquire(self, kernel_id: str) -> bool:
        asked_at = time.monotonic()
        if await self._ask_for(kernel_id) is None:
            return False
        self.hold(kernel_id, asked_at)
        return True

    async def _ask_for(self, name: str) -> int | None:
        return await self._store.acquire_lease(name, self.owner, self._store.lease_seconds)

    async def _is_recorded(self, kernel_id: str) -> bool:
        return bool(await self._store.fetch_kernels(self.owner, kernel_id))
