"""How the verbs of a process proxy are called, ours or a third party's."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from ..core import envvars
from ..services.processproxies.contract import BaseProcessProxyABC

WITH_FILES = ("cleanup", "remove_leftovers")  # on whatever file system, or all of /proc


class ProxyVerbs:
    """Calls the proxy of one launch.

    Parameters
    ----------
    proxy
        The proxy.
    kernel_id
        For the log.
    """

    def __init__(
        self, proxy: BaseProcessProxyABC, kernel_id: str, log: logging.Logger | logging.LoggerAdapter[Any]
    ) -> None:
        self.log = log
        self._proxy = proxy
        self._kernel_id = kernel_id
        self._logged_error = ""

    async def call(self, verb: str, *args: Any, place: str = "") -> Any:
        """Call a verb: it is awaited, called at once, or called in a thread when it may block.

        Parameters
        ----------
        place
            Where the kernel is, if the proxy itself does not know it yet.
        """
        method = getattr(self._proxy, verb)
        if inspect.iscoroutinefunction(method):
            return await method(*args)
        if verb in WITH_FILES or getattr(self._proxy, "calls_block", True):
            if verb == "poll":
                return await self._proxy.poll_in_thread()
            return await self._proxy.in_thread(method, *args, place=place)
        return method(*args)

    async def ask(self) -> int | None:
        """Return None while the kernel lives, else its exit code; raises what the proxy raises when it cannot tell."""
        result = await self.call("poll")
        return None if result is None else int(result) if isinstance(result, int) else 0

    async def poll(self) -> int | None:
        """Return None while the kernel lives, and while its proxy cannot tell, else its exit code."""
        try:
            result = await self.ask()
        except Exception as error:  # noqa: BLE001  # of a third party
            self._log_once(error)
            return None
        self._logged_error = ""
        return result

    async def wait_for_exit(self) -> int | None:
        """Wait until the kernel has ended: for the proxy's own event where it has one, else by polling."""
        while hasattr(self._proxy, "wait_for_exit"):
            try:
                exit_code: int | None = await self._proxy.wait_for_exit()
            except Exception as error:  # noqa: BLE001  # of a third party
                self._log_once(error)
                await asyncio.sleep(envvars.EG_POLL_INTERVAL())
            else:
                return exit_code
        while (result := await self.poll()) is None:
            await asyncio.sleep(envvars.EG_POLL_INTERVAL())
        return result

    def _log_once(self, error: Exception) -> None:
        """Log that it is not known whether the kernel lives, once as long as the reason is the same."""
        if self._logged_error != (reason := repr(error)):
            self._logged_error = reason
            self.log.warning("It is not known whether kernel %s is alive: %s", self._kernel_id, reason)
