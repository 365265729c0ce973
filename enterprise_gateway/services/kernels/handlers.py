"""REST requests about kernels: from HTTP to calls of the kernel manager and back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from tornado import web

from ...base.handlers import GatewayHandler
from ...core.errors import InvalidRequestError
from ...core.kernelenv import accept_client_variables

MAX_TEXT_BYTES = 4096  # as long as a path can be
KERNEL_ID = r"(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)"


class StartsKernels(GatewayHandler):
    """What the two handlers that start kernels have in common."""

    _start: asyncio.Task[str] | None = None
    _client_is_gone = False

    def check_listing(self) -> None:
        """Refuse with 403 to list what runs unless the option ``list_kernels`` allows it."""
        if not self.settings.get("eg_list_kernels"):
            raise web.HTTPError(
                403, "Listing is disabled; the gateway's option list_kernels (EG_LIST_KERNELS) enables it."
            )

    async def start_kernel(self, **arguments: Any) -> str:
        """Start a kernel and return its id; cancelled when the client disconnects meanwhile."""
        return await self.while_wanted(self.kernel_manager.start_kernel(**arguments))

    async def while_wanted(self, start: Coroutine[Any, Any, str]) -> str:
        """Await a start and return the id it gives; cancelled when the client goes away meanwhile, or has before."""
        self._start = asyncio.create_task(start)
        if self._client_is_gone:
            self._start.cancel()
        try:
            return await self._start
        except asyncio.CancelledError as error:
            if self.settings["eg_traffic"].is_draining:
                raise web.HTTPError(503, "The gateway was stopped while the kernel was starting.") from error
            raise web.HTTPError(409, "The kernel was shut down while it was starting.") from error
        finally:
            self._start = None

    def on_connection_close(self) -> None:
        """Give up the start that the client no longer waits for; called by tornado."""
        self._client_is_gone = True
        if self._start is not None:
            self._start.cancel()
        super().on_connection_close()


class MainKernelHandler(StartsKernels):
    """``/api/kernels``: lists kernels, starts one."""

    async def get(self) -> None:
        """Answer the models of all kernels, if listing is switched on."""
        await self.authorize("read", "kernels")
        self.check_listing()
        self.finish_json(await self.kernel_manager.models())

    async def post(self) -> None:
        """Start a kernel: ``{"name"?, "path"?, "env"?}``."""
        await self.authorize("write", "kernels")
        body = self.get_json_body()
        kernel_id = await self.start_kernel(
            kernel_name=text_entry(body, "name"),
            path=text_entry(body, "path"),
            env=self._build_kernel_env(body),
            kernel_headers=self._captured_headers(),
        )
        self.set_header("Location", f"{self.base_url}api/kernels/{kernel_id}")
        self.finish_json(self.kernel_manager.kernel_details(kernel_id), 201)

    def _build_kernel_env(self, body: dict[str, Any]) -> dict[str, str]:
        """Return the variables of the request that may reach the kernel; none when it has no ``env``."""
        if body.get("env") is None:
            return {}
        return accept_client_variables(
            body["env"], self.settings.get("eg_client_envs", ()), self.settings.get("eg_unrestricted_client_envs", ())
        )

    def _captured_headers(self) -> dict[str, str]:
        """Return the request headers that ``kernel_headers`` names, for the process proxy."""
        captured = {}
        for name in self.settings.get("eg_kernel_headers", ()):
            if name in self.request.headers:
                captured[name] = self.request.headers[name]
            else:
                self.kernel_manager.log.warning("The request lacks the header %s, which kernel_headers names", name)
        return captured


class KernelHandler(GatewayHandler):
    """``/api/kernels/<id>``: shows one kernel, stops it."""

    async def get(self, kernel_id: str) -> None:
        """Answer the kernel's model."""
        await self.authorize("read", "kernels")
        await self.kernel_manager.find_kernel(kernel_id)
        self.finish_json(self.kernel_manager.kernel_details(kernel_id))

    async def delete(self, kernel_id: str) -> None:
        """Stop the kernel."""
        await self.authorize("write", "kernels")
        await self.kernel_manager.shutdown_kernel(kernel_id)
        self.set_status(204)
        self.finish()


class KernelActionHandler(GatewayHandler):
    """``/api/kernels/<id>/interrupt`` and ``…/restart``."""

    async def post(self, kernel_id: str, action: str) -> None:
        """Interrupt or restart the kernel."""
        await self.authorize("write", "kernels")
        if action == "interrupt":
            await self.kernel_manager.interrupt_kernel(kernel_id)
            self.set_status(204)
            self.finish()
        else:
            await self.kernel_manager.restart_kernel(kernel_id)
            self.finish_json(self.kernel_manager.kernel_details(kernel_id))


def text_entry(body: dict[str, Any], name: str) -> str | None:
    """Return an optional entry of a JSON body that must be text.

    Raises
    ------
    InvalidRequestError
        It is something else, or holds a character that no name or path has.
    """
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or "\0" in value:
        raise InvalidRequestError(f"'{name}' must be a string without NUL.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"'{name}' is not valid Unicode text.") from error
    if size > MAX_TEXT_BYTES:
        raise InvalidRequestError(f"'{name}' must not be longer than {MAX_TEXT_BYTES} bytes.")
    return value


default_handlers: list[tuple[str, type[web.RequestHandler]]] = [
    (r"/api/kernels", MainKernelHandler),
    (rf"/api/kernels/{KERNEL_ID}", KernelHandler),
    (rf"/api/kernels/{KERNEL_ID}/(?P<action>restart|interrupt)", KernelActionHandler),
]
