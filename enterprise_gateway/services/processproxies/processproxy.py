"""The contract of a kernel back end, by the names that kernelspecs and third parties use.

A process proxy starts one kernel and stands for its process afterwards. The ladder of classes, each with all that the
ones below it need no more to care for:

* :class:`BaseProcessProxyABC`: the contract; users, limits, environments, ports;
* :class:`LocalProcessProxy`: a kernel on the gateway's own machine;
* :class:`RemoteProcessProxy`: its launcher reports where it listens; launch time-out, tunnels, signals;
* :class:`ClusterProcessProxy`: a cluster knows the kernel's state and place; five verbs, and it is a back end.
"""

from __future__ import annotations

from .cluster import ClusterProcessProxy
from .contract import BaseProcessProxyABC, KernelChannel
from .local import LocalProcessProxy
from .remote import RemoteProcessProxy
from .responses import Response, ResponseManager

__all__ = [
    "BaseProcessProxyABC",
    "ClusterProcessProxy",
    "KernelChannel",
    "LocalProcessProxy",
    "RemoteProcessProxy",
    "Response",
    "ResponseManager",
]
