"""The wait for the start of a remote kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ...core.connection import ConnectionInfo
from ...core.deadline import Deadline
from ...core.errors import LaunchTimeoutError


async def await_startup(
    report: Coroutine[Any, Any, ConnectionInfo],
    failure: Coroutine[Any, Any, None],
    deadline: Deadline,
    describe_timeout: Callable[[float], Awaitable[str]],
) -> ConnectionInfo:
    """Wait for the launcher's report, for an early failure, or for the deadline: whichever comes first.

    Called by :meth:`RemoteProcessProxy.confirm_remote_startup` after the launcher was started.

    Parameters
    ----------
    report
        Returns what the launcher reports.
    failure
        Raises an error if the launch fails, and does not return otherwise.
    describe_timeout
        Takes the seconds that were waited, and returns a message with what is known about the reason.

    Raises
    ------
    KernelLaunchError
        What ``failure`` raised, or LaunchTimeoutError.
    """
    reported, failed = asyncio.ensure_future(report), asyncio.ensure_future(failure)
    try:
        done, _ = await asyncio.wait(
            {reported, failed}, timeout=deadline.remaining + 1, return_when=asyncio.FIRST_COMPLETED
        )
        if reported in done and not isinstance(reported.exception(), LaunchTimeoutError):
            return reported.result()
        if failed in done:
            failed.result()  # raises the reason
        raise LaunchTimeoutError(await describe_timeout(deadline.seconds))
    finally:
        await cancelled(reported, failed)


async def first_result(*works: Coroutine[Any, Any, Any]) -> Any:
    """Return what the first of several works returns or raises, and cancel the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        await cancelled(*tasks)


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
