"""Makes managers for kernels that run already, from their records."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...core.connection import ConnectionInfo
from ...core.errors import NotFoundError, PayloadError, UnknownKernelSpecError
from ...core.offload import uninterrupted
from ...transport.resumption import Memory

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager


class KernelLoader:
    """Makes managers that are neither connected nor in the table yet.

    Parameters
    ----------
    make
        Returns a manager for a kernel's id and the name of its kernelspec.
    may_be_used_elsewhere
        Whether another gateway may use the same kernels.
    """

    def __init__(
        self, make: Callable[[str, str], Awaitable[RemoteKernelManager]], may_be_used_elsewhere: Callable[[], bool]
    ) -> None:
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
            raise LookupError(f"its kernelspec {record['kernel_name']!r} is not installed any more") from error
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
            raise NotFoundError(f"its record is not complete: {error}") from error
        memory = Memory.from_record(record.get("relay"))
        if self._may_be_used_elsewhere():
            memory.identities = ()  # the other gateway may live, and gets its replies itself
        await kernel.take_over(info, record, memory)
        kernel.recorded.loaded(record)
        return kernel

    async def load_and_ask(self, record: Mapping[str, Any]) -> tuple[RemoteKernelManager, bool]:
        """Return a manager for the kernel of a record, and whether the kernel lives.

        When that cannot be found out, nothing of it stays open here and the error is raised.
        """
        kernel = await self.load(record)
        try:
            return kernel, await kernel.ask_whether_alive()
        except BaseException:
            await uninterrupted(kernel.disconnect())
            raise
