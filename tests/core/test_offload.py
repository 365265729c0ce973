"""What must not be cut short, however often its caller is cancelled."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from enterprise_gateway.core.offload import THREADS_PER_PLACE, OwnThreads, offload, offload_to, under_way, uninterrupted
from enterprise_gateway.core.steps import take_all
from tests.conftest import ExpectLog

REPOSITORY = Path(__file__).parents[2]


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


async def test_a_place_that_does_not_answer_does_not_block_others() -> None:
    """More calls than it has threads: other places and this machine's own work go on, and it takes them in turn."""
    answer = threading.Event()
    calls = [asyncio.create_task(offload_to("dead", answer.wait, 30)) for _ in range(3 * THREADS_PER_PLACE)]
    await asyncio.sleep(0.1)
    assert threads_for("dead") == THREADS_PER_PLACE
    assert await asyncio.wait_for(offload_to("alive", int, "1"), 5) == 1
    assert await asyncio.wait_for(offload(int, "2"), 5) == 2
    assert not any(call.done() for call in calls)
    answer.set()
    assert all(await asyncio.gather(*calls))


async def test_a_place_at_rest_has_no_threads() -> None:
    """However many hosts there are, only those that are asked something cost anything, errors or not."""
    await asyncio.gather(*(offload_to(f"host-{number}", time.sleep, 0.01) for number in range(100)))
    with pytest.raises(ValueError, match="nonsense"):
        await offload_to("host-1", int, "nonsense")
    while threads_for("host-"):
        await asyncio.sleep(0.01)


def test_a_call_when_python_ends_is_made_at_once() -> None:
    """Notebook clients tidy up in an exit handler, when no thread takes work any more."""
    script = (
        "import asyncio, atexit; from enterprise_gateway.core.offload import offload, offload_to; "
        "atexit.register(lambda: asyncio.run(offload(print, 'here'))); "
        "atexit.register(lambda: asyncio.run(offload_to('host', print, 'there'))); asyncio.run(offload(print, 'first'))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == (["first", "there", "here"], "")


def threads_for(place: str) -> int:
    return sum(thread.name.startswith(f"eg-for-{place}") for thread in threading.enumerate())


async def test_own_threads_block_no_others_and_tell_what_they_do() -> None:
    """However many of them hang, no other call waits; when their tasks are over they end."""
    answer = threading.Event()
    all_threads = [OwnThreads(f"call-{number}") for number in range(THREADS_PER_PLACE + 10)]
    calls = [asyncio.create_task(threads.run(lambda: offload(answer.wait, 30))) for threads in all_threads]
    await asyncio.sleep(0.1)
    assert await asyncio.wait_for(OwnThreads("another").run(lambda: offload(int, "1")), 5) == 1
    assert await asyncio.wait_for(offload(int, "2"), 5) == 2
    assert {threads.waits_for for threads in all_threads} == {"Event.wait"}
    assert under_way().count("Event.wait") == len(all_threads)
    answer.set()
    assert all(await asyncio.gather(*calls))
    assert {threads.waits_for for threads in all_threads} == {""}
    while any(thread.name.startswith("eg-own-") for thread in threading.enumerate()):
        await asyncio.sleep(0.01)


async def test_a_task_outlives_the_own_threads_it_was_begun_in() -> None:
    """A task that was created in them and left behind uses the shared threads."""
    left_behind: list[asyncio.Task[str]] = []

    async def later() -> str:
        await asyncio.sleep(0.1)
        return await offload(lambda: threading.current_thread().name)

    async def begin() -> None:
        left_behind.append(asyncio.create_task(later()))

    threads = OwnThreads("short")
    await threads.run(begin)
    assert (await left_behind[0]).startswith("eg-offload")
    assert threads.waits_for == ""


async def test_a_step_that_does_not_end_does_not_prevent_the_others(expect_log: ExpectLog) -> None:
    """When the gateway ends, each step has a time limit."""
    taken = []

    async def step() -> None:
        taken.append(True)

    with expect_log("Things did not end cleanly; the rest continues"):
        await take_all([asyncio.Event().wait, step], "Things", logging.getLogger("enterprise_gateway"), patience=0.1)
    assert taken == [True]


async def test_work_that_is_cancelled_at_once_is_not_begun() -> None:
    """A client that goes away in the same moment leaves nothing behind, no coroutine either."""
    begun: list[bool] = []

    async def work() -> None:
        begun.append(True)

    task = asyncio.create_task(OwnThreads("cancelled").run(work))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not begun
