"""A process proxy's view of the kernel that it starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

from jupyter_client.kernelspec import KernelSpec

from ...core.connection import ConnectionInfo
from ...core.states import Progress
from .shared import SharedResources


class LaunchedKernel(Protocol):
    """A process proxy's view of its kernel, which the proxy does not change.

    ``RemoteKernelManager`` implements it for the gateway's kernels; the adapter builds one for other managers' kernels.
    In a gateway, it also has every option as an attribute, for proxies written for Enterprise Gateway 3.x.
    """

    @property
    def kernel_id(self) -> str:
        """The kernel's id, a UUID."""

    @property
    def kernel_name(self) -> str:
        """The name of its kernelspec."""

    @property
    def spec(self) -> KernelSpec:
        """Its kernelspec."""

    @property
    def kernel_spec(self) -> KernelSpec | None:
        """The same, under its name in Enterprise Gateway 3.x."""

    @property
    def connection_file(self) -> str:
        """The path of its connection file; other files of the kernel are kept next to it."""

    @property
    def options(self) -> Any:
        """The current options, one attribute each."""

    @property
    def resources(self) -> SharedResources:
        """The resources shared with other kernels: ports, the response server, clusters."""

    @property
    def outlives_gateway(self) -> bool:
        """Whether it keeps running when the gateway ends."""

    @property
    def progress(self) -> Progress:
        """The progress of its start: the only thing that a proxy updates."""

    @property
    def log(self) -> logging.Logger | logging.LoggerAdapter[Any]:
        """The logger for its proxy."""

    def connection(self) -> ConnectionInfo:
        """Return its present connection information."""


@dataclass(frozen=True)
class LaunchAddress:
    """The address that a kernel's launcher reports to; returned by ``RemoteProcessProxy.prepare``.

    Parameters
    ----------
    response_address
        ``ip:port``, the ``{response_address}`` of a kernelspec's argv.
    public_key
        The key with which the launcher encrypts its report, ``{public_key}``.
    """

    response_address: str = ""
    public_key: str = ""
