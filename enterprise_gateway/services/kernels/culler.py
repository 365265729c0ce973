"""Culls kernels that nobody uses any more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from tornado.ioloop import PeriodicCallback
from traitlets import Bool, Float, Integer, observe
from traitlets.config import LoggingConfigurable

from ...core.culling import CullPolicy, KernelUse

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager
    from .remotemanager import RemoteMappingKernelManager

DEFAULT_INTERVAL = 300


class KernelCuller(LoggingConfigurable):
    """Looks at all kernels every ``cull_interval`` seconds; part of RemoteMappingKernelManager.

    Each option can be overridden by a kernelspec's metadata entry of the same name.
    """

    cull_idle_timeout = Integer(
        0, config=True, help="Seconds without activity after which a kernel is culled; 0 or less: never."
    )
    cull_interval = Integer(DEFAULT_INTERVAL, config=True, help="Seconds between two looks for kernels to cull.")
    cull_connected = Bool(False, config=True, help="Whether kernels with open websockets are culled too.")
    cull_busy = Bool(False, config=True, help="Whether busy kernels are culled too.")
    cull_max_age = Float(0, config=True, help="Seconds after its start at which a kernel is culled; 0: never.")
    cull_busy_timeout = Float(
        0, config=True, help="Seconds of uninterrupted execution after which a kernel is culled; 0: never."
    )
    cull_warning = Float(
        0, config=True, help="Seconds before it is culled at which a kernel's clients are told so; 0: they are not."
    )

    parent: RemoteMappingKernelManager

    @classmethod
    def section_names(cls) -> list[str]:
        """Return the configuration sections that apply: the options belong to the kernel manager."""
        return [
            *super().section_names(),
            "MultiKernelManager",
            "MappingKernelManager",
            "AsyncMappingKernelManager",
            "RemoteMappingKernelManager",
        ]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
        self._timer: PeriodicCallback | None = None
        self._warned: set[str] = set()

    @property
    def policy(self) -> CullPolicy:
        """The rules in force for kernelspecs that override none."""
        return CullPolicy(
            self.cull_idle_timeout, self.cull_connected, self.cull_busy, self.cull_max_age, self.cull_busy_timeout
        )

    def start(self) -> None:
        """Begin to look; called when a kernel was started, without effect when it has begun already."""
        if self._timer is None:
            if self.cull_interval <= 0:
                self.log.warning("cull_interval must be positive; %d seconds are used", DEFAULT_INTERVAL)
                self.cull_interval = DEFAULT_INTERVAL
            self._timer = PeriodicCallback(self.cull_kernels, 1000 * self.cull_interval)
            self._timer.start()

    def stop(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    @observe("cull_interval")
    def _interval_changed(self, change: Any) -> None:
        if getattr(self, "_timer", None) is not None:
            self.stop()
            self.start()

    async def cull_kernels(self) -> None:
        """Cull every kernel that its policy says so of, and warn the clients of those that are next."""
        for kernel in list(self.parent._kernels.values()):
            policy = self.policy.for_spec(kernel.spec.metadata)
            use = use_of(kernel)
            reason = policy.reason(use, self.clock())
            if reason is not None:
                await self._cull(kernel, reason)
            elif self.cull_warning > 0 and policy.reason(use, self.clock(), within=self.cull_warning):
                self._warn(kernel)
            else:
                self._warned.discard(kernel.kernel_id)

    async def _cull(self, kernel: RemoteKernelManager, reason: str) -> None:
        self.log.warning("Culling kernel %s (%s): %s", kernel.kernel_id, kernel.kernel_name, reason)
        self._warned.discard(kernel.kernel_id)
        if kernel.channels is not None and kernel.execution_state != "dead":
            kernel.channels.announce_state("dead", f"The kernel was culled: {reason}.")
        try:
            await self.parent.shutdown_kernel(kernel.kernel_id)
        except Exception:
            self.log.exception("Kernel %s could not be culled", kernel.kernel_id)

    def _warn(self, kernel: RemoteKernelManager) -> None:
        if kernel.kernel_id not in self._warned and kernel.channels is not None:
            self._warned.add(kernel.kernel_id)
            kernel.channels.tell(
                f"This kernel will be culled within {self.cull_warning:g} seconds unless it is used.\n"
            )


def use_of(kernel: RemoteKernelManager) -> KernelUse:
    """Return what culling looks at of a kernel."""
    channels = kernel.channels
    return KernelUse(
        state=kernel.execution_state,
        connections=channels.connections if channels is not None else 0,
        started=kernel.started,
        last_activity=kernel.last_activity,
        busy_since=channels.busy_since if channels is not None else None,
    )
