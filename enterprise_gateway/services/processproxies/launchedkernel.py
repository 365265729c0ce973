"""What a process proxy may see of the kernel that it starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

from jupyter_client.kernelspec import KernelSpec

from ...core.connection import ConnectionInfo
from ...core.states import Progress
from .shared import SharedResources


class LaunchedKernel(Protocol):
    """A kernel as its process proxy sees it; a proxy changes nothing of it.

    ``RemoteKernelManager`` is one, for the gateway's kernels; the adapter makes one for kernels of other managers.
    Proxies that were written for Enterprise Gateway 3.x find more in a gateway: every option by its name.
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
        """The same by the name of Enterprise Gateway 3.x."""

    @property
    def connection_file(self) -> str:
        """The path of its connection file; beside it other files of the kernel are kept."""

    @property
    def options(self) -> Any:
        """The options in force, one attribute each."""

    @property
    def resources(self) -> SharedResources:
        """What it shares with other kernels: ports, the response server, clusters."""

    @property
    def outlives_gateway(self) -> bool:
        """Whether it is to live on when the gateway ends."""

    @property
    def progress(self) -> Progress:
        """How far its start has come: the one thing that a proxy adds to."""

    @property
    def log(self) -> logging.Logger | logging.LoggerAdapter[Any]:
        """Where its proxy writes log lines."""

    def connection(self) -> ConnectionInfo:
        """Return how it is reached now."""


@dataclass(frozen=True)
class LaunchAddress:
    """Where the launcher of a kernel reports to; returned by ``RemoteProcessProxy.prepare``.

    Parameters
    ----------
    response_address
        ``ip:port``, the ``{response_address}`` of a kernelspec's argv.
    public_key
        What the launcher encrypts its report with, ``{public_key}``.
    """

    response_address: str = ""
    public_key: str = ""
