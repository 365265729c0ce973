"""Connects to running kernels and has them managed from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core.errors import StoreUnavailableError

if TYPE_CHECKING:
    from .culler import KernelCuller
    from .relays import KernelRelays
    from .remotekernel import RemoteKernelManager
    from .restarter import KernelRestarter
    from .table import KernelTable


class Admission:
    """The one way of a kernel into the table.

    Parameters
    ----------
    relays
        Connects to kernels.
    table
        The kernels that are managed.
    restarter, culler
        Detect that a kernel has died, or is no longer used.
    on_admission
        Called when a kernel is managed.
    """

    def __init__(
        self,
        relays: KernelRelays,
        table: KernelTable,
        restarter: KernelRestarter,
        culler: KernelCuller,
        on_admission: Callable[[], None],
    ) -> None:
        self._relays = relays
        self._table = table
        self._restarter = restarter
        self._culler = culler
        self._on_admission = on_admission
        self._is_closed = False

    def enter(self, kernel: RemoteKernelManager) -> None:
        """Connect to a kernel and manage it.

        Raises
        ------
        StoreUnavailableError
            The gateway is being stopped: nobody would close the connection.
        """
        self.connect(kernel)
        self.manage(kernel)

    def connect(self, kernel: RemoteKernelManager) -> None:
        """Connect to a kernel, which is the first half of :meth:`enter`."""
        if self._is_closed:
            raise StoreUnavailableError("The gateway is being stopped; please try again.")
        self._relays.connect(kernel)

    def manage(self, kernel: RemoteKernelManager) -> None:
        """Manage a kernel that is connected, which is the second half."""
        self._table.enter(kernel)
        self._restarter.watch(kernel)
        self._culler.start()
        self._on_admission()

    def close(self) -> None:
        """Refuse to connect to further kernels; called when the gateway begins to stop."""
        self._is_closed = True
