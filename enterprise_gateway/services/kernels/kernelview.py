"""A kernel as it is seen by its process proxy, by the REST API and by the store: what can be read of it."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from ...core.connection import ConnectionInfo
from ...core.states import Phase, Progress, Step
from ...provisioners.kernelprocess import KernelProcess
from ...provisioners.standalone import OPTIONS, LibraryOptions
from ...transport.resumption import Memory
from ..processproxies.contract import BaseProcessProxyABC
from ..processproxies.launchedkernel import LaunchAddress
from ..processproxies.shared import SharedResources
from .life import KernelLife
from .recordedprocess import RecordedProcess

if TYPE_CHECKING:
    from ...transport.channels import KernelChannels


class KernelParent(Protocol):
    """What a kernel uses of the manager of all kernels; without a gateway there is none."""

    resources: SharedResources
    """What the launches of all kernels share."""

    @property
    def keeps_kernels(self) -> bool:
        """Whether kernels live on when the gateway ends."""


class KernelView(AsyncKernelManager):
    """The lower rung of :class:`RemoteKernelManager`: nothing here changes the kernel.

    It is the ``LaunchedKernel`` of process proxies. Every option of the gateway can be read from it by name
    (``port_range``, ``authorized_users`` …), as process proxies of third parties do. In a gateway these are the
    application's; without one (``NotebookClient(kernel_manager_class=…)``) they come from the environment and from
    configuration.
    """

    parent: KernelParent
    provisioner: KernelProcess | None = None
    channels: KernelChannels | None = None
    username = ""
    inherited: Memory | None = None
    _handed_over: Memory | None = None
    _resources: SharedResources | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relay_identity = uuid.uuid4().hex
        self.progress = Progress()
        self.life = KernelLife()
        self.recorded = RecordedProcess()

    def _find_my_config(self, cfg: Config) -> Config:
        """Leave out the options of :class:`LibraryOptions`, where they apply; called by traitlets."""
        config: Config = super()._find_my_config(cfg)
        if isinstance(getattr(self.parent, "resources", None), SharedResources):
            return config
        return Config({name: value for name, value in config.items() if name not in OPTIONS})

    if not TYPE_CHECKING:  # else mypy would take any attribute for an option

        def __getattr__(self, name: str) -> Any:
            """Return an option of the gateway, for process proxies of third parties, which look for it here."""
            if name in OPTIONS:
                return getattr(self.options, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def options(self) -> Any:
        """The options in force, one attribute each."""
        return self.resources.options

    @property
    def spec(self) -> KernelSpec:
        """The kernel's kernelspec."""
        spec = self.kernel_spec
        assert spec is not None  # it was found before the manager was made
        return spec

    @property
    def resources(self) -> SharedResources:
        """What this kernel's launch shares with others': the mapping manager's, or its own in library mode."""
        shared = getattr(self.parent, "resources", None)
        if isinstance(shared, SharedResources):
            return shared
        if self._resources is None:
            self._resources = SharedResources(LibraryOptions(config=self.config))
        return self._resources

    @property
    def process_proxy(self) -> BaseProcessProxyABC | None:
        """The process proxy of the present launch."""
        return self.provisioner.process_proxy if self.provisioner is not None else None

    @property
    def response_address(self) -> str:
        """Where the launcher reports, ``ip:port``; empty for local kernels. For process proxies of third parties."""
        return self._launch_address.response_address

    @property
    def public_key(self) -> str:
        """The key that the launcher encrypts its response with."""
        return self._launch_address.public_key

    @property
    def _launch_address(self) -> LaunchAddress:
        return self.provisioner.launch_address if self.provisioner is not None else LaunchAddress()

    @property
    def process(self) -> KernelProcess:
        """The kernel's process, as far as it was launched; made by the first launch."""
        assert self.provisioner is not None
        return self.provisioner

    @property
    def is_remote(self) -> bool:
        """Whether the kernel has a launcher beside it."""
        return self.provisioner is not None and self.provisioner.is_remote

    @property
    def outlives_gateway(self) -> bool:
        """Whether the kernel is to live on when the gateway ends."""
        return bool(getattr(self.parent, "keeps_kernels", False))

    @property
    def launch_args(self) -> dict[str, Any] | None:
        """What the kernel was launched with, and is launched with when it is restarted."""
        return self._launch_args

    @property
    def execution_state(self) -> str:
        """The kernel's state by its last status message: ``starting``, ``idle``, ``busy``, ``restarting``, ``dead``."""
        return self.channels.execution_state if self.channels is not None else "starting"

    @property
    def memory(self) -> Memory:
        """What the next gateway has to know of the conversation with the kernel."""
        if self._handed_over is not None:
            return self._handed_over
        if self.channels is not None:
            return self.channels.memory()
        return Memory(identities=(self.relay_identity,))

    @property
    def last_activity(self) -> datetime:
        """When the kernel last did something for a client (UTC)."""
        return self.channels.last_activity if self.channels is not None else datetime.now(timezone.utc)

    @property
    def phases(self) -> list[dict[str, Any]]:
        """The phases of the present process's start, as the REST API shows them."""
        phases = self.progress.to_list()
        if self.channels is not None:
            reached = {Phase.CONNECTED: self.channels.connected_at, Phase.ANSWERED: self.channels.answered_at}
            phases += [Step(phase, at).to_dict() for phase, at in reached.items() if at]
        return phases

    def connection(self) -> ConnectionInfo:
        """Return how the kernel is reached now."""
        known = self.provisioner.connection if self.provisioner is not None else None
        return known or ConnectionInfo.from_dict(self.get_connection_info())
