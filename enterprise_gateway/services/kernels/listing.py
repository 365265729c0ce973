"""What the REST API says of kernels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager
    from .table import KernelTable


class OthersConnections(Protocol):
    """What is known of the websockets of other gateways."""

    def connections_elsewhere(self, kernel_id: str) -> int:
        """Return how many they have for a kernel."""


class KernelListing:
    """Describes, lists and counts kernels, even when one of them cannot be described.

    Parameters
    ----------
    table
        The kernels of this gateway.
    model
        Returns the model of one of them, by its id: :meth:`describe`, or what others make of that.
    sharing
        Returns what knows of other gateways.
    """

    def __init__(
        self,
        table: KernelTable,
        model: Callable[[str], dict[str, Any]],
        sharing: Callable[[], OthersConnections],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.model = model
        self.log = log
        self._table = table
        self._sharing = sharing

    def describe(self, kernel_id: str) -> dict[str, Any]:
        """Return the model of a kernel."""
        kernel = self._table.find(kernel_id)
        model = {
            "id": kernel_id,
            "name": kernel.kernel_name,
            "last_activity": kernel.last_activity.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "execution_state": kernel.execution_state,
            "connections": self.connections(kernel),
        }
        if kernel.life.is_dead:
            model["reason"] = kernel.life.died_because
        return model

    def details(self, kernel_id: str) -> dict[str, Any]:
        """Return the model of a kernel with the phases of its start, which lists of kernels leave out."""
        return {**self.model(kernel_id), "phases": self._table.find(kernel_id).phases}

    def connections(self, kernel: RemoteKernelManager) -> int:
        """Return how many websockets all gateways have for a kernel."""
        here = kernel.channels.connections if kernel.channels is not None else 0
        return here + self._sharing().connections_elsewhere(str(kernel.kernel_id))

    def models(self) -> list[dict[str, Any]]:
        """Return the models of all kernels in the table, in the order of their start."""
        return self.listed(self._table.ids(), self.model)

    def listed(self, kernel_ids: Iterable[str], model_of: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the models of kernels; one that cannot be made is logged and left out."""
        models = []
        for kernel_id in kernel_ids:
            try:
                models.append(model_of(kernel_id))
            except Exception:
                self.log.exception("Kernel %s cannot be listed", kernel_id)
        return models

    def running_by_user(self) -> Counter[str]:
        """Return how many kernels each user has that count under the limits: all that are not dead."""
        return Counter(kernel.username for kernel in self._table if self._takes_place(kernel))

    def _takes_place(self, kernel: RemoteKernelManager) -> bool:
        try:
            return kernel.execution_state != "dead"
        except Exception as error:  # noqa: BLE001 -- of one kernel: others are to be started
            self.log.warning(
                "Kernel %s is counted as running, because its state cannot be read: %r", kernel.kernel_id, error
            )
            return True
