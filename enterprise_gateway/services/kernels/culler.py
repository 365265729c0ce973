"""Culls kernels that are no longer used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from tornado.ioloop import PeriodicCallback
from traitlets import Bool, Float, Integer

from ...core import envvars
from ...core.culling import CullPolicy, KernelUse, unusable_entries
from ...core.options import EnvironmentDefaults

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager
    from .table import KernelTable


class CullingOptions(EnvironmentDefaults):
    """When kernels are culled: options of RemoteMappingKernelManager.

    The rules (all but ``cull_interval`` and ``cull_warning``) can be overridden by a kernelspec's metadata entries of
    the same names.
    """

    cull_idle_timeout = Integer(
        envvars.EG_CULL_IDLE_TIMEOUT.default,
        config=True,
        help="Seconds without activity after which a kernel is culled; 0 or less: never.",
    ).tag(env=envvars.EG_CULL_IDLE_TIMEOUT)
    cull_interval = Integer(
        envvars.EG_CULL_INTERVAL.default, config=True, help="Seconds between two checks for kernels to cull."
    ).tag(env=envvars.EG_CULL_INTERVAL)
    cull_connected = Bool(
        envvars.EG_CULL_CONNECTED.default, config=True, help="Whether kernels with open websockets are culled too."
    ).tag(env=envvars.EG_CULL_CONNECTED)
    cull_busy = Bool(
        envvars.EG_CULL_BUSY.default,
        config=True,
        help="Whether busy kernels are culled too.",
    ).tag(env=envvars.EG_CULL_BUSY)
    cull_max_age = Float(
        envvars.EG_CULL_MAX_AGE.default,
        config=True,
        help="Seconds after its start at which a kernel is culled; 0: never.",
    ).tag(env=envvars.EG_CULL_MAX_AGE)
    cull_busy_timeout = Float(
        envvars.EG_CULL_BUSY_TIMEOUT.default,
        config=True,
        help="Seconds of uninterrupted execution after which a kernel is culled; 0: never.",
    ).tag(env=envvars.EG_CULL_BUSY_TIMEOUT)
    cull_warning = Float(
        envvars.EG_CULL_WARNING.default,
        config=True,
        help="Seconds before it is culled at which a kernel's clients are told so; 0: they are not.",
    ).tag(env=envvars.EG_CULL_WARNING)


class KernelCuller:
    """Checks all kernels every ``cull_interval`` seconds.

    Parameters
    ----------
    options
        The rules; they are read at each check.
    table
        The kernels.
    manages
        Whether it is up to this gateway to cull a kernel.
    connections
        Returns how many websockets all gateways have for a kernel.
    shut_down
        Stops the kernel of an id.
    """

    def __init__(
        self,
        options: CullingOptions,
        table: KernelTable,
        *,
        manages: Callable[[RemoteKernelManager], bool],
        connections: Callable[[RemoteKernelManager], int],
        shut_down: Callable[[str], Awaitable[None]],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.log = log
        self._options = options
        self._table = table
        self._manages = manages
        self._connections = connections
        self._shut_down = shut_down
        self.clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
        self._timer: PeriodicCallback | None = None
        self._warned: set[str] = set()
        self._refused_entries: set[tuple[str, str]] = set()
        options.observe(self._interval_changed, "cull_interval")

    @property
    def policy(self) -> CullPolicy:
        """The rules in force for kernelspecs that override none."""
        options = self._options
        return CullPolicy(
            options.cull_idle_timeout,
            options.cull_connected,
            options.cull_busy,
            options.cull_max_age,
            options.cull_busy_timeout,
        )

    def start(self) -> None:
        """Start the checks, unless they are running; called when a kernel was started."""
        if self._timer is None:
            interval = self._options.cull_interval
            if interval <= 0:
                interval = int(envvars.EG_CULL_INTERVAL.default)
                self.log.warning("cull_interval must be positive; using %d seconds", interval)
            self._timer = PeriodicCallback(self.cull_kernels, 1000 * interval)
            self._timer.start()

    def stop(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    def _interval_changed(self, change: Any) -> None:
        if self._timer is not None:
            self.stop()
            self.start()

    async def cull_kernels(self) -> None:
        """Cull every kernel that its policy selects, and warn the clients of those that will be next."""
        await asyncio.gather(*map(self._check, self._table))

    async def _check(self, kernel: RemoteKernelManager) -> None:
        """Check one kernel; any error is logged and does not stop the check of the others."""
        try:
            if not self._manages(kernel):
                return  # another replica does
            policy = self._policy_of(kernel)
            use = self._use_of(kernel)
            reason = policy.reason(use, self.clock())
            if reason is not None:
                await self._cull(kernel, reason)
            elif self._options.cull_warning > 0 and policy.reason(use, self.clock(), within=self._options.cull_warning):
                self._warn(kernel)
            else:
                self._warned.discard(kernel.kernel_id)
        except Exception:
            self.log.exception("Kernel %s could not be checked or culled", kernel.kernel_id)

    def _policy_of(self, kernel: RemoteKernelManager) -> CullPolicy:
        """Return the rules for a kernel; entries of its kernelspec that cannot be used are logged once."""
        metadata = kernel.spec.metadata
        for reason in unusable_entries(metadata):
            if (kernel.kernel_name, reason) not in self._refused_entries:
                self._refused_entries.add((kernel.kernel_name, reason))
                self.log.warning("An entry in the metadata of kernelspec %s is ignored: %s", kernel.kernel_name, reason)
        return self.policy.for_spec(metadata)

    async def _cull(self, kernel: RemoteKernelManager, reason: str) -> None:
        self.log.warning("Culling kernel %s (%s): %s", kernel.kernel_id, kernel.kernel_name, reason)
        self._warned.discard(kernel.kernel_id)
        kernel.life.ending(f"the kernel was culled: {reason}")
        if kernel.channels is not None and kernel.execution_state != "dead":
            kernel.channels.tell(f"The kernel was culled: {reason}. Its variables are lost.\n")
        await self._shut_down(kernel.kernel_id)

    def _warn(self, kernel: RemoteKernelManager) -> None:
        if kernel.kernel_id not in self._warned and kernel.channels is not None:
            self._warned.add(kernel.kernel_id)
            kernel.channels.tell(
                f"This kernel will be culled within {self._options.cull_warning:g} seconds unless it is used.\n"
            )

    def _use_of(self, kernel: RemoteKernelManager) -> KernelUse:
        channels = kernel.channels
        return KernelUse(
            state=kernel.execution_state,
            connections=self._connections(kernel),
            started=kernel.life.started,
            last_activity=kernel.last_activity,
            busy_since=channels.busy_since if channels is not None else None,
        )
