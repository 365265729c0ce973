"""What a replica does in the background of its heartbeat."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Coroutine, Iterable
from typing import Any


class Jobs:
    """Tasks by name, each done once at a time; one that fails is logged."""

    def __init__(self, log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self.log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False

    def do(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a job, unless the same one is running."""
        if name in self._tasks or self._is_closed:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks[name] = task
        task.add_done_callback(functools.partial(self._done, name))

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        del self._tasks[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("Changes made by other replicas could not be applied: %r", error)

    async def close(self) -> None:
        """Cancel the running jobs, and start no more."""
        self._is_closed = True
        await cancelled(self._tasks.values())


async def cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have ended."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
