"""Session managers that keep their records in a plain store, sealed if there is a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from enterprise_gateway.core.errors import StoreUnavailableError
from enterprise_gateway.core.sessionrecords import Record, Session

from .basemanager import KernelSessionManager
from .sessionstore import SessionStore, Unreadable

_VERBS = ("load_sessions", "load_session", "save_session", "delete_sessions")


class StoreKernelSessionManager(KernelSessionManager):
    """Keeps records in the :class:`SessionStore` that :meth:`make_store` returns; derive from this class.

    It also has the four verbs of Enterprise Gateway 3.x, for subclasses that override some of them and call the
    others: the gateway then uses the verbs.
    """

    def make_store(self) -> SessionStore:
        """Return the store; called once by the constructor, after the options are set."""
        raise NotImplementedError(f"{type(self).__name__}.make_store() requires an implementation!")

    def _store_of_table(self) -> SessionStore:
        self._encoded = EncodedStore(self.make_store(), self._encode, self.decode_session)
        is_plain = all(getattr(type(self), verb) is getattr(StoreKernelSessionManager, verb) for verb in _VERBS)
        return self._encoded if is_plain else self._verbs

    def load_sessions(self) -> None:
        """Load every record of the store into ``_sessions``."""
        if self.enable_persistence:
            self._sessions.update(self._table.sort_out(self._encoded.load_all()))

    def load_session(self, kernel_id: str) -> None:
        """Load one record into ``_sessions``, if the store has it."""
        if self.enable_persistence:
            self._sessions.update(self._table.sort_out({kernel_id: self._encoded.load(kernel_id)}))

    def save_session(self, kernel_id: str) -> None:
        """Write ``_sessions[kernel_id]``, if there is one, to the store."""
        if self.enable_persistence and kernel_id in self._sessions:
            self._encoded.save(kernel_id, self._sessions[kernel_id])

    def delete_sessions(self, kernel_ids: list[str]) -> None:
        """Remove records from the store."""
        if self.enable_persistence:
            self._encoded.delete(kernel_ids)


class EncodedStore:
    """Wraps a store, and converts records to their stored form: JSON types only, and sealed if there is a key.

    Parameters
    ----------
    encode
        Returns the stored form of a session, ``{kernel_id: record}``.
    decode
        Returns the session from its stored form; its errors are those of ``KernelSessionManager.decode_session``.
    """

    def __init__(
        self, store: SessionStore, encode: Callable[[Session], Session], decode: Callable[[Any], Session]
    ) -> None:
        self._store = store
        self._encode = encode
        self._decode = decode

    def load_all(self) -> Mapping[str, Record | Unreadable]:
        """Return every record, and :class:`Unreadable` for one that cannot be decoded at present."""
        return {kernel_id: self._usable(kernel_id, entry) for kernel_id, entry in self._store.load_all().items()}

    def load(self, kernel_id: str) -> Record | Unreadable | None:
        """Return one record; errors as ``decode``."""
        entry = self._store.load(kernel_id)
        return entry if entry is None or isinstance(entry, Unreadable) else self._decoded(kernel_id, entry)

    def save(self, kernel_id: str, record: Record) -> None:
        """Encode and save a record."""
        self._store.save(kernel_id, self._encode({kernel_id: record})[kernel_id])

    def delete(self, kernel_ids: list[str]) -> None:
        """Remove records."""
        self._store.delete(kernel_ids)

    def _usable(self, kernel_id: str, entry: Record | Unreadable) -> Record | Unreadable:
        if isinstance(entry, Unreadable):
            return entry
        try:
            return self._decoded(kernel_id, entry)
        except (ValueError, RecursionError, StoreUnavailableError) as error:
            return Unreadable.now(kernel_id, error)

    def _decoded(self, kernel_id: str, record: Record) -> Record:
        return self._decode({kernel_id: record})[kernel_id]
