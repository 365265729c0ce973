"""Resources shared by all kernels of one gateway (or of one notebook client in library mode)."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from ...core import envvars
from ...core.offload import offload
from ...core.ports import HIGHEST, PortPool, PortRange
from ...core.steps import take_all
from ...core.turns import Turns
from ...transport.outputfiles import OutputFiles
from .deployment import Deployment

if TYPE_CHECKING:
    from ...transport.response import Conflict, ResponseServer

log = logging.getLogger(__name__)


class Cluster(Protocol):
    """What :meth:`SharedResources.cluster` caches."""

    def close(self) -> None:
        """End connections and threads; called in a thread. Kernels keep running."""


C = TypeVar("C", bound=Cluster)


class SharedResources:
    """The current options, and the resources that launches and kernels share: ports, turns, clusters, output files.

    Created by :class:`RemoteMappingKernelManager`, or by a :class:`RemoteKernelManager` that has no such parent.

    Parameters
    ----------
    options
        The object that carries the traits of ``EnterpriseGatewayConfigMixin``; read at every use, so that a changed
        option also applies to existing kernels.
    """

    def __init__(self, options: Any) -> None:
        self.options = options
        self.ports = PortPool(is_free_port, PortRange(*_unsolicited_ports()))
        self.turns = Turns()
        self.outputs = OutputFiles(log)
        self.deployment = Deployment()
        self.on_conflict: list[Callable[[Conflict], None]] = []
        """Called when a second launcher has reported for a kernel."""
        self.log = log
        self._responses: ResponseServer | None = None
        self._clusters: dict[Hashable, Cluster] = {}
        self._clusters_lock = threading.Lock()

    def cluster(self, key: Hashable, factory: Callable[[], C]) -> C:
        """Return what all kernels of one back end share: connections to a cluster, its table of states.

        Created at the first call, in any thread, and closed with the other resources.

        Parameters
        ----------
        key
            Identifies it: the name of the back end, and what distinguishes its clusters (an endpoint, a context).
        factory
            Creates it. It must not contact anything yet, because other callers wait for it.
        """
        with self._clusters_lock:
            if key not in self._clusters:
                self._clusters[key] = factory()
            return cast("C", self._clusters[key])

    def _close_clusters(self) -> None:
        with self._clusters_lock:
            clusters, self._clusters = list(self._clusters.items()), {}
        for key, cluster in clusters:
            try:
                cluster.close()
            except Exception:
                log.exception("The shared resources of %s could not be closed cleanly; the others are closed", key)

    async def responses(self) -> ResponseServer:
        """Return the response server, started when the first remote kernel needs it."""
        if self._responses is None:
            from ...transport.localip import response_ip
            from ...transport.response import ResponseServer

            self._responses = ResponseServer(
                ip=response_ip(envvars.EG_RESPONSE_IP(), envvars.EG_PROHIBITED_LOCAL_IPS()),
                port=envvars.EG_RESPONSE_PORT(),
                port_retries=envvars.EG_RESPONSE_PORT_RETRIES(),
                any_address=envvars.EG_RESPONSE_ADDR_ANY(),
                allow_v0=envvars.EG_ALLOW_PAYLOAD_V0(),
                on_conflict=self._tell_conflict,
                log=log,
            )
        await self._responses.start()
        return self._responses

    def _tell_conflict(self, conflict: Conflict) -> None:
        for listener in self.on_conflict:
            listener(conflict)

    async def close(self) -> None:
        """Stop what was started here."""
        responses, self._responses = self._responses, None
        steps: list[Callable[[], Any]] = [responses.stop] if responses is not None else []
        steps += [self.outputs.close, partial(offload, self._close_clusters), partial(offload, self.deployment.close)]
        await take_all(steps, "What kernels share", log)


def is_free_port(port: int) -> bool:
    """Whether a port can be bound on all of this machine's addresses now."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _unsolicited_ports() -> tuple[int, int]:
    """Return a range from which the system does not choose the ports of outgoing connections."""
    try:
        lower, upper = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        lower, upper = 49152, 65535
    below, above = (10000, lower - 1), (upper + 1, HIGHEST)
    return max(below, above, key=lambda bounds: bounds[1] - bounds[0])


def gateway_environment() -> dict[str, str]:
    """Return the gateway's own environment, the source of base and inherited variables."""
    return envvars.process_environment()
