"""Event loops that know how long each of their turns kept everybody else waiting."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import selectors
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

HELD_LIMIT_SECONDS = 0.05
_SAMPLE_SECONDS = 0.02
_STANDSTILL_SECONDS = 0.01
_GRACE_SECONDS = 2.0
_MAKING_THREADS_AND_PROCESSES = (
    "_started.wait()",
    "_start_new_thread(",
    "_start_joinable_thread(",
    "in _execute_child",
)


@dataclass(frozen=True)
class HeldTurn:
    """One turn of a loop that took too long: how long, computing or asleep, and in which code."""

    computing: float
    asleep: float
    stack: str | None

    @property
    def seconds(self) -> float:
        """How long the turn took, less what it only waited for a processor and for the garbage collector."""
        return self.computing + self.asleep

    def holds(self, limit_seconds: float) -> bool:
        """Whether the turn took too long by its own doing.

        Asleep without a stack means that the watchdog, in another thread, could not run either: then it was not a
        system call that this thread waited for, but a machine that stood still. And waiting for a thread or child,
        just made, to get a processor is a busy machine, too.
        """
        waiting_for_others = self.stack is None or any(place in self.stack for place in _MAKING_THREADS_AND_PROCESSES)
        return (self.computing if waiting_for_others else self.seconds) > limit_seconds

    def __str__(self) -> str:
        where = self.stack or "  (code that kept the interpreter lock: no stack)\n"
        times = f"{self.computing * 1000:.0f} ms computing, {self.asleep * 1000:.0f} ms asleep"
        return f"the event loop was held for {self.seconds * 1000:.0f} ms ({times}) by:\n{where}"


class WatchedSelector(selectors.DefaultSelector):
    """A selector that measures the time between one ``select`` and the next: nothing else ran in it.

    What counts is the time on the processor, at the speed that it has when nobody else uses the machine, plus the time
    asleep in a system call. Time spent in the scheduler's run queue (Linux tells it per thread) and in the garbage
    collector is taken off, and time in which the watchdog did not run either, for then the machine stood still: a busy
    machine holds nobody's loop.
    """

    def __init__(self, limit_seconds: float = HELD_LIMIT_SECONDS) -> None:
        super().__init__()
        self.limit_seconds = limit_seconds
        self.held: list[HeldTurn] = []
        self.exempt = False
        self._clock = _ThreadClock()
        self._turn_began: float | None = None
        self._stack: str | None = None
        _watchdog.watch(self)

    def select(self, timeout: float | None = None) -> Any:
        """Wait for events as the loop asks for it, and take the time around it."""
        self._end_turn()
        try:
            return super().select(timeout)
        finally:
            self._stack = None
            self._turn_began = self._clock.start()

    def close(self) -> None:
        """Stop measuring, too."""
        self._turn_began = None
        self._clock.close()
        super().close()

    def pause(self) -> None:
        """Forget the present turn: the loop is not running."""
        self._turn_began = None

    def sample(self, now: float) -> None:
        """Keep the stack of a turn that has passed the limit; called by the watchdog thread."""
        began = self._turn_began
        if began is None or self._stack is not None or now - began < self.limit_seconds * 0.8:
            return
        frame = sys._current_frames().get(self._clock.thread_id)
        if frame is not None:
            self._stack = "".join(traceback.format_stack(frame)[-8:])

    def _end_turn(self) -> None:
        if self._turn_began is None:
            return
        self._turn_began = None  # first, lest the watchdog take what follows for the turn
        times = self._clock.stop(self.limit_seconds)
        if times is not None and not self.exempt:
            turn = HeldTurn(*times, self._stack)
            if turn.holds(self.limit_seconds):
                self.held.append(turn)
        self.exempt = False


class _ThreadClock:
    """Measures what one thread does with its time, less its waiting for a processor and for the garbage collector."""

    thread_id = 0

    def __init__(self) -> None:
        self._schedstat: int | None = None
        self._began = self._collecting = self._standing = 0.0
        self._scheduled = (0.0, 0.0)

    def start(self) -> float:
        if self.thread_id != threading.get_ident():
            self._open()
        self._scheduled, self._collecting = self._schedule(), _collector.seconds
        self._began = time.perf_counter()
        self._standing = _watchdog.stood_still(self._began)
        return self._began

    def stop(self, limit_seconds: float) -> tuple[float, float] | None:
        """Return the seconds spent computing and asleep, or None for a span that is short anyhow."""
        now = time.perf_counter()
        wall = now - self._began
        if wall <= limit_seconds:
            return None
        running, queued = self._schedule()
        computing = running - self._scheduled[0] - (_collector.seconds - self._collecting)
        asleep = wall - (running - self._scheduled[0]) - (queued - self._scheduled[1])
        asleep -= _watchdog.stood_still(now) - self._standing
        return max(computing, 0.0) * _speed.now(), max(asleep, 0.0)

    def close(self) -> None:
        if self._schedstat is not None:
            os.close(self._schedstat)
        self._schedstat = None

    def _open(self) -> None:
        self.close()
        self.thread_id = threading.get_ident()
        with contextlib.suppress(OSError):  # not Linux: time in the run queue counts as sleep
            self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def _schedule(self) -> tuple[float, float]:
        """Return the seconds this thread has run, and has waited to run."""
        if self._schedstat is None:
            return time.thread_time(), 0.0
        running, queued, _ = os.pread(self._schedstat, 100, 0).split()
        return int(running) / 1e9, int(queued) / 1e9


class _Speed:
    """How fast this machine computes, compared with its best so far.

    Virtual machines share their processors, and two threads of one core its units and caches: the same work takes up
    to twice its time, all of which the system counts as time on the processor.
    """

    def __init__(self) -> None:
        self._best = min(self._measure() for _ in range(20))

    def now(self) -> float:
        """Return a factor, 1 at best: called right after something took long."""
        present = sorted(self._measure() for _ in range(5))
        self._best = min(self._best, present[0])
        return self._best / present[2]

    @staticmethod
    def _measure() -> float:
        began = time.thread_time()
        "".join(str(number) for number in range(2000))
        return time.thread_time() - began


class _CollectorTime:
    """Adds up the seconds spent in the garbage collector."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0
        gc.callbacks.append(self)

    def __call__(self, phase: str, _info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.seconds += time.perf_counter() - self._began


class _Watchdog:
    """One thread for the whole run that checks every loop now and then."""

    def __init__(self) -> None:
        self._selectors: weakref.WeakSet[WatchedSelector] = weakref.WeakSet()
        self._wanted = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Seconds by which it has overslept in all, and since when it sleeps; one attribute, for other threads read it.
        self._slept: tuple[float, float | None] = (0.0, None)

    def stood_still(self, now: float) -> float:
        """Return the seconds in which it should have run and did not, until ``now``."""
        overslept, since = self._slept
        return overslept + (_overslept(now - since) if since is not None else 0.0)

    def watch(self, selector: WatchedSelector) -> None:
        with self._lock:
            self._selectors.add(selector)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="test-loop-watchdog", daemon=True)
                self._thread.start()
        self._wanted.set()

    def _run(self) -> None:
        while self._wanted.wait():
            before, began = self._slept[0], time.perf_counter()
            self._slept = (before, began)
            time.sleep(_SAMPLE_SECONDS)
            self._slept = (before + _overslept(time.perf_counter() - began), None)
            with self._lock:
                selectors_now = list(self._selectors)
                if not selectors_now:
                    self._wanted.clear()
            for selector in selectors_now:
                selector.sample(time.perf_counter())


