"""What is put on record of a kernel, phase by phase, so that it outlives the gateway - and how it is taken up again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...core.connection import ConnectionInfo
from ...core.errors import (
    LeaseLostError,
    NotFoundError,
    PayloadError,
    StoreUnavailableError,
    UnknownKernelSpecError,
)
from ...core.offload import uninterrupted
from ...core.sessionrecords import phase_of
from ..sessions.kernelsessionmanager import KernelSessionManager
from ..sessions.revival import Revival, RevivalReport
from .replicas import reached_as

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager
    from .remotemanager import RemoteMappingKernelManager
    from .replicas import Replicas

STORE_PATIENCE_SECONDS = 30.0
JUDGING_SECONDS = 20.0  # for one kernel; a gateway that starts is not kept longer by hosts that do not answer

NOTE_SECONDS = 60.0


class KernelRecords:
    """Writes each phase of a kernel's life before it begins, so that a killed gateway leaves nothing unknown.

    Part of RemoteMappingKernelManager. Without a store nothing is written, but the table of sessions is kept.

    Parameters
    ----------
    manager
        The kernel manager, whose table revived kernels are entered in.
    store
        The configured store of kernel sessions.
    """

    def __init__(self, manager: RemoteMappingKernelManager, store: KernelSessionManager) -> None:
        self._manager = manager
        self._store = store
        self._revival = Revival(
            store,
            revive_one=self.take_over,
            remove_one=self._remove_one,
            relaunch_one=self._relaunch_one,
            timeout_seconds=JUDGING_SECONDS,
        )
        self.note_seconds = NOTE_SECONDS
        self._replicas: Replicas | None = None
        self._settling: asyncio.Task[None] | None = None
        self._noting: asyncio.Task[None] | None = None

    def share(self, replicas: Replicas) -> None:
        """Write records as one of several gateways from now on: each under the kernel's lease."""
        self._replicas = replicas
        self._revival = Revival(
            self._store,
            revive_one=self.take_over,
            remove_one=self._remove_one,
            relaunch_one=self._relaunch_one,
            is_wanted=replicas.is_wanted,
            claim=replicas.claim,
            timeout_seconds=JUDGING_SECONDS,
        )

    async def starting(self, kernel: RemoteKernelManager, launch_args: Mapping[str, Any]) -> None:
        """Record what is about to be launched, and so what may have to be removed."""
        await self._store.record_phase(
            kernel.kernel_id,
            "starting",
            username=kernel.username,
            kernel_name=kernel.kernel_name,
            launch_args=launch_args,
        )

    async def running(self, kernel: RemoteKernelManager, *, required: bool = True) -> None:
        """Record how a kernel that was launched is reached.

        Parameters
        ----------
        required
            When False, a store that is away is owed the record: it is written when the store is back.
        """
        await self._store.record_phase(
            kernel.kernel_id,
            "running",
            required=required,
            connection_info=kernel.get_connection_info(),
            process_info=await kernel.process_info(),
            extra={
                "started": kernel.started.timestamp(),
                "restarts": kernel.restarts,
                "relay": kernel.memory.to_record(),
            },
        )
        record = self._store.recorded(kernel.kernel_id)
        kernel.reached_as = reached_as(record) if record is not None else ""
        kernel.is_recorded = not self._store.owes(kernel.kernel_id)

    async def restarting(self, kernel: RemoteKernelManager, restarts: int = 0) -> None:
        """Record that the kernel's process is about to be replaced; raises when the store cannot be told: it stays.

        ``restarts`` says how often in a row because it has died; 0: somebody asked for it.
        """
        await self._begin(kernel, "restarting", restarts=restarts)

    async def stopping(self, kernel: RemoteKernelManager) -> None:
        """Record that the kernel is to go.

        A store that fails does not keep it from a gateway that is alone. Among several it does, as from a restart: if
        this one died before the store is back, another one would find a kernel that has died, and restart it.
        """
        if self._replicas is None:
            await self._store.record_phase(kernel.kernel_id, "stopping", required=False)
        else:
            await self._begin(kernel, "stopping")

    async def _begin(self, kernel: RemoteKernelManager, phase: str, **extra: Any) -> None:
        try:
            await self._store.record_phase(kernel.kernel_id, phase, extra=extra)
        except StoreUnavailableError:  # which may yet come to have it
            await self._store.record_phase(kernel.kernel_id, "running", required=False)
            raise

    async def left(self, kernel: RemoteKernelManager) -> None:
        """Record what only the gateway knows of a kernel that it leaves running."""
        if self._replicas is not None and not self._replicas.holds(str(kernel.kernel_id)):
            return  # the replica that looks after it tells what is to be told
        if not kernel.has_kernel and not kernel.died_because:
            return  # its restart was given up; as long as the record says so, it is finished by whoever comes next
        with contextlib.suppress(LeaseLostError):
            await self._store.record_phase(
                kernel.kernel_id,
                "running",
                required=False,
                extra={
                    "last_activity": kernel.last_activity.timestamp(),
                    "execution_state": kernel.execution_state,
                    "restarts": kernel.restarts,
                    "relay": kernel.memory.to_record(),
                },
            )

    async def gone(self, kernel_id: str) -> None:
        """Forget a kernel of which nothing is left."""
        try:
            await self._store.forget_session(kernel_id, required=False)
        except LeaseLostError as error:  # its successor removes the record
            self._manager.log.warning("%s", error)
        if self._replicas is not None:
            self._replicas.forget(kernel_id)

    async def revive_all(self) -> None:
        """Take up every kernel on record; called at start in standalone mode."""
        await self._revival.run(store_patience_seconds=STORE_PATIENCE_SECONDS)
        if self._revival.unsettled:
            self._settling = asyncio.create_task(self._revival.settle(), name="settle kernels on record")

    async def kernel_ids(self) -> set[str]:
        """Return the ids of all kernels on record, those among them whose record cannot be used now.

        Raises
        ------
        StoreUnavailableError
            The store could not be asked, or has a record of which not even the kernel is known.
        """
        sessions = await self._store.fetch_sessions()
        if "" in self._store.unusable:
            raise StoreUnavailableError("The kernel session store has a record of an unknown kernel.")
        return {*sessions, *self._store.unusable}

    def is_unsettled(self, kernel_id: str) -> bool:
        """Whether the kernel is on record and could not be judged at start: nobody may call it unknown."""
        return kernel_id in self._revival.unsettled

    def keep_activity(self) -> None:
        """Record from now on what kernels do, once a minute, in case that the gateway is killed.

        Called by a gateway that has the store for itself when it manages its first kernel.
        """
        if self._noting is None:
            self._noting = asyncio.create_task(self._note_activity(), name="record what kernels do")

    async def _note_activity(self) -> None:
        noted: dict[str, tuple[object, ...]] = {}
        while True:
            await asyncio.sleep(self.note_seconds)
            states: dict[str, tuple[object, ...]] = {}
            for kernel in self._manager.table:
                kernel_id = str(kernel.kernel_id)
                try:
                    states[kernel_id] = (kernel.execution_state, kernel.last_activity)
                    if noted.get(kernel_id) != states[kernel_id]:
                        await self._store.note(kernel_id, {"relay": kernel.memory.to_record()})
                except Exception:
                    self._manager.log.exception("What kernel %s does is not on record", kernel_id)
            noted = states

    async def close(self) -> None:
        """Stop what goes on in the background; kernels that could not be judged stay on record."""
        tasks = [task for task in (self._settling, self._noting) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def revive(self, kernel_id: str) -> bool:
        """Take up one kernel on request; False when there is none of this id.

        Raises
        ------
        StoreUnavailableError
            The store could not be asked, or the kernel not be judged.
        """
        return await self._revival.revive(kernel_id) is not None

    async def revive_some(self, kernel_ids: Iterable[str]) -> RevivalReport:
        """Judge the kernels of a replica that is gone; StoreUnavailableError if their records cannot be read."""
        return await self._revival.run(kernel_ids)

    async def take_over(self, record: Mapping[str, Any]) -> bool:
        """Enter the kernel of a record in the manager's table.

        Raises
        ------
        NotFoundError
            The kernel is dead.
        """
        if self._replicas is not None:
            return await self._replicas.attach(record)
        if record["kernel_id"] in self._manager:
            return True
        kernel = await self.load(record)
        if not await self.ask_whether_alive(kernel):
            await kernel.give_up_process()
            raise NotFoundError("its process is gone")
        self._manager.enter(kernel)
        return True

    async def ask_whether_alive(self, kernel: RemoteKernelManager) -> bool:
        """Return whether a kernel that was just loaded lives; when that is not known nothing of it stays open here."""
        try:
            return await kernel.ask_whether_alive()
        except BaseException:
            await uninterrupted(kernel.give_up_process())
            raise

    async def load(self, record: Mapping[str, Any]) -> RemoteKernelManager:
        """Return a manager for the kernel of a record, not connected yet.

        Raises
        ------
        NotFoundError
            The record does not say how the kernel is reached.
        """
        kernel = await self._kernel_of(record)
        try:
            # A proxy that made new tunnels knows better than the record.
            proxied = getattr(kernel.process_proxy, "connection", None)
            info = proxied or ConnectionInfo.from_dict(record["connection_info"])
        except PayloadError as error:
            raise NotFoundError(f"its record is not complete: {error}") from error
        await kernel.take_over(info, record)
        if self._manager.revives_on_request and kernel.inherited is not None:
            kernel.inherited.identities = ()  # the other gateway may live, and gets its replies itself
        kernel.reached_as = reached_as(record)
        return kernel

    async def _relaunch_one(self, record: Mapping[str, Any]) -> None:
        """Finish a restart that was cut short, or begin that of a kernel that has died, in the background."""
        kernel = self._manager.table.get(record["kernel_id"])
        if kernel is None:
            kernel = await self.load(record)
            self._manager.enter(kernel)
        if phase_of(record) == "running":
            return  # the restarter finds that it has ended
        self._manager.restarter.forget(kernel)
        kernel.stop_relaying(has_died=int(record.get("restarts") or 0) > 0)
        self._manager.restarter.finish_restart(kernel)

    async def _remove_one(self, record: Mapping[str, Any]) -> None:
        """Remove what may be left of a kernel: by its record, and by what carries its id."""
        kernel = await self._kernel_of(record)
        await kernel.remove_leftovers()

    async def _kernel_of(self, record: Mapping[str, Any]) -> RemoteKernelManager:
        """Return a manager for a recorded kernel, not entered anywhere yet."""
        try:
            kernel = await self._manager.make_kernel_manager(record["kernel_id"], record["kernel_name"])
        except UnknownKernelSpecError as error:
            raise LookupError(f"its kernelspec {record['kernel_name']!r} is not installed any more") from error
        kernel.username = record.get("username") or ""
        await kernel.load_process(record.get("process_info") or {})
        return kernel
