"""What the gateway asks a session manager, and what an administrator configures of it."""

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

    The gateway calls the coroutines. Where the store is, subclasses say: :class:`StoreKernelSessionManager` has one
    made; a class that was written for Enterprise Gateway 3.x derives from this one and supplies the four verbs.

    A store says "there is none" by returning nothing, and "I could not find out" by raising any exception. Clients then
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
        help="Directory below which records are kept when they are stored in files. (EG_PERSISTENCE_ROOT env var)",
    )
    sealing_key_file = Unicode(
        config=True,
        help="""File of keys, each the base64 text of 32 random bytes, one per line, not readable by other users. When
        set, connection keys, environments and credentials in records are encrypted with the first key and can be
        decrypted with any of them.
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
        """Return what the gateway reads from and writes to."""
        return self._verbs

    # -- helpers for the verbs ----------------------------------------------------------------------------------------

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
        return self._encode({kernel_id: self._sessions[kernel_id]})

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

    def _encode(self, session: Session) -> Session:
        stored = self.pre_save_transformation(session)
        return self._sealer.seal(stored) if self._sealer else stored

    @staticmethod
    def get_kernel_username(**kwargs: Any) -> str:
        """Return the user of a kernel started with ``kwargs``: ``KERNEL_USERNAME``, else the gateway's own user."""
        return str((kwargs.get("env") or {}).get("KERNEL_USERNAME") or gateway_user())

    def active_sessions(self, username: str) -> int:
        """Return how many kernels of ``username`` this gateway knows, with persistence off, too."""
        return sum(record.get("username") == username for record in list(self._table.records.values()))

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
        self._table.record(kernel_id, phase, extra=extra, **given)
        await self._save(kernel_id, required)

    async def note(self, kernel_id: str, extra: Mapping[str, Any]) -> None:
        """Add entries to the record of a kernel that runs; in another phase, nothing is written.

        Raises
        ------
        LeaseLostError
            Another replica looks after the kernel now; nothing was written.
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
        """Return the record of a kernel as the store has it, None when the store says that there is none.

        With persistence off, this is what the table has.

        Raises
        ------
        StoreUnavailableError
            The store could not be asked: nobody knows whether there is such a kernel.
        """
        if not self.enable_persistence:
            return self._table.records.get(kernel_id)
        return await self._table.fetch(kernel_id)

    async def fetch_sessions(self) -> Session:
        """Return every record of the store, and those of the table that wait to be saved.

        Raises
        ------
        StoreUnavailableError
            The store could not be asked.
        """
        if not self.enable_persistence:
            return dict(self._table.records)
        return await self._table.fetch_all()

    async def start_session(self, kernel_id: str) -> bool:
        """Take up one kernel from its record, through ``kernel_manager.start_kernel_from_session``.

        Returns False, and forgets the record, when the kernel is dead; False, too, when there is no record.
        """
        return await Revival(self, revive_one=self._start_from_record).revive(kernel_id) is not None

    async def start_sessions(self) -> None:
        """Take up every kernel in the store, through ``kernel_manager.start_kernel_from_session``."""
        if self.enable_persistence:
            await Revival(self, revive_one=self._start_from_record).run()

    async def flush(self) -> set[str]:
        """Try once more to write what the store has not yet; return the ids of kernels for which that failed."""
        return await self._table.flush()

    async def close(self) -> None:
        """Write what is not written yet, waiting ``store_timeout`` at most, and stop what goes on in the background."""
        await self._table.close()

    @property
    def store_identity(self) -> str:
        """What tells this store from others that have the same ``persistence_root``; no secrets."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def unusable(self) -> set[str]:
        """The kernels whose record the store has, and which cannot be read now."""
        return self._table.unusable

    @property
    def store_available(self) -> bool:
        """Whether the last call of the store succeeded."""
        return self._calls.available

    def recorded(self, kernel_id: str) -> Record | None:
        """Return what this gateway has recorded or read of a kernel, None when that is nothing."""
        return self._table.records.get(kernel_id)

    def owes(self, kernel_id: str | None = None) -> bool:
        """Whether the store has not yet what this gateway recorded of a kernel, or (None) of any."""
        return self._table.owes(kernel_id)

    def interrupt_store(self) -> None:
        """Make calls end that have been under way for longer than the time-out.

        Called on the event loop after a call took too long. Stores that have no way to do so do nothing.
        """

    def adopt_session(self, record: Record) -> None:
        """Put a record that was fetched into the table as this gateway's own; called when its kernel was revived."""
        self._table.adopt(record)

    async def _save(self, kernel_id: str, required: bool) -> None:
        if self.enable_persistence:
            await self._table.save(kernel_id, required)

    async def _start_from_record(self, record: Record) -> bool:
        names = ("kernel_id", "kernel_name", "connection_info", "process_info", "launch_args")
        started = await self.kernel_manager.start_kernel_from_session(**{name: record.get(name) for name in names})
        return bool(started)
