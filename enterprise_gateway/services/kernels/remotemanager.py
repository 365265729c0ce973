"""The manager of all kernels: one straight line from a request to a running kernel."""

from __future__ import annotations

import functools
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import zmq.asyncio
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from jupyter_core.paths import exists
from traitlets import Any as AnyTrait
from traitlets import DottedObjectName, TraitError, Unicode, default, validate
from traitlets.utils.importstring import import_item

from ...core.kernelargs import check_kernel_id
from ...core.limits import KernelLimits
from ...core.steps import take_all
from ...provisioners.standalone import LibraryOptions
from ..processproxies.choice import process_proxy_config
from ..processproxies.shared import SharedResources
from ..sessions.kernelsessionmanager import KernelSessionManager
from ..sessions.revival import RevivalReport
from ..sessions.sharingstore import SharingStore
from .admission import Admission
from .channeloptions import ChannelOptions
from .culler import CullingOptions, KernelCuller
from .launches import Launches
from .listing import KernelListing
from .loader import KernelLoader
from .making import KernelMaker
from .parts import LastingParts, StoreParts, replicas_of
from .proofs import note_conflict
from .relays import KernelRelays, new_context
from .remotekernel import RemoteKernelManager
from .restarter import KernelRestarter
from .sharing import KernelSharing, LoneGateway
from .starts import StartRequest, directory_below
from .table import KernelTable
from .transitions import Transitions

__all__ = [
    "RemoteKernelManager",
    "RemoteMappingKernelManager",
    "TrackPendingRequests",
    "get_process_proxy_config",
    "import_item",
    "new_kernel_id",
]


