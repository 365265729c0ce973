"""The interface between the gateway and its session manager, and the options of session managers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from traitlets import Bool, Float, Int, Unicode, default
from traitlets.config import LoggingConfigurable

from enterprise_gateway.core import envvars
from enterprise_gateway.core.sealing import Sealer, refuse_sealed
from enterprise_gateway.core.sessionrecords import Record, Session, as_loaded, as_stored, phase_of

from ..processproxies.contract import gateway_user
from .blockingverbs import BlockingVerbs, VerbStore
from .recordtable import RecordTable
from .revival import Revival
from .secretfiles import read_secret_file
from .sessionstore import SessionStore
from .storecalls import StoreCalls


class KernelSessionManager(BlockingVerbs, LoggingConfigurable):
    """Keeps a record of every kernel in memory and, with persistence on, in a store.

    The gateway calls the coroutines. Subclasses supply the store: :class:`StoreKernelSessionManager` builds one in
    ``make_store``; a class written for Enterprise Gateway 3.x derives from this one and implements the four verbs.

    A store that has no record returns nothing. Any exception means that the store could not answer, and clients get
    503. A failed write is retried in the background until it succeeds; no failure deletes a session.

    Parameters
    ----------
    kernel_manager
        The ``RemoteMappingKernelManager`` whose kernels are recorded.
    """

    enable_persistence = Bool(
        config=True,
        help="Whether to keep the records of running kernels in the store. (EG_KERNEL_SESSION_PERSISTENCE env var)",
    )
    persistence_root = Unicode(
        config=True,
        help="Directory in which a file-based store keeps its records. (EG_PERSISTENCE_ROOT env var)",
    )
    sealing_key_file = Unicode(
        config=True,
        help="""File with one key per line (32 random bytes, base64-encoded), not readable by other users. When set,
        connection keys, environments and credentials in records are encrypted with the first key and decrypted with
        any of them.
        (EG_SESSION_SEALING_KEY_FILE env var)""",
    )
    store_timeout = Float(
        config=True,
        min=0.1,
        help="Seconds that a request waits for the store before it fails with 503. (EG_SESSION_STORE_TIMEOUT env var)",
    )
    store_concurrency = Int(8, min=1, config=True, help="Maximum number of concurrent calls to the store.")

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
        super().__init__(**kwargs)
        self.kernel_manager = kernel_manager
        self._sealer = Sealer.from_text(read_secret_file(self.sealing_key_file)) if self.sealing_key_file else None
        self._verbs = VerbStore(self)
        self._calls = StoreCalls(
            timeout=lambda: self.store_timeout,
            concurrency=self.store_concurrency,
            interrupt=self.interrupt_store,
            log=self.log,
        )
        self._table = RecordTable(self._store_of_table(), self._calls, user_of=self.get_kernel_username, log=self.log)

    def _store_of_table(self) -> SessionStore:
        """Return the store that the gateway reads from and writes to."""
        return self._verbs

    # -- helpers for the verbs ----------------------------------------------------------------------------------------

    @staticmethod
    def pre_save_transformation(session: Mapping[str, Mapping[str, Any]]) -> Session:
        """Return a copy of ``session`` (``{kernel_id: record}``) that JSON can hold."""
        return as_stored(session)

    @staticmethod
    def post_load_transformation(session: Mapping[str, Any]) -> Session:
        """Return a copy of a session read from JSON, in the form the gateway uses: connection keys are bytes."""
        return as_loaded(session)

    def encode_session(self, kernel_id: str) -> Session:
        """Return ``{kernel_id: record}`` ready for the store: JSON types only, sealed if there is a sealing key."""
        return self._encode({kernel_id: self._sessions[kernel_id]})

    def decode_session(self, session: Any) -> Session:
        """Return a session read from a store, unsealed and transformed.

        Raises
        ------
        ValueError
            It is not a session: the store should set it aside.
        StoreUnavailableError
            It is sealed and cannot be opened with the configured keys.
        """
        if not isinstance(session, Mapping) or not all(isinstance(record, Mapping) for record in session.values()):
            raise ValueError("not a kernel session record")
        opened = self._sealer.open if self._sealer else refuse_sealed
        return self.post_load_transformation(opened(as_stored(session)))

    def _encode(self, session: Session) -> Session:
        stored = self.pre_save_transformation(session)
        return self._sealer.seal(stored) if self._sealer else stored

    @staticmethod
    def get_kernel_username(**kwargs: Any) -> str:
        """Return the user of a kernel started with ``kwargs``: ``KERNEL_USERNAME``, else the gateway's own user."""
        return str((kwargs.get("env") or {}).get("KERNEL_USERNAME") or gateway_user())

    def active_sessions(self, username: str) -> int:
        """Return how many kernels of ``username`` this gateway knows, even with persistence off."""
        return sum(record.get("username") == username for record in list(self._table.records.values()))

    # -- called by the gateway -----------------------------------------------------------------------------------------

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

        The kernel manager calls this before it acts on the phase. Values that are not given keep what was recorded
        before. The table changes immediately, even if the store fails.

        Parameters
        ----------
        required
            When False, a store failure is only logged, and the write is retried in the background.
        extra
            Further entries, such as activity, to merge into the record.

        Raises
        ------
        StoreUnavailableError
            The store failed or did not answer in time.
        LeaseLostError
            Another replica owns the kernel now; nothing was written.
        """
        given = {
            "username": username,
            "kernel_name": kernel_name,
            "launch_args": launch_args,
            "connection_info": connection_info,
            "process_info": process_info,
        }
        self._table.record(kernel_id, phase, extra=extra, **given)
        await self._save(kernel_id, required)

    async def note(self, kernel_id: str, extra: Mapping[str, Any]) -> None:
        """Add entries to the record of a running kernel; in any other phase, nothing is written.

        Raises
        ------
        LeaseLostError
            Another replica owns the kernel now; nothing was written.
        """
        record = self._table.own(kernel_id)
        if record is not None and phase_of(record) == "running":
            self._table.record(kernel_id, "running", extra=extra)
            await self._save(kernel_id, required=False)

    async def forget_session(self, kernel_id: str, *, required: bool = True) -> None:
        """Remove a kernel that is gone from the table and the store; ``required`` and errors as in `record_phase`."""
        self._table.drop(kernel_id)
        await self._save(kernel_id, required)

    async def fetch_session(self, kernel_id: str) -> Record | None:
        """Return the record of a kernel from the store, or None if the store has none.

        With persistence off, return the record in the table.

        Raises
        ------
        StoreUnavailableError
            The store did not answer, so it is not known whether the kernel exists.
        """
        if not self.enable_persistence:
            return self._table.records.get(kernel_id)
        return await self._table.fetch(kernel_id)

    async def fetch_sessions(self) -> Session:
        """Return every record in the store, and the records in the table that are not saved yet.

        Raises
        ------
        StoreUnavailableError
            The store did not answer.
        """
        if not self.enable_persistence:
            return dict(self._table.records)
        return await self._table.fetch_all()

    async def start_session(self, kernel_id: str) -> bool:
        """Recover one kernel from its record, with ``kernel_manager.start_kernel_from_session``.

        Returns False if the kernel is dead, after removing its record; and False if there is no record.
        """
        return await Revival(self, revive_one=self._start_from_record).revive(kernel_id) is not None

    async def start_sessions(self) -> None:
        """Recover every kernel in the store, with ``kernel_manager.start_kernel_from_session``."""
        if self.enable_persistence:
            await Revival(self, revive_one=self._start_from_record).run()

    async def flush(self) -> set[str]:
        """Retry all pending writes once; return the ids of the kernels whose records are still not saved."""
        return await self._table.flush()

    async def close(self) -> None:
        """Write pending records, waiting ``store_timeout`` at most, and stop the background tasks."""
        await self._table.close()

    @property
    def store_identity(self) -> str:
        """Distinguishes this store from others with the same ``persistence_root``; contains no secrets."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def unusable(self) -> set[str]:
        """The ids of kernels whose stored records cannot be read at present."""
        return self._table.unusable

    @property
    def store_available(self) -> bool:
        """Whether the last call to the store succeeded."""
        return self._calls.available

    def recorded(self, kernel_id: str) -> Record | None:
        """Return the record of a kernel in this gateway's table, or None."""
        return self._table.records.get(kernel_id)

    def has_unsaved(self, kernel_id: str | None = None) -> bool:
        """Whether a write for a kernel, or (None) for any kernel, is still pending."""
        return self._table.has_unsaved(kernel_id)

    def interrupt_store(self) -> None:
        """Abort the calls that have exceeded the time-out.

        Called on the event loop after a call has timed out. A store that cannot abort calls does nothing.
        """

    def adopt_session(self, record: Record) -> None:
        """Put a fetched record into the table as this gateway's own; called once its kernel is recovered."""
        self._table.adopt(record)

    async def _save(self, kernel_id: str, required: bool) -> None:
        if self.enable_persistence:
            await self._table.save(kernel_id, required)

    async def _start_from_record(self, record: Record) -> bool:
        names = ("kernel_id", "kernel_name", "connection_info", "process_info", "launch_args")
        started = await self.kernel_manager.start_kernel_from_session(**{name: record.get(name) for name in names})
        return bool(started)
