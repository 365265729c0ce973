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

A lease is yielded (``KernelSharing.yield_lease``) when another gateway is in charge of the kernel: that ends nothing.
The restarter stops watching a kernel (``unwatch``) before one is ended on purpose.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from traitlets import Bool

from ...core.connection import CHANNEL_PORTS, ConnectionInfo
from ...core.offload import offload, uninterrupted
from ...core.states import Phase, Progress
from ...provisioners.choice import make_process
from ...provisioners.kernelprocess import clean_up
from ...transport.openrequests import KERNEL_SHUT_DOWN
from ...transport.resumption import Memory
from ..processproxies.shared import SharedResources, gateway_environment
from .connectionfile import OF_CONNECTION_FILES, write_into_place
from .kernelview import KernelView

if TYPE_CHECKING:
    from jupyter_client.connect import KernelConnectionInfo

    from ...transport.channels import KernelChannels


class RemoteKernelManager(KernelView, AsyncKernelManager):
    """Starts, restarts and stops one kernel through its process proxy."""

    restarting = Bool(False, help="Whether the kernel is being restarted now.")

    _sigint: int | None = None
    _busy: asyncio.Lock | None = None

    # --- start

    def write_connection_file(self, **kwargs: Any) -> None:
        """Write the connection file beside its place and move it there; called by provisioners of local kernels.

        So nothing is ever written to, or waited for at, what somebody else has put there.
        """
        path = self.connection_file
        if not path or (self._connection_file_written and os.path.exists(path)):
            super().write_connection_file(**kwargs)
            return
        content: dict[str, Any] = {name: getattr(self, name) for name in (*CHANNEL_PORTS, *OF_CONNECTION_FILES)}
        content.update(key=self.session.key, signature_scheme=self.session.signature_scheme, **kwargs)
        info = write_into_place(path, content)
        self._record_random_port_names()
        for name in CHANNEL_PORTS:
            setattr(self, name, info[name])
        self._connection_file_written = True

    async def _async_start_kernel(self, **kwargs: Any) -> None:
        """Launch the kernel; whatever goes wrong, nothing of the attempt is left behind."""
        self._attempted_start = True
        self._ready = asyncio.get_running_loop().create_future()
        self.life.launching()
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
        """End a kernel whose start has failed, or was found unfinished, and close its channels.

        A launch that has failed itself was undone by the kernel's process already.
        """
        self.shutting_down = True
        await self.end_process()
        if not self.restarting:  # else its clients are still to hear what became of it
            await clean_up([self.close], self.kernel_id, self.log)

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
        await clean_up([self._async_kill_kernel, self._async_cleanup_resources], self.kernel_id, self.log)

    def mark_dead(self, reason: str) -> None:
        """Tell everybody that the kernel is dead; it stays in the table until it is restarted, deleted or culled."""
        self.life.died(reason)
        if self.channels is not None:
            self.channels.tell(f"The kernel is dead: {reason}. Restart it to go on; its variables are lost.\n")
            self.channels.announce_state("dead", reason)
        self.log.warning("Kernel %s is dead: %s", self.kernel_id, reason)

    def connect_channels(self, channels: KernelChannels, delay: float = 0.0) -> None:
        """Use ``channels`` for the kernel, connected to its present process; see :meth:`KernelChannels.connect`."""
        self.channels = channels
        channels.connect(self.connection(), is_contested=self.process.conflict is not None, delay=delay)

    # --- taking over a kernel of an earlier gateway

    async def load_process(self, process_info: dict[str, Any]) -> None:
        """Attach to the process that a record describes; it may turn out to be gone."""
        self.provisioner = await make_process(self, self)
        await self.provisioner.load_provisioner_info(process_info)

    def take_over(self, info: ConnectionInfo, launch_args: dict[str, Any], memory: Memory) -> None:
        """Use a connection to a kernel that another gateway has started; restarts launch it with ``launch_args``.

        ``memory`` is what that gateway knew of the conversation with the kernel.
        """
        self.load_connection_info(info.to_dict())  # type: ignore[arg-type]
        self._connection_file_written = True
        self._launch_args = launch_args
        self._attempted_start = True
        self.inherited = memory
        self.ready.set_result(None)
        self.process.connection = info
        self.process.claim_ports()

    async def remove_leftovers(self) -> None:
        """Remove what an interrupted start, restart or stop has left of the kernel."""
        await self.process.remove_leftovers()
        self._connection_file_written = True  # by whom the kernel was started: it is to be removed
        await self.abandon()

    # --- interrupt, shutdown, restart

    async def _async_signal_kernel(self, signum: int) -> None:
        """Send a signal; an interrupt is sent as the signal that the kernelspec's EG_ALTERNATE_SIGINT names."""
        if signum == signal.SIGINT:
            self._sigint = self._sigint or interrupt_signal(self.spec, self.kernel_name, self.log)
            signum = self._sigint
        await super()._async_signal_kernel(signum)

    signal_kernel = _async_signal_kernel

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
            await clean_up(steps, self.kernel_id, self.log)
        finally:
            if not restart:
                await self.close()

    shutdown_kernel = _async_shutdown_kernel

    async def _async_send_kernel_sigterm(self, restart: bool = False) -> None:
        """Ask the process to end; a back end that cannot do so is asked to kill it next."""
        try:
            await super()._async_send_kernel_sigterm(restart=restart)
        except Exception as error:  # noqa: BLE001  # of a third party
            self.log.warning("Kernel %s could not be asked to terminate: %r", self.kernel_id, error)

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
                    try:
                        await confirm()  # the launch has taken its time
                    except BaseException:
                        await uninterrupted(self.end_process())
                        raise
                if self.channels is not None:
                    self.connect_channels(self.channels)
            finally:
                self.restarting = False

    restart_kernel = _async_restart_kernel

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
        await clean_up(
            [self.close, self.process.cleanup, partial(offload, self.cleanup_connection_file)], self.kernel_id, self.log
        )

    async def disconnect(self) -> None:
        """Let another object of this gateway stand for the kernel, whose process lives on or was replaced."""
        self.channels = None
        self._close_control_socket()
        self.leave_connection_file()
        await self.process.disconnect()

    async def close(self) -> None:
        """Close the kernel's channels, and in library mode what was started for it."""
        if self.channels is not None:
            if self.life.ends_because and self.execution_state != "dead":
                self.channels.announce_state("dead", self.life.ends_because, KERNEL_SHUT_DOWN)
            self.channels.close(self.life.ends_because or "the kernel was shut down")
        if self._resources is not None:
            await self._resources.close()
            self._resources = None


def interrupt_signal(spec: KernelSpec, name_of_spec: str, log: logging.Logger | logging.LoggerAdapter[Any]) -> int:
    """Return the signal that interrupts kernels of a kernelspec, which may name it as ``EG_ALTERNATE_SIGINT``."""
    name = spec.env.get("EG_ALTERNATE_SIGINT", "SIGINT")
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        log.warning("EG_ALTERNATE_SIGINT=%s of kernelspec %s is not a signal", name, name_of_spec)
        return signal.SIGINT.value
