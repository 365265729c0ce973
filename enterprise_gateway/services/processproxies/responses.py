"""The response server under the names of version 3, for process proxies written for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ...core import envvars
from ...core.deadline import Deadline
from ...core.errors import LaunchTimeoutError

if TYPE_CHECKING:
    from ...transport.response import Expectation, ResponseServer


class Response(asyncio.Event):
    """An event that carries what a launcher reported."""

    _response: Any = None

    @property
    def response(self) -> Any:
        """What was reported; setting it sets the event."""
        return self._response

    @response.setter
    def response(self, value: Any) -> None:
        self._response = value
        self.set()


class ResponseManager:
    """What third-party proxies find as ``self.response_manager``; made by ``RemoteProcessProxy.prepare``.

    Parameters
    ----------
    server
        The server that launchers report to.
    expectation
        The kernel that is being launched.
    """

    def __init__(self, server: ResponseServer, expectation: Expectation) -> None:
        self._server = server
        self._expectation = expectation

    @property
    def response_address(self) -> str:
        """Where launchers report, ``ip:port``."""
        return self._server.address

    @property
    def public_key(self) -> str:
        """What launchers encrypt their report with."""
        return self._server.public_key

    def register_event(self, kernel_id: str) -> None:
        """Do nothing: the kernel has been expected since before its launch."""

    async def get_connection_info(self, kernel_id: str) -> dict[str, Any]:
        """Return the connection information of the kernel.

        Raises
        ------
        asyncio.TimeoutError
            It was not reported within one poll interval.
        """
        try:
            info = await self._expectation.wait(Deadline(envvars.EG_POLL_INTERVAL()))
        except LaunchTimeoutError as error:
            raise asyncio.TimeoutError from error
        reported = {"comm_port": info.comm_port, "pid": info.pid, "pgid": info.pgid}
        return {**info.to_dict(), **reported, "kernel_id": kernel_id}
