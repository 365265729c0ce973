"""The manager of one kernel.

How it ends, and for whom:

================== ============================================ =========== ========== =========================
method             when                                         its process websockets the kernel's record
================== ============================================ =========== ========== =========================
shutdown_kernel    a client, the culler or the gateway stops it ends        closed     removed
abandon            its launch has failed                        ends        closed     removed
remove_leftovers   its start, restart or stop was cut short     ends        none       removed
end_process        it is dead for good, or its process is one   ends        stay       stays
                   too many
detach             the gateway ends, and the kernel lives on    lives on    closed     stays, with what it did last
disconnect         another object of this gateway stands for it lives on    moved      stays
discard            another gateway has removed it               has ended   closed     removed, by that gateway
close              part of most of these: its channels          untouched   closed     untouched
================== ============================================ =========== ========== =========================

A lease is yielded (``KernelSharing.yield_lease``) when another gateway looks after the kernel from now on: that ends
nothing. The restarter stops watching a kernel (``unwatch``) before one is ended on purpose.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from jupyter_client.connect import write_connection_file
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from traitlets import Bool
from traitlets.config import Config

from ...core.connection import CHANNEL_PORTS, ConnectionInfo
from ...core.errors import KernelLaunchError, LaunchTimeoutError
from ...core.offload import offload, uninterrupted
from ...core.states import Phase, Progress, Step
from ...provisioners.choice import make_process
from ...provisioners.kernelprocess import KernelProcess
from ...provisioners.standalone import OPTIONS, LibraryOptions
from ...transport.openrequests import KERNEL_SHUT_DOWN
from ...transport.resumption import Memory
from ..processproxies.contract import BaseProcessProxyABC
from ..processproxies.launchedkernel import LaunchAddress
from ..processproxies.shared import SharedResources, gateway_environment

if TYPE_CHECKING:
    from jupyter_client.connect import KernelConnectionInfo

    from ...transport.channels import KernelChannels
    from ...transport.response import Conflict

_OF_CONNECTION_FILES = ("transport", "ip", "kernel_name", "curve_publickey", "curve_secretkey")  # besides ports and key


class KernelParent(Protocol):
    """What a kernel uses of the manager of all kernels; without a gateway there is none."""

    resources: SharedResources
    """What the launches of all kernels share."""

    @property
    def keeps_kernels(self) -> bool:
        """Whether kernels live on when the gateway ends."""

    def cwd_for_path(self, path: str) -> str:
        """Return the directory for an API path."""


class RemoteKernelManager(AsyncKernelManager):
    """Starts, restarts and stops one kernel through its process proxy.

    Every option of the gateway can be read from it by name (``port_range``, ``authorized_users`` …): process proxies
    do so. In a gateway these are the application's; without one (``NotebookClient(kernel_manager_class=…)``) they come
    from the environment and from configuration.
    """

    restarting = Bool(False, help="Whether the kernel is being restarted now.")

    parent: KernelParent
    provisioner: KernelProcess | None = None
    channels: KernelChannels | None = None
    username = ""
    started = datetime.now(timezone.utc)
    died_because = ""
    reached_as = ""
    is_recorded = True  # False while the store may not know of the present process
    closing_because = ""
    restarts = 0
    inherited: Memory | None = None
    _handed_over: Memory | None = None
    _resources: SharedResources | None = None
    _sigint: int | None = None
    _busy: asyncio.Lock | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relay_identity = uuid.uuid4().hex
        self.progress = Progress()

    def _find_my_config(self, cfg: Config) -> Config:
        """Leave out the options of :class:`LibraryOptions`, where they apply; called by traitlets."""
        config: Config = super()._find_my_config(cfg)
        if isinstance(getattr(self.parent, "resources", None), SharedResources):
            return config
        return Config({name: value for name, value in config.items() if name not in OPTIONS})

    if not TYPE_CHECKING:  # else mypy would take any attribute for an option

        def __getattr__(self, name: str) -> Any:
            """Return an option of the gateway, for process proxies of third parties, which look for it here."""
            if name in OPTIONS:
                return getattr(self.options, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def options(self) -> Any:
        """The options in force, one attribute each."""
        return self.resources.options

    @property
    def spec(self) -> KernelSpec:
        """The kernel's kernelspec."""
        spec = self.kernel_spec
        assert spec is not None  # it was found before the manager was made
        return spec

    @property
    def resources(self) -> SharedResources:
        """What this kernel's launch shares with others': the mapping manager's, or its own in library mode."""
        shared = getattr(self.parent, "resources", None)
        if isinstance(shared, SharedResources):
            return shared
        if self._resources is None:
            self._resources = SharedResources(LibraryOptions(config=self.config))
        return self._resources

    @property
    def process_proxy(self) -> BaseProcessProxyABC | None:
        """The process proxy of the present launch."""
        return self.provisioner.process_proxy if self.provisioner is not None else None

    @property
    def response_address(self) -> str:
        """Where the launcher reports, ``ip:port``; empty for local kernels. For process proxies of third parties."""
        return self._launch_address.response_address

    @property
    def public_key(self) -> str:
        """The key that the launcher encrypts its response with."""
        return self._launch_address.public_key

    @property
    def _launch_address(self) -> LaunchAddress:
        return self.provisioner.launch_address if self.provisioner is not None else LaunchAddress()

    @property
    def process(self) -> KernelProcess:
        """The kernel's process, as far as it was launched; made by the first launch."""
        assert self.provisioner is not None
        return self.provisioner

    @property
    def is_remote(self) -> bool:
        """Whether the kernel has a launcher beside it."""
        return self.provisioner is not None and self.provisioner.is_remote

    @property
    def conflict(self) -> Conflict | None:
        """What makes it doubtful whether the kernel of the present launch is ours; None where nothing does."""
        return self.provisioner.conflict if self.provisioner is not None else None

    @property
    def outlives_gateway(self) -> bool:
        """Whether the kernel is to live on when the gateway ends."""
        return bool(getattr(self.parent, "keeps_kernels", False))

    @property
    def execution_state(self) -> str:
        """The kernel's state by its last status message: ``starting``, ``idle``, ``busy``, ``restarting``, ``dead``."""
        return self.channels.execution_state if self.channels is not None else "starting"

    @property
    def memory(self) -> Memory:
        """What the next gateway has to know of the conversation with the kernel."""
        if self._handed_over is not None:
            return self._handed_over
        if self.channels is not None:
            return self.channels.memory()
        return Memory(identities=(self.relay_identity,))

    @property
    def last_activity(self) -> datetime:
        """When the kernel last did something for a client (UTC)."""
        return self.channels.last_activity if self.channels is not None else datetime.now(timezone.utc)

    @property
    def phases(self) -> list[dict[str, Any]]:
        """The phases of the present process's start, as the REST API shows them."""
        phases = self.progress.to_list()
        if self.channels is not None:
            reached = {Phase.CONNECTED: self.channels.connected_at, Phase.ANSWERED: self.channels.answered_at}
            phases += [Step(phase, at).to_dict() for phase, at in reached.items() if at]
        return phases

    # --- start

    def write_connection_file(self, **kwargs: Any) -> None:
        """Write the connection file beside its place and move it there; called by provisioners of local kernels.

        So nothing is ever written to, or waited for at, what somebody else has put there.

        Raises
        ------
        KernelLaunchError
            The place is taken by what cannot be removed, or nothing can be written there.
        """
        path = self.connection_file
        if not path or (self._connection_file_written and os.path.exists(path)):
            super().write_connection_file(**kwargs)
            return
        draft = f"{path}.{secrets.token_hex(8)}"
        content: dict[str, Any] = {name: getattr(self, name) for name in (*CHANNEL_PORTS, *_OF_CONNECTION_FILES)}
        content.update(key=self.session.key, signature_scheme=self.session.signature_scheme, **kwargs)
        try:
            _, info = write_connection_file(draft, **content)
            os.replace(draft, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(draft)
            raise KernelLaunchError(f"The connection file {path} cannot be written: {error.strerror}.") from error
        self._record_random_port_names()
        for name in CHANNEL_PORTS:
            setattr(self, name, info[name])  # type: ignore[literal-required]
        self._connection_file_written = True

    async def _async_start_kernel(self, **kwargs: Any) -> None:
        """Launch the kernel; whatever goes wrong, nothing of the attempt is left behind."""
        self._attempted_start = True
        self._ready = asyncio.get_running_loop().create_future()
        self.started = datetime.now(timezone.utc)
        self.progress = Progress()
        self.progress.reach(Phase.QUEUED)
        try:
            await self.resources.turns.wait()
            command, kwargs = await self._async_pre_start_kernel(**kwargs)
            await self._async_launch_kernel(command, **kwargs)
            await self._async_post_start_kernel(**kwargs)
        except BaseException:
            self._ready.cancel()
            await uninterrupted(self.abandon())
            raise
        self._ready.set_result(None)

    start_kernel = _async_start_kernel

    async def _async_pre_start_kernel(self, **kwargs: Any) -> tuple[list[str], dict[str, Any]]:
        """Attach the adapter to the kernel's process proxy, unless its kernelspec names a provisioner."""
        if not self.kernel_id:
            self.kernel_id = kwargs.pop("kernel_id", None) or str(uuid.uuid4())
        kwargs.pop("kernel_id", None)
        if self.provisioner is None:
            self.provisioner = await make_process(self, self)
        if not isinstance(getattr(self.parent, "resources", None), SharedResources) and kwargs.get("env") is None:
            env = gateway_environment()
            kwargs["env"] = {name: value for name, value in env.items() if name.startswith("KERNEL_")}
        return await super()._async_pre_start_kernel(**kwargs)

    def _reconcile_connection_info(self, info: KernelConnectionInfo) -> None:
        """Take over what a launcher reported, without the file that jupyter_client would write on the loop.

        Nobody reads it for a remote kernel, and it holds the key.
        """
        if self.process.connection is None:
            super()._reconcile_connection_info(info)
        if not self.process.is_remote:
            return
        for name in CHANNEL_PORTS:
            setattr(self, name, 0)
        self.load_connection_info(info)

    async def _async_post_start_kernel(self, **kwargs: Any) -> None:
        """Let the provisioner finish; control sockets are connected when needed, deaths watched by the parent."""
        await self.process.post_launch(**kwargs)

    pre_start_kernel = _async_pre_start_kernel
    post_start_kernel = _async_post_start_kernel

    async def abandon(self) -> None:
        """Remove what a failed launch may have created."""
        self.shutting_down = True
        steps: list[Callable[[], Awaitable[None]]] = [self._async_kill_kernel, self._async_cleanup_resources]
        if not self.restarting:  # else its clients are still to hear what became of it
            steps.append(self.close)
        await self._take_steps(steps)

    async def _async_cleanup_resources(self, restart: bool = False) -> None:
        """Release what the kernel holds; its connection file is removed in a thread, not on the loop."""
        if not restart and self._connection_file_written:
            await offload(self.cleanup_connection_file)
        await super()._async_cleanup_resources(restart=restart)

    cleanup_resources = _async_cleanup_resources

    def stop_relaying(self, *, has_died: bool) -> None:
        """Keep what clients send for the process that is about to be started; they are told of a death only."""
        if self.channels is None or self.channels.is_told_of_restart:
            return
        if has_died:
            self.channels.announce_state("restarting")
        elif self.execution_state != "restarting":
            self.channels.hold()

    async def end_process(self) -> None:
        """End what there is of the kernel's process, with its process group, and give back ports, tunnels and files.

        Called for a kernel that is dead for good, and for a process that the kernel must not have. The kernel's clients
        stay, and it can still be restarted, with other ports.
        """
        await self._take_steps([self._async_kill_kernel, self._async_cleanup_resources])

    async def end_remnants(self) -> bool:
        """End every process that carries the kernel's id, also one that no record describes; whether there was any."""
        try:
            return await self.process.remove_leftovers()
        except Exception as error:  # noqa: BLE001
            self.log.warning("What is left of kernel %s could not be removed: %r", self.kernel_id, error)
            return False

    async def _take_steps(self, steps: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """End what there is of a kernel: one step that fails does not keep the others."""
        for step in steps:
            try:
                await step()
            except Exception as error:  # noqa: BLE001
                # A back end may be unable to undo what it did not do; the reason of a failure is told already.
                self.log.warning("Kernel %s could not be cleaned up completely: %r", self.kernel_id, error)

    async def prove(self, conflict: Conflict) -> None:
        """Wait until a kernel that two launchers have reported for has proved that it has the key that it is used with.

        Raises
        ------
        KernelLaunchError
            It has not within the launch time-out, or is known to be another's.
        """
        channels = self.channels
        assert channels is not None
        both = f"from {conflict.accepted_from} and then from {conflict.refused_from}"
        reported = f"KernelID: '{self.kernel_id}' was reported twice, {both}"
        try:
            await channels.ready(self.process.launch_seconds_left)
        except (TimeoutError, ConnectionError) as error:
            raise LaunchTimeoutError(f"{reported}, and has not proved that it has the key: {error}") from error
        if self.conflict is not None and self.conflict.is_forged:
            raise KernelLaunchError(f"{reported}, where only the second one had the secret of the launch")

    def connect_channels(self, channels: KernelChannels, delay: float = 0.0) -> None:
        """Use ``channels`` for the kernel, connected to its present process; see :meth:`KernelChannels.connect`."""
        self.channels = channels
        channels.connect(self.connection(), is_contested=self.conflict is not None, delay=delay)

    def connection(self) -> ConnectionInfo:
        """Return how the kernel is reached now."""
        known = self.provisioner.connection if self.provisioner is not None else None
        return known or ConnectionInfo.from_dict(self.get_connection_info())

    # --- taking over a kernel of an earlier gateway

    async def process_info(self) -> dict[str, Any]:
        """Return what is recorded of the kernel's process."""
        return await self.process.get_provisioner_info()

    async def load_process(self, process_info: dict[str, Any]) -> None:
        """Attach to the process that a record describes; it may turn out to be gone."""
        self.provisioner = await make_process(self, self)
        await self.provisioner.load_provisioner_info(process_info)

    async def take_over(self, info: ConnectionInfo, record: Mapping[str, Any]) -> None:
        """Use the connection that a record describes, and what the kernel was launched with for its restarts."""
        self.load_connection_info(info.to_dict())  # type: ignore[arg-type]
        self._connection_file_written = True
        launched_with = record.get("launch_args") or {}
        launch_args: dict[str, Any] = {name: launched_with.get(name) or {} for name in ("env", "kernel_headers")}
        if launched_with.get("path") is not None:
            launch_args["cwd"] = await offload(self.parent.cwd_for_path, launched_with["path"])
        self._launch_args = launch_args
        self._attempted_start = True
        saved_at = float(record.get("saved_at") or time.time())
        self.started = datetime.fromtimestamp(float(record.get("started") or saved_at), timezone.utc)
        self.restarts = int(record.get("restarts") or 0)
        self.inherited = Memory.from_record(record.get("relay"))
        self.inherited.last_activity = self.inherited.last_activity or saved_at
        self.ready.set_result(None)
        self.process.connection = info
        self.process.claim_ports()

    async def ask_whether_alive(self) -> bool:
        """Return whether the kernel lives; raises when that is not known, where polling takes it for alive."""
        return await self.process.ask() is None

    async def remove_leftovers(self) -> None:
        """Remove what an interrupted start, restart or stop has left of the kernel."""
        await self.process.remove_leftovers()
        self._connection_file_written = True  # by whom the kernel was started: it is to be removed
        await self.abandon()

    # --- interrupt, shutdown, restart

    async def _async_signal_kernel(self, signum: int) -> None:
        """Send a signal; an interrupt is sent as the signal that the kernelspec's EG_ALTERNATE_SIGINT names."""
        if signum == signal.SIGINT:
            if self._sigint is None:
                self._sigint = self._interrupt_signal()
            signum = self._sigint
        await super()._async_signal_kernel(signum)

    signal_kernel = _async_signal_kernel

    def _interrupt_signal(self) -> int:
        name = self.spec.env.get("EG_ALTERNATE_SIGINT", "SIGINT")
        try:
            return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
        except KeyError:
            self.log.warning("EG_ALTERNATE_SIGINT=%s of kernelspec %s is no signal", name, self.kernel_name)
            return signal.SIGINT.value

    async def _async_interrupt_kernel(self) -> None:
        """Interrupt what the kernel executes, by signal or by message as its kernelspec says."""
        if self.spec.interrupt_mode == "message" and self.channels is not None:
            self.channels.post("interrupt_request", {})
        else:
            await super()._async_interrupt_kernel()

    interrupt_kernel = _async_interrupt_kernel

    async def _async_request_shutdown(self, restart: bool = False) -> None:
        """Ask the kernel to shut down, through the gateway's channels when there are any."""
        await self.resources.turns.wait()  # a socket is opened for it
        if self.channels is None:
            await super()._async_request_shutdown(restart=restart)
            return
        self.channels.post("shutdown_request", {"restart": restart})
        await self.process.shutdown_requested(restart=restart)

    request_shutdown = _async_request_shutdown

    async def _async_wait(self, pollinterval: float = 0.1) -> None:
        """Wait for the kernel's end: an event where the back end has one."""
        await self.process.wait_for_exit()

    async def wait_for_exit(self) -> int | None:
        """Wait until the kernel has ended of its own; return its exit code, None when it is not known."""
        return await self.process.wait_for_exit()

    async def _async_shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Stop the kernel; after it nothing of it is left, unless it is about to be restarted."""
        self.shutting_down = True
        steps: list[Callable[[], Awaitable[None]]] = [self._async_interrupt_kernel] if self.has_kernel else []
        if now:
            steps.append(self._async_kill_kernel)
        else:
            steps.append(partial(self._async_request_shutdown, restart=restart))
            steps.append(partial(self._async_finish_shutdown, restart=restart))
        steps.append(partial(self._async_cleanup_resources, restart=restart))
        try:
            await self._take_steps(steps)
        finally:
            if not restart:
                await self.close()

    shutdown_kernel = _async_shutdown_kernel

    async def _async_send_kernel_sigterm(self, restart: bool = False) -> None:
        """Ask the process to end; a back end that cannot do so is asked to kill it next."""
        try:
            await super()._async_send_kernel_sigterm(restart=restart)
        except Exception as error:  # noqa: BLE001  # of a third party
            self.log.warning("Kernel %s could not be asked to end: %r", self.kernel_id, error)

    async def _async_restart_kernel(
        self,
        now: bool = False,
        newports: bool = False,
        confirm: Callable[[], Awaitable[None]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Restart the kernel; a second request waits for the one under way and is done with it.

        ``confirm`` is asked when the old process has ended, and before clients use the new one: it raises when there
        must be none.
        """
        self._busy = self._busy or asyncio.Lock()
        under_way = self._busy.locked()
        async with self._busy:
            if under_way:
                return
            self.restarting = True
            if self.channels is not None and self.execution_state != "restarting":  # else it was told of a death
                self.channels.hold()
            try:
                await self._async_shutdown_kernel(now=now, restart=True)
                if self.channels is not None:
                    await self.channels.last_words()
                    self.channels.end_process()
                if newports:
                    self.process.release_ports()
                if confirm is not None:
                    await confirm()
                await self._async_start_kernel(**{**(self._launch_args or {}), **kwargs})
                if confirm is not None:
                    await self._keep_process_if(confirm)
                if self.channels is not None:
                    self.connect_channels(self.channels)
            finally:
                self.restarting = False

    restart_kernel = _async_restart_kernel

    async def _keep_process_if(self, confirm: Callable[[], Awaitable[None]]) -> None:
        """End the process that was just launched unless there may be one: the launch has taken its time."""
        try:
            await confirm()
        except BaseException:
            await uninterrupted(self.end_process())
            raise

    async def detach(self) -> None:
        """Forget the kernel without touching its process; called when the gateway ends and the kernel lives on."""
        self._close_control_socket()
        self.leave_connection_file()
        if self.channels is not None:
            self._handed_over = self.channels.hand_over("the gateway is being restarted, and the kernel lives on")
        await self.process.detach()
        await self.close()

    def leave_connection_file(self) -> None:
        """Keep the file when this object is gone: a kernel that was only just launched may not have read it yet."""
        self._connection_file_written = False

    async def discard(self) -> None:
        """Release what this gateway has of a kernel that another one has removed."""
        self._close_control_socket()
        await self._take_steps([self.close, self.process.cleanup, partial(offload, self.cleanup_connection_file)])

    async def disconnect(self) -> None:
        """Let another object of this gateway stand for the kernel, whose process lives on or was replaced."""
        self.channels = None
        self._close_control_socket()
        self.leave_connection_file()
        await self.process.disconnect()

    async def close(self) -> None:
        """Close the kernel's channels, and in library mode what was started for it."""
        if self.channels is not None:
            if self.closing_because and self.execution_state != "dead":
                self.channels.announce_state("dead", self.closing_because, KERNEL_SHUT_DOWN)
            self.channels.close(self.closing_because or "the kernel was shut down")
        if self._resources is not None:
            await self._resources.close()
            self._resources = None