class RemoteMappingKernelManager(CullingOptions, ChannelOptions, AsyncMultiKernelManager):
    """Starts, lists, restarts, culls and stops kernels; one per gateway.

    The application is its ``parent`` and carries the options. Handlers call the coroutines below; all of them raise
    errors of :mod:`enterprise_gateway.core.errors`.
    """

    kernel_manager_class = DottedObjectName(
        "enterprise_gateway.services.kernels.remotemanager.RemoteKernelManager",
        config=True,
        help="The class that manages one kernel; a subclass of RemoteKernelManager.",
    )
    root_dir = Unicode(config=True, help="Directory that the `path` of a start request is relative to.")
    kernel_session_manager = AnyTrait(
        None, allow_none=True, help="The store of kernel sessions; set by the application."
    )

    @classmethod
    def section_names(cls) -> list[str]:
        """Return the configuration sections that apply: operators use all of these names."""
        return ["MultiKernelManager", "MappingKernelManager", "AsyncMappingKernelManager", *super().section_names()]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = KernelTable(self._kernels)
        self.resources = SharedResources(self.parent if self.parent is not None else LibraryOptions(config=self.config))
        options = self.resources.options
        self.listing = KernelListing(self.table, self.kernel_model, lambda: self.replicas, self.log)
        self.limits = KernelLimits(
            self.listing.running_by_user, lambda: options.max_kernels, lambda: options.max_kernels_per_user
        )
        self.restarter = KernelRestarter(self._relaunch, lambda: self.replicas, self.listing.connections, parent=self)
        self.culler = KernelCuller(
            self,
            self.table,
            manages=lambda kernel: self.replicas.holds(str(kernel.kernel_id)),
            connections=self.listing.connections,
            shut_down=self.shutdown_kernel,
            log=self.log,
        )
        self._relays = KernelRelays(lambda: self.context, lambda: self.channel_limits(options), options, self.log)
        self.launches = Launches(self.log)
        self.transitions = Transitions()
        self._lasting = LastingParts(
            self.table,
            self.listing,
            KernelMaker(
                specs=lambda: self.kernel_spec_manager,
                cache=lambda: getattr(self.parent, "kernel_spec_cache", None),
                new_manager=self._new_manager,
                directory=lambda: Path(self.connection_dir),
            ),
            KernelLoader(self.make_kernel_manager, self.cwd_for_path, lambda: self.revives_on_request),
            self.restarter,
            Admission(self._relays, self.table, self.restarter, self.culler, self._keep_activity),
            self.resources,
            self.launches,
            self.transitions,
            directory=lambda: Path(self.connection_dir),
            cwd_for_path=self.cwd_for_path,
            remove=self.remove_kernel,
            shut_down=self.shutdown_kernel,
            log=self.log,
        )
        self.resources.on_conflict.append(functools.partial(note_conflict, self.table, self.restarter))
        lasting = self._lasting
        self._share(LoneGateway(self.table, self.listing, self.limits, lasting.loader, lasting.admission.enter))
        self.observe(lambda _: self._share(self.replicas), "kernel_session_manager")

    def _share(self, replicas: KernelSharing) -> None:
        """Manage kernels by the store there is, and together with these gateways."""
        store = self.kernel_session_manager
        if store is None:
            store = KernelSessionManager(self, enable_persistence=False, sealing_key_file="", log=self.log)
        self.replicas = replicas
        self.parts = StoreParts(self._lasting, store, replicas)

    @default("context")
    def _context_default(self) -> zmq.asyncio.Context:
        self._created_context = True
        return new_context()

    @default("root_dir")
    def _root_dir_default(self) -> str:
        return os.getcwd()

    @validate("root_dir")
    def _root_dir_validate(self, proposal: Any) -> str:
        path = os.path.abspath(proposal["value"])
        if not exists(path) or not os.path.isdir(path):
            raise TraitError(f"root_dir {path!r} is not a directory")
        return path

    @property
    def keeps_kernels(self) -> bool:
        """Whether kernels live on when the gateway ends, because their sessions are stored."""
        store = self.kernel_session_manager
        return bool(store is not None and store.enable_persistence)

    @property
    def revives_on_request(self) -> bool:
        """Whether a kernel that is not in the table may be one of another replica."""
        return self.resources.options.availability_mode == "replication"

    def join_replicas(self) -> None:
        """Share kernels with other gateways, if the store can keep them apart; called at start in replication mode."""
        store = self.kernel_session_manager
        if self.revives_on_request and self.keeps_kernels and isinstance(store, SharingStore):
            replicas = replicas_of(store, self._lasting, recover=self._recover)
            self._share(replicas)
            replicas.start()

    async def known_kernels(self) -> set[str]:
        """Return the ids of all kernels that are recorded, or in the table; raises when the store cannot be asked."""
        return await self.parts.records.kernel_ids() | set(self.table.ids())

    # --- start

    async def start_kernel(  # type: ignore[override]
        self,
        *,
        kernel_name: str | None = None,
        path: str | None = None,
        env: dict[str, str] | None = None,
        kernel_headers: dict[str, str] | None = None,
        kernel_id: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Start a kernel and return its id; called by the handlers of kernels and sessions.

        Parameters
        ----------
        kernel_name
            Name of a kernelspec; None means ``default_kernel_name``.
        path
            Directory the kernel is to start in, relative to ``root_dir``.
        env
            The client's accepted variables.
        kernel_headers
            Request headers captured for the process proxy.

        Raises
        ------
        GatewayError
            The request cannot be used (4xx), or the launch failed: then nothing of it is left.
        """
        return await self.parts.starts.start(
            StartRequest(
                kernel_name or self.default_kernel_name, path, env or {}, kernel_headers or {}, kernel_id, kwargs
            )
        )

    def _keep_activity(self) -> None:
        """Record what kernels do, where nobody else is told of it at once; called when one is managed."""
        if self.keeps_kernels and not self.revives_on_request:
            self.parts.records.keep_activity()

    async def make_kernel_manager(self, kernel_id: str, kernel_name: str) -> RemoteKernelManager:
        """Return the manager for a recorded kernel, not entered in the table yet."""
        return await self._lasting.maker.make_of_name(kernel_id, kernel_name)

    def _new_manager(self, kernel_name: str, connection_file: str) -> RemoteKernelManager:
        kernel: RemoteKernelManager = self.kernel_manager_factory(
            connection_file=connection_file,
            parent=self,
            log=self.log,
            kernel_name=kernel_name,
            kernel_spec_manager=self.kernel_spec_manager,
            transport_encryption=self.resources.options.transport_encryption,
        )
        return kernel

    def cwd_for_path(self, path: str) -> str:
        """Return the directory for an API path: the nearest one that exists below ``root_dir``."""
        return directory_below(self.root_dir, path)

    def new_kernel_id(self, **kwargs: Any) -> str:
        """Return the id for a new kernel: the client's KERNEL_ID if it is usable, else a random one."""
        return new_kernel_id(**kwargs)

    # --- find, list

    async def find_kernel(self, kernel_id: str) -> RemoteKernelManager:
        """Return a kernel's manager, reviving the kernel from the session store in replication mode.

        Raises
        ------
        NotFoundError
            There is no such kernel.
        StoreUnavailableError
            There may be such a kernel: the store, or what the kernel runs on, cannot be asked.
        """
        await self.replicas.consult(kernel_id)
        may_be_recorded = self.revives_on_request or self.parts.recovery.is_unsettled(kernel_id)
        if kernel_id not in self.table and may_be_recorded:
            await self.parts.recovery.revive(kernel_id)
        return self.get_kernel(kernel_id)

    def get_kernel(self, kernel_id: str) -> RemoteKernelManager:
        """Return a kernel's manager if it is in the table."""
        return self.table.find(kernel_id)

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        """Return what the REST API says of a kernel."""
        return self.listing.describe(kernel_id)

    def kernel_details(self, kernel_id: str) -> dict[str, Any]:
        """Return the model of a kernel with the phases of its start, which lists of kernels leave out."""
        return self.listing.details(kernel_id)

    def list_kernels(self) -> list[dict[str, Any]]:
        """Return the models of all kernels in the table, in the order of their start."""
        return self.listing.models()

    async def models(self) -> list[dict[str, Any]]:
        """Return the models of all kernels, also those that only other replicas are attached to."""
        return await self.replicas.models()

    # --- recovering recorded kernels

    async def revive_all(self) -> None:
        """Recover every recorded kernel that lives, remove the others; called at start in standalone mode."""
        if self.keeps_kernels:
            await self.parts.recovery.revive_all()

    async def _recover(self, kernel_ids: Iterable[str]) -> RevivalReport:
        return await self.parts.recovery.revive_some(kernel_ids)

    async def start_kernel_from_session(self, **record: Any) -> bool:
        """Take over one kernel from the entries of its record; kept for stores of third parties.

        Raises
        ------
        NotFoundError
            The kernel is dead.
        """
        return await self.replicas.attach(record)

    # --- interrupt, restart, shutdown

    async def interrupt_kernel(self, kernel_id: str) -> None:  # type: ignore[override]
        """Interrupt what a kernel executes; ConflictError when that is nothing."""
        await self.parts.changes.interrupt(await self.find_kernel(kernel_id))
        self.log.info("Kernel interrupted: %s", kernel_id)

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> None:  # type: ignore[override]
        """Restart a kernel; done when its new process is launched, by this request or by an earlier one."""
        kernel = await self.find_kernel(kernel_id)
        await self.parts.changes.restart(kernel, now)
        self.log.info("Kernel restarted: %s", kernel_id)

    async def _relaunch(self, kernel: RemoteKernelManager, now: bool, newports: bool) -> None:
        await self.parts.changes.relaunch(kernel, now, newports)

    async def shutdown_kernel(  # type: ignore[override]
        self, kernel_id: str, now: bool = False, restart: bool = False
    ) -> None:
        """Stop a kernel, also one that is starting, and remove all that belongs to it."""
        if kernel_id in self.launches:
            await self.launches.give_up(kernel_id)
            if kernel_id not in self:
                return
        kernel = await self.find_kernel(kernel_id)
        await self.parts.changes.shut_down(kernel, now, restart)
        self.log.info("Kernel shut down: %s", kernel_id)

    def remove_kernel(self, kernel_id: str) -> RemoteKernelManager | None:  # type: ignore[override]
        """Take a kernel out of the table."""
        return self.table.remove(kernel_id)

    async def shutdown_all(self, now: bool = False) -> None:  # type: ignore[override]
        """Stop all kernels at once; a failure of one is logged and does not keep the others."""
        await self.parts.leaving.stop_all(now)

    async def stop(self, keep_kernels: bool) -> None:
        """Stop managing kernels; called once when the gateway ends.

        Parameters
        ----------
        keep_kernels
            True leaves the kernels running and only detaches from them.
        """
        self._lasting.admission.close()
        steps: list[Callable[[], Any]] = [
            self.culler.stop,
            self.replicas.retire,
            self.restarter.stop,
            self.parts.recovery.close,
            self.parts.records.close,
            self.parts.leaving.keep_all if keep_kernels else functools.partial(self.shutdown_all, now=True),
            self.replicas.leave,  # returns the leases, whatever went wrong before
        ]
        await take_all(steps, "The management of kernels", self.log)

    async def close(self) -> None:
        """Release what kernels share; called once, after :meth:`stop`."""
        await take_all([self.resources.close, self._relays.close], "The management of kernels", self.log)


class TrackPendingRequests:
    """Counts starts that are under way, in total and per user; kept for those who import it."""

    def __init__(self) -> None:
        self._pending: Counter[str] = Counter()

    def increment(self, username: str) -> None:
        """Count one more start of a user."""
        self._pending[username] += 1

    def decrement(self, username: str) -> None:
        """Count one start of a user less."""
        self._pending[username] -= 1

    def get_counts(self, username: str) -> tuple[int, int]:
        """Return the starts under way of all users, and of this one."""
        return self._pending.total(), self._pending[username]


def get_process_proxy_config(kernelspec: KernelSpec) -> dict[str, Any]:
    """Return the process-proxy stanza of a kernelspec, completed by defaults."""
    return process_proxy_config(kernelspec)


def new_kernel_id(**kwargs: Any) -> str:
    """Return ``kwargs["env"]["KERNEL_ID"]`` if it is set, else a new id.

    Raises
    ------
    InvalidRequestError
        The KERNEL_ID is not a version 4 UUID.
    """
    chosen = (kwargs.get("env") or {}).get("KERNEL_ID")
    return check_kernel_id(chosen) if chosen else str(uuid.uuid4())
