"""Makes managers for running kernels from their records."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...core.connection import ConnectionInfo
from ...core.errors import NotFoundError, PayloadError, UnknownKernelSpecError
from ...core.offload import offload, uninterrupted
from ...transport.resumption import Memory

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager


class KernelLoader:
    """Makes managers that are neither connected nor in the table yet.

    Parameters
    ----------
    make
        Returns a manager for a kernel's id and the name of its kernelspec.
    cwd_for_path
        Returns the directory for an API path; blocks.
    may_be_used_elsewhere
        Whether another gateway may use the same kernels.
    """

    def __init__(
        self,
        make: Callable[[str, str], Awaitable[RemoteKernelManager]],
        cwd_for_path: Callable[[str], str],
        may_be_used_elsewhere: Callable[[], bool],
    ) -> None:
        self._cwd_for_path = cwd_for_path
        self._make = make
        self._may_be_used_elsewhere = may_be_used_elsewhere

    async def load_process(self, record: Mapping[str, Any]) -> RemoteKernelManager:
        """Return a manager that knows the process of a record; that is enough to end it.

        Raises
        ------
        LookupError
            The kernelspec of the record is not installed any more.
        """
        try:
            kernel = await self._make(record["kernel_id"], record["kernel_name"])
        except UnknownKernelSpecError as error:
            raise LookupError(f"its kernelspec {record['kernel_name']!r} is no longer installed") from error
        kernel.username = record.get("username") or ""
        await kernel.load_process(record.get("process_info") or {})
        return kernel

    async def load(self, record: Mapping[str, Any]) -> RemoteKernelManager:
        """Return a manager for the kernel of a record that can be connected to.

        Raises
        ------
        NotFoundError
            The record does not say how the kernel is reached.
        """
        kernel = await self.load_process(record)
        try:
            # A proxy that made new tunnels knows better than the record.
            info = kernel.process.connection or ConnectionInfo.from_dict(record["connection_info"])
        except PayloadError as error:
            raise NotFoundError(f"its record is incomplete: {error}") from error
        saved_at = float(record.get("saved_at") or time.time())
        kernel.life.taken_over(float(record.get("started") or saved_at), int(record.get("restarts") or 0))
        memory = Memory.from_record(record.get("relay"))
        memory.last_activity = memory.last_activity or saved_at
        if self._may_be_used_elsewhere():
            memory.identities = ()  # the other gateway may live, and gets its replies itself
        kernel.take_over(info, await self._launch_args(record.get("launch_args") or {}), memory)
        kernel.recorded.loaded(record)
        return kernel

    async def _launch_args(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a kernel's restarts launch it with."""
        launch_args: dict[str, Any] = {name: recorded.get(name) or {} for name in ("env", "kernel_headers")}
        if recorded.get("path") is not None:
            launch_args["cwd"] = await offload(self._cwd_for_path, recorded["path"])
        return launch_args

    async def load_and_ask(self, record: Mapping[str, Any]) -> tuple[RemoteKernelManager, bool]:
        """Return a manager for the kernel of a record, and whether the kernel lives.

        When that cannot be found out, nothing of it stays open here and the error is raised.
        """
        kernel = await self.load(record)
        try:
            return kernel, await kernel.process.ask() is None
        except BaseException:
            await uninterrupted(kernel.disconnect())
            raise
