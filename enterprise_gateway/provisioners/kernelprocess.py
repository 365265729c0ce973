"""A kernel's process as the gateway uses it: jupyter_client's contract of provisioners, and what it lacks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from ..core import envvars
from ..core.connection import ConnectionInfo
from ..services.processproxies.contract import BaseProcessProxyABC
from ..services.processproxies.launchedkernel import LaunchAddress

if TYPE_CHECKING:
    from ..transport.response import Conflict

UNDO_SECONDS = 5.0  # that a process may take to end when it was killed because its launch has failed


class KernelProcess(KernelProvisionerBase):
    """What ``RemoteKernelManager`` has of every kernel; made for it by :mod:`.choice`.

    What is implemented here is right for provisioners that offer jupyter_client's contract and no more.
    """

    process_proxy: BaseProcessProxyABC | None = None
    launch_address = LaunchAddress()
    """Where the kernel's launcher reports."""

    connection: ConnectionInfo | None = None
    """How the kernel is reached; None where only the kernel's manager knows."""

    is_remote = False
    """Whether the kernel has a launcher that has reported."""

    @property
    def conflict(self) -> Conflict | None:
        """What makes it doubtful whether the kernel is ours; None where nothing does."""
        return None

    @property
    def launch_seconds_left(self) -> float:
        """How long the launch may still take."""
        return 0.0

    @property
    def said_of_end(self) -> str:
        """What a cluster says of the end of a kernel: that its time limit was reached, say; empty when it does not."""
        return ""

    async def ask(self) -> int | None:
        """Return None while the kernel lives, else its exit code; raises where it cannot be known."""
        return await self.poll()

    async def wait_for_exit(self) -> int | None:
        """Wait until the kernel has ended; return its exit code."""
        while (exit_code := await self.poll()) is None:
            await asyncio.sleep(envvars.EG_POLL_INTERVAL())
        return exit_code

    async def remove_leftovers(self) -> bool:
        """Remove everything that carries the kernel's id, and return whether a process did."""
        return False

    async def undo_launch(self) -> None:
        """Remove what a failed launch has left, as far as the back end can; called by whatever launched it.

        Nothing is raised: the reason why the launch has failed is to be told.
        """
        await clean_up(
            [*([self.kill, self._wait_a_moment] if self.has_process else []), self.cleanup], self.kernel_id, self.log
        )

    async def _wait_a_moment(self) -> None:
        try:
            await asyncio.wait_for(self.wait(), UNDO_SECONDS)
        except asyncio.TimeoutError:
            raise TimeoutError(f"it was killed but did not end within {UNDO_SECONDS:g} seconds") from None

    async def detach(self) -> None:
        """Close connections to a process that lives on when the gateway ends; a child process is still reaped."""

    async def disconnect(self) -> None:
        """Close connections to a process that lives on and that another object uses from now on; release its ports."""

    def claim_ports(self) -> None:
        """Reserve the ports of a kernel that was taken over, so that no other kernel is given them."""

    def release_ports(self) -> None:
        """Release the ports of a local kernel; a relaunch then chooses new ones."""


async def clean_up(
    steps: Iterable[Callable[[], Awaitable[None]]],
    kernel_id: str | None,
    log: logging.Logger | logging.LoggerAdapter[Any],
) -> None:
    """Take steps to end a kernel; a step that fails does not stop the others.

    A back end may be unable to undo what it did not do, and the reason of the failure was reported already.
    """
    for step in steps:
        try:
            await step()
        except Exception as error:  # noqa: BLE001  # of a third party
            log.warning("Kernel %s could not be cleaned up completely: %r", kernel_id, error)
