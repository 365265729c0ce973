"""A logger for what concerns one kernel."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any


class KernelLog(logging.LoggerAdapter):  # type: ignore[type-arg]  # it takes adapters, too
    """Puts the kernel's id before each line; made for the channels of a kernel.

    Parameters
    ----------
    log
        Where the lines go.
    kernel_id
        The kernel's id, a UUID: it holds no percent sign.
    """

    def __init__(self, log: logging.Logger | logging.LoggerAdapter[Any], kernel_id: str) -> None:
        super().__init__(log)
        self._prefix = f"Kernel {kernel_id}: "

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Return the line with the prefix; called by ``logging``."""
        return f"{self._prefix}{msg}", kwargs
