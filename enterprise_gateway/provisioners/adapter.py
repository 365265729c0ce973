"""The one adapter between jupyter_client's kernel provisioners and process proxies."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq
from jupyter_client.manager import AsyncKernelManager

from ..core import kernelargs, kernelenv
from ..core.connection import ConnectionInfo
from ..core.offload import offload, uninterrupted
from ..services.processproxies.choice import check_argv, make_process_proxy
from ..services.processproxies.cluster import ClusterProcessProxy
from ..services.processproxies.deployment import LABEL_ENTRY
from ..services.processproxies.launchedkernel import LaunchedKernel
from ..services.processproxies.local import LocalProcessProxy
from ..services.processproxies.remote import RemoteProcessProxy
from ..services.processproxies.shared import gateway_environment
from ..transport.localproc import LocalProcess
from .kernelprocess import KernelProcess
from .proxyverbs import ProxyVerbs
from .standalone import StandaloneKernel

if TYPE_CHECKING:
    from ..transport.response import Conflict

CHANNELS = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")


class ProcessProxyProvisioner(KernelProcess):
    """Lets a process proxy launch and represent a kernel; made by the kernel's manager.

    The methods below are jupyter_client's contract and are called by the kernel's manager, the gateway's or any other;
    each says what it asks of the proxy.

    Parameters
    ----------
    kernel
        The kernel as its proxy may see it; None: that of a manager which knows nothing of process proxies.
    """

    parent: AsyncKernelManager
    kernel: LaunchedKernel
    _ports: list[int] | None = None
    _launched = False
    _is_clean = True
    _verbs: ProxyVerbs
    _output: Path | None = None

    def __init__(self, kernel: LaunchedKernel | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._cleaning = asyncio.Lock()
        self._standalone: StandaloneKernel | None = None
        self._is_standalone = kernel is None
        if kernel is not None:
            self.kernel = kernel

    @property
    def conflict(self) -> Conflict | None:
        """What makes it doubtful whose report was accepted; None where nothing does."""
        return self.process_proxy.conflict if isinstance(self.process_proxy, RemoteProcessProxy) else None

    @property
    def launch_seconds_left(self) -> float:
        """How long the launch may still take."""
        return self.process_proxy.deadline.remaining if isinstance(self.process_proxy, RemoteProcessProxy) else 0.0

    @property
    def said_of_end(self) -> str:
        """What the cluster says of the end of the kernel."""
        state = self.process_proxy.state if isinstance(self.process_proxy, ClusterProcessProxy) else None
        return state.reason if state is not None and state.has_ended else ""

    @property
    def has_process(self) -> bool:
        """Whether a kernel was launched and not cleaned up since."""
        return self._launched

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Make the proxy, the environment, the connection file (local kernels) and the command line.

        Parameters
        ----------
        kwargs
            ``env``: the client's accepted variables; ``cwd``, ``kernel_headers``, ``extra_arguments``.

        Returns
        -------
        dict
            ``cmd`` and ``env`` for :meth:`launch_kernel`, with the remaining arguments.
        """
        try:
            return await self._prepare(**kwargs)
        except BaseException:
            await uninterrupted(self.undo_launch())
            raise

    async def _prepare(self, **kwargs: Any) -> dict[str, Any]:
        check_argv(self.kernel_spec.argv, self.parent.kernel_name)
        client = kwargs.pop("env", None)
        if self._is_standalone and client is None:
            client = {name: value for name, value in gateway_environment().items() if name.startswith("KERNEL_")}
        kernel = await self._make_proxy()
        env = kernelenv.build(
            process=gateway_environment(),
            client=client or {},
            spec=self.kernel_spec.env,
            client_envs=kernel.options.client_envs,
            inherited_envs=kernel.options.inherited_envs,
        )
        assert self.process_proxy is not None
        if isinstance(self.process_proxy, RemoteProcessProxy):
            self.launch_address = await self.process_proxy.prepare()
        else:
            await self._write_connection_file()
        values = {
            "connection_file": kernel.connection_file,
            "prefix": sys.prefix,
            "resource_dir": self.kernel_spec.resource_dir,
            "response_address": self.launch_address.response_address,
            "public_key": self.launch_address.public_key,
            "port_range": str(self.process_proxy.port_range),
            "kernel_id": self.kernel_id,
            "transport_encryption": self._transport_encryption,
        }
        command = kernelargs.fill(self.kernel_spec.argv + kwargs.pop("extra_arguments", []), {**values, **kwargs})
        return {"cmd": command, "env": env, **kwargs}

    async def _make_proxy(self) -> LaunchedKernel:
        """Make the process proxy of a launch, or of a kernel that is taken over; return the kernel as it sees it."""
        if self._is_standalone and self._standalone is None:
            self.kernel = self._standalone = StandaloneKernel(self.parent, self.kernel_id, self.kernel_spec)
        await self.kernel.resources.deployment.known()
        self.process_proxy = await make_process_proxy(self.kernel)
        self._verbs = ProxyVerbs(self.process_proxy, self.kernel_id or "", self.log)
        self._is_clean = False
        return self.kernel

    @property
    def _transport_encryption(self) -> str:
        """The encryption policy that the kernel is launched with; empty when it is not encrypted."""
        policy = self.parent._transport_encryption_policy()
        wanted = policy == "required" or (policy == "auto" and self.parent._kernel_supports_curve_encryption())
        return policy if wanted else ""

    async def _write_connection_file(self) -> None:
        """Choose the five ports at the first launch, keep them at a relaunch, and write the connection file."""
        manager, proxy = self.parent, self.process_proxy
        assert proxy is not None
        if isinstance(proxy, LocalProcessProxy):
            manager.ip = "127.0.0.1"
        has_new_ports = self._ports is None
        if self._ports is None:
            self._ports = proxy.select_ports(len(CHANNELS))
            for name, port in zip(CHANNELS, self._ports, strict=True):
                setattr(manager, name, port)
        if self._transport_encryption and manager.curve_publickey is None:
            manager.curve_publickey, manager.curve_secretkey = zmq.curve_keypair()
        label = self.kernel.resources.deployment.label

        def write() -> None:
            if has_new_ports:  # else a file with the ports of an earlier launch would stay, until after this one
                manager.cleanup_connection_file()
            manager.write_connection_file(**({LABEL_ENTRY: label} if label else {}))

        await offload(write)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Have the proxy launch the kernel; return the connection information."""
        self._launched = True  # from here on something may exist that has to be removed, whatever happens
        try:
            return await self._launch(cmd, **kwargs)
        except BaseException:
            await uninterrupted(self.undo_launch())
            raise

    async def _launch(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        assert self.process_proxy is not None
        await self.kernel.resources.turns.wait()
        self._keep_output_small()
        await self.process_proxy.launch_process(cmd, **kwargs)
        self._keep_output_small()  # it may be in another directory than was expected
        reported = getattr(self.process_proxy, "connection", None)
        self.is_remote = reported is not None
        self.connection = reported or ConnectionInfo.from_dict(self.parent.get_connection_info())
        return {**self.connection.to_dict(), "key": self.connection.key}  # bytes, as the manager compares it

    async def undo_launch(self) -> None:
        """Remove what a failed launch has left, the connection file among it."""
        await super().undo_launch()
        await offload(self.parent.cleanup_connection_file)

    async def poll(self) -> int | None:
        """Return None while the kernel lives, or while its proxy cannot tell: then it is not known to be gone."""
        return await self._verbs.poll() if self._launched else 0

    async def ask(self) -> int | None:
        """Return None while the kernel lives; raises what the proxy raises when it cannot tell.

        For recovering recorded kernels: one that cannot be asked is neither taken over nor removed.
        """
        return await self._verbs.ask() if self._launched else 0

    async def wait(self) -> int | None:
        """Wait until the kernel has ended; jupyter_client limits the time."""
        return await self.wait_for_exit()

    async def wait_for_exit(self) -> int | None:
        """Wait until the kernel has ended."""
        return await self._verbs.wait_for_exit() if self._launched else 0

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel."""
        await self._verbs.call("send_signal", signum)

    async def kill(self, restart: bool = False) -> None:
        """End the kernel for certain."""
        await self._verbs.call("kill")

    async def terminate(self, restart: bool = False) -> None:
        """Ask the kernel's process to end."""
        await self._verbs.call("terminate")

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Tell the launcher's listener that the kernel has been asked to shut down."""
        if isinstance(self.process_proxy, RemoteProcessProxy):
            await self._verbs.call("shutdown_listener")

    async def cleanup(self, restart: bool = False) -> None:
        """Have the proxy release everything, once; release the ports unless the kernel is relaunched."""
        async with self._cleaning:  # a relaunch must not begin before this one has ended
            try:
                if not self._is_clean:
                    self._is_clean = True
                    self._forget_output()
                    await self._verbs.call("cleanup")
            finally:
                self._launched = False
                self.connection = None
                if not restart:
                    self.release_ports()
                    await self._release_kernel()

    async def detach(self) -> None:
        """Close connections to a remote kernel that lives on."""
        if isinstance(self.process_proxy, RemoteProcessProxy):
            await offload(self.process_proxy.disconnect)

    async def disconnect(self) -> None:
        """Stop watching a kernel that lives on, and give its ports back."""
        process = getattr(self.process_proxy, "local_proc", None)
        if isinstance(process, LocalProcess):
            process.close()
        self._forget_output()
        await self.detach()
        self.release_ports()
        await self._release_kernel()

    async def _release_kernel(self) -> None:
        standalone, self._standalone = self._standalone, None
        if standalone is not None:
            await standalone.release()

    def _keep_output_small(self) -> None:
        assert self.process_proxy is not None
        self._forget_output()
        self._output = self.process_proxy.output_file
        self.kernel.resources.outputs.add(self._output)

    def _forget_output(self) -> None:
        if self._output is not None:
            self.kernel.resources.outputs.remove(self._output)
            self._output = None

    def release_ports(self) -> None:
        """Release the ports of a local kernel; a relaunch then chooses new ones."""
        if self._ports is not None:
            self.kernel.resources.ports.release(self._ports)
            self._ports = None

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what a later gateway needs to take the kernel over."""
        info: dict[str, Any] = await self._verbs.call("get_process_info")
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take over a kernel of an earlier gateway."""
        await self._make_proxy()
        assert self.process_proxy is not None
        # The proxy itself does not know yet where the kernel is.
        place = str(provisioner_info.get("assigned_host") or provisioner_info.get("assigned_ip") or "")
        await self._verbs.call("load_process_info", provisioner_info, place=place)
        if isinstance(self.process_proxy.local_proc, LocalProcess):
            self._keep_output_small()
        self.is_remote = isinstance(self.process_proxy, RemoteProcessProxy)
        self.connection = getattr(self.process_proxy, "connection", None)
        self._launched = True

    def claim_ports(self) -> None:
        """Reserve the ports of a local kernel that was taken over, so that no other kernel is given them."""
        if not isinstance(self.process_proxy, RemoteProcessProxy):
            self._ports = [getattr(self.parent, name) for name in CHANNELS]
            self.kernel.resources.ports.claim(self._ports)

    async def remove_leftovers(self) -> bool:
        """Have the proxy remove everything that carries the kernel's id, and return whether a process did."""
        return bool(await self._verbs.call("remove_leftovers"))

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Let a proxy raise the time that its kernels have for shutting down."""
        return max(recommended, getattr(self.process_proxy, "shutdown_wait_time", 0.0))
