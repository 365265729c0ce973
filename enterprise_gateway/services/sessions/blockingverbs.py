"""The blocking verbs of Enterprise Gateway 3.x's session managers, which work on a dictionary of records."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ParamSpec

from enterprise_gateway.core.sessionrecords import Record, Session

from .recordtable import RecordTable

P = ParamSpec("P")


class BlockingVerbs:
    """The blocking part of ``KernelSessionManager``, which classes and scripts written for 3.x override and call.

    A subclass implements a store with four verbs: :meth:`load_sessions`, :meth:`load_session`, :meth:`save_session`
    and :meth:`delete_sessions`. They work on ``self._sessions``, the records by kernel id: the gateway's table or,
    when the gateway calls a verb, a dictionary private to that call.
    """

    kernel_manager: Any
    enable_persistence: Any
    _table: RecordTable
    _verbs: VerbStore

    def load_sessions(self) -> None:
        """Load every record in the store into ``_sessions``; log unusable ones and leave them where they are."""
        raise NotImplementedError("KernelSessionManager.load_sessions() requires an implementation!")

    def load_session(self, kernel_id: str) -> None:
        """Load one record into ``_sessions``; change nothing if the store has none for ``kernel_id``."""
        raise NotImplementedError("KernelSessionManager.load_session(kernel_id) requires an implementation!")

    def save_session(self, kernel_id: str) -> None:
        """Write ``_sessions[kernel_id]`` to the store."""
        raise NotImplementedError("KernelSessionManager.save_session(kernel_id) requires an implementation!")

    def delete_sessions(self, kernel_ids: list[str]) -> None:
        """Remove records from the store; missing ones count as removed."""
        raise NotImplementedError("KernelSessionManager.delete_sessions(kernel_ids) requires an implementation!")

    @property
    def _sessions(self) -> Session:
        return self._table.records if self._verbs.sessions is None else self._verbs.sessions

    @_sessions.setter
    def _sessions(self, sessions: Session) -> None:
        if self._verbs.sessions is None:
            self._table.records = sessions
        else:
            self._verbs.sessions = sessions

    def create_session(self, kernel_id: str, **kwargs: Any) -> None:
        """Record a running kernel that was started with ``kwargs``, and save the record."""
        kernel = self.kernel_manager.get_kernel(kernel_id)
        self._record_running(kernel_id, kernel, kernel_name=kernel.kernel_name, launch_args=kwargs)

    def refresh_session(self, kernel_id: str) -> None:
        """Update the record with the connection information of a restarted kernel, and save it."""
        self._record_running(kernel_id, self.kernel_manager.get_kernel(kernel_id))

    def delete_session(self, kernel_id: str) -> None:
        """Forget a kernel and remove its record from the store."""
        self._table.drop(kernel_id)
        if self.enable_persistence:
            self.delete_sessions([kernel_id])

    def _record_running(self, kernel_id: str, kernel: Any, **given: Any) -> None:
        self._table.record(
            kernel_id,
            "running",
            connection_info=kernel.get_connection_info(),
            process_info=kernel.process_proxy.get_process_info(),
            **given,
        )
        if self.enable_persistence:
            self.save_session(kernel_id)


class VerbStore:
    """Adapts the four verbs to a :class:`SessionStore`.

    Each call of a verb has its own ``_sessions`` dictionary, bound to the thread it runs in: nothing changes what it
    reads, and it contains exactly what the store returned. Keys in its records are bytes.
    """

    def __init__(self, manager: BlockingVerbs) -> None:
        self._manager = manager
        self._thread = threading.local()

    @property
    def sessions(self) -> Session | None:
        """The dictionary of the verb that runs in this thread; None if none does."""
        sessions: Session | None = getattr(self._thread, "sessions", None)
        return sessions

    @sessions.setter
    def sessions(self, sessions: Session) -> None:
        self._thread.sessions = sessions

    def load_all(self) -> Session:
        """Return what ``load_sessions`` loads."""
        return self._run({}, self._manager.load_sessions)

    def load(self, kernel_id: str) -> Record | None:
        """Return what ``load_session`` loads."""
        return self._run({}, self._manager.load_session, kernel_id).get(kernel_id)

    def save(self, kernel_id: str, record: Record) -> None:
        """Save a record with ``save_session``."""
        self._run({kernel_id: record}, self._manager.save_session, kernel_id)

    def delete(self, kernel_ids: list[str]) -> None:
        """Remove records with ``delete_sessions``."""
        self._run({}, self._manager.delete_sessions, kernel_ids)

    def _run(self, sessions: Session, verb: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> Session:
        self._thread.sessions = sessions
        try:
            verb(*args, **kwargs)
            made: Session = self._thread.sessions
            return made
        finally:
            del self._thread.sessions