def _overslept(seconds: float) -> float:
    too_long = seconds - _SAMPLE_SECONDS
    return too_long if too_long > _STANDSTILL_SECONDS else 0.0


_speed = _Speed()
_collector = _CollectorTime()
_watchdog = _Watchdog()


@contextlib.contextmanager
def loop_may_be_held(reason: str) -> Iterator[None]:
    """Allow the present turn of the running loop to take long; ``reason`` tells the reader why that is right.

    For what the program does before its loop runs, and for the test's own heavy lifting. Do not await inside.
    """
    assert reason
    _selector_of(asyncio.get_running_loop()).exempt = True
    yield


def _selector_of(loop: asyncio.AbstractEventLoop) -> WatchedSelector:
    selector = loop._selector  # type: ignore[attr-defined]
    assert isinstance(selector, WatchedSelector)
    return selector


class LoopRunner:
    """Runs one test's coroutines, its async fixtures among them, on one fresh loop; made on first use."""

    def __init__(self) -> None:
        self._selector: WatchedSelector | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run ``main`` to its end and return its result."""
        loop = self._loop or self._make()
        assert self._selector is not None
        try:
            return loop.run_until_complete(main)
        finally:
            self._selector.pause()

    def close(self) -> list[str]:
        """Close the loop and return one sentence for each thing that is wrong."""
        if self._loop is None or self._selector is None:
            return []
        loop, selector = self._loop, self._selector
        try:
            leaked = self.run(_tasks_that_stay())
            problems = [f"asyncio task left running: {task!r}" for task in leaked]
            for task in leaked:
                task.cancel()
            if leaked:
                self.run(_settle(leaked))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            return problems + [str(turn) for turn in selector.held]
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            self._loop = self._selector = None

    def _make(self) -> asyncio.AbstractEventLoop:
        self._selector = WatchedSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        asyncio.set_event_loop(self._loop)
        return self._loop


async def _tasks_that_stay() -> list[asyncio.Task[Any]]:
    """Wait a little for tasks that are about to end, and return those that do not."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=_GRACE_SECONDS)
        return list(pending)
    return []


async def _settle(tasks: list[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, timeout=_GRACE_SECONDS)


@contextlib.contextmanager
def crowded_machine(limit_seconds: float, reason: str) -> Iterator[None]:
    """Allow every turn of the running loop this long: a process that is being made keeps the interpreter lock.

    It does so until it gets a processor of its own; with a hundred others starting, that takes its time.
    """
    assert reason
    selector = _selector_of(asyncio.get_running_loop())
    before, selector.limit_seconds = selector.limit_seconds, limit_seconds
    try:
        yield
    finally:
        selector.limit_seconds = before
