"""Sessions: which notebook uses which kernel. Kept in memory or, if replicas share a database, there."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Container
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from traitlets import Instance
from traitlets.config import LoggingConfigurable

from ...core.errors import NotFoundError
from .sharingstore import SharingStore


@dataclass
class Session:
    """One session; ``path`` is the notebook's path, or any name that a client chose."""

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


class SessionTable(Protocol):
    """Keeps sessions; leaves out those whose kernels are gone."""

    async def load(self) -> list[Session]:
        """Return all sessions, oldest first."""

    async def save(self, session: Session) -> None:
        """Insert or replace a session."""

    async def delete(self, session_id: str) -> None:
        """Remove a session, if it is there."""


class SessionSharing(Protocol):
    """The part of the kernel manager's ``replicas`` that is used here."""

    @property
    def sessions(self) -> SessionTable:
        """The table of sessions."""

    def alone(self, name: str) -> AbstractAsyncContextManager[None]:
        """Hold a lock of this name, shared by all gateways, for the duration of the block."""


class SessionKernels(Protocol):
    """The part of the kernel manager that is used here."""

    @property
    def replicas(self) -> SessionSharing:
        """The other gateways that share this one's kernels and sessions."""

    async def start_kernel(self, *, kernel_name: str | None = None, path: str | None = None) -> str:
        """Start a kernel and return its id."""

    async def find_kernel(self, kernel_id: str) -> Any:
        """Return a kernel's manager; NotFoundError when there is none."""

    async def shutdown_kernel(self, kernel_id: str) -> None:
        """Stop a kernel."""

    async def models(self) -> list[dict[str, Any]]:
        """Return the models of all kernels."""

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        """Return the model of a kernel."""


class MemoryTable:
    """The sessions of this gateway.

    Parameters
    ----------
    kernels
        Contains the ids of the kernels that exist.
    """

    def __init__(self, kernels: Container[str]) -> None:
        self._kernels = kernels
        self._sessions: dict[str, Session] = {}

    async def load(self) -> list[Session]:
        """Return all sessions whose kernels exist, and forget the others."""
        self._sessions = {i: s for i, s in self._sessions.items() if s.kernel_id in self._kernels}
        return list(self._sessions.values())

    async def save(self, session: Session) -> None:
        """Insert or replace a session."""
        self._sessions[session.session_id] = session

    async def delete(self, session_id: str) -> None:
        """Remove a session, if it is there."""
        self._sessions.pop(session_id, None)


class SharedTable:
    """The sessions of all replicas; methods raise ``StoreUnavailableError`` when the store does not answer."""

    def __init__(self, store: SharingStore) -> None:
        self._store = store

    async def load(self) -> list[Session]:
        """Return all sessions whose kernels are recorded."""
        return [Session(**entry) for entry in await self._store.fetch_notebooks()]

    async def save(self, session: Session) -> None:
        """Insert or replace a session."""
        await self._store.save_notebook(asdict(session))

    async def delete(self, session_id: str) -> None:
        """Remove a session, if it is there."""
        await self._store.delete_notebook(session_id)


