"""Notices that kernels have died, and restarts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from traitlets import Bool, Float, Integer
from traitlets.config import LoggingConfigurable

from ...core import envvars
from ...core.death import describe_exit
from ...core.errors import ConflictError
from ..processproxies.processproxy import RemoteProcessProxy

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager
    from .remotemanager import RemoteMappingKernelManager


class KernelRestarter(LoggingConfigurable):
    """Watches the end of every kernel's process and restarts the kernel; one per gateway."""

    restart_limit = Integer(5, config=True, help="How often a kernel that keeps dying is restarted in a row.")
    stable_start_time = Float(10.0, config=True, help="Seconds after which a restarted kernel counts as running again.")
    random_ports_until_alive = Bool(
        True, config=True, help="Whether a kernel that died before it was stable gets new ports."
    )
    restart_backoff = Float(
        0.0, config=True, help="Seconds to wait before the second restart in a row; doubled for each further one."
    )

    parent: RemoteMappingKernelManager

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clock: Callable[[], float] = time.monotonic
        self._watches: dict[str, asyncio.Task[None]] = {}

    def watch(self, kernel: RemoteKernelManager) -> None:
        """Notice from now on when the kernel dies; called after its start and its restarts."""
        self._watches[kernel.kernel_id] = asyncio.create_task(
            self._watch(kernel), name=f"kernel {kernel.kernel_id} lives"
        )

    def forget(self, kernel: RemoteKernelManager) -> None:
        """Stop watching the kernel; called before it is stopped or restarted on purpose."""
        watch = self._watches.pop(kernel.kernel_id, None)
        if watch is not None and watch is not asyncio.current_task():
            watch.cancel()

    async def _watch(self, kernel: RemoteKernelManager) -> None:
        """Restart the kernel each time it ends, until it is forgotten or the limit is reached."""
        restarts = 0
        alive_since = self.clock()
        while True:
            exit_code = await self._end_of(kernel)
            stable = self.clock() - alive_since >= self.stable_start_time
            restarts = 1 if stable else restarts + 1
            reason = describe_exit(exit_code)
            if not self._may_restart(kernel, restarts):
                await kernel.release()
                self.parent.lose(kernel, reason)
                return
            self.log.warning(
                "Kernel %s has died: %s; restart %d of %d", kernel.kernel_id, reason, restarts, self.restart_limit
            )
            if restarts > 1 and self.restart_backoff > 0:
                await asyncio.sleep(self.restart_backoff * 2 ** (restarts - 2))
            try:
                await self.parent.relaunch(kernel, now=True, newports=self.random_ports_until_alive and not stable)
            except ConflictError:
                return  # it is being stopped
            except Exception:
                self.log.exception("Kernel %s could not be restarted", kernel.kernel_id)
                return
            alive_since = self.clock()

    async def _end_of(self, kernel: RemoteKernelManager) -> int | None:
        """Wait until the kernel has ended; a back end that fails to tell is asked again."""
        while True:
            try:
                return await kernel.wait_for_exit()
            except Exception as error:  # noqa: BLE001  # of a third party's provisioner
                self.log.warning("Whether kernel %s lives is not known: %r", kernel.kernel_id, error)
                await asyncio.sleep(envvars.EG_POLL_INTERVAL())

    def _may_restart(self, kernel: RemoteKernelManager, restarts: int) -> bool:
        if not kernel.autorestart or restarts > self.restart_limit:
            return False
        has_clients = kernel.channels is not None and kernel.channels.connections
        if isinstance(kernel.process_proxy, RemoteProcessProxy) and not has_clients:
            self.log.warning(
                "Kernel %s will not be automatically restarted since there are no clients.", kernel.kernel_id
            )
            return False
        return True
