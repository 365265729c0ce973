"""How a gateway shares its kernels with others: not at all, or through a store."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from ...core.errors import NotFoundError
from ..sessions.sessionmanager import MemoryTable, SessionTable

if TYPE_CHECKING:
    from ...core.limits import KernelLimits
    from ..sessions.revival import RevivalRules
    from .listing import KernelListing
    from .loader import KernelLoader
    from .remotekernel import RemoteKernelManager
    from .table import KernelTable

Step = Callable[["RemoteKernelManager"], Awaitable[None]]


class KernelSharing(ABC):
    """What the kernel manager and its parts ask about other gateways; a kernel has one *lease*, wherever it is held."""

    is_shared: bool
    """Whether other gateways use the same kernels: nothing is done with one before the store knows of it."""

    sessions: SessionTable
    """The notebooks' sessions."""

    # -- who manages a kernel: culls it, restarts it when it dies, writes its record

    @abstractmethod
    def holds(self, kernel_id: str) -> bool:
        """Whether this gateway manages the kernel, and no other one does."""

    @abstractmethod
    async def in_charge_of_dead(self, kernel: RemoteKernelManager) -> bool:
        """Return whether it is up to this gateway to restart a kernel whose process has ended."""

    @abstractmethod
    def yield_lease(self, kernel_id: str) -> None:
        """Note that another gateway manages the kernel."""

    @abstractmethod
    async def claim_new(self, kernel_id: str) -> None:
        """Take the lease of a kernel that is about to be started.

        Raises
        ------
        ConflictError
            Another kernel has this id.
        """

    @abstractmethod
    async def begin(self, kernel: RemoteKernelManager, record: Step) -> RemoteKernelManager:
        """Take a kernel's lease because a client wants it restarted or deleted here, and record that.

        What another gateway does with it at the moment is waited for. Returns the kernel as it is then.
        """

    @abstractmethod
    async def confirm(self, kernel_id: str) -> None:
        """Make sure that we still hold a kernel's lease before its process is touched, or used by clients.

        Raises
        ------
        LeaseLostError
            We do not.
        """

    @abstractmethod
    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that is gone."""

    # -- what all gateways have together

    @abstractmethod
    def place(self, user: str, kernel_id: str) -> AbstractAsyncContextManager[None]:
        """Hold a place under the limits while a kernel starts.

        Raises
        ------
        LimitReachedError
            One more kernel would exceed a limit.
        """

    @abstractmethod
    def alone(self, name: str) -> AbstractAsyncContextManager[None]:
        """Let no other gateway run a block of this name until ours ends."""

    @abstractmethod
    async def models(self) -> list[dict[str, Any]]:
        """Return the models of all kernels, also those that only other gateways are attached to."""

    @abstractmethod
    def connections_elsewhere(self, kernel_id: str) -> int:
        """Return how many websockets other gateways have for a kernel."""

    @abstractmethod
    def is_used_elsewhere(self, kernel_id: str) -> bool:
        """Whether another gateway manages a kernel, or has websockets for it, as far as we know."""

    @abstractmethod
    def revival_rules(self) -> RevivalRules:
        """Return what is to be observed when recorded kernels are recovered."""

    # -- this gateway's attachments

    @abstractmethod
    async def consult(self, kernel_id: str) -> None:
        """Update this gateway's connection to a kernel from the store; called for every request about it."""

    @abstractmethod
    async def attach(self, record: Mapping[str, Any]) -> bool:
        """Enter the kernel of a record in the table, if it is not there already.

        Raises
        ------
        NotFoundError
            The kernel is dead.
        """

    @abstractmethod
    async def let_others_notice(self) -> None:
        """Wait until others have noticed what was recorded."""

    # -- the end

    @abstractmethod
    async def retire(self) -> None:
        """Stop taking over kernels and following other replicas; called when the gateway begins to stop."""

    @abstractmethod
    async def leave(self) -> None:
        """Release all leases, so that others can take them at once; called when the gateway has stopped."""


class LoneGateway(KernelSharing):
    """A gateway that shares nothing: it has no other gateways to ask or to inform.

    Parameters
    ----------
    table
        The kernels.
    listing
        Makes their models.
    limits
        How many kernels there may be.
    loader
        Makes managers for recorded kernels.
    enter
        Connects to such a kernel and enters it in the table.
    """

    is_shared = False

    def __init__(
        self,
        table: KernelTable,
        listing: KernelListing,
        limits: KernelLimits,
        loader: KernelLoader,
        enter: Callable[[RemoteKernelManager], None],
    ) -> None:
        self.sessions = MemoryTable(table)
        self._table = table
        self._listing = listing
        self._limits = limits
        self._loader = loader
        self._enter = enter

    def holds(self, kernel_id: str) -> bool:
        """Whether this gateway manages the kernel: always."""
        return True

    async def in_charge_of_dead(self, kernel: RemoteKernelManager) -> bool:
        """Return True: no other gateway would restart it."""
        return True

    def yield_lease(self, kernel_id: str) -> None:
        """Do nothing: no other gateway can take it."""

    async def claim_new(self, kernel_id: str) -> None:
        """Do nothing: the table says which ids are in use."""

    async def begin(self, kernel: RemoteKernelManager, record: Step) -> RemoteKernelManager:
        """Record what is wanted, and return the kernel."""
        await record(kernel)
        return kernel

    async def confirm(self, kernel_id: str) -> None:
        """Do nothing: no lease can be lost."""

    def forget(self, kernel_id: str) -> None:
        """Do nothing: nothing was stored about a kernel."""

    @contextlib.asynccontextmanager
    async def place(self, user: str, kernel_id: str) -> AsyncIterator[None]:
        """Hold a place under the limits of this gateway."""
        with self._limits.reserve(user):
            yield

    @contextlib.asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        """Run the block."""
        yield

    async def models(self) -> list[dict[str, Any]]:
        """Return the models of the kernels in the table."""
        return self._listing.models()

    def connections_elsewhere(self, kernel_id: str) -> int:
        """Return 0."""
        return 0

    def is_used_elsewhere(self, kernel_id: str) -> bool:
        """Return False."""
        return False

    def revival_rules(self) -> RevivalRules:
        """Return no rules."""
        return {}

    async def consult(self, kernel_id: str) -> None:
        """Do nothing: no other gateway changes kernels."""

    async def attach(self, record: Mapping[str, Any]) -> bool:
        """Enter the kernel of a record in the table, unless it is there."""
        if record["kernel_id"] in self._table:
            return True
        kernel, is_alive = await self._loader.load_and_ask(record)
        if not is_alive:
            await kernel.disconnect()
            raise NotFoundError("its process is gone")
        self._enter(kernel)
        return True

    async def let_others_notice(self) -> None:
        """Return at once."""

    async def retire(self) -> None:
        """Do nothing: there are no others to follow."""

    async def leave(self) -> None:
        """Do nothing: there are no leases to release."""
