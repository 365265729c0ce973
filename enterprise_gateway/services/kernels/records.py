"""What is recorded of a kernel, phase by phase, so that it outlives the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...core.errors import LeaseLostError, StoreUnavailableError

if TYPE_CHECKING:
    from ..sessions.kernelsessionmanager import KernelSessionManager
    from .remotekernel import RemoteKernelManager
    from .sharing import KernelSharing
    from .table import KernelTable

NOTE_SECONDS = 60.0


class KernelRecords:
    """Writes each phase of a kernel's life before it begins, so that a killed gateway leaves nothing unrecorded.

    Parameters
    ----------
    store
        The configured store of kernel sessions; without persistence, it keeps them in memory.
    sharing
        Says whether other gateways write records, too: each under the kernel's lease.
    table
        The kernels of this gateway.
    """

    def __init__(
        self,
        store: KernelSessionManager,
        sharing: KernelSharing,
        table: KernelTable,
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._store = store
        self._sharing = sharing
        self._table = table
        self.log = log
        self.note_seconds = NOTE_SECONDS
        self._noting: asyncio.Task[None] | None = None

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
            process_info=await kernel.process.get_provisioner_info(),
            extra={
                "started": kernel.life.started.timestamp(),
                "restarts": kernel.life.restarts,
                "relay": kernel.memory.to_record(),
            },
        )
        record = self._store.recorded(kernel.kernel_id)
        kernel.recorded.recorded(record, certain=not self._store.has_unsaved(kernel.kernel_id))

    async def restarting(self, kernel: RemoteKernelManager, restarts: int = 0) -> None:
        """Record that the kernel's process is about to be replaced; raises when the store is away: then it is not.

        ``restarts`` says how often in a row because it has died; 0: somebody asked for it.
        """
        await self._begin(kernel, "restarting", restarts=restarts)

    async def restarting_after_death(self, kernel: RemoteKernelManager) -> None:
        """Record that a process which has died is about to be replaced.

        A store that is away does not keep it from a gateway that is alone; among several, it alone knows which of them
        may replace the process.
        """
        try:
            await self.restarting(kernel, kernel.life.restarts)
        except StoreUnavailableError:
            if self._sharing.is_shared:
                raise

    async def stopping(self, kernel: RemoteKernelManager) -> None:
        """Record that the kernel is about to be stopped.

        A store that fails does not keep it from a gateway that is alone. Among several it does, as from a restart: if
        this one died before the store is back, another one would find a kernel that has died, and restart it.
        """
        if self._sharing.is_shared:
            await self._begin(kernel, "stopping")
        else:
            await self._store.record_phase(kernel.kernel_id, "stopping", required=False)

    async def _begin(self, kernel: RemoteKernelManager, phase: str, **extra: Any) -> None:
        try:
            await self._store.record_phase(kernel.kernel_id, phase, extra=extra)
        except StoreUnavailableError:  # which may yet come to have it
            await self._store.record_phase(kernel.kernel_id, "running", required=False)
            raise

    async def left(self, kernel: RemoteKernelManager) -> None:
        """Record what only this gateway knows about a kernel that it leaves running."""
        if not self._sharing.holds(str(kernel.kernel_id)):
            return  # the replica that manages it tells what is to be told
        if not kernel.has_kernel and not kernel.life.is_dead:
            return  # its restart was abandoned; while the record says so, the next gateway completes it
        with contextlib.suppress(LeaseLostError):
            await self._store.record_phase(
                kernel.kernel_id,
                "running",
                required=False,
                extra={
                    "last_activity": kernel.last_activity.timestamp(),
                    "execution_state": kernel.execution_state,
                    "restarts": kernel.life.restarts,
                    "relay": kernel.memory.to_record(),
                },
            )

    async def gone(self, kernel_id: str) -> None:
        """Delete the record of a kernel of which nothing is left."""
        try:
            await self._store.forget_session(kernel_id, required=False)
        except LeaseLostError as error:  # its successor removes the record
            self.log.warning("%s", error)
        self._sharing.forget(kernel_id)

    async def kernel_ids(self) -> set[str]:
        """Return the ids of all recorded kernels, those among them whose record cannot be used now.

        Raises
        ------
        StoreUnavailableError
            The store could not be asked, or has a record of which not even the kernel is known.
        """
        sessions = await self._store.fetch_sessions()
        if "" in self._store.unusable:
            raise StoreUnavailableError("The kernel session store has a record of an unknown kernel.")
        return {*sessions, *self._store.unusable}

    def keep_activity(self) -> None:
        """Record the activity of kernels once a minute from now on, in case the gateway is killed.

        Called by a gateway that has the store for itself when it manages its first kernel.
        """
        if self._noting is None:
            self._noting = asyncio.create_task(self._note_activity(), name="record what kernels do")

    async def _note_activity(self) -> None:
        noted: dict[str, tuple[object, ...]] = {}
        while True:
            await asyncio.sleep(self.note_seconds)
            states: dict[str, tuple[object, ...]] = {}
            for kernel in self._table:
                kernel_id = str(kernel.kernel_id)
                try:
                    states[kernel_id] = (kernel.execution_state, kernel.last_activity)
                    if noted.get(kernel_id) != states[kernel_id]:
                        await self._store.note(kernel_id, {"relay": kernel.memory.to_record()})
                except Exception:
                    self.log.exception("The activity of kernel %s could not be recorded", kernel_id)
            noted = states

    async def close(self) -> None:
        """Stop the background task."""
        if self._noting is not None:
            self._noting.cancel()
            await asyncio.wait([self._noting])
