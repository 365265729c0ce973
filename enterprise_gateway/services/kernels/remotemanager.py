"""The manager of all kernels: one straight line from a request to a running kernel."""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import zmq.asyncio
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, NoSuchKernel
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from jupyter_core.paths import exists
from traitlets import Any as AnyTrait
from traitlets import Bool, DottedObjectName, Float, List, TraitError, Unicode, default, validate
from traitlets.utils.importstring import import_item

from ...core import envvars
from ...core.deadline import Deadline
from ...core.errors import (
    BrokenKernelSpecError,
    ConflictError,
    LaunchTimeoutError,
    NotFoundError,
    StoreUnavailableError,
    UnknownKernelSpecError,
)
from ...core.kernelargs import check_kernel_id, check_launch_timeout
from ...core.limits import KernelLimits
from ...core.offload import Errand, offload, uninterrupted
from ...core.steps import take_all
from ...provisioners.standalone import LibraryOptions
from ...transport.limits import ChannelLimits
from ...transport.response import Conflict
from ..processproxies.choice import launch_timeout, process_proxy_config
from ..processproxies.contract import gateway_user
from ..processproxies.remnants import Remnant, local_files
from ..processproxies.shared import SharedResources
from ..sessions.kernelsessionmanager import KernelSessionManager
from ..sessions.revival import RevivalReport
from ..sessions.sharingstore import SharingStore
from .changes import KernelChanges
from .culler import CullingOptions, KernelCuller
from .launches import Launches
from .listing import KernelListing
from .loader import KernelLoader
from .records import KernelRecords
from .recovery import KernelRecovery
from .relays import KernelRelays, new_context
from .remotekernel import RemoteKernelManager
from .replicas import OwnKernels, Replicas
from .restarter import KernelRestarter
from .sharing import KernelSharing, LoneGateway
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

RESTART_PATIENCE_SECONDS = 10.0  # that a gateway which ends gives restarts under way

STORE_PATIENCE_SECONDS = 30.0

ENDING_SECONDS = 30.0  # that kernels may take to end


