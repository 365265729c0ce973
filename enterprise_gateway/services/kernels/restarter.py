"""Notices that kernels have died, and restarts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from traitlets import Bool, Float, Integer
from traitlets.config import LoggingConfigurable

from ...core import envvars
from ...core.death import describe_exit
from ...core.errors import ConflictError, GatewayError, LeaseLostError, StoreUnavailableError
from ...transport.memorykills import MemoryKills

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager
    from .sharing import KernelSharing

CHECK_SECONDS = 10.0
STORE_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 300.0
CUT_SHORT = "the gateway that restarted it has failed before this was recorded"
NOT_WANTED = "it is not restarted, since autorestart is off"


class Relaunch(Protocol):
    """Replaces the process of a kernel that has died."""

    async def __call__(self, kernel: RemoteKernelManager, now: bool, newports: bool) -> None:
        """Replace it; raises what keeps it from being replaced."""


class KernelRestarter(LoggingConfigurable):
    """Watches the end of every kernel's process and restarts the kernel; one per gateway.

    Parameters
    ----------
    relaunch
        Replaces the process of a kernel.
    sharing
        Returns what says whether that is up to this gateway.
    connections
        Returns how many websockets all gateways have for a kernel.
    """

    restart_limit = Integer(5, config=True, help="How often a kernel that keeps dying is restarted in a row.")
    stable_start_time = Float(10.0, config=True, help="Seconds after which a restarted kernel counts as running again.")
    random_ports_until_alive = Bool(
        True, config=True, help="Whether a kernel that died before it was stable gets new ports."
    )
    restart_backoff = Float(
        0.0, config=True, help="Seconds to wait before the second restart in a row; doubled for each further one."
    )

    def __init__(
        self,
        relaunch: Relaunch,
        sharing: Callable[[], KernelSharing],
        connections: Callable[[RemoteKernelManager], int],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._launch_anew = relaunch
        self._sharing = sharing
        self._connections = connections
        self.clock: Callable[[], float] = time.monotonic
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self.memory_kills = MemoryKills()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._memory_check: asyncio.Task[None] | None = None

    def watch(self, kernel: RemoteKernelManager) -> None:
        """Watch the kernel from now on; called after its start and its restarts."""
        self._watches[kernel.kernel_id] = asyncio.create_task(
            self._watch(kernel), name=f"kernel {kernel.kernel_id} lives"
        )
        if self._memory_check is None:
            self._memory_check = asyncio.create_task(self._check_for_memory_kills(), name="check for memory kills")

    def stop(self) -> None:
        """Stop all tasks except the kernels' watches; called when the gateway ends."""
        if self._memory_check is not None:
            self._memory_check.cancel()
            self._memory_check = None

    async def _check_for_memory_kills(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.memory_kills.look()

    def unwatch(self, kernel: RemoteKernelManager) -> None:
        """Stop watching the kernel; called before it is stopped or restarted on purpose."""
        watch = self._watches.pop(kernel.kernel_id, None)
        if watch is not None and watch is not asyncio.current_task():
            watch.cancel()

    def end(self, kernel: RemoteKernelManager, reason: str) -> None:
        """Mark a kernel that must not live on as dead at once, and end its processes."""
        self.unwatch(kernel)
        kernel.mark_dead(reason)
        self._watches[kernel.kernel_id] = asyncio.create_task(
            kernel.end_process(), name=f"kernel {kernel.kernel_id} is being ended"
        )

    def finish_restart(self, kernel: RemoteKernelManager) -> None:
        """Complete the restart of a kernel whose process has ended, which another gateway began but did not finish."""
        self._watches[kernel.kernel_id] = asyncio.create_task(
            self._finish_restart(kernel), name=f"kernel {kernel.kernel_id} is to live again"
        )

    async def _finish_restart(self, kernel: RemoteKernelManager) -> None:
        if not await self._sharing().in_charge_of_dead(kernel):
            return
        self.log.warning("The interrupted restart of kernel %s is being completed", kernel.kernel_id)
        if await self._end_remnants(kernel) and kernel.channels is not None:
            # Launched, but not recorded: nobody but the former gateway could reach it. Its clients may have used it.
            kernel.life.restart_was_cut_short()
            kernel.channels.tell(f"The kernel is restarted once more: {CUT_SHORT}. Its variables are lost.\n")
            kernel.channels.announce_state("restarting", CUT_SHORT)
        if await self._relaunch(kernel, newports=True):
            await self._watch(kernel)

    async def _end_remnants(self, kernel: RemoteKernelManager) -> bool:
        """End every process that carries the kernel's id, also an unrecorded one; return whether there was any."""
        try:
            return await kernel.process.remove_leftovers()
        except Exception as error:  # noqa: BLE001
            self.log.warning("Leftovers of kernel %s could not be removed: %r", kernel.kernel_id, error)
            return False

    async def _watch(self, kernel: RemoteKernelManager) -> None:
        """Restart the kernel each time it ends, until it is unwatched or the limit is reached."""
        # By the wall clock: another gateway may have started the process.
        alive_since = self.clock() - max(0.0, time.time() - kernel.life.started.timestamp())
        while True:
            exit_code = await self._end_of(kernel)
            if not await self._sharing().in_charge_of_dead(kernel):
                return
            stable = self.clock() - alive_since >= self.stable_start_time
            kernel.life.restarting_itself(stable)
            reason = describe_exit(exit_code, memory_kill=self.memory_kills.was_recent())
            said = kernel.process.said_of_end
            reason += f" ({said})" if said else ""
            if kernel.channels is not None:
                await kernel.channels.last_words()
            refusal = self._refusal(kernel)
            if refusal:
                await kernel.end_process()
                kernel.mark_dead(f"{reason}; {refusal}" if refusal != NOT_WANTED else reason)
                return
            self._announce(kernel, reason)
            if kernel.life.restarts > 1 and self.restart_backoff > 0:
                await self.sleep(min(self.restart_backoff * 2 ** (kernel.life.restarts - 2), LONGEST_PAUSE_SECONDS))
            if not await self._relaunch(kernel, newports=self.random_ports_until_alive and not stable):
                return
            alive_since = self.clock()

    async def _relaunch(self, kernel: RemoteKernelManager, newports: bool) -> bool:
        """Restart a kernel that has died, as soon as the store can record it; return whether it is ours and alive."""
        while True:
            try:
                await self._launch_anew(kernel, now=True, newports=newports)
                return True
            except LeaseLostError:
                # Another replica was faster; whose turn it is is asked anew.
                self._sharing().yield_lease(str(kernel.kernel_id))
            except StoreUnavailableError:
                await self.sleep(STORE_PAUSE_SECONDS)
            except ConflictError:
                return False  # it is being stopped
            except GatewayError:
                return False  # it could not be launched, which the manager has told
            except Exception:
                self.log.exception("Kernel %s could not be restarted", kernel.kernel_id)
                return False
            if not await self._sharing().in_charge_of_dead(kernel):
                return False

    async def _end_of(self, kernel: RemoteKernelManager) -> int | None:
        """Wait until the kernel has ended; a back end that fails to answer is asked again."""
        while True:
            try:
                return await kernel.wait_for_exit()
            except Exception as error:  # noqa: BLE001  # of a third party's provisioner
                self.log.warning("It is not known whether kernel %s is alive: %r", kernel.kernel_id, error)
                await asyncio.sleep(envvars.EG_POLL_INTERVAL())

    def _announce(self, kernel: RemoteKernelManager, reason: str) -> None:
        """Log and tell the kernel's clients that it has died and will be restarted."""
        count = kernel.life.restarts
        self.log.warning(
            "Kernel %s has died: %s; restart %d of %d", kernel.kernel_id, reason, count, self.restart_limit
        )
        if kernel.channels is not None:
            kernel.channels.tell(f"The kernel has died: {reason}. It is being restarted; its variables are lost.\n")
            kernel.channels.announce_state("restarting", reason)

    def _refusal(self, kernel: RemoteKernelManager) -> str:
        """Return why the kernel is not restarted; empty when it is."""
        if not kernel.autorestart:
            return NOT_WANTED
        if kernel.life.restarts > self.restart_limit:
            return f"it was restarted {self.restart_limit} times in a row, which is the limit"
        is_awaited = kernel.channels is not None and kernel.channels.has_clients
        has_clients = is_awaited or self._connections(kernel)
        if kernel.is_remote and not has_clients:
            self.log.warning(
                "Kernel %s will not be automatically restarted since there are no clients.", kernel.kernel_id
            )
            return "it is not restarted because it has no clients"
        return ""
