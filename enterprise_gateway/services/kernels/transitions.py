"""Keeps restarts and stops of one kernel from running at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ...core.errors import ConflictError

Change = Callable[[], Coroutine[Any, Any, None]]


class Transitions:
    """Allows one restart or stop of a kernel at a time, whether a client, the culler or the kernel's death causes it.

    Who asks for what is under way already waits for that and is done with it. A stop ends a restart; nothing ends a
    stop. Each runs as a task of its own, so that none is cut short when its first caller is.
    """

    def __init__(self) -> None:
        self._restarts: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, asyncio.Task[None]] = {}

    def under_way(self, kernel_id: str) -> str:
        """Return the change in progress, as part of a sentence; empty when there is none."""
        if kernel_id in self._stops:
            return "is being shut down"
        return "is being restarted" if kernel_id in self._restarts else ""

    async def restart(self, kernel_id: str, change: Change) -> None:
        """Restart a kernel with ``change``; a duplicate request shares the restart in progress.

        Raises
        ------
        ConflictError
            The kernel is being shut down, or was before it had restarted.
        """
        if kernel_id in self._stops:
            raise ConflictError(f"Kernel {kernel_id} is being shut down: it cannot be restarted.")
        await self._run(self._restarts, kernel_id, change)

    async def stop(self, kernel_id: str, change: Change) -> None:
        """Stop a kernel with ``change``, cancelling a restart; a duplicate request shares the stop in progress."""

        async def give_up_restart_and_stop() -> None:
            restart = self._restarts.get(kernel_id)
            if restart is not None:
                restart.cancel()
                await asyncio.wait([restart])
            await change()

        await self._run(self._stops, kernel_id, give_up_restart_and_stop)

    async def give_up_restarts(self, patience_seconds: float) -> None:
        """Wait for all restarts in progress, and cancel those that take too long; called when the gateway ends."""
        if self._restarts:
            _, late = await asyncio.wait(self._restarts.values(), timeout=patience_seconds)
            for restart in late:
                restart.cancel()
            if late:
                await asyncio.wait(late, timeout=patience_seconds)  # has no effect on a thread that hangs

    async def _run(self, tasks: dict[str, asyncio.Task[None]], kernel_id: str, change: Change) -> None:
        task = tasks.get(kernel_id)
        if task is None:
            task = tasks[kernel_id] = asyncio.create_task(change(), name=f"kernel {kernel_id} changes")
            task.add_done_callback(lambda done: self._forget(tasks, kernel_id, done))
        await asyncio.wait([task])
        if task.cancelled():
            raise ConflictError(f"Kernel {kernel_id} was shut down while it was being restarted.")
        task.result()

    @staticmethod
    def _forget(tasks: dict[str, asyncio.Task[None]], kernel_id: str, done: asyncio.Task[None]) -> None:
        del tasks[kernel_id]
        if not done.cancelled():
            done.exception()  # seen, also when all who waited have gone away
