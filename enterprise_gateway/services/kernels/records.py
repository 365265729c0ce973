"""What is put on record of a kernel, phase by phase, so that it outlives the gateway - and how it is taken up again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...core.connection import ConnectionInfo
from ...core.errors import LeaseLostError, NotFoundError, PayloadError, UnknownKernelSpecError
from ..sessions.kernelsessionmanager import KernelSessionManager
from ..sessions.revival import Revival, RevivalReport
from .replicas import reached_as

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager
    from .remotemanager import RemoteMappingKernelManager
    from .replicas import Replicas


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
        self._revival = Revival(store, revive_one=self.take_over, remove_one=self._remove_one)
        self._replicas: Replicas | None = None

    def share(self, replicas: Replicas) -> None:
        """Write records as one of several gateways from now on: each under the kernel's lease."""
        self._replicas = replicas
        self._revival = Revival(
            self._store, revive_one=self.take_over, remove_one=self._remove_one, claim=replicas.claim
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

    async def running(self, kernel: RemoteKernelManager) -> None:
        """Record how a kernel that was launched is reached."""
        await self._store.record_phase(
            kernel.kernel_id,
            "running",
            connection_info=kernel.get_connection_info(),
            process_info=await kernel.process_info(),
        )
        record = await self._store.fetch_session(str(kernel.kernel_id)) if self._replicas is not None else None
        kernel.reached_as = reached_as(record) if record is not None else ""

    async def restarting(self, kernel: RemoteKernelManager) -> None:
        """Record that the kernel's process is about to be replaced."""
        await self._store.record_phase(kernel.kernel_id, "restarting")

    async def stopping(self, kernel: RemoteKernelManager) -> None:
        """Record that the kernel is to go; a store that fails does not keep it."""
        await self._store.record_phase(kernel.kernel_id, "stopping", required=False)

    async def left(self, kernel: RemoteKernelManager) -> None:
        """Record what only the gateway knows of a kernel that it leaves running."""
        if self._replicas is not None and not self._replicas.holds(str(kernel.kernel_id)):
            return  # the replica that looks after it tells what is to be told
        with contextlib.suppress(LeaseLostError):
            await self._store.record_phase(
                kernel.kernel_id,
                "running",
                required=False,
                extra={"last_activity": kernel.last_activity.timestamp(), "execution_state": kernel.execution_state},
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
        await self._revival.run(store_patience_seconds=30)

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
        kernel = await self.load(record)
        if not await kernel.is_alive():
            raise NotFoundError("its process is gone")
        self._manager.enter(kernel)
        return True

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
        kernel.take_over(info, record)
        kernel.reached_as = reached_as(record)
        return kernel

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
