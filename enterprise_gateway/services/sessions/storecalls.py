"""Runs the blocking calls to a store in threads: limited in number and time, with one log line per outage."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from enterprise_gateway.core.errors import GatewayError, StoreUnavailableError
from enterprise_gateway.core.offload import offload_to

P = ParamSpec("P")
T = TypeVar("T")

_UNAVAILABLE = "The kernel session store is not available at the moment; please try again later."
_USERINFO = re.compile(r"//[^/@\s]+@")


class StoreCalls:
    """Runs the calls to one store.

    Parameters
    ----------
    timeout
        Returns the seconds that a caller waits.
    concurrency
        Maximum number of concurrent calls.
    interrupt
        Called when a call has timed out; may abort such calls.
    """

    def __init__(
        self,
        *,
        timeout: Callable[[], float],
        concurrency: int,
        interrupt: Callable[[], None],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.available = True
        self._timeout = timeout
        self._slots = asyncio.Semaphore(concurrency)
        self._interrupt = interrupt
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking ``function`` in a thread.

        Raises
        ------
        GatewayError
            As the function raised it.
        StoreUnavailableError
            It raised anything else.
        """
        async with self._slots:
            try:
                result = await offload_to("session-store", function, *args, **kwargs)
            except GatewayError:
                raise
            except Exception as error:
                self._note_failure(error)
                raise StoreUnavailableError(_UNAVAILABLE) from error
        if not self.available:
            self.available = True
            self._log.info("The kernel session store is available again.")
        return result

    async def in_time(self, work: Coroutine[Any, Any, T], *, finish: bool = False) -> T:
        """Wait for ``work`` until the time-out; then cancel it or, with ``finish``, let it continue.

        Raises
        ------
        StoreUnavailableError
            It has not finished in time.
        """
        task = self.keep(work)
        done, _ = await asyncio.wait({task}, timeout=self._timeout())
        if not done:
            self._note_failure(TimeoutError(f"no answer within {self._timeout():g} seconds"))
            self._interrupt()
            if not finish:
                task.cancel()
            raise StoreUnavailableError(_UNAVAILABLE)
        return task.result()

    def keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start ``work`` as a task, and keep a reference to it until it ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    async def drain(self) -> None:
        """Wait for running tasks, until the time-out."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._timeout())

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marked as retrieved; it was logged where it happened

    def _note_failure(self, error: BaseException) -> None:
        if self.available:
            self.available = False
            reason = _USERINFO.sub("//", str(error))
            self._log.error("The kernel session store is not available: %s: %s", type(error).__name__, reason)
