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
    """The outcome for the recorded kernels; reasons are sentences for the log."""

    revived: list[str] = field(default_factory=list)
    relaunched: list[str] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class RevivalRules(TypedDict, total=False):
    """Rules for replicas that share a store: parameters of :class:`Revival`."""

    is_wanted: Callable[[str], bool]
    claim: Callable[[str], Awaitable[bool]]


class Records(Protocol):
    """Gives access to the records; see ``KernelSessionManager``."""

    log: logging.Logger | logging.LoggerAdapter[Any]

    async def fetch_session(self, kernel_id: str) -> Record | None:
        """Return the record of a kernel."""
        ...

    async def fetch_sessions(self) -> Session:
        """Return all records."""
        ...

    def adopt_session(self, record: Record) -> None:
        """Treat the record of a recovered kernel as this gateway's own."""
        ...

    async def record_phase(self, kernel_id: str, phase: str, *, required: bool = True) -> None:
        """Record a phase of the kernel."""
        ...

    async def forget_session(self, kernel_id: str) -> None:
        """Remove the record of a kernel that is completely gone."""
        ...


class Revival:
    """Checks recorded kernels, many at a time: recovers live ones, removes dead ones, and keeps the others for later.

    The kernel manager supplies the functions for this.

    Parameters
    ----------
    manager
        Gives access to the records.
    revive_one
        Connects to the kernel of a record (``running`` or ``restarting``), unless it is connected already, and returns
        whether the kernel is alive. Raises ``NotFoundError`` for a dead kernel if the reason is known, and any other
        error if it could not find out.
    remove_one
        Removes the remains of a kernel that is dead, or whose start or stop was interrupted: processes, containers and
        files that carry its id. Raises an error if that fails; the record is then kept.
    relaunch_one
        Begins to relaunch a kernel that has died, or whose restart was interrupted after its process had ended.
        Without this function, such a kernel is removed.
    is_wanted
        Returns whether a kernel that has died is relaunched instead of removed. With ``claim``, a dead kernel is also
        relaunched when a client asks for it, because it died while no replica owned it.
    claim
        Returns whether this gateway may change or remove the kernel; takes its lease if replicas share the store.
        Called before a kernel is removed, and before anything is done to one whose start, restart or stop was
        interrupted.
    concurrency
        How many kernels are checked at a time.
    timeout_seconds
        How long one kernel may take before it is kept unchecked.
    settled_after_seconds
        For :meth:`revive` without ``claim``: a ``starting``, ``restarting`` or ``stopping`` record that was saved less
        than this long ago belongs to a gateway that is still working on it.
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
        self._in_progress: dict[str, asyncio.Task[Record | None]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.unsettled: dict[str, str] = {}  # recorded kernels that could not be checked so far, and why

    async def run(self, kernel_ids: Iterable[str] | None = None, *, store_patience_seconds: float = 0) -> RevivalReport:
        """Check all kernels in the store, or those of ``kernel_ids``; called at start, and to retry the ``kept`` ones.

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

        A background task of standalone gateways: kernels are recovered when a host that was unreachable at the start of
        the gateway is reachable again.
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
                self.log.exception("Recorded kernels could not be checked; the check will be repeated")

    async def revive(self, kernel_id: str) -> Record | None:
        """Recover one kernel that this gateway does not know: on request, if replicas share a store.

        Concurrent requests for one kernel share one attempt. Returns its record, or None if there is no such kernel.

        Raises
        ------
        StoreUnavailableError
            The store did not answer, or the kernel could not be checked; the kernel may exist.
        """
        task = self._in_progress.get(kernel_id)
        if task is None:
            task = asyncio.create_task(self._revive(kernel_id))
            self._in_progress[kernel_id] = task
            task.add_done_callback(functools.partial(self._end_revival, kernel_id))
        return await asyncio.shield(task)

    def _end_revival(self, kernel_id: str, task: asyncio.Task[Record | None]) -> None:
        self._in_progress.pop(kernel_id, None)
        if not task.cancelled():
            task.exception()  # marked as retrieved: the waiting callers, if any are left, got it

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
        """Return the lock that keeps a request and :meth:`settle` from recovering the same kernel twice."""
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
            except Exception as error:  # noqa: BLE001 -- after any error it is unknown whether the kernel is alive
                self._keep(kernel_id, str(error).rstrip(".") or type(error).__name__, report)

    async def _settle(self, record: Record, report: RevivalReport, claim: _Claim, is_wanted: bool) -> None:
        kernel_id, phase = record["kernel_id"], phase_of(record)
        claimed = phase != "running" and await claim(record)
        if phase != "running" and not claimed:
            report.kept[kernel_id] = f"another gateway has recorded it as {phase}"
            return
        reason = await self._reason_to_remove(record, phase)
        if not reason:
            self.manager.adopt_session(record)
            if phase != "running":  # the interrupted restart did not take place
                await self.manager.record_phase(kernel_id, "running", required=False)
            report.revived.append(kernel_id)
        elif not claimed and not await claim(record):
            report.kept[kernel_id] = f"{reason}, but another gateway owns it"
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
        self.log.info("Removed kernel %s: %s.", record["kernel_id"], reason)

    async def _reason_to_remove(self, record: Record, phase: str) -> str:
        if phase == "starting":
            return "the gateway ended while it was starting"
        if phase == "stopping":
            return "the gateway ended while it was being stopped"
        try:
            alive = await self._revive_one(record)
        except NotFoundError as error:
            return str(error).rstrip(".") or "it no longer exists"
        return "" if alive else "it is no longer alive"

    def _keep(self, kernel_id: str, reason: str, report: RevivalReport) -> None:
        report.kept[kernel_id] = self.unsettled[kernel_id] = reason
        self.log.warning("Kernel %s could not be recovered and stays recorded: %s", kernel_id, reason)
