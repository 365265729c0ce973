"""Session managers as Enterprise Gateway 3.x has them: blocking verbs, which work on a dictionary of records."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ParamSpec

from enterprise_gateway.core.sessionrecords import Record, Session

from .recordtable import RecordTable

P = ParamSpec("P")


class BlockingVerbs:
    """The part of ``KernelSessionManager`` that classes and scripts written for 3.x override and call; it blocks.

    A class makes a store of four verbs: :meth:`load_sessions`, :meth:`load_session`, :meth:`save_session` and
    :meth:`delete_sessions`. They work on ``self._sessions``, which are records by kernel id: the table of the gateway
    or, where that calls a verb, a dictionary of this call's own.
    """

    kernel_manager: Any
    enable_persistence: Any
    _table: RecordTable
    _verbs: VerbStore

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
        """Record anew how a kernel is reached, after a restart, and save the record."""
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
    """Makes a :class:`SessionStore` of the four verbs.

    A verb finds a dictionary of its own as ``_sessions``, bound to the thread that it is called in: nothing that it
    reads is changed meanwhile, and what it loads is what the store has returned. Its records have bytes for keys.
    """

    def __init__(self, manager: BlockingVerbs) -> None:
        self._manager = manager
        self._thread = threading.local()

    @property
    def sessions(self) -> Session | None:
        """What the verb that runs in this thread works on, None where none does."""
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
        """Have ``save_session`` save a record."""
        self._run({kernel_id: record}, self._manager.save_session, kernel_id)

    def delete(self, kernel_ids: list[str]) -> None:
        """Have ``delete_sessions`` remove records."""
        self._run({}, self._manager.delete_sessions, kernel_ids)

    def _run(self, sessions: Session, verb: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> Session:
        self._thread.sessions = sessions
        try:
            verb(*args, **kwargs)
            made: Session = self._thread.sessions
            return made
        finally:
            del self._thread.sessions