class SessionManager(LoggingConfigurable):
    """The table of sessions; used by the session handlers.

    Parameters
    ----------
    kernel_manager
        Starts and stops the sessions' kernels.
    """

    kernel_manager: SessionKernels = Instance(  # type: ignore[assignment]
        "enterprise_gateway.services.kernels.remotemanager.RemoteMappingKernelManager"
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._openings: dict[str, _Opening] = {}

    @property
    def _table(self) -> SessionTable:
        return self.kernel_manager.replicas.sessions

    async def session_exists(self, path: str) -> bool:
        """Whether a session with a living kernel uses ``path``."""
        return await self.find_by_path(path) is not None

    async def find_by_path(self, path: str) -> Session | None:
        """Return the session of a path whose kernel exists."""
        return next((session for session in await self._table.load() if session.path == path), None)

    async def open_session(
        self, path: str, name: str | None, type: str | None, kernel_name: str | None, kernel_id: str | None = None
    ) -> str:
        """Return the id of the session of a path; called for POST.

        A path without a session gets one, for the running kernel ``kernel_id`` or, without an id, for a new kernel.

        Requests that arrive while the kernel of their path is starting share that start and its outcome; if another
        replica is starting it, they wait until that replica is done. Cancelling a request does not affect the others;
        cancelling the last one cancels the start.

        Raises
        ------
        GatewayError
            The kernel could not be started, or there is no kernel with that id.
        """
        opening = self._openings.get(path)
        if opening is None:
            opening = _Opening(asyncio.create_task(self._open(path, name, type, kernel_name, kernel_id)))
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

    async def _open(
        self, path: str, name: str | None, type: str | None, kernel_name: str | None, kernel_id: str | None
    ) -> str:
        async def make() -> Session:
            if kernel_id is None:
                return await self._start(path, name, type, kernel_name)
            await self.kernel_manager.find_kernel(kernel_id)
            return await self.create_session(path, kernel_id, name, type)

        session = await self.find_by_path(path)
        if session is None:
            async with self.kernel_manager.replicas.alone(f"path:{hashlib.sha256(path.encode()).hexdigest()}"):
                session = await self.find_by_path(path) or await make()
        return session.session_id

    async def _start(self, path: str, name: str | None, type: str | None, kernel_name: str | None) -> Session:
        """Start a kernel and create a session for it."""
        kernel_id = await self.kernel_manager.start_kernel(kernel_name=kernel_name, path=path)
        try:
            return await self.create_session(path, kernel_id, name, type)
        except BaseException:
            with suppress(NotFoundError):
                await self.kernel_manager.shutdown_kernel(kernel_id)
            raise

    def _close_opening(self, path: str, task: asyncio.Task[str]) -> None:
        """Forget a start, so that the next request for the path begins a new one."""
        if path in self._openings and self._openings[path].task is task:
            del self._openings[path]

    async def create_session(
        self, path: str, kernel_id: str, name: str | None = None, type: str | None = None
    ) -> Session:
        """Create a session for a running kernel."""
        session = Session(str(uuid.uuid4()), path, name, type, kernel_id)
        await self._table.save(session)
        return session

    async def save_session(self, session: Session) -> None:
        """Save a changed session."""
        await self._table.save(session)

    async def get_session(self, session_id: str) -> Session:
        """Return a session.

        Raises
        ------
        NotFoundError
            There is no such session, or its kernel is gone.
        """
        for session in await self._table.load():
            if session.session_id == session_id:
                return session
        raise NotFoundError(f"Session not found: {session_id}")

    async def list_sessions(self) -> list[dict[str, Any]]:
        """Return the models of all sessions whose kernels exist."""
        sessions = await self._table.load()
        kernels = {kernel["id"]: kernel for kernel in await self.kernel_manager.models()}
        return [_model(session, kernels[session.kernel_id]) for session in sessions if session.kernel_id in kernels]

    async def model(self, session: Session) -> dict[str, Any]:
        """Return the REST API's model of a session.

        Raises
        ------
        NotFoundError
            Its kernel is gone.
        """
        await self.kernel_manager.find_kernel(session.kernel_id)
        return _model(session, self.kernel_manager.kernel_model(session.kernel_id))

    async def delete_session(self, session_id: str) -> None:
        """Stop the session's kernel and forget the session."""
        session = await self.get_session(session_id)
        await self.kernel_manager.shutdown_kernel(session.kernel_id)
        await self._table.delete(session_id)


def _model(session: Session, kernel: dict[str, Any]) -> dict[str, Any]:
    """Return jupyter_server's model: ``notebook``, the form of its earlier versions, is there for notebooks only."""
    model = {
        "id": session.session_id,
        "path": session.path,
        "name": session.name,
        "type": session.type,
        "kernel": kernel,
    }
    if session.type == "notebook":
        model["notebook"] = {"path": session.path, "name": session.name}
    return model
