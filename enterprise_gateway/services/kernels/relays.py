"""The gateway's connections to its kernels: one set of channels each, all on one ZeroMQ context."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import zmq
import zmq.asyncio

from ...core import envvars
from ...transport.channels import KernelChannels
from ...transport.kernellog import KernelLog
from ...transport.replaybudget import ReplayBudget
from ...transport.slices import Slices

if TYPE_CHECKING:
    from ...transport.limits import ChannelLimits
    from .remotekernel import RemoteKernelManager

# A process that was started just now binds its ports later than that. Sockets opened at once would only try in vain,
# while other kernels are being started.
BINDING_SECONDS = 0.1

CLOSING_SECONDS = 5.0


def new_context() -> zmq.asyncio.Context:
    """Return a ZeroMQ context for as many sockets as there may be."""
    context = zmq.asyncio.Context(envvars.EG_ZMQ_IO_THREADS() or 1)
    # libzmq's default of 1023 sockets is reached with a few hundred kernels.
    limit = context.get(zmq.SOCKET_LIMIT)
    context.set(zmq.MAX_SOCKETS, min(envvars.EG_ZMQ_MAX_SOCKETS() or limit, limit))
    return context


class KernelRelays:
    """Connects to kernels.

    Parameters
    ----------
    context
        Returns the ZeroMQ context.
    limits
        Returns what applies to the channels of the next kernel.
    options
        The gateway's, for what is kept for clients that are away.
    """

    def __init__(
        self,
        context: Callable[[], zmq.asyncio.Context],
        limits: Callable[[], ChannelLimits],
        options: Any,
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.log = log
        self._context = context
        self._limits = limits
        self._budget = ReplayBudget(log, lambda: options.replay_total_limit, lambda: options.replay_user_sessions)
        self._slices = Slices()
        self._channels: WeakSet[KernelChannels] = WeakSet()

    def connect(self, kernel: RemoteKernelManager) -> None:
        """Connect to a kernel that runs."""
        channels = self._make_channels(kernel)
        is_just_started = kernel.inherited is None and not kernel.is_remote
        kernel.connect_channels(channels, BINDING_SECONDS if is_just_started else 0.0)
        if kernel.inherited is not None:
            channels.resume(kernel.inherited)

    def _make_channels(self, kernel: RemoteKernelManager) -> KernelChannels:
        channels = KernelChannels(
            kernel.kernel_id,
            context=self._relay_context,
            limits=self._limits(),
            log=KernelLog(self.log, kernel.kernel_id),
            identity=kernel.relay_identity,
            user=kernel.username,
            budget=self._budget,
            slices=self._slices,
        )
        self._channels.add(channels)
        return channels

    @functools.cached_property
    def _relay_context(self) -> zmq.Context[zmq.Socket[bytes]]:
        """The context for sockets that the relay reads by itself, not by asyncio futures."""
        return zmq.Context.shadow(self._context())

    async def close(self) -> None:
        """End the ZeroMQ context; a socket that somebody left open must not keep the gateway from ending."""
        for channels in list(self._channels):
            channels.close()
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def end() -> None:
            self._context().destroy(linger=100)
            with contextlib.suppress(RuntimeError):  # nobody waited for so long, and the loop is closed
                loop.call_soon_threadsafe(ended.set_result, None)

        # A daemon, not one of the threads that Python waits for at its end.
        threading.Thread(target=end, name="end of ZeroMQ", daemon=True).start()
        if not (await asyncio.wait([ended], timeout=CLOSING_SECONDS))[0]:
            self.log.warning("ZeroMQ's context did not end within %g seconds", CLOSING_SECONDS)
