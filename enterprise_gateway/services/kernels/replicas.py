"""How several gateways on one store share kernels: each is served by all of them and looked after by one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ...core.deadline import Deadline
from ...core.errors import ConflictError, LeaseLostError, NotFoundError, StoreUnavailableError
from ...core.offload import offload, uninterrupted
from ...core.sessionrecords import Activity, Beat, StoredKernel
from ..sessions.sessionmanager import SharedTable
from .fingerprint import reached_as
from .sharing import KernelSharing, Step

if TYPE_CHECKING:
    from ..sessions.revival import RevivalReport, RevivalRules
    from ..sessions.sharingstore import SharingStore
    from .loader import KernelLoader
    from .remotekernel import RemoteKernelManager
    from .remotemanager import RemoteMappingKernelManager

BEATS_PER_LEASE = 3
LOOKS_PER_BEAT = 4  # checks of the clock, by which a replica notices that it has stood still
CLAIM_SECONDS = 30.0  # after which a kernel that was claimed is judged once more, should that not have been done
LONGEST_PAUSE_SECONDS = 60.0  # between two judgements of a kernel that cannot be judged
HURRIED_SECONDS = 0.2
ACTIVITY_SECONDS = 5.0  # how much newer a kernel's activity must be before it alone is told to the others
RECENTLY_SECONDS = 60.0  # a kernel that is found dead is restarted if its replica was there so shortly ago
PLACE_SECONDS = 60.0  # a place under the limits counts as long as its kernel is not on record, this long at most
PATIENCE_SECONDS = 30.0  # for another replica to finish what it does with a kernel


@dataclass
class Unjudged:
    """A kernel that we have taken over, and of which it is still to be found out whether it lives."""

    due: float
    pause: float = HURRIED_SECONDS

    def try_later(self) -> None:
        """Wait for the next attempt, longer each time."""
        self.due = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE_SECONDS)


class Replicas(KernelSharing):
    """What this gateway tells the other ones, and what it learns from them; part of RemoteMappingKernelManager.

    One task, the heartbeat, prolongs the leases of this replica's kernels, tells what has changed here and learns what
    has changed elsewhere, for all kernels in one transaction. Requests need not wait for it: they ask the store about
    the one kernel they are for.

    Parameters
    ----------
    manager
        Has the table of the kernels that this gateway is attached to.
    store
        The store that all replicas use.
    loader
        Makes managers for recorded kernels.
    """

    is_shared = True

    def __init__(self, manager: RemoteMappingKernelManager, store: SharingStore, loader: KernelLoader) -> None:
        self.sessions = SharedTable(store)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        self.log = manager.log
        self._manager = manager
        self._store = store
        self._loader = loader
        self._held: dict[str, float] = {}  # leases, and when the store was asked for them last
        self._names: set[str] = set()  # other than kernels, for which leases are taken
        self._unjudged: dict[str, Unjudged] = {}
        self._recorded: set[str] = set()  # kernels on record at the last heartbeat
        self._is_untidy = True  # whether kernels have ended since files were looked for
        self._patient_until = 0.0
        self._stored: dict[str, StoredKernel] = {}
        self._owned: dict[str, float] = {}  # when another replica was last seen to look after each kernel
        self._seen: dict[str, float] = {}  # versions of records that our attachments agree with
        self._told_activity: dict[str, Activity] = {}
        self._told_connections: dict[str, int] = {}
        self._untellable: set[str] = set()  # kernels of which that has been logged
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._hurry = asyncio.Event()
        self._beaten = asyncio.Event()
        self._is_retiring = False
        self._looked_at = self._woke_at = time.monotonic()  # counts the time in which a process is stopped, too
        self._tasks: list[asyncio.Task[None]] = []

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self, recover: Callable[[Iterable[str]], Awaitable[RevivalReport]]) -> None:
        """Begin to share; called when the gateway starts to serve.

        Parameters
        ----------
        recover
            Recovers kernels from their records, or removes what is left of them.
        """
        self._recover = recover
        self._store.leases_required = True
        self._be_patient()  # the store may have been away until just now
        self._tasks = [
            asyncio.create_task(self._beat_for_ever(), name="heartbeat of this replica"),
            asyncio.create_task(self._look_for_standstills(), name="look for standstills of this replica"),
        ]

    async def retire(self) -> None:
        """Take over no more kernels, and follow others no longer; called when the gateway begins to stop."""
        self._is_retiring = True
        await _cancelled(self._jobs.values())

    async def leave(self) -> None:
        """End the heartbeat and give everything up, for others to take at once; called when the gateway has stopped."""
        await _cancelled(self._tasks)
        with contextlib.suppress(StoreUnavailableError):  # the leases expire
            await self._store.leave(self.owner)

    # -- who looks after a kernel -------------------------------------------------------------------------------------

    def holds(self, kernel_id: str) -> bool:
        """Whether this replica looks after the kernel, and has told so in time."""
        return time.monotonic() < self._held.get(kernel_id, -math.inf) + self._store.lease_seconds

    @property
    def _is_patient(self) -> bool:
        """Whether a kernel that nobody seems to look after may have a replica that could not say so."""
        return time.monotonic() < self._patient_until

    def _be_patient(self) -> None:
        """Let those who are there prolong their leases, and write what they owe, before anybody judges kernels."""
        self._patient_until = time.monotonic() + self._store.lease_seconds

    async def claim(self, kernel_id: str) -> bool:
        """Take the lease of a kernel that nobody else looks after; called before one that may be dead is touched."""
        if self._is_patient and not self.holds(kernel_id):
            return False
        if not await self._acquire(kernel_id):
            return False
        self._unjudged.setdefault(kernel_id, Unjudged(time.monotonic() + CLAIM_SECONDS))
        return True

    async def _acquire(self, kernel_id: str) -> bool:
        began = time.monotonic()
        if await self._store.acquire_lease(kernel_id, self.owner, self._store.lease_seconds) is None:
            return False
        self._hold(kernel_id, began)
        return True

    async def confirm(self, kernel_id: str) -> None:
        """Make sure that we still look after a kernel before its process is touched, or used by clients.

        While the store is away nobody can take the kernel over, so that what was begun with it is done. Who has stood
        still cannot know that the store was away all the time, and waits until it answers.

        Raises
        ------
        LeaseLostError
            Another replica does: this one, or its machine, has stood still meanwhile.
        """
        while not self.holds(kernel_id):
            with contextlib.suppress(StoreUnavailableError):
                if not await self._renew(kernel_id):
                    raise LeaseLostError(f"Kernel {kernel_id} is looked after by another replica of the gateway.")
            if not self._has_stood_still_since(self._held.get(kernel_id, -math.inf)):
                return
            await self._next_beat()

    def _has_stood_still_since(self, moment: float) -> bool:
        self._look_at_clock()
        return moment < self._woke_at

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now > self._looked_at + self._store.lease_seconds / BEATS_PER_LEASE:
            self._woke_at = now
        self._looked_at = now

    async def _look_for_standstills(self) -> None:
        while True:
            self._look_at_clock()
            await asyncio.sleep(self._store.lease_seconds / BEATS_PER_LEASE / LOOKS_PER_BEAT)

    async def claim_new(self, kernel_id: str) -> None:
        """Take the lease of a kernel that is about to be started.

        Raises
        ------
        ConflictError
            Another kernel has this id.
        """
        try:
            # To its end: a client that goes away must not leave a lease behind.
            if await uninterrupted(self._acquire(kernel_id)) and not await self._is_on_record(kernel_id):
                return
            raise ConflictError(f"Kernel id {kernel_id} is in use; choose another KERNEL_ID.")
        except BaseException:
            self._held.pop(kernel_id, None)
            with contextlib.suppress(StoreUnavailableError):  # the heartbeat gives it up
                await uninterrupted(self._store.release_lease(kernel_id, self.owner))
            raise

    async def _is_on_record(self, kernel_id: str) -> bool:
        return bool(await self._store.fetch_kernels(self.owner, kernel_id))

    async def begin(self, kernel: RemoteKernelManager, record: Step) -> RemoteKernelManager:
        """Look after a kernel from now on, because a client wants it restarted or deleted here, and record that.

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
        await self._pay(kernel_id)
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
        began = time.monotonic()
        while not await self._store.seize_lease(kernel_id, self.owner, by_force=True):
            if await self.refresh(kernel_id) is None:
                raise NotFoundError(f"Kernel does not exist: {kernel_id}")
            if deadline.expired:
                raise ConflictError(f"Kernel {kernel_id} is being started, restarted or stopped; please try again.")
            await self._next_beat()
            began = time.monotonic()
        self._hold(kernel_id, began)
        await self._catch_up(kernel_id)
        return self._manager.get_kernel(kernel_id)

    async def in_charge_of_dead(self, kernel: RemoteKernelManager) -> bool:
        """Wait until it is clear who deals with a kernel whose process has ended, and return whether we do.

        False: another replica has restarted it, which it is attached to anew by now, or removed it, or given it up.
        """
        kernel_id = str(kernel.kernel_id)
        while self._manager.table.has(kernel) and not kernel.died_because:
            with contextlib.suppress(StoreUnavailableError):
                if self.holds(kernel_id) and await self._renew(kernel_id):
                    return True
                await self.refresh(kernel_id)
            await self._next_beat()
        return False

    async def _renew(self, kernel_id: str) -> bool:
        began = time.monotonic()
        renewed = await self._store.renew_lease(kernel_id, self.owner, self._store.lease_seconds)
        if renewed:
            self._held[kernel_id] = began
        else:
            self.yield_lease(kernel_id)
        return renewed

    def _hold(self, kernel_id: str, began: float) -> None:
        """Note that the store has given us a kernel's lease; ``began`` is when it was asked: it may have expired."""
        self._held[kernel_id] = began
        self._told_activity.pop(kernel_id, None)

    def yield_lease(self, kernel_id: str) -> None:
        """Note that another replica has taken the kernel's lease over."""
        self._held.pop(kernel_id, None)
        self._unjudged.pop(kernel_id, None)

    # -- what requests ask --------------------------------------------------------------------------------------------

    async def consult(self, kernel_id: str) -> None:
        """Bring this gateway's attachment to a kernel in line with the store; called for every request about it.

        Without the store, what is attached is used as it is. A kernel that another replica is restarting, or may be, is
        waited for unless this one is attached to it.
        """
        is_attached = kernel_id in self._manager
        if is_attached and not self._store.store_available:
            return
        try:
            stored = await self.refresh(kernel_id)
        except StoreUnavailableError:
            if is_attached:
                return
            raise
        deadline = Deadline(PATIENCE_SECONDS)
        while kernel_id not in self._manager and self._is_restarted_elsewhere(stored) and not deadline.expired:
            await self._next_beat()
            stored = await self.refresh(kernel_id)

    def _is_restarted_elsewhere(self, stored: StoredKernel | None) -> bool:
        if stored is None or stored.state != "restarting" or stored.execution_state == "dead":
            return False
        return self._is_patient if stored.owner is None else stored.owner != self.owner

    async def models(self) -> list[dict[str, Any]]:
        """Return the models of the kernels of all replicas, in the order of their start."""
        kernels = await self._store.fetch_kernels(self.owner)
        self._stored.update(kernels)
        told = [kernel_id for kernel_id, stored in kernels.items() if stored.state != "starting"]
        return self._manager.listing.listed(told, lambda kernel_id: self._model(kernels[kernel_id]))

    def _model(self, stored: StoredKernel) -> dict[str, Any]:
        if stored.kernel_id in self._manager:
            return self._manager.listing.model(stored.kernel_id)
        active = datetime.fromtimestamp(stored.last_activity or stored.version, timezone.utc)
        return {
            "id": stored.kernel_id,
            "name": stored.kernel_name,
            "last_activity": active.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "execution_state": stored.execution_state or "starting",
            "connections": stored.connections,
        }

    def connections_elsewhere(self, kernel_id: str) -> int:
        """Return how many websockets the other replicas have for a kernel."""
        stored = self._stored.get(kernel_id)
        return stored.connections if stored is not None else 0

    def revival_rules(self) -> RevivalRules:
        """Return that only what is ours is changed, and that what died a moment ago is restarted."""
        return {"is_wanted": self.is_wanted, "claim": self.claim}

    def is_wanted(self, kernel_id: str) -> bool:
        """Whether a kernel that has died is to be restarted: its replica lived a moment ago, or somebody is connected.

        Not what is found dead when the gateway comes back after a night: nobody waits for that.
        """
        is_recent = time.monotonic() < self._owned.get(kernel_id, -math.inf) + RECENTLY_SECONDS
        return is_recent or self.connections_elsewhere(kernel_id) > 0

    def is_used_elsewhere(self, kernel_id: str) -> bool:
        """Whether another replica looks after a kernel, or has websockets for it, as far as we know."""
        stored = self._stored.get(kernel_id)
        return stored is not None and (stored.connections > 0 or stored.owner not in {None, self.owner})

    async def let_others_notice(self) -> None:
        """Wait for the heartbeat of the others: what their clients send is kept then for a kernel's new process."""
        await asyncio.sleep(self._store.lease_seconds / BEATS_PER_LEASE)

    def is_dead_elsewhere(self, kernel_id: str) -> bool:
        """Whether the replica that looks after a kernel has given it up, but keeps it as dead."""
        stored = self._stored.get(kernel_id)
        return stored is not None and stored.execution_state == "dead" and stored.owner is not None

    @contextlib.asynccontextmanager
    async def place(self, user: str, kernel_id: str) -> AsyncIterator[None]:
        """Hold a place under the limits of all replicas until the block ends: then the kernel is on record, or failed.

        Raises
        ------
        LimitReachedError
            One more kernel would exceed a limit.
        """
        options = self._manager.resources.options
        limits = (options.max_kernels, options.max_kernels_per_user)
        place = await self._store.reserve(self.owner, user, *limits, PLACE_SECONDS, kernel_id=kernel_id)
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            with contextlib.suppress(StoreUnavailableError):  # it expires
                await uninterrupted(self._store.commit(place) if succeeded else self._store.cancel(place))

    @contextlib.asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        """Let no other replica run a block of this name until ours ends; a replica that dies in it is passed over.

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
        async with self._lock(name):  # the lease does not keep our own requests apart
            self._names.add(name)
            try:
                # Else a caller who is gone could leave a lease until the next heartbeat.
                while await uninterrupted(self._take(name)) is None:
                    if deadline.expired:
                        raise ConflictError("Another replica of the gateway is doing the same; please try again.")
                    await self._next_beat()
                yield
            finally:
                self._names.discard(name)
                with contextlib.suppress(StoreUnavailableError):  # the heartbeat gives it up
                    await uninterrupted(self._store.release_lease(name, self.owner))

    async def _take(self, name: str) -> int | None:
        return await self._store.acquire_lease(name, self.owner, self._store.lease_seconds)

    # -- attachments --------------------------------------------------------------------------------------------------

    async def refresh(self, kernel_id: str) -> StoredKernel | None:
        """Ask the store about one kernel and bring our attachment in line with the answer, which is returned."""
        async with self._lock(kernel_id):
            stored = (await self._store.fetch_kernels(self.owner, kernel_id)).get(kernel_id)
            if stored is None:
                self._stored.pop(kernel_id, None)
            else:
                self._stored[kernel_id] = stored
            if self._is_retiring:
                return stored  # our attachment is let go of as it is
            kernel = self._manager.table.get(kernel_id)
            if kernel is not None and stored is None:
                await uninterrupted(self._drop(kernel))
            elif kernel is not None and stored is not None and stored.owner not in {None, self.owner}:
                await self._follow(kernel, stored)
            return stored

    async def _follow(self, kernel: RemoteKernelManager, stored: StoredKernel) -> None:
        """Do here what another replica has done with a kernel."""
        self.yield_lease(stored.kernel_id)
        if not kernel.is_recorded:
            await self._end_unrecorded(kernel)
        if stored.execution_state == "dead":
            if not kernel.died_because:
                self._manager.lose(kernel, "its process has ended")
        elif stored.version == self._seen.get(stored.kernel_id):
            return
        elif stored.state == "restarting":
            record = await self._store.fetch_session(stored.kernel_id)
            kernel.stop_relaying(has_died=record is not None and int(record.get("restarts") or 0) > 0)
        elif stored.state == "running":
            record = await self._store.fetch_session(stored.kernel_id)
            if record is None:
                return
            if reached_as(record) != kernel.reached_as or kernel.execution_state == "restarting":
                await uninterrupted(self._reattach(kernel, await self._loader.load(record)))
        self._seen[stored.kernel_id] = stored.version

    async def _pay(self, kernel_id: str) -> None:
        """Write what the store is owed of a kernel, by the lease that it was done under; before another is taken."""
        if self._store.owes(kernel_id):
            await self._store.flush()

    async def _end_unrecorded(self, kernel: RemoteKernelManager) -> None:
        """End the process of a kernel if the store never came to know it, and another replica has one for it."""
        await self._pay(str(kernel.kernel_id))
        record = await self._store.fetch_session(str(kernel.kernel_id))
        if record is None or reached_as(record) != kernel.reached_as:
            await uninterrupted(kernel.end_process())
        kernel.is_recorded = True

    async def _catch_up(self, kernel_id: str) -> None:
        """Attach anew to a kernel that this replica looks after from now on, if others have restarted it."""
        async with self._lock(kernel_id):
            record = await self._store.fetch_session(kernel_id)
            kernel = self._manager.table.get(kernel_id)
            if record is not None and kernel is not None and reached_as(record) != kernel.reached_as:
                if not kernel.is_recorded:
                    await self._end_unrecorded(kernel)
                await uninterrupted(self._reattach(kernel, await self._loader.load(record)))

    async def attach(self, record: Mapping[str, Any]) -> bool:
        """Enter the kernel of a record in the table, if it is not there already; errors as in ``take_over``."""
        kernel_id = record["kernel_id"]
        async with self._lock(kernel_id):  # requests and the heartbeat may want it at the same time
            attached = self._manager.table.get(kernel_id)
            if attached is not None and attached.reached_as == reached_as(record) and not _waits(attached):
                if await attached.is_alive():
                    return True
                raise NotFoundError("its process is gone")
            kernel, is_alive = await self._loader.load_and_ask(record)
            if not is_alive and not self.is_dead_elsewhere(kernel_id):
                await kernel.give_up_process()
                raise NotFoundError("its process is gone")
            if attached is not None:
                await uninterrupted(self._reattach(attached, kernel))
                return True
            self._manager.enter(kernel)
            if not is_alive:
                self._manager.lose(kernel, "its process has ended")
            return True

    async def _reattach(self, former: RemoteKernelManager, kernel: RemoteKernelManager) -> None:
        """Connect the websockets of a kernel to the process that another replica has started for it."""
        manager, kernel_id = self._manager, str(former.kernel_id)
        manager.restarter.forget(former)
        channels = former.channels
        assert channels is not None  # it is in the table
        former.stop_relaying(has_died=kernel.restarts > 0)
        await former.give_up_process()
        kernel.claim_ports()  # they may be the same ones
        kernel.channels = channels
        manager.table.replace(former, kernel)
        channels.connect(kernel.connection())
        manager.restarter.watch(kernel)
        self.log.info("Kernel %s was restarted by another replica", kernel_id)

    async def _drop(self, kernel: RemoteKernelManager) -> None:
        """Forget a kernel that another replica has removed."""
        kernel_id = str(kernel.kernel_id)
        self._manager.restarter.forget(kernel)
        self._manager.remove_kernel(kernel_id)
        self.forget(kernel_id)
        self._store.disown(kernel_id)
        if not kernel.is_recorded:
            await kernel.end_process()
        await kernel.forget()
        self.log.info("Kernel %s was removed by another replica", kernel_id)

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that is gone."""
        for table in (self._held, self._unjudged, self._stored, self._seen, self._told_activity):
            table.pop(kernel_id, None)
        self._told_connections.pop(kernel_id, None)
        self._untellable.discard(kernel_id)

    def _lock(self, kernel_id: str) -> asyncio.Lock:
        return self._locks.setdefault(kernel_id, asyncio.Lock())

    # -- the heartbeat ------------------------------------------------------------------------------------------------

    async def _beat_for_ever(self) -> None:
        while True:
            try:
                await self._beat()
            except StoreUnavailableError:
                self._patient_until = math.inf  # logged once by the store; our leases, and others', expire
            except Exception:
                self.log.exception("The heartbeat of this replica failed")
            pause = HURRIED_SECONDS if self._hurry.is_set() else self._store.lease_seconds / BEATS_PER_LEASE
            self._hurry.clear()
            if pause == HURRIED_SECONDS:
                await asyncio.sleep(pause)
            else:
                with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), pause)

    async def _next_beat(self) -> None:
        """Wait for the next heartbeat, which comes soon because somebody waits for it."""
        self._hurry.set()
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(self._beaten.wait(), self._store.lease_seconds)

    async def _beat(self) -> None:
        began = time.monotonic()
        was_away = self._patient_until == math.inf
        before = dict(self._held)
        activity, connections = self._changed_activity(), self._changed_connections()
        beat = await self._store.beat(self.owner, activity, connections)
        # Not of a kernel whose lease was taken meanwhile: with that, what was told before is forgotten.
        former = {kernel_id for kernel_id, taken in self._held.items() if before.get(kernel_id) == taken}
        self._told_activity.update({kernel_id: activity[kernel_id] for kernel_id in activity.keys() & former})
        self._told_connections.update(connections)
        if was_away:
            self._be_patient()
        self._learn(beat, began, former)
        self._beaten.set()
        self._beaten.clear()

    def _changed_activity(self) -> dict[str, Activity]:
        changed = {}
        for kernel_id in self._held:
            kernel = self._manager.table.get(kernel_id)
            if kernel is None:
                continue
            try:
                now = Activity(kernel.execution_state, kernel.last_activity.timestamp())
            except Exception as error:  # noqa: BLE001 -- of one kernel: the others' leases are to be prolonged
                if kernel_id not in self._untellable:
                    self._untellable.add(kernel_id)
                    self.log.warning("What kernel %s does cannot be told to other replicas: %r", kernel_id, error)
                continue
            told = self._told_activity.get(kernel_id)
            if (
                told is None
                or told.execution_state != now.execution_state
                or now.last_activity - told.last_activity > ACTIVITY_SECONDS
            ):
                changed[kernel_id] = now
        return changed

    def _changed_connections(self) -> dict[str, int]:
        changed = {}
        for kernel in self._manager.table:
            kernel_id = str(kernel.kernel_id)
            count = kernel.channels.connections if kernel.channels is not None else 0
            if count != self._told_connections.get(kernel_id, 0):
                changed[kernel_id] = count
        return changed

    def _learn(self, beat: Beat, began: float, former: set[str]) -> None:
        self._is_untidy = self._is_untidy or bool(self._recorded - beat.kernels.keys())
        self._recorded = set(beat.kernels)
        self._stored = beat.kernels
        owned = {each.kernel_id for each in beat.kernels.values() if each.owner not in {None, self.owner}}
        self._owned = {each: at for each, at in self._owned.items() if each in beat.kernels} | dict.fromkeys(
            owned, began
        )
        recent = {kernel_id: at for kernel_id, at in self._held.items() if kernel_id not in former}
        self._held = {**dict.fromkeys(beat.tokens, began), **recent}
        self._unjudged = {each: since for each, since in self._unjudged.items() if each in self._held}
        for kernel in self._manager.table:
            kernel_id = str(kernel.kernel_id)
            if kernel_id not in self._held and self._has_changed(kernel, beat.kernels.get(kernel_id)):
                self._do(kernel_id, self._refresh_in_background(kernel_id))
        if self._store.owes():
            self._do("owed", self._flush())
        strays = {name: token for name, token in beat.unrecorded.items() if not self._stands_for(name)}
        if strays:
            self._do("strays", self._release(strays))
        orphans = [stored for stored in beat.kernels.values() if self._is_orphan(stored)]
        if orphans:
            self._do("orphans", self._take_over(orphans))
        now = time.monotonic()
        due = [kernel_id for kernel_id, unjudged in self._unjudged.items() if unjudged.due <= now]
        if due:
            self._do("unjudged", self._judge(due))
        if self._is_untidy:
            self._do("files", self._tidy())

    def _stands_for(self, name: str) -> bool:
        """Whether somebody here needs the lease of this name."""
        is_known = name in self._manager.table or name in self._names or name in self._unjudged
        return is_known or self._manager.is_changing(name) or self._store.owes(name)

    def _is_orphan(self, stored: StoredKernel) -> bool:
        """Whether nobody looks after a kernel, or we should and do not know: the answer to a claim was lost."""
        kernel_id = stored.kernel_id
        if stored.owner is None:
            return not self._is_patient
        if stored.owner != self.owner or self._manager.is_changing(kernel_id) or self._store.owes(kernel_id):
            return False
        return kernel_id not in self._held or not self._stands_for(kernel_id)

    async def _flush(self) -> None:
        await self._store.flush()

    async def _tidy(self) -> None:
        """Remove what kernels that ended elsewhere have left in this replica's runtime directory."""
        self._is_untidy = False
        files = await offload(self._manager.find_files, list(self._recorded))
        if not files:
            return
        try:
            known = await self._store.fetch_kernels(self.owner)  # after the search: of what is started now, no file
        except StoreUnavailableError:
            self._is_untidy = True
            return
        for file in files:
            if file.kernel_id not in known and not self._stands_for(file.kernel_id):
                await offload(file.remove)

    async def _release(self, strays: Mapping[str, int]) -> None:
        """Give up leases of starts that were given up before they came on record, and of names nobody needs."""
        with contextlib.suppress(StoreUnavailableError):  # the next heartbeat tries again
            for name, token in strays.items():
                await self._store.release_stray_lease(name, self.owner, token)

    def _has_changed(self, kernel: RemoteKernelManager, stored: StoredKernel | None) -> bool:
        if stored is None or (stored.execution_state == "dead") != bool(kernel.died_because):
            return True
        return stored.version != self._seen.get(stored.kernel_id)

    def _do(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something while the heart beats on, unless the same is being done already."""
        if name in self._jobs or self._is_retiring:
            work.close()
            return
        task = asyncio.create_task(work)
        self._jobs[name] = task
        task.add_done_callback(functools.partial(self._done, name))

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        del self._jobs[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("What other replicas did could not be followed: %r", error)

    async def _refresh_in_background(self, kernel_id: str) -> None:
        with contextlib.suppress(StoreUnavailableError):  # the next heartbeat tries again
            await self.refresh(kernel_id)

    async def _take_over(self, orphans: Iterable[StoredKernel]) -> None:
        """Look after the kernels of a replica that is gone."""
        with contextlib.suppress(StoreUnavailableError):  # the next heartbeat tries again
            taken = [kernel_id for kernel_id in await asyncio.gather(*map(self._seize, orphans)) if kernel_id]
            if taken:
                self.log.info("This replica looks after %d more kernels from now on.", len(taken))
                await self._judge(taken)

    async def _seize(self, orphan: StoredKernel) -> str:
        kernel_id = orphan.kernel_id
        began = time.monotonic()
        if not await self._store.seize_lease(kernel_id, self.owner):
            return ""
        self._hold(kernel_id, began)
        self._unjudged[kernel_id] = Unjudged(time.monotonic() + CLAIM_SECONDS)
        return kernel_id

    async def _judge(self, kernel_ids: list[str]) -> None:
        """Find out about kernels that we have taken over; one that cannot be judged now is judged again later."""
        judged: set[str] = set()
        try:
            judged = await self._settle(kernel_ids)
        except StoreUnavailableError:
            pass
        finally:
            for kernel_id in kernel_ids:
                if kernel_id in judged:
                    self._unjudged.pop(kernel_id, None)
                elif kernel_id in self._unjudged:
                    self._unjudged[kernel_id].try_later()

    async def _settle(self, kernel_ids: list[str]) -> set[str]:
        """Judge kernels that nobody was attached to, or whose start, restart or stop was cut short; return which."""
        judged = set()
        unclear = []
        for kernel_id in kernel_ids:
            if self._manager.is_changing(kernel_id):
                judged.add(kernel_id)  # we are at it
                continue
            stored = self._stored.get(kernel_id)
            if kernel_id not in self._manager or stored is None or stored.state != "running":
                unclear.append(kernel_id)
                continue
            try:
                await self._catch_up(kernel_id)
                judged.add(kernel_id)
            except Exception as error:  # noqa: BLE001 -- of one kernel: a host, a back end
                self.log.warning("Kernel %s could not be taken over, which is tried again: %s", kernel_id, error)
        if not unclear:
            return judged
        report = await self._recover(unclear)
        for kernel_id in report.removed:
            kernel = self._manager.table.get(kernel_id)
            if kernel is not None:
                await uninterrupted(self._drop(kernel))
            else:
                self.forget(kernel_id)
        return judged | (set(unclear) - report.kept.keys())


def _waits(kernel: RemoteKernelManager) -> bool:
    """Whether a kernel's clients wait for the end of a restart that another replica has begun."""
    return kernel.execution_state == "restarting"


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have ended."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
