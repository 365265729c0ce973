"""Kernels of managers that are not the gateway's: what their process proxies need of a gateway, without one."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from weakref import WeakKeyDictionary

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from ..config import EnterpriseGatewayConfigMixin
from ..core.connection import ConnectionInfo
from ..core.states import Progress
from ..services.processproxies.shared import SharedResources

OPTIONS = frozenset(EnterpriseGatewayConfigMixin.class_trait_names())


class LibraryOptions(EnterpriseGatewayConfigMixin):
    """The options of a kernel manager that no gateway has made; configured as ``c.RemoteKernelManager.<option>``."""

    @classmethod
    def section_names(cls) -> list[str]:
        """Return the configuration sections that apply, for traitlets."""
        return [*super().section_names(), "RemoteKernelManager"]

    def _find_my_config(self, cfg: Config) -> Config:
        """Leave out the manager's own traits, which stand in the same section; called by traitlets."""
        config = super()._find_my_config(cfg)
        return Config({name: value for name, value in config.items() if name in OPTIONS})


class _Application:
    """What the kernels of one application share, and how many of them there are."""

    def __init__(self, config: Config) -> None:
        self.resources = SharedResources(LibraryOptions(config=config))
        self.users: set[StandaloneKernel] = set()


_applications: WeakKeyDictionary[asyncio.AbstractEventLoop, _Application] = WeakKeyDictionary()


class StandaloneKernel:
    """A kernel of any manager of jupyter_client, as its process proxy sees it; made by the adapter for each launch.

    Kernels on one event loop share a response server, ports and connections, made for the first of them and closed with
    the last.
    """

    outlives_gateway = False

    def __init__(self, manager: KernelManager, kernel_id: str, spec: KernelSpec) -> None:
        self.kernel_id = kernel_id
        self.spec = self.kernel_spec = spec
        self.progress = Progress()
        self._manager = manager
        loop = asyncio.get_running_loop()
        self._application = _applications.get(loop) or _applications.setdefault(loop, _Application(manager.config))
        self._application.users.add(self)

    @property
    def kernel_name(self) -> str:
        """The name of its kernelspec."""
        return self._manager.kernel_name

    @property
    def connection_file(self) -> str:
        """The path of its connection file."""
        return self._manager.connection_file

    @property
    def options(self) -> Any:
        """The options in force."""
        return self.resources.options

    @property
    def resources(self) -> SharedResources:
        """What it shares with other kernels of the application."""
        return self._application.resources

    @property
    def log(self) -> logging.Logger | logging.LoggerAdapter[Any]:
        """The manager's logger."""
        return self._manager.log

    def connection(self) -> ConnectionInfo:
        """Return how it is reached now."""
        return ConnectionInfo.from_dict(self._manager.get_connection_info())

    async def release(self) -> None:
        """Need nothing any more: what was shared is closed with the last kernel."""
        users = self._application.users
        users.discard(self)
        if not users:
            for loop in [loop for loop, application in _applications.items() if application is self._application]:
                del _applications[loop]
            await self._application.resources.close()
