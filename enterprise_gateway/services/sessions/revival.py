"""Recovers kernels from their records, after the gateway was stopped, killed or replaced."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict
from weakref import WeakValueDictionary

from enterprise_gateway.core.errors import NotFoundError, StoreUnavailableError
from enterprise_gateway.core.sessionrecords import Record, Session, phase_of

_STORE_RETRY_SECONDS = 1.0
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 10.0, 300.0
_Claim = Callable[[Record], Awaitable[bool]]


@dataclass
class RevivalReport:
    """What has become of the recorded kernels; reasons are sentences for the log."""

    revived: list[str] = field(default_factory=list)
    relaunched: list[str] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class RevivalRules(TypedDict, total=False):
    """What replicas that share a store observe: parameters of :class:`Revival`."""

    is_wanted: Callable[[str], bool]
    claim: Callable[[str], Awaitable[bool]]


class Records(Protocol):
    """Where the records are; see ``KernelSessionManager``."""

    log: logging.Logger | logging.LoggerAdapter[Any]

    async def fetch_session(self, kernel_id: str) -> Record | None:
        """Return the record of a kernel."""
        ...

    async def fetch_sessions(self) -> Session:
        """Return all records."""
        ...

    def adopt_session(self, record: Record) -> None:
        """Take the record of a kernel that was taken up for one's own."""
        ...

    async def record_phase(self, kernel_id: str, phase: str, *, required: bool = True) -> None:
        """Record what the kernel is about to do."""
        ...

    async def forget_session(self, kernel_id: str) -> None:
        """Remove the record of a kernel of which nothing is left."""
        ...


