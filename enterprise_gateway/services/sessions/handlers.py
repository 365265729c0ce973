"""REST requests about sessions."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from tornado import web

from ...core.errors import InvalidRequestError, NotFoundError, UnknownKernelSpecError
from ..kernels.handlers import StartsKernels, text_entry
from .sessionmanager import SessionManager

SESSION_ID = r"(?P<session_id>\w+-\w+-\w+-\w+-\w+)"


class SessionRequests(StartsKernels):
    """The common base of the session handlers."""

    @property
    def session_manager(self) -> SessionManager:
        """The table of sessions."""
        return self.settings["session_manager"]

    def kernel_entries(self, body: dict[str, Any]) -> tuple[str | None, str | None]:
        """Return ``kernel.name`` and ``kernel.id`` of a request; empty strings become None."""
        kernel = body.get("kernel") or {}
        if not isinstance(kernel, dict):
            raise InvalidRequestError("'kernel' must be a JSON object.")
        return text_entry(kernel, "name") or None, text_entry(kernel, "id") or None


class SessionRootHandler(SessionRequests):
    """``/api/sessions``: lists and creates sessions."""

    async def get(self) -> None:
        """Return the models of all sessions, if listing is enabled."""
        await self.authorize("read", "sessions")
        self.check_listing()
        self.finish_json(await self.session_manager.list_sessions())

    async def post(self) -> None:
        """Create a session for the kernel ``kernel.id`` or a new one; return the existing session of a path."""
        await self.authorize("write", "sessions")
        body = self.get_json_body()
        if not body:
            raise InvalidRequestError("No JSON data provided")
        path, kind = self._path_and_type(body)
        name = text_entry(body, "name")
        kernel_name, kernel_id = self.kernel_entries(body)
        opened = self.session_manager.open_session(path, name, kind, kernel_name, kernel_id)
        try:
            session_id = await self.while_wanted(opened)
        except UnknownKernelSpecError as error:
            self._finish_unavailable(kernel_name or "default", error)
            return
        session = await self.session_manager.get_session(session_id)
        self.set_header("Location", f"{self.base_url}api/sessions/{session.session_id}")
        self.finish_json(await self.session_manager.model(session), 201)

    def _path_and_type(self, body: dict[str, Any]) -> tuple[str, str]:
        notebook = body.get("notebook")
        if isinstance(notebook, dict) and "path" in notebook:
            body = {**body, "path": notebook["path"], "type": "notebook"}
        for field in ("path", "type"):
            if body.get(field) is None:
                raise InvalidRequestError(f"Missing field in JSON data: {field}")
        return text_entry(body, "path") or "", text_entry(body, "type") or ""

    def _finish_unavailable(self, kernel_name: str, error: UnknownKernelSpecError) -> None:
        """Answer 404 with a short message, which notebook clients show when they offer a choice of other kernels."""
        self.finish_json(
            {
                "reason": "Not Found",
                "message": f"The '{kernel_name:.100}' kernel is not available. {error}",
                "short_message": f"{kernel_name:.100} not found",
            },
            404,
        )


class SessionHandler(SessionRequests):
    """``/api/sessions/<id>``: returns, changes or ends one session."""

    async def get(self, session_id: str) -> None:
        """Return the session's model."""
        await self.authorize("read", "sessions")
        self.finish_json(await self.session_manager.model(await self.session_manager.get_session(session_id)))

    async def patch(self, session_id: str) -> None:
        """Change ``path``, ``name``, ``type``, ``kernel.id`` or ``kernel.name``; the replaced kernel is stopped."""
        await self.authorize("write", "sessions")
        body = self.get_json_body()
        changes = {field: value for field in ("name", "type") if (value := text_entry(body, field)) is not None}
        if (path := text_entry(body, "path")) is not None:
            changes["path"] = path
        notebook = body.get("notebook")
        if isinstance(notebook, dict) and (path := text_entry(notebook, "path")) is not None:
            changes.update(path=path, type="notebook")
        kernel_name, kernel_id = self.kernel_entries(body)
        session = await self.session_manager.get_session(session_id)
        started = None
        if kernel_id is not None:
            await self.kernel_manager.find_kernel(kernel_id)
        elif kernel_name is not None:
            path = changes.get("path", session.path)
            kernel_id = started = await self.start_kernel(kernel_name=kernel_name, path=path)
        try:
            session = await self.session_manager.get_session(session_id)  # it may have changed or ended in the meantime
            changed = replace(session, **changes, kernel_id=kernel_id or session.kernel_id)
            await self.session_manager.save_session(changed)
        except BaseException:
            if started is not None:
                with suppress(NotFoundError):
                    await self.kernel_manager.shutdown_kernel(started)
            raise
        if changed.kernel_id != session.kernel_id:
            with suppress(NotFoundError):  # it has already been stopped
                await self.kernel_manager.shutdown_kernel(session.kernel_id)
        self.finish_json(await self.session_manager.model(changed))

    async def delete(self, session_id: str) -> None:
        """End the session and its kernel."""
        await self.authorize("write", "sessions")
        try:
            await self.session_manager.delete_session(session_id)
        except NotFoundError as error:
            raise web.HTTPError(410, "Kernel deleted before session") from error
        self.set_status(204)
        self.finish()


default_handlers: list[tuple[str, type[web.RequestHandler]]] = [
    (r"/api/sessions", SessionRootHandler),
    (rf"/api/sessions/{SESSION_ID}", SessionHandler),
]
