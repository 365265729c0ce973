"""Remote kernels, whose launchers report where they listen."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import time
from abc import ABCMeta
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...core import envvars
from ...core.connection import ConnectionInfo
from ...core.deadline import Deadline
from ...core.errors import HostUnreachableError, KernelLaunchError, LauncherFailedError, LaunchTimeoutError
from ...core.offload import offload, offload_to
from ...core.states import Phase
from ...transport.commport import CommPort, CommPortError, connection_ended
from ...transport.localproc import LocalProcess, last_lines
from .addresses import is_local_address
from .contract import ENDING_SIGNALS, BaseProcessProxyABC
from .launchedkernel import LaunchAddress, LaunchedKernel
from .launchers import Origins, demanded_version, marked_version
from .remotehosts import ssh_hosts
from .responses import ResponseManager
from .startup import await_startup

if TYPE_CHECKING:
    from ...transport.response import Conflict, Expectation
    from ...transport.tunnels import KernelTunnels

NEVER_ENDING = 3600.0
LIVENESS_SECONDS = 3.0
ENDING_SECONDS = 0.1
LAUNCHER_GRACE_SECONDS = 1.0
OVERTIME_SECONDS = 10.0  # to finish what began in time, such as a connection, and to find out why a launch timed out


class RemoteProcessProxy(BaseProcessProxyABC, metaclass=ABCMeta):
    """A kernel whose launcher reports where it listens.

    The steps of a launch are: :meth:`prepare` (expect the response) → :meth:`launch_process` (submit) →
    :meth:`confirm_remote_startup` (await the response, take over the connection information).

    Only the launcher tells whether the kernel is alive; a back end that can ask its cluster derives from
    :class:`ClusterProcessProxy`.
    """

    payload_version = 1
    """The lowest version of a launcher's response that is accepted; ``payload_version`` of the config has priority."""

    def __init__(self, kernel_manager: LaunchedKernel, proxy_config: dict[str, Any] | None) -> None:
        super().__init__(kernel_manager, proxy_config)
        self.assigned_ip: str | None = None
        self.assigned_host = ""
        self.comm_ip: str | None = None
        self.comm_port = 0
        self.comm: CommPort | None = None
        self._is_ending = False
        self.tunneled_connect_info: dict[str, Any] | None = None
        self._tunnels: KernelTunnels | None = None
        self.launch_secret = secrets.token_urlsafe(32)
        self.response_manager: ResponseManager | None = None
        self.expectation: Expectation = None  # type: ignore[assignment]  # set by prepare()
        self.connection: ConnectionInfo | None = None
        self._start_counting()

    def _start_counting(self) -> None:
        self.deadline = Deadline(self.kernel_launch_timeout)
        self.latest = Deadline(self.kernel_launch_timeout + OVERTIME_SECONDS)
        self.start_time = time.time()

    async def prepare(self) -> LaunchAddress:
        """Begin to expect the launcher's response, and return the address that it is to be sent to.

        Called by the provisioner before the command is filled.
        """
        server = await self.kernel_manager.resources.responses()
        minimum_version, demanded_by = await offload(self._minimum_version)
        self.expectation = server.expect(
            self.kernel_id,
            secret=self.launch_secret,
            minimum_version=minimum_version,
            demanded_by=demanded_by,
        )
        if self.proxy_config.get("payload_v1_from"):
            self.restrict_reports("the kernel's host", ())
        self.response_manager = ResponseManager(server, self.expectation)
        return LaunchAddress(server.address, server.public_key)

    @classmethod
    def launcher_version(cls, argv: Sequence[str], resource_dir: str, config: Mapping[str, Any]) -> int:
        """Return the payload version that a kernelspec's launcher is known to speak; 1 if unknown.

        Called in a thread, before each launch and when the gateway starts. The kernelspec's ``payload_version`` has
        priority over the mark in a launcher's file that its argv names. Back ends whose launchers are in images
        override it, and read the images' labels.
        """
        return demanded_version(config) or max(cls.payload_version, marked_version(argv, resource_dir))

    def _minimum_version(self) -> tuple[int, str]:
        """Return the minimum payload version for this launch, and the explanation given in a refusal."""
        spec = self.kernel_manager.spec
        if not self.kernel_manager.options.allow_payload_v1:
            return 2, " (allow_payload_v1 is off)"
        version = self.launcher_version(spec.argv, spec.resource_dir, self.proxy_config)
        if version < 2 or self.proxy_config.get("payload_version"):
            return version, ""
        return version, (
            ", as its launcher is known to do where EG_LAUNCH_SECRET reaches it; the kernelspec's payload_version "
            "decides otherwise"
        )

    def restrict_reports(self, place: str, addresses: Collection[str]) -> None:
        """Accept version 1 reports from these addresses only; called by back ends that know the kernel's host.

        They call it before anything is started, with all addresses of the host. ``payload_v1_from`` of the config adds
        others, for example if a host reports from an address other than the one at which it is reached.
        """
        self.expectation.restrict(Origins(addresses, self.proxy_config.get("payload_v1_from") or ()), place)

    def launcher_variables(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return the launcher's secret, port rules and log level."""
        return {
            **super().launcher_variables(env),
            "EG_LAUNCH_SECRET": self.launch_secret,
            "EG_MIN_PORT_RANGE_SIZE": str(envvars.EG_MIN_PORT_RANGE_SIZE()),
            "EG_MAX_PORT_RANGE_RETRIES": str(envvars.EG_MAX_PORT_RANGE_RETRIES()),
            "EG_LOG_LEVEL": env.get("EG_LOG_LEVEL", str(envvars.EG_LOG_LEVEL())),
        }

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Complete the environment, and start counting the launch time-out."""
        await super().launch_process(kernel_cmd, **kwargs)
        self._start_counting()

    async def confirm_remote_startup(self) -> None:
        """Wait until the launcher has responded; called by back ends at the end of ``launch_process``."""
        report = self.expectation.wait(self.deadline)
        info = await await_startup(report, self.watch_for_failure(), self.deadline, self.describe_timeout)
        await self._accept(info)

    async def watch_for_failure(self) -> None:
        """Run until the launch is known to have failed, then raise why; cancelled when the launch succeeds.

        The base watches the process of the launcher, if it is a child of the gateway.
        """
        if isinstance(self.local_proc, LocalProcess):
            exit_code = await self.local_proc.wait_for_exit()
            if exit_code != 0:
                raise LauncherFailedError(await offload(self._describe_early_end, exit_code))
        await asyncio.sleep(NEVER_ENDING)

    def _describe_early_end(self, exit_code: int) -> str:
        output = last_lines(self.output_file)
        ended = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        return f"The launcher of kernel {self.kernel_id} {ended}." + (f" Its last lines: {output}" if output else "")

    async def describe_timeout(self, seconds: float) -> str:
        """Return the message for a launch that timed out; back ends add what they know."""
        output = await offload(last_lines, self.output_file)
        rejections = "; ".join(self.expectation.rejections)
        return (
            f"KernelID: '{self.kernel_id}' launch timeout due to: Waited too long ({seconds:g}s) to get connection file"
            + (f". Refused responses: {rejections}" if rejections else "")
            + (f". Last lines of its launcher: {output}" if output else "")
        )

    async def receive_connection_info(self) -> bool:
        """Wait briefly for the response, and return whether it came; for third-party confirmation loops."""
        try:
            info = await self.expectation.wait(Deadline(envvars.EG_POLL_INTERVAL()))
        except LaunchTimeoutError:
            return False
        await self._accept(info)
        return True

    async def handle_timeout(self) -> None:
        """Sleep for one poll interval, then fail the launch if it has timed out; for third-party confirmation loops."""
        await asyncio.sleep(envvars.EG_POLL_INTERVAL())
        if self.deadline.expired:
            raise LaunchTimeoutError(await self.describe_timeout(self.deadline.seconds))

    def detect_launch_failure(self) -> None:
        """Fail the launch if the launcher, a child of the gateway, has failed; for third-party loops."""
        exit_code = self.local_proc.poll() if self.local_proc is not None else None
        if exit_code:
            raise LauncherFailedError(self._describe_early_end(exit_code))

    @property
    def conflict(self) -> Conflict | None:
        """The reason for doubt whether the right report was accepted; None if there is no doubt."""
        return self.expectation.doubt if self.expectation is not None else None

    async def _accept(self, info: ConnectionInfo) -> None:
        """Apply what the launcher reported."""
        self.progress.reach(Phase.STARTED)  # it must have started, even if that was not noticed
        self.progress.reach(Phase.REPORTED)
        await self._find_place()
        assert self.assigned_ip
        self.pid, self.pgid, self.ip = info.pid, info.pgid, self.assigned_ip
        self.connection = replace(info, ip=self.assigned_ip)
        if envvars.EG_ENABLE_TUNNELING() and not is_local_address(self.assigned_ip):
            self.connection = await offload_to(self._place, self._open_tunnels, self.connection)
        if self.connection.comm_port:
            self._open_comm_port(self.connection.ip, self.connection.comm_port, self.expectation.payload_version == 2)

    async def _find_place(self) -> None:
        """Make sure that ``assigned_ip`` is known, now that the launcher has reported."""
        if not self.assigned_ip:
            raise KernelLaunchError(f"The host of kernel {self.kernel_id} is unknown.")

    @property
    def _place(self) -> str:
        """The kernel's host or, until it is known, the back end."""
        return self.assigned_host or self.assigned_ip or super()._place

    @property
    def tunnel_host(self) -> str:
        """The SSH host through which the kernel is reached when tunnelling is enabled."""
        return self.assigned_ip or ""

    def _open_tunnels(self, connection: ConnectionInfo) -> ConnectionInfo:
        """Open tunnels to the kernel's ports; return its connection information with the local ones."""
        host = ssh_hosts(self.kernel_manager.resources).host(self.tunnel_host)
        host.shell.connect()
        self.tunneled_connect_info = {**connection.to_dict(), "comm_port": connection.comm_port}
        self._tunnels = host.tunnels.open(connection, self.port_range, envvars.EG_MAX_PORT_RANGE_RETRIES())
        return self._tunnels.connection

    def _open_comm_port(self, ip: str, port: int, authenticated: bool) -> None:
        self.comm_ip, self.comm_port = ip, port
        self.comm = CommPort(
            ip,
            port,
            kernel_id=self.kernel_id,
            secret=self.launch_secret.encode() if authenticated else None,
            timeout=envvars.EG_SOCKET_TIMEOUT(),
        )

    def send_signal(self, signum: int) -> bool | None:
        """Signal the kernel through its launcher or, if that cannot be reached, by other means."""
        self._is_ending = self._is_ending or signum in ENDING_SIGNALS
        answer = self._ask_launcher(signum)
        if answer is not None:
            return None if answer else False
        return super().send_signal(signum)

    def _ask_launcher(self, signum: int) -> bool | None:
        """Signal the kernel through its launcher; return False if it is gone, None if that is not possible."""
        if self.comm is None:
            return None
        try:
            return self.comm.signal(signum)
        except (OSError, CommPortError) as error:
            self.log.warning("The launcher of kernel %s did not accept signal %d: %s", self.kernel_id, signum, error)
            return None

    def poll(self) -> Any:
        """Return None while the launcher answers, False when it is gone.

        Raises
        ------
        HostUnreachableError
            Neither is known, because the launcher's host does not answer.
        """
        if self.comm is None:
            return super().poll()
        try:
            is_there = self.comm.probe()
        except (OSError, CommPortError) as error:
            raise HostUnreachableError(
                f"It is unknown whether kernel {self.kernel_id} is alive: {self.comm_ip} does not answer ({error})."
            ) from error
        if is_there and self._is_ending and not self.comm.is_authenticated and not self._kernel_answers():
            self._stop_listener()
            return False
        return None if is_there else False

    def _kernel_answers(self) -> bool:
        """Return whether the kernel itself is there, because ZeroMQ sends a greeting to a new connection.

        Listeners of version 1 may outlive their kernel until they are told to stop.
        """
        kernel = self.connection or self.kernel_manager.connection()
        address = (kernel.ip, kernel.shell_port)
        try:
            with socket.create_connection(address, envvars.EG_SOCKET_TIMEOUT()) as connection:
                return bool(connection.recv(1))
        except ConnectionError:
            return False
        except OSError:
            return True  # no answer in time does not mean that it has ended

    def shutdown_listener(self) -> None:
        """Note that the kernel has been asked to shut down; called by the provisioner.

        The launcher keeps listening until its kernel is gone, because a kernel that does not obey must be signalled.
        """
        self._is_ending = True

    def _stop_listener(self) -> None:
        """Tell the launcher to stop listening."""
        if self.comm is not None:
            try:
                self.comm.shutdown()
            except (OSError, CommPortError) as error:
                self.log.debug("The launcher of kernel %s did not accept the shutdown: %s", self.kernel_id, error)

    async def wait_for_exit(self) -> int:
        """Wait until the kernel is known to be gone; return 0, because the exit code is unknown.

        A launcher of version 2 keeps a connection open, which ends with the kernel. For other launchers, and while the
        host does not answer, the kernel is polled.
        """
        while True:
            try:
                if await self.poll_in_thread() is not None:
                    return 0
            except HostUnreachableError as error:
                self.log.debug("%s", error)
            connection = self.comm.duplicate() if self.comm is not None else None
            if connection is not None:
                await connection_ended(connection)
            else:
                await asyncio.sleep(ENDING_SECONDS if self._is_ending else LIVENESS_SECONDS)

    def disconnect(self) -> None:
        """Close the connections to a kernel that keeps running; called if this gateway ends or another restarted it."""
        if self.comm is not None:
            self.comm.close()
        if self._tunnels is not None:
            self._tunnels.close()
            self._tunnels = None

    def cleanup(self) -> None:
        """Forget the expected response and the kernel's address, and end what is left of its launch here."""
        if self.expectation is not None:
            self.expectation.close()
        if self.comm is not None and not self.comm.is_authenticated:
            self._stop_listener()
        self.disconnect()
        self.assigned_ip = None
        self._end_local_process()
        super().cleanup()

    def _end_local_process(self) -> None:
        """End a launch script, such as ``spark-submit``, that did not end with the kernel."""
        process = self.local_proc
        if not isinstance(process, LocalProcess) or not process.send_signal(signal.SIGTERM):
            return
        if process.wait(LAUNCHER_GRACE_SECONDS) is None:
            process.kill()
            process.wait(LAUNCHER_GRACE_SECONDS)

    def get_process_info(self) -> dict[str, Any]:
        """Add the kernel's host and the address of its launcher."""
        info = super().get_process_info()
        info.update(
            assigned_ip=self.assigned_ip,
            assigned_host=self.assigned_host,
            comm_ip=self.comm_ip,
            comm_port=self.comm_port,
            tunneled_connect_info=self.tunneled_connect_info,
        )
        if self.comm is not None and self.comm.is_authenticated:
            info["comm_secret"] = self.launch_secret
        return info

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """Restore the kernel's host and the connection to its launcher."""
        super().load_process_info(process_info)
        self.assigned_ip = process_info.get("assigned_ip")
        self.assigned_host = process_info.get("assigned_host") or ""
        self.tunneled_connect_info = process_info.get("tunneled_connect_info")
        self.launch_secret = process_info.get("comm_secret") or self.launch_secret
        comm_ip, comm_port = process_info.get("comm_ip") or "", int(process_info.get("comm_port") or 0)
        if self.tunneled_connect_info and self.assigned_ip:
            self.connection = self._open_tunnels(ConnectionInfo.from_dict(self.tunneled_connect_info))
            comm_ip, comm_port = self.connection.ip, self.connection.comm_port
        if comm_port:
            self._open_comm_port(comm_ip, comm_port, "comm_secret" in process_info)
