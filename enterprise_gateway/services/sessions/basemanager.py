"""The table of kernel sessions and its way to the store that keeps them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec
from weakref import WeakValueDictionary

from traitlets import Bool, Float, Int, Unicode, default
from traitlets.config import LoggingConfigurable

from enterprise_gateway.core import envvars
from enterprise_gateway.core.errors import LeaseLostError, StoreUnavailableError
from enterprise_gateway.core.sealing import Sealer, refuse_sealed
from enterprise_gateway.core.sessionrecords import (
    PHASES,
    SCHEMA_VERSION,
    Record,
    Session,
    as_loaded,
    as_stored,
    is_usable_id,
    phase_of,
)

from ..processproxies.contract import gateway_user
from .secretfiles import read_secret_file
from .storecalls import StoreCalls

P = ParamSpec("P")

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 1.0, 30.0


class KernelSessionManager(LoggingConfigurable):
    """Keeps a record of every kernel in memory and, with persistence on, in a store.

    A store is made by a subclass with four blocking verbs: :meth:`load_sessions`, :meth:`load_session`,
    :meth:`save_session` and :meth:`delete_sessions`. They work on ``self._sessions``, a dictionary of records keyed by
    kernel id. The gateway itself calls the coroutines only. These run a verb in a thread, in which ``_sessions`` is a
    dictionary of that call's own: nothing a verb reads is changed meanwhile, and what it loads becomes visible at once.
    Writes of one kernel happen in order, those of different kernels at the same time.

    A verb says "there is none" by loading nothing, and "I could not find out" by raising any exception. Clients then
    get 503. A write that failed is repeated in the background until it succeeds; no failure deletes a session.

    Parameters
    ----------
    kernel_manager
        The ``RemoteMappingKernelManager`` whose kernels are recorded.
    """

    enable_persistence = Bool(
        config=True,
        help="Keep the records of running kernels in the store. (EG_KERNEL_SESSION_PERSISTENCE env var)",
    )
    persistence_root = Unicode(
        config=True,
        help="Directory below which records are kept, where the store is one of files. (EG_PERSISTENCE_ROOT env var)",
    )
    sealing_key_file = Unicode(
        config=True,
        help="""File with base64 text of 32 random bytes, one key a line, not readable for others. When set, connection
        keys, environments and credentials in records are encrypted with the first key and read with any of them.
        (EG_SESSION_SEALING_KEY_FILE env var)""",
    )
    store_timeout = Float(
        config=True,
        min=0.1,
        help="Seconds a request waits for the store before it is answered 503. (EG_SESSION_STORE_TIMEOUT env var)",
    )
    store_concurrency = Int(8, min=1, config=True, help="How many calls of the store may be under way at a time.")

    @default("enable_persistence")
    def _default_enable_persistence(self) -> bool:
        return envvars.EG_KERNEL_SESSION_PERSISTENCE()

    @default("persistence_root")
    def _default_persistence_root(self) -> str:
        return envvars.EG_PERSISTENCE_ROOT() or "/"

    @default("sealing_key_file")
    def _default_sealing_key_file(self) -> str:
        return envvars.EG_SESSION_SEALING_KEY_FILE()

    @default("store_timeout")
    def _default_store_timeout(self) -> float:
        return envvars.EG_SESSION_STORE_TIMEOUT()

    def __init__(self, kernel_manager: Any, **kwargs: Any) -> None:
        self._view = threading.local()
        self._table: Session = {}
        super().__init__(**kwargs)
        self.kernel_manager = kernel_manager
        self._sealer = Sealer.from_text(read_secret_file(self.sealing_key_file)) if self.sealing_key_file else None
        self._own: set[str] = set()  # recorded by this process, not only loaded
        self._unsaved: set[str] = set()  # what the store has of these is not what the table has
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.unusable: set[str] = set()  # kernels whose record the store has, and which cannot be read now
        self._retry: asyncio.Task[None] | None = None
        self._closed = False
        self._calls = StoreCalls(
            timeout=lambda: self.store_timeout,
            concurrency=self.store_concurrency,
            interrupt=self.interrupt_store,
            log=self.log,
        )

    # -- the store's verbs: blocking, called in threads ---------------------------------------------------------------

    def load_sessions(self) -> None:
        """Load every record of the store into ``_sessions``; an unusable one is logged and left where it is."""
        raise NotImplementedError("KernelSessionManager.load_sessions() requires an implementation!")

    def load_session(self, kernel_id: str) -> None:
        """Load one record into ``_sessions``; leave it alone when the store has none of ``kernel_id``."""
        raise NotImplementedError("KernelSessionManager.load_session(kernel_id) requires an implementation!")

    def save_session(self, kernel_id: str) -> None:
        """Write ``_sessions[kernel_id]`` to the store."""
        raise NotImplementedError("KernelSessionManager.save_session(kernel_id) requires an implementation!")

    def delete_sessions(self, kernel_ids: list[str]) -> None:
        """Remove records from the store; those it does not have count as removed."""
        raise NotImplementedError("KernelSessionManager.delete_sessions(kernel_ids) requires an implementation!")

    # -- helpers for the verbs ----------------------------------------------------------------------------------------

    @property
    def _sessions(self) -> Session:
        view: Session | None = getattr(self._view, "sessions", None)
        return self._table if view is None else view

    @_sessions.setter
    def _sessions(self, sessions: Session) -> None:
        if hasattr(self._view, "sessions"):
            self._view.sessions = sessions
        else:
            self._table = sessions

    @staticmethod
    def pre_save_transformation(session: Mapping[str, Mapping[str, Any]]) -> Session:
        """Return a copy of ``session`` (``{kernel_id: record}``) that JSON can hold."""
        return as_stored(session)

    @staticmethod
    def post_load_transformation(session: Mapping[str, Any]) -> Session:
        """Return a copy of what JSON held, as the gateway uses it: connection keys are bytes."""
        return as_loaded(session)

    def encode_session(self, kernel_id: str) -> Session:
        """Return ``{kernel_id: record}`` ready to be written: JSON types only and, with a sealing key, sealed."""
        session = self.pre_save_transformation({kernel_id: self._sessions[kernel_id]})
        return self._sealer.seal(session) if self._sealer else session

    def decode_session(self, session: Any) -> Session:
        """Return what a store held, unsealed and transformed.

        Raises
        ------
        ValueError
            It is no session: the store should set it aside.
        StoreUnavailableError
            It is sealed and cannot be opened with the configured keys.
        """
        if not isinstance(session, Mapping) or not all(isinstance(record, Mapping) for record in session.values()):
            raise ValueError("not a kernel session record")
        opened = self._sealer.open if self._sealer else refuse_sealed
        return self.post_load_transformation(opened(as_stored(session)))

    @staticmethod
    def get_kernel_username(**kwargs: Any) -> str:
        """Return the user of a kernel started with ``kwargs``: ``KERNEL_USERNAME``, else the gateway's own user."""
        return str((kwargs.get("env") or {}).get("KERNEL_USERNAME") or gateway_user())

    def active_sessions(self, username: str) -> int:
        """Return how many kernels of ``username`` this gateway knows, with persistence off, too."""
        return sum(record.get("username") == username for record in list(self._table.values()))

    # -- blocking life cycle, as in Enterprise Gateway 3.x: for callers in threads -------------------------------------

    def create_session(self, kernel_id: str, **kwargs: Any) -> None:
        """Record a running kernel that was started with ``kwargs``, and save the record."""
        kernel = self.kernel_manager.get_kernel(kernel_id)
        self._record(
            kernel_id,
            "running",
            kernel_name=kernel.kernel_name,
            launch_args=kwargs,
            connection_info=kernel.get_connection_info(),
            process_info=kernel.process_proxy.get_process_info(),
        )
        if self.enable_persistence:
            self.save_session(kernel_id)

    def refresh_session(self, kernel_id: str) -> None:
        """Record anew how a kernel is reached, after a restart, and save the record."""
        kernel = self.kernel_manager.get_kernel(kernel_id)
        self._record(
            kernel_id,
            "running",
            connection_info=kernel.get_connection_info(),
            process_info=kernel.process_proxy.get_process_info(),
        )
        if self.enable_persistence:
            self.save_session(kernel_id)

    def delete_session(self, kernel_id: str) -> None:
        """Forget a kernel and remove its record from the store."""
        self._drop(kernel_id)
        if self.enable_persistence:
            self.delete_sessions([kernel_id])

    # -- what the gateway calls ---------------------------------------------------------------------------------------

    async def record_phase(
        self,
        kernel_id: str,
        phase: str,
        *,
        required: bool = True,
        username: str | None = None,
        kernel_name: str | None = None,
        launch_args: Mapping[str, Any] | None = None,
        connection_info: Mapping[str, Any] | None = None,
        process_info: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that a kernel is ``starting``, ``running``, ``restarting`` or ``stopping``.

        The kernel manager calls this before it does what the phase announces. What is not given stays as it was
        recorded before. The table is changed at once, also if the store fails.

        Parameters
        ----------
        required
            When False, a store that fails is only logged: the write is repeated in the background.
        extra
            More entries of the record, such as activity; merged into it.

        Raises
        ------
        StoreUnavailableError
            The store failed or did not answer in time.
        LeaseLostError
            Another replica looks after the kernel now; nothing was written.
        """
        given = {
            "username": username,
            "kernel_name": kernel_name,
            "launch_args": launch_args,
            "connection_info": connection_info,
            "process_info": process_info,
        }
        self._record(kernel_id, phase, extra=extra, **given)
        await self._save(kernel_id, required)

    async def note(self, kernel_id: str, extra: Mapping[str, Any]) -> None:
        """Add entries to the record of a kernel that runs; in another phase, nothing is written.

        Raises
        ------
        LeaseLostError
            Another replica looks after the kernel now; nothing was written.
        """
        if kernel_id in self._own and phase_of(self._table[kernel_id]) == "running":
            self._record(kernel_id, "running", extra=extra)
            await self._save(kernel_id, required=False)

    async def forget_session(self, kernel_id: str, *, required: bool = True) -> None:
        """Remove a kernel that is gone from the table and the store; ``required`` and errors as in `record_phase`."""
        self._drop(kernel_id)
        await self._save(kernel_id, required)

    async def fetch_session(self, kernel_id: str) -> Record | None:
        """Return the record of a kernel as the store has it, None when the store says that there is none.

        With persistence off, this is what the table has.

        Raises
        ------
        StoreUnavailableError
            The store could not be asked: nobody knows whether there is such a kernel.
        """
        if not self.enable_persistence:
            return self._table.get(kernel_id)
        return await self._calls.in_time(self._fetch(kernel_id))

    async def fetch_sessions(self) -> Session:
        """Return every record of the store, and those of the table that wait to be saved.

        Raises
        ------
        StoreUnavailableError
            The store could not be asked.
        """
        if not self.enable_persistence:
            return dict(self._table)
        return await self._calls.in_time(self._fetch_all())

    async def start_session(self, kernel_id: str) -> bool:
        """Take up one kernel from its record, through ``kernel_manager.start_kernel_from_session``.

        Returns False, and forgets the record, when the kernel is dead; False, too, when there is no record.
        """
        from .revival import Revival

        return await Revival(self, revive_one=self._start_from_record).revive(kernel_id) is not None

    async def start_sessions(self) -> None:
        """Take up every kernel in the store, through ``kernel_manager.start_kernel_from_session``."""
        from .revival import Revival

        if self.enable_persistence:
            await Revival(self, revive_one=self._start_from_record).run()

    async def flush(self) -> set[str]:
        """Try once more to write what the store has not yet; return the ids of kernels for which that failed."""
        writes = [self._calls.in_time(self._write(kernel_id), finish=True) for kernel_id in self._unsaved]
        await asyncio.gather(*writes, return_exceptions=True)
        if self._unsaved:
            self._retry_later()
        return set(self._unsaved)

    async def close(self) -> None:
        """Write what is not written yet, waiting ``store_timeout`` at most, and stop what goes on in the background."""
        if self._closed:
            return
        self._closed = True
        unsaved = await self.flush()
        if unsaved:
            self.log.warning("Kernel sessions that could not be written to the store: %s", ", ".join(sorted(unsaved)))
        if self._retry:
            self._retry.cancel()
        await self._calls.drain()

    @property
    def store_identity(self) -> str:
        """What tells this store from others that have the same ``persistence_root``; no secrets."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def store_available(self) -> bool:
        """Whether the last call of the store succeeded."""
        return self._calls.available

    def recorded(self, kernel_id: str) -> Record | None:
        """Return what this gateway has recorded or read of a kernel, None when that is nothing."""
        return self._table.get(kernel_id)

    def owes(self, kernel_id: str | None = None) -> bool:
        """Whether the store has not yet what this gateway recorded of a kernel, or (None) of any."""
        return bool(self._unsaved) if kernel_id is None else kernel_id in self._unsaved

    def interrupt_store(self) -> None:
        """Make calls end that have been under way for longer than the time-out.

        Called on the event loop after a call took too long. Stores that have no way to do so do nothing.
        """

    def adopt_session(self, record: Record) -> None:
        """Put a record that was fetched into the table as this gateway's own; called when its kernel was revived."""
        if record["kernel_id"] not in self._own:  # else what this gateway recorded meanwhile is newer
            self._table[record["kernel_id"]] = record
            self._own.add(record["kernel_id"])

    # -- the table ----------------------------------------------------------------------------------------------------

    def _record(self, kernel_id: str, phase: str, *, extra: Mapping[str, Any] | None = None, **given: Any) -> None:
        if phase not in PHASES:
            raise ValueError(f"a kernel cannot be {phase!r}; phases are {', '.join(PHASES)}")
        if not is_usable_id(kernel_id):
            raise ValueError(f"{kernel_id!r:.100} cannot be the id of a kernel")
        record: Record = {"connection_info": {}, "launch_args": {}, "process_info": {}, "kernel_name": ""}
        record.update(self._table.get(kernel_id, {}))
        # Copied: what the caller changes later belongs to a later phase.
        record.update(as_loaded({"": {name: value for name, value in given.items() if value is not None}})[""])
        record.update(as_stored({"": extra or {}})[""])
        if "username" not in record:
            record["username"] = self.get_kernel_username(**record["launch_args"])
        record.update(kernel_id=kernel_id, state=phase, saved_at=time.time(), schema_version=SCHEMA_VERSION)
        self._table[kernel_id] = record  # replaced, never changed: threads may be reading the former one
        self._own.add(kernel_id)

    def _drop(self, kernel_id: str) -> None:
        self._table.pop(kernel_id, None)
        self._own.discard(kernel_id)

    # -- the way to the store -----------------------------------------------------------------------------------------

    async def _save(self, kernel_id: str, required: bool) -> None:
        if not self.enable_persistence:
            return
        self._unsaved.add(kernel_id)
        if not required and not self._calls.available:
            self._retry_later()  # it would only be waited for in vain
            return
        try:
            await self._calls.in_time(self._write(kernel_id), finish=True)
        except StoreUnavailableError:
            self._retry_later()
            if required:
                raise

    async def _write(self, kernel_id: str) -> None:
        """Bring the store to what the table has: a later change that waits for its turn is thereby written, too."""
        async with self._lock(kernel_id):
            if kernel_id not in self._unsaved:
                return
            record = self._table.get(kernel_id)
            try:
                if record is None:
                    await self._call_verb({}, self.delete_sessions, [kernel_id])
                else:
                    await self._call_verb({kernel_id: record}, self.save_session, kernel_id)
            except LeaseLostError:
                self._unsaved.discard(kernel_id)
                self._own.discard(kernel_id)
                raise
            except StoreUnavailableError:
                self._retry_later()
                raise
            if self._table.get(kernel_id) is record:
                self._unsaved.discard(kernel_id)

    async def _fetch(self, kernel_id: str) -> Record | None:
        async with self._lock(kernel_id):
            if kernel_id in self._unsaved:
                return self._table.get(kernel_id)
            before = self._table.get(kernel_id)
            stored = (await self._call_verb({}, self.load_session, kernel_id)).get(kernel_id)
            if self._table.get(kernel_id) is not before or kernel_id in self._unsaved:
                return self._table.get(kernel_id)
            if stored is not None:
                self._table[kernel_id] = stored
            elif kernel_id not in self._own:
                self._table.pop(kernel_id, None)
            return stored

    async def _fetch_all(self) -> Session:
        before, unsaved = dict(self._table), set(self._unsaved)
        found = await self._call_verb({}, self.load_sessions)
        unsaved |= self._unsaved  # what was, or is, on its way to the store may have been read as it was before
        for kernel_id in found.keys() | before.keys() | self._table.keys():
            if kernel_id in unsaved or self._table.get(kernel_id) is not before.get(kernel_id):
                if kernel_id in self._table:
                    found[kernel_id] = self._table[kernel_id]
                else:
                    found.pop(kernel_id, None)
            elif kernel_id in found:
                self._table[kernel_id] = found[kernel_id]
            elif kernel_id not in self._own:
                self._table.pop(kernel_id, None)
        return found

    async def _call_verb(self, view: Session, verb: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Session:
        """Run ``verb`` in a thread with ``view`` as its ``_sessions``; return what it made of that."""

        def run() -> Session:
            self._view.sessions = view
            try:
                verb(*args, **kwargs)
                return self._sessions
            finally:
                del self._view.sessions

        return await self._calls.run(run)

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
                self.log.warning("%s", error)

    async def _start_from_record(self, record: Record) -> bool:
        names = ("kernel_id", "kernel_name", "connection_info", "process_info", "launch_args")
        started = await self.kernel_manager.start_kernel_from_session(**{name: record.get(name) for name in names})
        return bool(started)
