"""What the REST API says of kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .table import KernelTable


class KernelListing:
    """Lists kernels, also when one of them cannot tell of itself.

    Parameters
    ----------
    table
        The kernels of this gateway.
    model
        Returns the model of one of them, by its id.
    """

    def __init__(
        self,
        table: KernelTable,
        model: Callable[[str], dict[str, Any]],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.model = model
        self.log = log
        self._table = table

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
