"""Sessions: which notebook uses which kernel. Kept in memory; unrelated to the store of kernel sessions."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from traitlets import Instance
from traitlets.config import LoggingConfigurable

from ...core.errors import NotFoundError

if TYPE_CHECKING:
    from ..kernels.remotemanager import RemoteMappingKernelManager


@dataclass
class Session:
    """One session; ``path`` is the notebook's."""

    session_id: str
    path: str
    name: str | None
    type: str | None
    kernel_id: str


@dataclass
class _Opening:
    """The start of a session's kernel, and how many requests wait for it."""

    task: asyncio.Task[str]
    waiting: int = 0


class SessionManager(LoggingConfigurable):
    """The table of sessions; used by the session handlers.

    Parameters
    ----------
    kernel_manager
        Starts and stops the sessions' kernels.
    """

    kernel_manager: RemoteMappingKernelManager = Instance(  # type: ignore[assignment]
        "enterprise_gateway.services.kernels.remotemanager.RemoteMappingKernelManager"
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sessions: dict[str, Session] = {}
        self._openings: dict[str, _Opening] = {}

    def session_exists(self, path: str) -> bool:
        """Whether a session with a living kernel uses ``path``."""
        return self.find_by_path(path) is not None

    def find_by_path(self, path: str) -> Session | None:
        """Return the session of a path whose kernel exists."""
        return next((s for s in self._present() if s.path == path), None)

    async def open_session(self, path: str, name: str | None, type: str | None, kernel_name: str | None) -> str:
        """Return the id of the session of a path, starting its kernel if there is none; called for POST.

        Requests for a path that come while its kernel is being started wait for that start, and share its failure.
        Cancelling one of them leaves it to the others; the last one that is cancelled gives the start up.

        Raises
        ------
        GatewayError
            The kernel could not be started.
        """
        opening = self._openings.get(path)
        if opening is None:
            opening = _Opening(asyncio.create_task(self._open(path, name, type, kernel_name)))
            self._openings[path] = opening
            opening.task.add_done_callback(lambda task: self._close_opening(path, task))
        opening.waiting += 1
        try:
            return await asyncio.shield(opening.task)
        finally:
            opening.waiting -= 1
            if not opening.waiting:
                self._close_opening(path, opening.task)
                opening.task.cancel()

    async def _open(self, path: str, name: str | None, type: str | None, kernel_name: str | None) -> str:
        session = self.find_by_path(path)
        if session is None:
            kernel_id = await self.kernel_manager.start_kernel(kernel_name=kernel_name, path=path)
            session = self.create_session(path, kernel_id, name, type)
        return session.session_id

    def _close_opening(self, path: str, task: asyncio.Task[str]) -> None:
        """Let the next request for a path open it anew."""
        if path in self._openings and self._openings[path].task is task:
            del self._openings[path]

    def create_session(self, path: str, kernel_id: str, name: str | None = None, type: str | None = None) -> Session:
        """Enter a session for a kernel that was started."""
        session = Session(str(uuid.uuid4()), path, name, type, kernel_id)
        self._sessions[session.session_id] = session
        return session

    def get_session(self, session_id: str) -> Session:
        """Return a session.

        Raises
        ------
        NotFoundError
            There is no such session, or its kernel is gone.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFoundError(f"Session not found: {session_id}")
        if session.kernel_id not in self.kernel_manager:
            del self._sessions[session_id]
            raise NotFoundError(f"Session not found: the kernel of session {session_id} has been deleted")
        return session

    def list_sessions(self) -> list[dict[str, Any]]:
        """Return the models of all sessions whose kernels exist, and forget the others."""
        return [self.model(session) for session in self._present()]

    def _present(self) -> list[Session]:
        self._sessions = {i: s for i, s in self._sessions.items() if s.kernel_id in self.kernel_manager}
        return list(self._sessions.values())

    def model(self, session: Session) -> dict[str, Any]:
        """Return what the REST API says of a session."""
        return {
            "id": session.session_id,
            "notebook": {"path": session.path},
            "kernel": self.kernel_manager.kernel_model(session.kernel_id),
        }

    async def delete_session(self, session_id: str) -> None:
        """Stop the session's kernel and forget the session."""
        session = self.get_session(session_id)
        await self.kernel_manager.shutdown_kernel(session.kernel_id)
        self._sessions.pop(session_id, None)
