"""What the management of kernels consists of, put together."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..processproxies.remnants import Remnant, local_files
from ..sessions.sharingstore import SharingStore
from .changes import KernelChanges
from .launches import Launches
from .leaving import Leaving
from .records import KernelRecords
from .recovery import KernelRecovery
from .replicas import OwnKernels, Replicas
from .starts import KernelStarts
from .transitions import Transitions

if TYPE_CHECKING:
    from ..processproxies.shared import SharedResources
    from ..sessions.kernelsessionmanager import KernelSessionManager
    from ..sessions.revival import RevivalReport
    from .admission import Admission
    from .listing import KernelListing
    from .loader import KernelLoader
    from .making import KernelMaker
    from .remotekernel import RemoteKernelManager
    from .restarter import KernelRestarter
    from .sharing import KernelSharing
    from .table import KernelTable


@dataclass(frozen=True)
class LastingParts:
    """What manages kernels whatever their store is."""

    table: KernelTable
    listing: KernelListing
    maker: KernelMaker
    loader: KernelLoader
    restarter: KernelRestarter
    admission: Admission
    resources: SharedResources
    launches: Launches
    transitions: Transitions
    directory: Callable[[], Path]
    """Returns the runtime directory of this gateway."""
    cwd_for_path: Callable[[str], str]
    """Returns the directory for an API path; blocks."""
    shut_down: Callable[..., Awaitable[None]]
    """Stops the kernel of an id, also one that is starting; ``now=True``: at once."""
    remove: Callable[[str], RemoteKernelManager | None]
    """Takes the kernel of an id out of the table."""
    log: logging.Logger | logging.LoggerAdapter[Any]

    def is_changing(self, kernel_id: str) -> bool:
        """Whether a kernel is being started, restarted or stopped here."""
        return kernel_id in self.launches or bool(self.transitions.under_way(kernel_id))

    def find_files(self, excluded: Collection[str]) -> list[Remnant]:
        """Return the files in the runtime directory of kernels other than those given; blocks."""
        label = self.resources.deployment.label
        return list(local_files(self.directory(), [label] if label else [], excluded))


class StoreParts:
    """What manages kernels by one store, and together with the gateways that share it; made anew for another store.

    Parameters
    ----------
    lasting
        All that does not depend on it.
    store
        Where kernels are recorded.
    sharing
        What is asked about other gateways.
    """

    def __init__(self, lasting: LastingParts, store: KernelSessionManager, sharing: KernelSharing) -> None:
        table, restarter, log = lasting.table, lasting.restarter, lasting.log
        launches, transitions, admission = lasting.launches, lasting.transitions, lasting.admission
        self.records = records = KernelRecords(store, sharing, table, log)
        self.starts = KernelStarts(
            lasting.maker,
            sharing,
            records,
            launches,
            lasting.resources.turns,
            admission,
            table,
            cwd_for_path=lasting.cwd_for_path,
            shut_down=partial(lasting.shut_down, now=True),
            log=log,
        )
        self.changes = KernelChanges(transitions, records, sharing, restarter, lasting.remove)
        self.recovery = KernelRecovery(store, sharing, table, lasting.loader, admission.enter, restarter)
        self.leaving = Leaving(
            table, launches, transitions, sharing, records, restarter, shut_down=lasting.shut_down, log=log
        )


def replicas_of(
    store: SharingStore, lasting: LastingParts, recover: Callable[[Iterable[str]], Awaitable[RevivalReport]]
) -> Replicas:
    """Return what shares kernels with all gateways of a store; it has not begun yet.

    Parameters
    ----------
    recover
        Recovers kernels from their records, or removes what is left of them.
    """
    options = lasting.resources.options
    own = OwnKernels(
        table=lasting.table,
        listing=lasting.listing,
        loader=lasting.loader,
        restarter=lasting.restarter,
        enter=lasting.admission.enter,
        is_changing=lasting.is_changing,
        recover=recover,
        limits=lambda: (options.max_kernels, options.max_kernels_per_user),
        find_files=lasting.find_files,
    )
    return Replicas(store, own, lasting.log)
