"""The one hand-over of blocking calls to threads.

What waits for one place - an SSH host, a back end, a store - has threads of its own (:func:`offload_to`), so that a
place that does not answer blocks only the callers that need it. A launch has some too (:class:`OwnThreads`), so that
one whose files are on a file system that hangs does not block others.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

THREADS_PER_PLACE = 64

# Threads are started only when needed.
_executor = ThreadPoolExecutor(max_workers=64, thread_name_prefix="eg-offload")


class _Place:
    """The threads for one place, which live as long as there are calls."""

    def __init__(self, name: str) -> None:
        self.calls = 0
        self.executor = ThreadPoolExecutor(max_workers=THREADS_PER_PLACE, thread_name_prefix=f"eg-for-{name}")


_places: dict[str, _Place] = {}
_places_lock = threading.Lock()  # in library mode there may be an event loop in more than one thread


_under_way: list[str] = []


def under_way() -> list[str]:
    """Return the names of the functions that threads are running now."""
    return list(_under_way)


class OwnThreads:
    """Threads for the blocking calls of one task, such as a launch; they can be asked what they are doing.

    While it runs, :func:`offload` gives the calls of its task, and of those that this one makes, to these threads.

    Parameters
    ----------
    name
        For the threads' names.
    """

    def __init__(self, name: str) -> None:
        self.under_way: list[str] = []
        self.is_over = False
        self._name = name
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ``work``, whose blocking calls run in these threads."""
        before = _own_threads.set(self)
        try:
            return await work()
        finally:
            self.is_over = True
            _own_threads.reset(before)
            if self._executor is not None:
                self._executor.shutdown(wait=False)

    @property
    def waits_for(self) -> str:
        """What the threads are doing, for messages; empty when they are idle."""
        return ", ".join(sorted(set(self.under_way)))

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The threads."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS_PER_PLACE, thread_name_prefix=f"eg-own-{self._name}")
        return self._executor


_own_threads: contextvars.ContextVar[OwnThreads | None] = contextvars.ContextVar("own_threads", default=None)


async def offload(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking ``function`` in a thread and return its result: one that works on this machine alone.

    Cancelling the caller is postponed until the thread has ended: a thread cannot be stopped, and giving up on one
    would leave, say, a container that nobody knows about. Every blocking call has a time-out of its own.
    """
    threads = _own_threads.get()
    executor = _executor if threads is None or threads.is_over else threads.executor
    return await _run_in(executor, functools.partial(function, *args, **kwargs))


async def offload_to(place: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Do what :func:`offload` does in one of the ``THREADS_PER_PLACE`` threads of ``place``.

    They end with the last call in progress: an idle place costs nothing, and needs no closing.

    Parameters
    ----------
    place
        What ``function`` may have to wait for: the name of a host, of a back end's class, of a store.
    """
    with _places_lock:
        entry = _places.get(place) or _places.setdefault(place, _Place(place))
        entry.calls += 1
    try:
        return await _run_in(entry.executor, functools.partial(function, *args, **kwargs))
    finally:
        with _places_lock:
            entry.calls -= 1
            if not entry.calls:
                del _places[place]
                entry.executor.shutdown(wait=False)


async def _run_in(executor: ThreadPoolExecutor, call: functools.partial[T]) -> T:
    context = contextvars.copy_context()
    try:
        work = asyncio.get_running_loop().run_in_executor(executor, context.run, call)
    except RuntimeError:
        return call()  # Python ends, and takes no more work for threads: a notebook client in library mode tidies up
    name = getattr(call.func, "__qualname__", repr(call.func))
    threads = _own_threads.get()
    lists = [_under_way] if threads is None else [_under_way, threads.under_way]
    for names in lists:
        names.append(name)
    try:
        return await uninterrupted(work)
    finally:
        for names in lists:
            names.remove(name)


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