class RemoteMappingKernelManager(CullingOptions, AsyncMultiKernelManager):
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
    kernel_info_timeout = Float(
        envvars.EG_KERNEL_INFO_TIMEOUT.default,
        config=True,
        help="""Seconds that a new kernel may take to answer for the first time. Its websockets wait for that before
        they open; afterwards clients' messages are passed on to it anyway.""",
    ).tag(env=envvars.EG_KERNEL_INFO_TIMEOUT)
    buffer_offline_messages = Bool(
        True, config=True, help="Whether messages are kept for clients while their websocket is away."
    )
    allowed_message_types = List(
        Unicode(), config=True, help="Types of messages that clients may send; empty allows all."
    )
    allow_tracebacks = Bool(True, config=True, help="Whether clients see the traceback of errors in their code.")
    traceback_replacement_message = Unicode(
        "An exception occurred at runtime, which is not shown due to security reasons.",
        config=True,
        help="Shown instead of a traceback when allow_tracebacks is off.",
    )
    kernel_session_manager = AnyTrait(
        None, allow_none=True, help="The store of kernel sessions; set by the application."
    )
    _is_stopping = False

    @classmethod
    def section_names(cls) -> list[str]:
        """Return the configuration sections that apply: operators use all of these names."""
        return ["MultiKernelManager", "MappingKernelManager", "AsyncMappingKernelManager", *super().section_names()]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = KernelTable(self._kernels)
        self.resources = SharedResources(self.parent if self.parent is not None else LibraryOptions(config=self.config))
        self.resources.on_conflict.append(self._note_conflict)
        options = self.resources.options
        self.limits = KernelLimits(
            self._running_by_user, lambda: options.max_kernels, lambda: options.max_kernels_per_user
        )
        self._relays = KernelRelays(lambda: self.context, self._channel_limits, options, self.log)
        self.listing = KernelListing(self.table, self.kernel_model, self.log)
        self.restarter = KernelRestarter(self, parent=self)
        self.culler = KernelCuller(
            self,
            self.table,
            looks_after=self.looks_after,
            connections=self.connections,
            shut_down=self.shutdown_kernel,
            log=self.log,
        )
        self.transitions = Transitions()
        self._loader = KernelLoader(self.make_kernel_manager, lambda: self.revives_on_request)
        self.launches = Launches(self.log)
        self._share(LoneGateway(self.table, self.listing, self.limits, self._loader, self.enter))
        self.observe(self._store_changed, "kernel_session_manager")

    def _store_changed(self, _: Any) -> None:
        self._share(self.replicas)

    def _share(self, replicas: KernelSharing) -> None:
        """Manage kernels by the store there is, and together with these gateways."""
        store = self.kernel_session_manager
        if store is None:
            store = KernelSessionManager(self, enable_persistence=False, sealing_key_file="", log=self.log)
        self.replicas = replicas
        self.records = KernelRecords(store, replicas, self.table, self.log)
        self.changes = KernelChanges(
            self.records, replicas, self.restarter, mark_dead=self.mark_dead, remove=self.remove_kernel
        )
        self.recovery = KernelRecovery(store, replicas, self.table, self._loader, self.enter, self.restarter)

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
            options = self.resources.options
            own = OwnKernels(
                table=self.table,
                listing=self.listing,
                loader=self._loader,
                restarter=self.restarter,
                enter=self.enter,
                mark_dead=self.mark_dead,
                is_changing=self.is_changing,
                recover=self._recover,
                limits=lambda: (options.max_kernels, options.max_kernels_per_user),
                find_files=self.find_files,
            )
            replicas = Replicas(store, own, self.log)
            self._share(replicas)
            replicas.start()

    async def known_kernels(self) -> set[str]:
        """Return the ids of all kernels that are recorded, or in the table; raises when the store cannot be asked."""
        return await self.records.kernel_ids() | set(self.table.ids())

    def is_changing(self, kernel_id: str) -> bool:
        """Whether a kernel is being started, restarted or stopped here."""
        return kernel_id in self.launches or bool(self.transitions.under_way(kernel_id))

    def looks_after(self, kernel: RemoteKernelManager) -> bool:
        """Whether this gateway, and no other one, culls the kernel and restarts it when it dies."""
        return self.replicas.holds(str(kernel.kernel_id))

    async def in_charge_of_dead(self, kernel: RemoteKernelManager) -> bool:
        """Return whether it is up to this gateway to restart a kernel whose process has ended."""
        return await self.replicas.in_charge_of_dead(kernel)

    def yield_lease(self, kernel: RemoteKernelManager) -> None:
        """Note that another gateway looks after the kernel."""
        self.replicas.yield_lease(str(kernel.kernel_id))

    def connections(self, kernel: RemoteKernelManager) -> int:
        """Return how many websockets all gateways have for the kernel."""
        here = kernel.channels.connections if kernel.channels is not None else 0
        return here + self.replicas.connections_elsewhere(str(kernel.kernel_id))

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
        env = dict(env or {})
        kernel_id = self._choose_kernel_id(kernel_id, env)
        if env.get("KERNEL_LAUNCH_TIMEOUT"):
            check_launch_timeout(env["KERNEL_LAUNCH_TIMEOUT"])
        name, spec = await self._find_kernel_spec(kernel_name or self.default_kernel_name)
        await self.resources.turns.wait()
        kernel = self._make_kernel_manager(kernel_id, name, spec)
        launch_args = {"env": env, "kernel_headers": kernel_headers or {}, "kernel_name": name, "path": path}
        try:
            async with self.replicas.place(env.get("KERNEL_USERNAME") or gateway_user(), kernel_id):
                if kernel_id in self.launches or kernel_id in self:  # since it was chosen
                    raise ConflictError(f"Kernel id {kernel_id} is in use; choose another KERNEL_ID.")
                launch = functools.partial(self._launch, kernel, launch_args, kwargs)
                await self.launches.run(kernel, launch, launch_timeout(spec, env))
        except (asyncio.CancelledError, LaunchTimeoutError):
            if self.table.has(kernel):  # too late: it was complete, but nobody will hear of it
                await uninterrupted(self.shutdown_kernel(kernel_id, now=True))
            raise
        self.log.info("Kernel started: %s (%s)", kernel_id, name)
        return kernel_id

    async def _launch(self, kernel: RemoteKernelManager, launch_args: dict[str, Any], kwargs: dict[str, Any]) -> None:
        """Launch one kernel, connect to it and enter it in the table; cancelled when nobody wants it any more."""
        env, headers, path = launch_args["env"], launch_args["kernel_headers"], launch_args["path"]
        cwd = {"cwd": await offload(self.cwd_for_path, path)} if path is not None else {}
        kernel.username = env.get("KERNEL_USERNAME") or gateway_user()
        await self.replicas.claim_new(str(kernel.kernel_id))
        try:
            await self.records.starting(kernel, launch_args)
            await kernel.start_kernel(env=dict(env), kernel_headers=headers, **cwd, **kwargs)
            await self.records.running(kernel)
            await self.resources.turns.wait()
            self._connect(kernel)
            if (conflict := kernel.conflict) is not None:
                await kernel.prove(conflict)
            self._manage(kernel)
        except BaseException:
            await uninterrupted(self._give_up(kernel))
            raise

    async def _give_up(self, kernel: RemoteKernelManager) -> None:
        """Remove what a failed launch has left, and then its record."""
        await kernel.abandon()
        await self.records.gone(kernel.kernel_id)

    def enter(self, kernel: RemoteKernelManager) -> None:
        """Connect to a kernel that runs and manage it from now on.

        Raises
        ------
        StoreUnavailableError
            The gateway is being stopped: nobody would close the connection.
        """
        self._connect(kernel)
        self._manage(kernel)

    def _connect(self, kernel: RemoteKernelManager) -> None:
        if self._is_stopping:
            raise StoreUnavailableError("The gateway is being stopped; please try again.")
        self._relays.connect(kernel)

    def _manage(self, kernel: RemoteKernelManager) -> None:
        self.table.enter(kernel)
        self.restarter.watch(kernel)
        self.culler.start()
        if self.keeps_kernels and not self.revives_on_request:
            self.records.keep_activity()

    def _note_conflict(self, conflict: Conflict) -> None:
        """Let a kernel whose report may have been another's prove that it is ours; called by the response server.

        One that is known to be another's is dead to its clients at once.
        """
        kernel = self.table.get(conflict.kernel_id)
        if kernel is None or kernel.channels is None:
            return
        if conflict.is_forged:
            self.restarter.end(kernel, f"another launcher, at {conflict.accepted_from}, has reported in its place")
        elif not conflict.is_proven:
            kernel.channels.contest()

    def _choose_kernel_id(self, kernel_id: str | None, env: dict[str, str]) -> str:
        chosen = kernel_id or env.get("KERNEL_ID")
        if not chosen:
            return str(uuid.uuid4())
        check_kernel_id(chosen)
        if chosen in self.launches or chosen in self:
            raise ConflictError(f"Kernel id {chosen} is in use; choose another KERNEL_ID.")
        return chosen

    async def _find_kernel_spec(self, name: str) -> tuple[str, KernelSpec]:
        """Return the kernelspec of a name, and the name it is installed under."""
        name = NATIVE_KERNEL_NAME if name == "python" else name
        manager = self.kernel_spec_manager
        assert manager is not None
        allowed = manager.allowed_kernelspecs
        cache = getattr(self.parent, "kernel_spec_cache", None)
        try:
            if allowed and name.lower() not in {entry.lower() for entry in allowed}:
                raise NoSuchKernel(name)
            if cache is not None:
                return name, await cache.get_kernel_spec(name)
            return name, await offload(manager.get_kernel_spec, name)
        except BrokenKernelSpecError:
            raise
        except NoSuchKernel as error:
            raise UnknownKernelSpecError(
                f"No kernelspec named {name[:100]!r} is installed; GET /api/kernelspecs lists those there are."
            ) from error

    async def make_kernel_manager(self, kernel_id: str, kernel_name: str) -> RemoteKernelManager:
        """Return the manager for a recorded kernel, not entered in the table yet."""
        name, spec = await self._find_kernel_spec(kernel_name)
        return self._make_kernel_manager(kernel_id, name, spec)

    def _make_kernel_manager(self, kernel_id: str, kernel_name: str, spec: KernelSpec) -> RemoteKernelManager:
        kernel: RemoteKernelManager = self.kernel_manager_factory(
            connection_file=os.path.join(self.connection_dir, f"kernel-{kernel_id}.json"),
            parent=self,
            log=self.log,
            kernel_name=kernel_name,
            kernel_spec_manager=self.kernel_spec_manager,
            transport_encryption=self.resources.options.transport_encryption,
        )
        kernel.kernel_id = kernel_id
        kernel._kernel_spec = spec  # read in a thread already; the property would read it again on the loop
        return kernel

    def _channel_limits(self) -> ChannelLimits:
        options = self.resources.options
        return ChannelLimits(
            replay=options.replay_limit if self.buffer_offline_messages else 0,
            max_message=options.ws_max_message_size,
            info_timeout=self.kernel_info_timeout,
            allowed_message_types=frozenset(self.allowed_message_types),
            allow_tracebacks=self.allow_tracebacks,
            traceback_replacement=self.traceback_replacement_message,
        )

    def cwd_for_path(self, path: str) -> str:
        """Return the directory for an API path: the nearest one that exists below ``root_dir``."""
        root = os.path.realpath(self.root_dir)
        directory = os.path.realpath(os.path.join(root, path.lstrip("/")))
        if os.path.commonpath([root, directory]) != root:
            return root
        while not os.path.isdir(directory):
            directory = os.path.dirname(directory)
        return directory

    def new_kernel_id(self, **kwargs: Any) -> str:
        """Return the id for a new kernel: the client's KERNEL_ID if it is usable, else a random one."""
        return new_kernel_id(**kwargs)

    def _running_by_user(self) -> Counter[str]:
        return Counter(kernel.username for kernel in self.table if self._takes_place(kernel))

    def _takes_place(self, kernel: RemoteKernelManager) -> bool:
        """Whether a kernel counts under the limits: unless it is dead, also when it fails to tell."""
        try:
            return kernel.execution_state != "dead"
        except Exception as error:  # noqa: BLE001 -- of one kernel: others are to be started
            self.log.warning("Kernel %s counts as one that runs: %r", kernel.kernel_id, error)
            return True

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
        may_be_recorded = self.revives_on_request or self.recovery.is_unsettled(kernel_id)
        if kernel_id not in self.table and may_be_recorded:
            await self.recovery.revive(kernel_id)
        return self.get_kernel(kernel_id)

    def get_kernel(self, kernel_id: str) -> RemoteKernelManager:
        """Return a kernel's manager if it is in the table."""
        return self.table.find(kernel_id)

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        """Return what the REST API says of a kernel."""
        kernel = self.get_kernel(kernel_id)
        model = {
            "id": kernel_id,
            "name": kernel.kernel_name,
            "last_activity": kernel.last_activity.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "execution_state": kernel.execution_state,
            "connections": self.connections(kernel),
        }
        if kernel.died_because:
            model["reason"] = kernel.died_because
        return model

    def kernel_details(self, kernel_id: str) -> dict[str, Any]:
        """Return the model of a kernel with the phases of its start, which lists of kernels leave out."""
        return {**self.kernel_model(kernel_id), "phases": self.get_kernel(kernel_id).phases}

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
            if isinstance(self.kernel_session_manager, SharingStore):
                await self._clear_leases(self.kernel_session_manager)
            await self.recovery.revive_all()

    async def _recover(self, kernel_ids: Iterable[str]) -> RevivalReport:
        """Recover the kernels of a replica that is gone."""
        return await self.recovery.revive_some(kernel_ids)

    async def _clear_leases(self, store: SharingStore) -> None:
        """Write records without leases: what replicas may have left there is of no meaning for a single gateway."""
        deadline = Deadline(STORE_PATIENCE_SECONDS)
        while True:
            try:
                return await store.clear_leases()
            except StoreUnavailableError:
                if deadline.expired:
                    raise
                await asyncio.sleep(1)

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
        """Interrupt what a kernel executes.

        Raises
        ------
        ConflictError
            The kernel is dead, or is being restarted or stopped: it executes nothing.
        """
        kernel = await self.find_kernel(kernel_id)
        state = self.transitions.under_way(kernel_id)
        if kernel.died_because and not state:
            state = f"is dead ({kernel.died_because})"
        if state or not kernel.has_kernel:
            raise ConflictError(f"Kernel {kernel_id} cannot be interrupted: it {state or 'has no process'}.")
        await kernel.interrupt_kernel()
        self.log.info("Kernel interrupted: %s", kernel_id)

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> None:  # type: ignore[override]
        """Restart a kernel; done when its new process is launched, by this request or by an earlier one.

        Raises
        ------
        ConflictError
            The kernel is being shut down.
        """
        kernel = await self.find_kernel(kernel_id)
        errand = Errand(kernel_id)
        env: Any = (kernel._launch_args or {}).get("env") or {}
        seconds = ENDING_SECONDS + launch_timeout(kernel.spec, env)
        try:
            await asyncio.wait_for(
                self.transitions.restart(kernel_id, lambda: self.changes.restart(kernel, now, errand)), seconds
            )
        except asyncio.TimeoutError:
            waits_for = errand.waits_for or "its process"
            raise LaunchTimeoutError(
                f"Kernel {kernel_id} is still being restarted after {seconds:g}s: it waits for {waits_for}."
            ) from None
        self.log.info("Kernel restarted: %s", kernel_id)

    async def relaunch(self, kernel: RemoteKernelManager, now: bool, newports: bool = False) -> None:
        """Replace the process of a kernel that has died; called by the restarter."""
        await self.transitions.restart(kernel.kernel_id, lambda: self.changes.relaunch(kernel, now, newports))

    def mark_dead(self, kernel: RemoteKernelManager, reason: str) -> None:
        """Keep a kernel that is gone in the table as dead, with the reason, until it is deleted or culled."""
        kernel.died_because = reason
        if kernel.channels is not None:
            kernel.channels.tell(f"The kernel is dead: {reason}. Restart it to go on; its variables are lost.\n")
            kernel.channels.announce_state("dead", reason)
        self.log.warning("Kernel %s is dead: %s", kernel.kernel_id, reason)

    async def shutdown_kernel(  # type: ignore[override]
        self, kernel_id: str, now: bool = False, restart: bool = False
    ) -> None:
        """Stop a kernel, also one that is starting, and remove all that belongs to it."""
        if kernel_id in self.launches:
            await self.launches.give_up(kernel_id)
            if kernel_id not in self:
                return
        kernel = await self.find_kernel(kernel_id)
        await self.transitions.stop(kernel_id, lambda: self.changes.shut_down(kernel, now, restart))
        self.log.info("Kernel shut down: %s", kernel_id)

    def remove_kernel(self, kernel_id: str) -> RemoteKernelManager | None:  # type: ignore[override]
        """Take a kernel out of the table."""
        return self.table.remove(kernel_id)

    async def shutdown_all(self, now: bool = False) -> None:  # type: ignore[override]
        """Stop all kernels at once; a failure of one is logged and does not keep the others."""
        for kernel in [kernel for kernel in self.table if not self.looks_after(kernel)]:
            self.remove_kernel(str(kernel.kernel_id))
            await self._detach(kernel)
        stops = {
            asyncio.ensure_future(self.shutdown_kernel(kernel_id, now=now)): kernel_id
            for kernel_id in [*self.launches.under_way, *self.table.ids()]
        }
        late = (await asyncio.wait(stops, timeout=ENDING_SECONDS))[1] if stops else set()
        for stop, kernel_id in stops.items():
            error = TimeoutError("a thread hangs") if stop in late else stop.exception()
            if isinstance(error, Exception) and not isinstance(error, NotFoundError):
                self.log.error("Kernel %s could not be shut down: %s", kernel_id, error)

    async def stop(self, keep_kernels: bool) -> None:
        """Stop managing kernels; called once when the gateway ends.

        Parameters
        ----------
        keep_kernels
            True leaves the kernels running and only detaches from them.
        """
        self._is_stopping = True
        steps: list[Callable[[], Any]] = [
            self.culler.stop,
            self.replicas.retire,
            self.restarter.stop,
            self.recovery.close,
            self.records.close,
            self._keep_all if keep_kernels else functools.partial(self.shutdown_all, now=True),
            self.replicas.leave,  # returns the leases, whatever went wrong before
        ]
        await take_all(steps, "The management of kernels", self.log)

    async def _keep_all(self) -> None:
        """Detach from all kernels, which live on."""
        await self.launches.give_up(*self.launches.under_way)
        await self.transitions.give_up_restarts(RESTART_PATIENCE_SECONDS)
        await asyncio.gather(*map(self._detach, self.table))
        for kernel_id in self.table.ids():
            self.table.remove(kernel_id)

    def find_files(self, besides: Collection[str]) -> list[Remnant]:
        """Return the files in this gateway's runtime directory of kernels other than those given; blocks."""
        label = self.resources.deployment.label
        return list(local_files(Path(self.connection_dir), [label] if label else [], besides))

    async def close(self) -> None:
        """Release what kernels share; called once, after :meth:`stop`."""
        await take_all([self.resources.close, self._relays.close], "The management of kernels", self.log)

    async def _detach(self, kernel: RemoteKernelManager) -> None:
        """Leave a kernel running; whatever goes wrong with it is logged and does not keep the others."""
        steps: list[Callable[[], Any]] = [
            functools.partial(self.restarter.unwatch, kernel),
            kernel.detach,
            functools.partial(self.records.left, kernel),
        ]
        await take_all(steps, f"Kernel {kernel.kernel_id}", self.log)


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