class Revival:
    """Checks recorded kernels, many at a time: alive ones are recovered, dead ones removed, the others kept for later.

    The kernel manager supplies what it takes:

    Parameters
    ----------
    manager
        Where the records are.
    revive_one
        Connects to the kernel of a record (``running`` or ``restarting``), unless it is connected to already, and
        returns whether it is of use. Raises
        ``NotFoundError`` for a dead one when it knows the reason, and anything else when it could not find out.
    remove_one
        Removes what is left of a kernel that is not of use, or whose start or stop was cut short: processes,
        containers, files that carry its id. Raises when it could not; the record is kept then.
    relaunch_one
        Begins to launch a kernel anew whose restart was cut short after its process had ended, or that has died.
        Without it, such a kernel is removed.
    is_wanted
        Returns whether a kernel that has died is launched anew, not removed. Where there is ``claim``, the same is done
        for who asks for one: it has died while no replica looked after it.
    claim
        Returns whether this gateway may change or remove the kernel: takes its lease where replicas share the store.
        Asked before a kernel is removed, and before one whose start, restart or stop was cut short is touched at all.
    concurrency
        How many kernels are checked at a time.
    timeout_seconds
        How long one kernel may take before it is kept unchecked.
    settled_after_seconds
        For :meth:`revive` without ``claim``: a ``starting``, ``restarting`` or ``stopping`` record that was saved less
        than this long ago belongs to a gateway that is at it.
    """

    def __init__(
        self,
        manager: Records,
        *,
        revive_one: Callable[[Record], Awaitable[bool]],
        remove_one: Callable[[Record], Awaitable[None]] | None = None,
        relaunch_one: Callable[[Record], Awaitable[None]] | None = None,
        is_wanted: Callable[[str], bool] = lambda _: False,
        claim: Callable[[str], Awaitable[bool]] | None = None,
        concurrency: int = 50,
        timeout_seconds: float = 60.0,
        settled_after_seconds: float = 300.0,
    ) -> None:
        self.manager = manager
        self.log = manager.log
        self._revive_one = revive_one
        self._remove_one = remove_one
        self._relaunch_one = relaunch_one
        self._is_wanted = is_wanted
        self._claim = claim
        self._timeout_seconds = timeout_seconds
        self._settled_after_seconds = settled_after_seconds
        self._slots = asyncio.Semaphore(concurrency)
        self._under_way: dict[str, asyncio.Task[Record | None]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.unsettled: dict[str, str] = {}  # recorded kernels that could not be checked so far, and why

    async def run(self, kernel_ids: Iterable[str] | None = None, *, store_patience_seconds: float = 0) -> RevivalReport:
        """Check all kernels in the store, or those of ``kernel_ids``; called at start and to try ``kept`` ones again.

        Raises
        ------
        StoreUnavailableError
            The records could not be read within ``store_patience_seconds``; nothing was removed.
        """
        started = time.monotonic()
        sessions = await self._fetch(started + store_patience_seconds)
        asked = sessions.keys() if kernel_ids is None else set(kernel_ids)
        wanted = asked & sessions.keys()
        for kernel_id in asked - wanted:
            self.unsettled.pop(kernel_id, None)
        report = RevivalReport()
        await asyncio.gather(
            *(
                self._check(sessions[kernel_id], report, self._claim_at_start, self._is_wanted(kernel_id))
                for kernel_id in wanted
            )
        )
        report.seconds = time.monotonic() - started
        if wanted:
            self.log.info(
                "Recovered %d of %d recorded kernels (%d removed, %d kept for later) in %.1f s.",
                len(report.revived) + len(report.relaunched),
                len(wanted),
                len(report.removed),
                len(report.kept),
                report.seconds,
            )
        return report

    async def settle(self, first_pause_seconds: float = _FIRST_PAUSE_SECONDS) -> None:
        """Check the ``unsettled`` kernels again, with growing pauses, until there are none.

        A task of standalone gateways: when a host that was unreachable at start returns, so do its kernels.
        """
        pause = first_pause_seconds
        while self.unsettled:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)
            try:
                await self.run(list(self.unsettled))
            except StoreUnavailableError:
                continue
            except Exception:
                self.log.exception("Recorded kernels could not be checked; they will be once more")

    async def revive(self, kernel_id: str) -> Record | None:
        """Recover one kernel that this gateway does not know: on request, where replicas share a store.

        Requests for the same kernel share one attempt. Returns its record, None when there is no such kernel.

        Raises
        ------
        StoreUnavailableError
            The store could not be asked, or the kernel could not be checked: it may well exist.
        """
        task = self._under_way.get(kernel_id)
        if task is None:
            task = asyncio.create_task(self._revive(kernel_id))
            self._under_way[kernel_id] = task
            task.add_done_callback(functools.partial(self._end_revival, kernel_id))
        return await asyncio.shield(task)

    def _end_revival(self, kernel_id: str, task: asyncio.Task[Record | None]) -> None:
        self._under_way.pop(kernel_id, None)
        if not task.cancelled():
            task.exception()  # seen: those who asked have it, unless they went away

    async def _revive(self, kernel_id: str) -> Record | None:
        record = await self.manager.fetch_session(kernel_id)
        if record is None:
            return None
        report = RevivalReport()
        await self._check(record, report, self._claim_on_request, self._claim is not None)
        if kernel_id in report.kept and phase_of(record) in ("running", "restarting"):
            raise StoreUnavailableError(f"Kernel {kernel_id} cannot be reached now: {report.kept[kernel_id]}.")
        return record if report.revived or report.relaunched else None

    def _lock(self, kernel_id: str) -> asyncio.Lock:
        """Return what keeps a request and :meth:`settle` from recovering the same kernel twice."""
        return self._locks.setdefault(kernel_id, asyncio.Lock())

    async def _claim_at_start(self, record: Record) -> bool:
        return self._claim is None or await self._claim(record["kernel_id"])

    async def _claim_on_request(self, record: Record) -> bool:
        if self._claim or phase_of(record) == "running":
            return await self._claim_at_start(record)
        return time.time() - float(record.get("saved_at") or 0) >= self._settled_after_seconds

    async def _fetch(self, end: float) -> Session:
        while True:
            try:
                return await self.manager.fetch_sessions()
            except StoreUnavailableError:
                if time.monotonic() >= end:
                    raise
                await asyncio.sleep(_STORE_RETRY_SECONDS)

    async def _check(self, record: Record, report: RevivalReport, claim: _Claim, is_wanted: bool) -> None:
        kernel_id = record["kernel_id"]
        async with self._slots, self._lock(kernel_id):
            try:
                await asyncio.wait_for(self._settle(record, report, claim, is_wanted), self._timeout_seconds)
                self.unsettled.pop(kernel_id, None)
            except (asyncio.TimeoutError, TimeoutError):
                self._keep(kernel_id, f"it could not be checked within {self._timeout_seconds:g} seconds", report)
            except Exception as error:  # noqa: BLE001 -- whatever it is, nobody knows whether the kernel lives
                self._keep(kernel_id, str(error).rstrip(".") or type(error).__name__, report)

    async def _settle(self, record: Record, report: RevivalReport, claim: _Claim, is_wanted: bool) -> None:
        kernel_id, phase = record["kernel_id"], phase_of(record)
        claimed = phase != "running" and await claim(record)
        if phase != "running" and not claimed:
            report.kept[kernel_id] = f"another gateway has it as {phase}"
            return
        reason = await self._reason_to_remove(record, phase)
        if not reason:
            self.manager.adopt_session(record)
            if phase != "running":  # what was begun with it has not come about
                await self.manager.record_phase(kernel_id, "running", required=False)
            report.revived.append(kernel_id)
        elif not claimed and not await claim(record):
            report.kept[kernel_id] = f"{reason}, but another gateway looks after it"
        elif self._relaunch_one and (phase == "restarting" or (phase == "running" and is_wanted)):
            self.manager.adopt_session(record)
            await self._relaunch_one(record)
            report.relaunched.append(kernel_id)
        else:
            await self._remove(record, reason)
            report.removed[kernel_id] = reason

    async def _remove(self, record: Record, reason: str) -> None:
        if self._remove_one:
            await self._remove_one(record)
        await self.manager.forget_session(record["kernel_id"])
        self.log.info("Kernel %s is removed: %s.", record["kernel_id"], reason)

    async def _reason_to_remove(self, record: Record, phase: str) -> str:
        if phase == "starting":
            return "the gateway ended while it was starting"
        if phase == "stopping":
            return "the gateway ended while it was being stopped"
        try:
            alive = await self._revive_one(record)
        except NotFoundError as error:
            return str(error).rstrip(".") or "it is gone"
        return "" if alive else "it is not alive any more"

    def _keep(self, kernel_id: str, reason: str, report: RevivalReport) -> None:
        report.kept[kernel_id] = self.unsettled[kernel_id] = reason
        self.log.warning("Kernel %s stays recorded but is not recovered: %s", kernel_id, reason)
