"""What must not be cut short, however often its caller is cancelled."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from enterprise_gateway.core.offload import offload, uninterrupted


async def cancel_often(task: asyncio.Task[None], times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0.02)
        task.cancel()


async def test_work_is_done_in_spite_of_cancellations() -> None:
    """Three cancellations postpone themselves until the work is done, and then take effect."""
    done = []

    async def work() -> None:
        await asyncio.sleep(0.2)
        done.append(True)

    task = asyncio.create_task(uninterrupted(work()))
    await cancel_often(task, 3)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]


async def test_a_thread_is_waited_for_in_spite_of_cancellations() -> None:
    """A call that was handed to a thread has ended when its cancelled caller has."""
    ended = threading.Event()

    def call() -> None:
        time.sleep(0.2)
        ended.set()

    task = asyncio.create_task(offload(call))
    await cancel_often(task, 3)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_results_and_errors_pass() -> None:
    """Without a cancellation it is as if the work were awaited."""

    async def work(value: int) -> int:
        return 1 // value

    assert await uninterrupted(work(1)) == 1
    with pytest.raises(ZeroDivisionError):
        await uninterrupted(work(0))
