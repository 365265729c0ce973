"""The requests in progress and open websockets, so that an orderly stop can wait for them."""

from __future__ import annotations

import asyncio

from ..core.deadline import Deadline


class Traffic:
    """The active handlers; kept in the web application's settings as ``eg_traffic``.

    Handlers add and remove themselves, see :class:`~enterprise_gateway.base.handlers.GatewayHandler`.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.requests: set[object] = set()
        self.websockets: set[object] = set()
        self._changed = asyncio.Event()

    def leave(self, handler: object) -> None:
        """Remove a request that was answered, or a websocket that was closed."""
        self.requests.discard(handler)
        self.websockets.discard(handler)
        self._changed.set()

    async def requests_answered(self, deadline: Deadline) -> bool:
        """Wait until no request is in progress; return False at the deadline."""
        return await self._emptied(self.requests, deadline)

    async def websockets_closed(self, deadline: Deadline) -> bool:
        """Wait until no websocket is open; return False at the deadline."""
        return await self._emptied(self.websockets, deadline)

    async def _emptied(self, handlers: set[object], deadline: Deadline) -> bool:
        while handlers:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline.remaining)
            except (asyncio.TimeoutError, TimeoutError):
                return False
        return True
