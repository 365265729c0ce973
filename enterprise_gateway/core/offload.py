"""The one hand-over of blocking calls to threads."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Vendor calls wait on the network, not on the processor: many threads, started only when needed.
_executor = ThreadPoolExecutor(max_workers=64, thread_name_prefix="eg-offload")


async def offload(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking ``function`` in a thread and return its result.

    Cancelling the caller is postponed until the thread has ended: a thread cannot be stopped, and giving up on one
    would leave, say, a container created that nobody knows of. Every blocking call has a time-out of its own.
    """
    call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await uninterrupted(asyncio.get_running_loop().run_in_executor(_executor, call))


async def uninterrupted(work: Awaitable[T]) -> T:
    """Run ``work`` to its end, however often the caller is cancelled meanwhile, and return its result.

    For what must not be cut short: a clean-up, a call in a thread. A cancellation takes effect when it is done, and
    then comes before an error of ``work``.
    """
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        if not task.cancelled():
            task.exception()  # seen: a failure of what was abandoned is not reported as never retrieved
        raise asyncio.CancelledError
    return task.result()
