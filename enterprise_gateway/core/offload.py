"""The one hand-over of blocking calls to threads."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
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
    future = asyncio.get_running_loop().run_in_executor(_executor, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen: a failure of the abandoned call is not reported as never retrieved
        raise
