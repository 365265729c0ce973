"""Launches of kernels in progress."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ...core.deadline import Deadline
from ...core.errors import LaunchTimeoutError
from ...core.offload import OwnThreads

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager

GIVING_UP_SECONDS = 2.0  # for a launch to undo what it has done; one that waits for a thread does so later


class Launches:
    """One task for each launch; its kernel's id is in use as long as that runs."""

    def __init__(self, log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self.log = log
        self.under_way: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self.under_way

    async def run(self, kernel: RemoteKernelManager, launch: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Launch a kernel; the launch is cancelled after ``seconds``, or when the caller is cancelled.

        A thread that hangs cannot be ended: then what the launch has left is removed when it ends by itself, and until
        then the kernel's id is in use.

        Raises
        ------
        LaunchTimeoutError
            It has taken too long; the text says what it is waiting for.
        """
        kernel_id = str(kernel.kernel_id)
        threads = OwnThreads(kernel_id)
        task = self.under_way[kernel_id] = asyncio.ensure_future(threads.run(launch))
        task.add_done_callback(functools.partial(self._ended, kernel_id))
        deadline = Deadline(seconds)
        try:
            while not task.done() and not deadline.expired:
                await asyncio.wait([task], timeout=deadline.remaining)
                deadline = getattr(kernel.process_proxy, "latest", deadline)
            if not task.done():
                raise LaunchTimeoutError(
                    f"KernelID: '{kernel_id}' launch timeout due to: Waited too long ({seconds:g}s) for "
                    f"{threads.waits_for or type(kernel.process_proxy or kernel.parent).__name__}"
                )
        except (asyncio.CancelledError, LaunchTimeoutError):
            await _given_up([task])
            if not task.done():
                self.log.warning("Kernel %s will be removed when %s has ended", kernel_id, threads.waits_for)
            raise
        task.result()

    def _ended(self, kernel_id: str, task: asyncio.Task[None]) -> None:
        del self.under_way[kernel_id]
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits any more

    async def give_up(self, *kernel_ids: str) -> None:
        """Cancel launches, if they are in progress."""
        await _given_up([self.under_way[kernel_id] for kernel_id in kernel_ids if kernel_id in self.under_way])


async def _given_up(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=GIVING_UP_SECONDS)
