"""The table of kernel records in memory, and the writes that bring the store up to date with it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from enterprise_gateway.core.errors import LeaseLostError, StoreUnavailableError
from enterprise_gateway.core.sessionrecords import (
    PHASES,
    SCHEMA_VERSION,
    Record,
    Session,
    as_loaded,
    as_stored,
    is_usable_id,
)

from .sessionstore import SessionStore, Unreadable
from .storecalls import StoreCalls

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 1.0, 30.0


class RecordTable:
    """Keeps a record of every kernel in memory, and keeps the store up to date with it.

    Writes for one kernel happen in order; writes for different kernels run concurrently. A failed write is retried in
    the background until it succeeds.

    Parameters
    ----------
    store
        Keeps the records. In the records that it takes and returns, keys are bytes; see :func:`as_loaded`.
    calls
        Runs the functions of the store.
    user_of
        Returns the user of a kernel that was started with the given arguments.
    """

    def __init__(
        self,
        store: SessionStore,
        calls: StoreCalls,
        *,
        user_of: Callable[..., str],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.records: Session = {}
        self.unusable: set[str] = set()  # ids of kernels whose stored records cannot be read at present
        self._store = store
        self._calls = calls
        self._user_of = user_of
        self._log = log
        self._own: set[str] = set()  # recorded by this process, not only loaded
        self._unsaved: set[str] = set()  # for these, the store is not up to date with the table
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._retry: asyncio.Task[None] | None = None
        self._closed = False

    # -- the table ----------------------------------------------------------------------------------------------------

    def record(self, kernel_id: str, phase: str, *, extra: Mapping[str, Any] | None = None, **given: Any) -> None:
        """Record a phase of a kernel; values that are None or not given keep what was recorded before.

        Raises
        ------
        ValueError
            The phase is unknown, or the id is not usable as a kernel id.
        """
        if phase not in PHASES:
            raise ValueError(f"a kernel cannot be {phase!r}; phases are {', '.join(PHASES)}")
        if not is_usable_id(kernel_id):
            raise ValueError(f"{kernel_id!r:.100} cannot be the id of a kernel")
        record: Record = {"connection_info": {}, "launch_args": {}, "process_info": {}, "kernel_name": ""}
        record.update(self.records.get(kernel_id, {}))
        # Copied, because changes that the caller makes later belong to a later phase.
        record.update(as_loaded({"": {name: value for name, value in given.items() if value is not None}})[""])
        record.update(as_stored({"": extra or {}})[""])
        if "username" not in record:
            record["username"] = self._user_of(**record["launch_args"])
        record.update(kernel_id=kernel_id, state=phase, saved_at=time.time(), schema_version=SCHEMA_VERSION)
        self.records[kernel_id] = record  # replaced, never modified: threads may be reading the previous one
        self._own.add(kernel_id)

    def adopt(self, record: Record) -> None:
        """Treat a fetched record as this process's own, unless the process has recorded a newer one."""
        if record["kernel_id"] not in self._own:
            self.records[record["kernel_id"]] = record
            self._own.add(record["kernel_id"])

    def drop(self, kernel_id: str) -> None:
        """Forget a kernel."""
        self.records.pop(kernel_id, None)
        self._own.discard(kernel_id)

    def own(self, kernel_id: str) -> Record | None:
        """Return the record of a kernel if this process has recorded or adopted it."""
        return self.records.get(kernel_id) if kernel_id in self._own else None

    def has_unsaved(self, kernel_id: str | None = None) -> bool:
        """Whether a write for a kernel, or (None) for any kernel, is still pending."""
        return bool(self._unsaved) if kernel_id is None else kernel_id in self._unsaved

    # -- reading the store --------------------------------------------------------------------------------------------

    def sort_out(self, found: Mapping[str, Record | Unreadable | None]) -> Session:
        """Return the readable records among ``found``; note and log the others. May run in threads."""
        for kernel_id, entry in found.items():
            if isinstance(entry, Unreadable):
                self.unusable.add(kernel_id)
                self._log.warning("%s", entry.reason)
        return {name: entry for name, entry in found.items() if entry is not None and not isinstance(entry, Unreadable)}

    async def fetch(self, kernel_id: str) -> Record | None:
        """Return a record from the store, or from the table if a write is pending; None when there is none.

        Raises
        ------
        StoreUnavailableError
            The store did not answer.
        """
        return await self._calls.in_time(self._fetch(kernel_id))

    async def fetch_all(self) -> Session:
        """Return every record in the store, and those not saved yet; errors as :meth:`fetch`."""
        return await self._calls.in_time(self._fetch_all())

    async def _fetch(self, kernel_id: str) -> Record | None:
        async with self._lock(kernel_id):
            if kernel_id in self._unsaved:
                return self.records.get(kernel_id)
            before = self.records.get(kernel_id)
            found = await self._calls.run(self._store.load, kernel_id)
            stored = self.sort_out({kernel_id: found}).get(kernel_id)
            if self.records.get(kernel_id) is not before or kernel_id in self._unsaved:
                return self.records.get(kernel_id)
            if stored is not None:
                self.records[kernel_id] = stored
            elif kernel_id not in self._own:
                self.records.pop(kernel_id, None)
            return stored

    async def _fetch_all(self) -> Session:
        before, unsaved = dict(self.records), set(self._unsaved)
        found = await self._calls.run(lambda: self.sort_out(self._store.load_all()))
        unsaved |= self._unsaved  # load_all may have read the old value of records that were being written
        for kernel_id in found.keys() | before.keys() | self.records.keys():
            if kernel_id in unsaved or self.records.get(kernel_id) is not before.get(kernel_id):
                if kernel_id in self.records:
                    found[kernel_id] = self.records[kernel_id]
                else:
                    found.pop(kernel_id, None)
            elif kernel_id in found:
                self.records[kernel_id] = found[kernel_id]
            elif kernel_id not in self._own:
                self.records.pop(kernel_id, None)
        return found

    # -- writing to the store ------------------------------------------------------------------------------------------

    async def save(self, kernel_id: str, required: bool) -> None:
        """Save the table's record of a kernel to the store, or delete it there if the table has none.

        Parameters
        ----------
        required
            When False, a store failure is only logged.

        Raises
        ------
        StoreUnavailableError
            The store failed or did not answer in time; the write is retried in the background.
        LeaseLostError
            Another replica owns the kernel now; nothing was written.
        """
        self._unsaved.add(kernel_id)
        if not required and not self._calls.available:
            self._retry_later()  # waiting for an unavailable store would be pointless
            return
        try:
            await self._calls.in_time(self._write(kernel_id), finish=True)
        except StoreUnavailableError:
            self._retry_later()
            if required:
                raise

    async def flush(self) -> set[str]:
        """Retry all pending writes once; return the ids of the kernels whose records are still not saved."""
        writes = [self._calls.in_time(self._write(kernel_id), finish=True) for kernel_id in self._unsaved]
        await asyncio.gather(*writes, return_exceptions=True)
        if self._unsaved:
            self._retry_later()
        return set(self._unsaved)

    async def close(self) -> None:
        """Write pending records, waiting no longer than callers do, and stop the background tasks."""
        if self._closed:
            return
        self._closed = True
        unsaved = await self.flush()
        if unsaved:
            self._log.warning("These kernel sessions could not be written to the store: %s", ", ".join(sorted(unsaved)))
        if self._retry:
            self._retry.cancel()
        await self._calls.drain()

    async def _write(self, kernel_id: str) -> None:
        """Write the latest record; this covers later changes that are still waiting for the lock."""
        async with self._lock(kernel_id):
            if kernel_id not in self._unsaved:
                return
            record = self.records.get(kernel_id)
            try:
                if record is None:
                    await self._calls.run(self._store.delete, [kernel_id])
                else:
                    await self._calls.run(self._store.save, kernel_id, record)
            except LeaseLostError:
                self._unsaved.discard(kernel_id)
                self._own.discard(kernel_id)
                raise
            except StoreUnavailableError:
                self._retry_later()
                raise
            if self.records.get(kernel_id) is record:
                self._unsaved.discard(kernel_id)

    def _lock(self, kernel_id: str) -> asyncio.Lock:
        return self._locks.setdefault(kernel_id, asyncio.Lock())

    def _retry_later(self) -> None:
        if not self._closed and (self._retry is None or self._retry.done()):
            self._retry = self._calls.keep(self._retry_writes())

    async def _retry_writes(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        while self._unsaved:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_RETRY_SECONDS)
            await self._retry_once(list(self._unsaved))

    async def _retry_once(self, kernel_ids: Iterable[str]) -> None:
        for kernel_id in kernel_ids:
            try:
                await self._write(kernel_id)
            except StoreUnavailableError:
                return
            except LeaseLostError as error:
                self._log.warning("%s", error)
