"""The start of a kernel, from the request to the kernel in the table: one straight line."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.errors import ConflictError, LaunchTimeoutError
from ...core.kernelargs import check_kernel_id, check_launch_timeout
from ...core.offload import offload, uninterrupted
from ..processproxies.choice import launch_timeout
from ..processproxies.contract import gateway_user
from .proofs import prove

if TYPE_CHECKING:
    from ...core.turns import Turns
    from .admission import Admission
    from .launches import Launches
    from .making import KernelMaker
    from .records import KernelRecords
    from .remotekernel import RemoteKernelManager
    from .sharing import KernelSharing
    from .table import KernelTable


@dataclass(frozen=True)
class StartRequest:
    """What somebody wants started.

    Parameters
    ----------
    kernel_name
        The name of a kernelspec.
    path
        The directory the kernel is to start in, as clients name it; None: that of the gateway.
    env
        The client's accepted variables.
    headers
        Request headers captured for the process proxy.
    kernel_id
        The id that the kernel is to have; None: ``KERNEL_ID`` of ``env``, or a new one.
    more
        Further arguments of ``RemoteKernelManager.start_kernel``.
    """

    kernel_name: str
    path: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    kernel_id: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def username(self) -> str:
        """Whose kernel it is."""
        return self.env.get("KERNEL_USERNAME") or gateway_user()

    def to_record(self) -> dict[str, Any]:
        """Return what is recorded of it, for restarts by other gateways."""
        return {
            "env": dict(self.env),
            "kernel_headers": dict(self.headers),
            "kernel_name": self.kernel_name,
            "path": self.path,
        }


class KernelStarts:
    """Starts kernels.

    Parameters
    ----------
    maker
        Finds kernelspecs and makes managers.
    sharing
        Gives each start a place within the limits, and its kernel's lease.
    records
        Where starts are recorded before they begin.
    launches
        Those that are under way.
    turns
        What is computed for one start does not keep others waiting.
    admission
        Connects to kernels and has them managed.
    table
        The kernels that there are.
    cwd_for_path
        Returns the directory for an API path; blocks.
    shut_down
        Ends the kernel of an id at once.
    """

    def __init__(
        self,
        maker: KernelMaker,
        sharing: KernelSharing,
        records: KernelRecords,
        launches: Launches,
        turns: Turns,
        admission: Admission,
        table: KernelTable,
        *,
        cwd_for_path: Callable[[str], str],
        shut_down: Callable[[str], Awaitable[None]],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.log = log
        self._maker = maker
        self._sharing = sharing
        self._records = records
        self._launches = launches
        self._turns = turns
        self._admission = admission
        self._table = table
        self._cwd_for_path = cwd_for_path
        self._shut_down = shut_down

    async def start(self, request: StartRequest) -> str:
        """Start a kernel and return its id; whatever goes wrong, nothing of the attempt is left."""
        kernel_id = self._choose_id(request)
        if request.env.get("KERNEL_LAUNCH_TIMEOUT"):
            check_launch_timeout(request.env["KERNEL_LAUNCH_TIMEOUT"])
        name, spec = await self._maker.find_spec(request.kernel_name)
        await self._turns.wait()
        kernel = self._maker.make(kernel_id, name, spec)
        kernel.username = request.username
        try:
            async with self._sharing.place(kernel.username, kernel_id):
                self._check_is_free(kernel_id)  # others may have chosen it since
                launch = functools.partial(self._launch, kernel, request)
                await self._launches.run(kernel, launch, launch_timeout(spec, request.env))
        except (asyncio.CancelledError, LaunchTimeoutError):
            if self._table.has(kernel):  # too late: it was complete, but nobody will hear of it
                await uninterrupted(self._shut_down(kernel_id))
            raise
        self.log.info("Kernel started: %s (%s)", kernel_id, name)
        return kernel_id

    async def _launch(self, kernel: RemoteKernelManager, request: StartRequest) -> None:
        """Launch one kernel, connect to it and enter it in the table; cancelled when nobody wants it any more."""
        path = request.path
        cwd = {"cwd": await offload(self._cwd_for_path, path)} if path is not None else {}
        await self._sharing.claim_new(str(kernel.kernel_id))
        try:
            await self._records.starting(kernel, {**request.to_record(), "kernel_name": kernel.kernel_name})
            await kernel.start_kernel(
                env=dict(request.env), kernel_headers=dict(request.headers), **cwd, **request.more
            )
            await self._records.running(kernel)
            await self._turns.wait()
            self._admission.connect(kernel)
            await prove(kernel)
            self._admission.manage(kernel)
        except BaseException:
            await uninterrupted(self._give_up(kernel))
            raise

    async def _give_up(self, kernel: RemoteKernelManager) -> None:
        """Remove what a failed launch has left, and then its record."""
        await kernel.abandon()
        await self._records.gone(str(kernel.kernel_id))

    def _choose_id(self, request: StartRequest) -> str:
        chosen = request.kernel_id or request.env.get("KERNEL_ID")
        if not chosen:
            return str(uuid.uuid4())
        check_kernel_id(chosen)
        self._check_is_free(chosen)
        return chosen

    def _check_is_free(self, kernel_id: str) -> None:
        if kernel_id in self._launches or kernel_id in self._table:
            raise ConflictError(f"Kernel id {kernel_id} is in use; choose another KERNEL_ID.")


def directory_below(root: str, path: str) -> str:
    """Return the directory for an API path: the nearest one that exists below ``root``; blocks."""
    root = os.path.realpath(root)
    directory = os.path.realpath(os.path.join(root, path.lstrip("/")))
    if os.path.commonpath([root, directory]) != root:
        return root
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return directory
