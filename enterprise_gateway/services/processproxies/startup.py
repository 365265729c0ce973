"""The one wait loop of a remote start."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ...core.connection import ConnectionInfo
from ...core.deadline import Deadline
from ...core.errors import LaunchTimeoutError

if TYPE_CHECKING:
    from .processproxy import RemoteProcessProxy


async def await_startup(proxy: RemoteProcessProxy, deadline: Deadline) -> ConnectionInfo:
    """Wait for the launcher's response, for an early failure, or for the deadline: whichever comes first.

    Called by :meth:`RemoteProcessProxy.confirm_remote_startup`, after the launcher was started.

    Raises
    ------
    KernelLaunchError
        What ``proxy.watch_for_failure`` raised, or LaunchTimeoutError with what the proxy knows of the reason.
    """
    response = asyncio.ensure_future(proxy.expectation.wait(deadline))
    failure = asyncio.ensure_future(proxy.watch_for_failure())
    try:
        done, _ = await asyncio.wait(
            {response, failure}, timeout=deadline.remaining + 1, return_when=asyncio.FIRST_COMPLETED
        )
        if response in done and not isinstance(response.exception(), LaunchTimeoutError):
            return response.result()
        if failure in done:
            failure.result()  # raises the reason
        raise LaunchTimeoutError(await proxy.describe_timeout(deadline.seconds))
    finally:
        for task in (response, failure):
            task.cancel()
        await asyncio.gather(response, failure, return_exceptions=True)
