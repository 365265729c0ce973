"""The contract of a kernel back end, under the names that kernelspecs and third parties use.

A process proxy starts one kernel and represents its process afterwards. Each class of the ladder takes care of more, so
that the classes derived from it need not:

* :class:`BaseProcessProxyABC`: the contract; users, limits, environments, ports;
* :class:`LocalProcessProxy`: a kernel on the gateway's own machine;
* :class:`RemoteProcessProxy`: its launcher reports where it listens; launch time-out, tunnels, signals;
* :class:`ClusterProcessProxy`: a cluster knows the kernel's state and place; a back end only adds five verbs.
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
