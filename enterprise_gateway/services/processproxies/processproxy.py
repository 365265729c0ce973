"""The contract of a kernel back end, and the two families of them: on this machine, and elsewhere.

A process proxy starts one kernel and stands for its process afterwards. Third-party classes are named by kernelspecs
(``metadata.process_proxy.class_name``) and derive from these; the provisioner drives them.

These are all the methods that a back end implements: ``launch_process``, and for remote ones
``watch_for_failure`` (or ``confirm_remote_startup``), ``poll``, ``send_signal``, ``kill`` and ``cleanup`` where the
inherited ones do not do. Everything else - time-outs, users, ports, responses - is done here.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tornado import web
from traitlets.utils.importstring import import_item

from ...core import envvars, kernelargs, kernelenv
from ...core.authorization import UserRules
from ...core.connection import ConnectionInfo
from ...core.deadline import Deadline
from ...core.errors import (
    HostUnreachableError,
    InvalidRequestError,
    KernelLaunchError,
    LauncherFailedError,
    LaunchTimeoutError,
)
from ...core.offload import offload, offload_to
from ...core.ports import PortRange
from ...transport.commport import CommPort, CommPortError, connection_ended
from ...transport.localproc import LocalProcess, last_lines
from ...transport.outputfiles import cut
from .launchers import Origins, demanded_version, marked_version
from .remnants import Owners, local_processes, user_name
from .remotehosts import is_local_address
from .responses import Response, ResponseManager
from .startup import await_startup

if TYPE_CHECKING:
    from ...transport.response import Conflict, Expectation
    from ...transport.tunnels import KernelTunnels
    from ..kernels.remotemanager import RemoteKernelManager
    from .remnants import Remnant
    from .shared import SharedResources

__all__ = [
    "BaseProcessProxyABC",
    "KernelChannel",
    "LocalProcessProxy",
    "RemoteProcessProxy",
    "Response",
    "ResponseManager",
]

NEVER_ENDING = 3600.0
LIVENESS_SECONDS = 3.0
ENDING_SECONDS = 0.1
LAUNCHER_GRACE_SECONDS = 1.0
OVERTIME_SECONDS = 10.0  # for what was begun in time, such as a connection, and to find out why a launch took too long
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGKILL)


class KernelChannel(Enum):
    """The ports of a kernel by the names that tunnels and logs use."""

    SHELL = "SHELL"
    IOPUB = "IOPUB"
    STDIN = "STDIN"
    HEARTBEAT = "HB"
    CONTROL = "CONTROL"
    COMMUNICATION = "EG_COMM"


class BaseProcessProxyABC(metaclass=ABCMeta):
    """One kernel's process, wherever it runs.

    Constructed anew by the provisioner for every launch and relaunch. ``poll``, ``wait``, ``send_signal``, ``kill``
    and ``terminate`` are Popen's: ``poll`` returns None while the kernel lives. They may be plain methods, which the
    provisioner calls in a thread, or coroutines, which it awaits.

    Parameters
    ----------
    kernel_manager
        The kernel's manager: offers ``kernel_id``, ``kernel_spec``, ``connection_file`` and, by name, every option
        of the gateway.
    proxy_config
        ``metadata.process_proxy.config`` of the kernelspec.
    """

    calls_block = True
    """Whether plain ``poll``, ``send_signal`` … may wait for something and so must run in a thread."""

    keeps_output = False
    """Whether :attr:`output_file` stays when the kernel is gone."""

    starts_kernel_itself = False
    """Whether :meth:`launch_kernel` starts the kernel, not a script that may end before it: its group ends with it."""

    def __init__(self, kernel_manager: RemoteKernelManager, proxy_config: dict[str, Any] | None) -> None:
        self.kernel_manager = kernel_manager
        self.proxy_config = dict(proxy_config or {})
        self.log = kernel_manager.log
        self.kernel_id: str = kernel_manager.kernel_id or kernel_id_of(kernel_manager.connection_file)
        self.kernel_launch_timeout = float(
            self.proxy_config.get("launch_timeout") or envvars.EG_KERNEL_LAUNCH_TIMEOUT()
        )
        self.port_range = PortRange.parse(
            str(self.proxy_config.get("port_range") or kernel_manager.options.port_range),
            envvars.EG_MIN_PORT_RANGE_SIZE(),
        )
        self.lower_port, self.upper_port = self.port_range.lower, self.port_range.upper
        self.user_rules = UserRules.for_spec(
            self.proxy_config, kernel_manager.options.authorized_users, kernel_manager.options.unauthorized_users
        )
        self.authorized_users = self.user_rules.authorized
        self.unauthorized_users = self.user_rules.unauthorized
        self.local_proc: Any = None
        self.ip: str | None = None
        self.pid = 0
        self.pgid = 0
        self.remote_user = envvars.EG_REMOTE_USER() or gateway_user()
        self._call_under_way = asyncio.Lock()
        self._poll_under_way: asyncio.Task[Any] | None = None

    @property
    def _place(self) -> str:
        """What the kernel's blocking methods wait for: calls for different places never wait for each other."""
        return type(self).__qualname__

    async def in_thread(self, method: Callable[..., Any], *args: Any, place: str = "") -> Any:
        """Run one of the proxy's plain methods in a thread; called by the provisioner.

        One at a time: third parties write them without a thought of two threads in one object.
        """
        async with self._call_under_way:
            return await offload_to(place or self._place, method, *args)

    async def poll_in_thread(self) -> Any:
        """Return what a plain :meth:`poll` says; who asks while it is asked already shares the answer."""
        task = self._poll_under_way
        if task is None:
            task = self._poll_under_way = asyncio.create_task(self.in_thread(self.poll))
            task.add_done_callback(self._poll_ended)
        return await asyncio.shield(task)

    def _poll_ended(self, task: asyncio.Task[Any]) -> None:
        self._poll_under_way = None
        if not task.cancelled():
            task.exception()  # seen: those who asked have it, unless they went away

    @abstractmethod
    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Authorize the user and complete the environment; back ends call this first, then submit the kernel.

        Parameters
        ----------
        kernel_cmd
            The filled command line of the kernelspec.
        kwargs
            ``env`` (dict, completed in place), ``cwd``, ``kernel_headers`` (dict of captured request headers).

        Raises
        ------
        KernelLaunchError
            The user may not start this kernel.
        """
        env = kwargs["env"]
        if env.get("KERNEL_LAUNCH_TIMEOUT"):
            self.kernel_launch_timeout = kernelargs.check_launch_timeout(env["KERNEL_LAUNCH_TIMEOUT"])
        spec = self.kernel_manager.spec
        username = env.get("KERNEL_USERNAME") or gateway_user()
        kernelenv.finish(
            env,
            kernel_id=self.kernel_id,
            language=spec.language,
            impersonation_enabled=self.kernel_manager.options.impersonation_enabled,
            username=username,
            deployment_id=self.kernel_manager.resources.deployment.label,
        )
        self.user_rules.check_launch(username, spec.display_name)
        self.log.debug(
            "Kernel %s is launched with env %s",
            self.kernel_id,
            kernelenv.redact(env, envvars.EG_SENSITIVE_ENV_KEYS(), envvars.EG_REDACTION_MASK()),
        )

    def launch_kernel(self, cmd: list[str], **kwargs: Any) -> LocalProcess:
        """Start ``cmd`` as a child of the gateway; back ends use it for kernels and for launch scripts.

        Its output goes to :attr:`output_file`, whose last lines explain an early end; ``stdin`` is what it can read.

        Raises
        ------
        LauncherFailedError
            The command cannot be executed.
        """
        try:
            return LocalProcess.spawn(
                cmd,
                env=kwargs["env"],
                cwd=kwargs.get("cwd"),
                output=self.output_file,
                independent=self.kernel_manager.outlives_gateway,
                stdin=kwargs.get("stdin", b""),
                takes_group=self.starts_kernel_itself,
            )
        except OSError as error:
            raise LauncherFailedError(f"The command of kernel {self.kernel_id} cannot be run: {error}") from error

    @property
    def output_file(self) -> Path:
        """Where the output of a process started by :meth:`launch_kernel` goes."""
        label = self.kernel_manager.resources.deployment.label
        return Path(self.kernel_manager.connection_file).with_suffix(f".{label}.log" if label else ".log")

    def poll(self) -> Any:
        """Return None while the kernel lives, anything else when it does not; called by the provisioner."""
        if self.local_proc is not None:
            return self.local_proc.poll()
        return self.send_signal(0)

    def wait(self) -> Any:
        """Block until the kernel has ended, at most ``EG_MAX_POLL_ATTEMPTS`` polls; runs in a thread."""
        if self.local_proc is not None:
            return self.local_proc.wait()
        for _ in range(envvars.EG_MAX_POLL_ATTEMPTS()):
            if self.poll() is not None:
                break
            time.sleep(envvars.EG_POLL_INTERVAL())
        return None

    def send_signal(self, signum: int) -> bool | None:
        """Signal the kernel's process group; return None when it was there, False when it was not."""
        if self.local_proc is not None:
            return None if self.local_proc.send_signal(signum) is not False else False
        return False

    def kill(self) -> bool | None:
        """End the kernel for certain; return None when that was done, False when it failed."""
        return self.send_signal(signal.SIGKILL)

    def terminate(self) -> bool | None:
        """Ask the kernel's process to end."""
        return self.send_signal(signal.SIGTERM)

    def cleanup(self) -> None:
        """Release what the launch acquired; called once when the kernel is gone or its launch has failed."""
        if isinstance(self.local_proc, LocalProcess):
            self.local_proc.close()
        if not self.keeps_output:
            self.output_file.unlink(missing_ok=True)
        else:
            with suppress(OSError):
                cut(self.output_file, envvars.EG_KERNEL_OUTPUT_LIMIT())

    def remove_leftovers(self) -> bool:
        """Remove whatever a launch of this kernel that was cut short has left, and return whether a process was.

        Runs in a thread.

        The base removes processes of this machine that carry the kernel's id in their environment.
        """
        remnants = list(local_processes("KERNEL_ID", [self.kernel_id], self._owners))
        for remnant in remnants:
            self.log.warning("Kernel %s has left behind %s; it is ended", self.kernel_id, remnant.what)
            remnant.remove()
        return bool(remnants)

    @property
    def _owners(self) -> Owners:
        """Whose processes may be the kernel's."""
        return Owners(self.kernel_manager.options.impersonation_enabled, [self.user_rules])

    @classmethod
    def find_remnants(
        cls,
        resources: SharedResources,  # noqa: ARG003
        labels: Collection[str],  # noqa: ARG003
        configs: Collection[Mapping[str, Any]],  # noqa: ARG003
    ) -> Iterator[Remnant]:
        """Yield what kernels of this back end have left behind by its label; runs in a thread.

        Called by the sweeper for every class that an installed kernelspec names. What is on the gateway's own machine
        is found without this.

        Parameters
        ----------
        resources
            What all kernels of the gateway share, among it the options.
        labels
            What it may be labelled with: the value of ``EG_DEPLOYMENT_ID`` in a kernel's environment.
        configs
            ``metadata.process_proxy.config`` of the installed kernelspecs that name the class.

        Raises
        ------
        KernelLaunchError
            The back end, or some part of it, cannot be asked; what was yielded before counts.
        """
        yield from ()

    def select_ports(self, count: int) -> list[int]:
        """Return free ports of this machine within the port range, reserved until the kernel is gone."""
        return self.kernel_manager.resources.ports.take(count, self.port_range, envvars.EG_MAX_PORT_RANGE_RETRIES())

    def get_process_info(self) -> dict[str, Any]:
        """Return what :meth:`load_process_info` needs after a restart of the gateway: a dict of JSON values."""
        return {"pid": self.pid, "pgid": self.pgid, "ip": self.ip}

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """Take over a kernel that an earlier gateway started; subclasses call this one first."""
        self.pid = int(process_info.get("pid") or 0)
        self.pgid = int(process_info.get("pgid") or 0)
        self.ip = process_info.get("ip")

    def log_and_raise(self, http_status_code: int | None = None, reason: str | None = None) -> NoReturn:
        """Fail a launch with an HTTP status and a sentence for the client; kept for third-party back ends."""
        if http_status_code:
            raise web.HTTPError(status_code=http_status_code, reason=reason)
        raise RuntimeError(reason)


class LocalProcessProxy(BaseProcessProxyABC):
    """A kernel on the gateway's own machine: the back end of every kernelspec that names no other."""

    calls_block = False
    starts_kernel_itself = True

    def __init__(self, kernel_manager: RemoteKernelManager, proxy_config: dict[str, Any] | None) -> None:
        super().__init__(kernel_manager, proxy_config)
        kernel_manager.ip = "127.0.0.1"

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Start the kernel as a child process; it is not waited for."""
        await super().launch_process(kernel_cmd, **kwargs)
        await offload(self._start, kernel_cmd, kwargs)

    def _start(self, kernel_cmd: list[str], kwargs: dict[str, Any]) -> None:
        # All in the thread: a launch that is cancelled meanwhile still knows of the process, and ends it.
        self.local_proc = self.launch_kernel(kernel_cmd, **kwargs)
        self.pid, self.pgid, self.ip = self.local_proc.pid, self.local_proc.pgid, "127.0.0.1"

    async def wait_for_exit(self) -> int:
        """Wait until the process has ended; returns its exit code."""
        if self.local_proc is None:
            return 0
        return await self.local_proc.wait_for_exit()

    def poll(self) -> Any:
        """Return None while the process lives, else its exit code."""
        return 0 if self.local_proc is None else self.local_proc.poll()

    def get_process_info(self) -> dict[str, Any]:
        """Add the start time, by which a process id that was reused is told from ours."""
        info = super().get_process_info()
        if self.local_proc is not None:
            info["start_time"] = self.local_proc.start_time
        return info

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """Adopt the process if it still is the one we started."""
        super().load_process_info(process_info)
        self.local_proc = LocalProcess.adopt(
            self.pid, int(process_info.get("start_time") or -1), takes_group=self.starts_kernel_itself
        )


class RemoteProcessProxy(BaseProcessProxyABC, metaclass=ABCMeta):
    """A kernel whose launcher reports where it listens: the base of every other back end.

    A launch goes: :meth:`prepare` (expect the response) → :meth:`launch_process` (submit) →
    :meth:`confirm_remote_startup` (await the response, take over the connection information).
    """

    payload_version = 1
    """The lowest version of a launcher's response that is accepted; ``payload_version`` of the config has priority."""

    def __init__(self, kernel_manager: RemoteKernelManager, proxy_config: dict[str, Any] | None) -> None:
        super().__init__(kernel_manager, proxy_config)
        kernel_manager.ip = "0.0.0.0"
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

    async def prepare(self) -> None:
        """Expect the launcher's response from now on; called by the provisioner before the command is filled."""
        server = await self.kernel_manager.resources.responses()
        minimum_version, demanded_by = await offload(self._minimum_version)
        self.kernel_manager.response_address = server.address
        self.kernel_manager.public_key = server.public_key
        self.expectation = server.expect(
            self.kernel_id,
            secret=self.launch_secret,
            minimum_version=minimum_version,
            demanded_by=demanded_by,
        )
        if self.proxy_config.get("payload_v1_from"):
            self.restrict_reports("the kernel's host", ())
        self.response_manager = ResponseManager(server, self.expectation)

    @classmethod
    def launcher_version(cls, argv: Sequence[str], resource_dir: str, config: Mapping[str, Any]) -> int:
        """Return the payload version that a kernelspec's launcher is known to speak; 1 where it is not known.

        Called in a thread, before each launch and when the gateway starts. The kernelspec's word counts, else the mark
        in a launcher's file that its argv names. Back ends whose launchers are in images override it: their labels say.
        """
        return demanded_version(config) or max(cls.payload_version, marked_version(argv, resource_dir))

    def _minimum_version(self) -> tuple[int, str]:
        """Return the least payload version for this launch, and what a refusal says of where that comes from."""
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
        """Take reports of version 1 from these addresses only; called by back ends that know the kernel's host.

        They call it before anything is started, with all addresses of the host. ``payload_v1_from`` of the config adds
        others: of a host that reports by another address than it is reached by, say.
        """
        self.expectation.restrict(Origins(addresses, self.proxy_config.get("payload_v1_from") or ()), place)

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Give the launcher its secret and port rules, and start counting the launch time-out."""
        env = kwargs["env"]
        env["EG_LAUNCH_SECRET"] = self.launch_secret
        env["EG_MIN_PORT_RANGE_SIZE"] = str(envvars.EG_MIN_PORT_RANGE_SIZE())
        env["EG_MAX_PORT_RANGE_RETRIES"] = str(envvars.EG_MAX_PORT_RANGE_RETRIES())
        env.setdefault("EG_LOG_LEVEL", str(envvars.EG_LOG_LEVEL()))
        await super().launch_process(kernel_cmd, **kwargs)
        self._start_counting()

    async def confirm_remote_startup(self) -> None:
        """Wait until the launcher has responded; back ends call it at the end of ``launch_process``."""
        await self._accept(await await_startup(self, self.deadline))

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
        """Return the sentence for a launch that timed out; back ends add what they know."""
        output = await offload(last_lines, self.output_file)
        rejections = "; ".join(self.expectation.rejections)
        return (
            f"KernelID: '{self.kernel_id}' launch timeout due to: Waited too long ({seconds:g}s) to get connection file"
            + (f". Refused responses: {rejections}" if rejections else "")
            + (f". Last lines of its launcher: {output}" if output else "")
        )

    async def receive_connection_info(self) -> bool:
        """Wait a moment for the response and return whether it came; for third-party confirmation loops."""
        try:
            info = await self.expectation.wait(Deadline(envvars.EG_POLL_INTERVAL()))
        except LaunchTimeoutError:
            return False
        await self._accept(info)
        return True

    async def handle_timeout(self) -> None:
        """Sleep for one poll, then fail the launch if its time is over; for third-party confirmation loops."""
        await asyncio.sleep(envvars.EG_POLL_INTERVAL())
        if self.deadline.expired:
            raise LaunchTimeoutError(await self.describe_timeout(self.deadline.seconds))

    def detect_launch_failure(self) -> None:
        """Fail the launch if the launcher, a child of the gateway, ended badly; for third-party loops."""
        exit_code = self.local_proc.poll() if self.local_proc is not None else None
        if exit_code:
            raise LauncherFailedError(self._describe_early_end(exit_code))

    @property
    def conflict(self) -> Conflict | None:
        """What makes it doubtful whose report was accepted; None where nothing does."""
        return self.expectation.doubt if self.expectation is not None else None

    async def _accept(self, info: ConnectionInfo) -> None:
        """Take over what the launcher reported."""
        if not self.assigned_ip:
            raise KernelLaunchError(f"The host of kernel {self.kernel_id} is not known.")
        self.pid, self.pgid, self.ip = info.pid, info.pgid, self.assigned_ip
        self.connection = replace(info, ip=self.assigned_ip)
        if envvars.EG_ENABLE_TUNNELING() and not is_local_address(self.assigned_ip):
            self.connection = await offload_to(self._place, self._open_tunnels, self.connection)
        if self.connection.comm_port:
            self._open_comm_port(self.connection.ip, self.connection.comm_port, self.expectation.payload_version == 2)

    @property
    def _place(self) -> str:
        """The kernel's host; before that is known, the back end."""
        return self.assigned_host or self.assigned_ip or super()._place

    @property
    def tunnel_host(self) -> str:
        """The SSH host through which the kernel is reached when tunnelling is enabled."""
        return self.assigned_ip or ""

    def _open_tunnels(self, connection: ConnectionInfo) -> ConnectionInfo:
        """Open tunnels to the kernel's ports; return its connection information with the local ones."""
        host = self.kernel_manager.resources.hosts.host(self.tunnel_host)
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
        """Have the launcher signal its kernel; where it cannot be asked, signal the process by other means."""
        self._is_ending = self._is_ending or signum in ENDING_SIGNALS
        if self.comm is not None:
            try:
                return None if self.comm.signal(signum) else False
            except (OSError, CommPortError) as error:
                self.log.warning("The launcher of kernel %s did not take signal %d: %s", self.kernel_id, signum, error)
        return super().send_signal(signum)

    def poll(self) -> Any:
        """Return None while the launcher answers, False when it is gone.

        Raises
        ------
        HostUnreachableError
            Neither is known.
        """
        if self.comm is None:
            return super().poll()
        try:
            is_there = self.comm.probe()
        except (OSError, CommPortError) as error:
            raise HostUnreachableError(
                f"Whether kernel {self.kernel_id} lives is not known: {self.comm_ip} does not answer ({error})."
            ) from error
        if is_there and self._is_ending and not self.comm.is_authenticated and not self._kernel_answers():
            self._stop_listener()
            return False
        return None if is_there else False

    def _kernel_answers(self) -> bool:
        """Return whether the kernel itself is there: ZeroMQ greets those who connect.

        Listeners of version 1 may outlive their kernel, until they are told to stop.
        """
        kernel = self.connection or self.kernel_manager.connection()
        address = (kernel.ip, kernel.shell_port)
        try:
            with socket.create_connection(address, envvars.EG_SOCKET_TIMEOUT()) as connection:
                return bool(connection.recv(1))
        except ConnectionError:
            return False
        except OSError:
            return True  # it did not answer in time: that is not its end

    def shutdown_listener(self) -> None:
        """Note that the kernel has been asked to shut down; the provisioner tells.

        The launcher goes on listening until its kernel is gone: one that does not obey has yet to be signalled.
        """
        self._is_ending = True

    def _stop_listener(self) -> None:
        """Tell the launcher to stop listening."""
        if self.comm is not None:
            try:
                self.comm.shutdown()
            except (OSError, CommPortError) as error:
                self.log.debug("The launcher of kernel %s did not take the shutdown: %s", self.kernel_id, error)

    async def wait_for_exit(self) -> int:
        """Wait until the kernel is known to be gone; returns 0, for the exit code is not known.

        A launcher of version 2 keeps a connection open: its end is the event. With others, and while the host cannot
        be asked, the kernel is polled.
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

    def let_go(self) -> None:
        """Close what leads to a kernel that lives on: this gateway ends, or another one has restarted it."""
        if self.comm is not None:
            self.comm.close()
        if self._tunnels is not None:
            self._tunnels.close()
            self._tunnels = None

    def cleanup(self) -> None:
        """Forget the expected response and where the kernel was, and end what is left of its launch here."""
        if self.expectation is not None:
            self.expectation.close()
        if self.comm is not None and not self.comm.is_authenticated:
            self._stop_listener()
        self.let_go()
        self.assigned_ip = None
        self._end_local_process()
        super().cleanup()

    def _end_local_process(self) -> None:
        """End the launch script, the ``spark-submit`` … that has not ended with the kernel."""
        process = self.local_proc
        if not isinstance(process, LocalProcess) or not process.send_signal(signal.SIGTERM):
            return
        if process.wait(LAUNCHER_GRACE_SECONDS) is None:
            process.kill()
            process.wait(LAUNCHER_GRACE_SECONDS)

    def get_process_info(self) -> dict[str, Any]:
        """Add where the kernel runs and how its launcher is reached."""
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
        """Take over where the kernel runs and how its launcher is reached."""
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


def kernel_id_of(connection_file: str) -> str:
    """Return the kernel id in the name of a connection file, ``kernel-<id>.json``."""
    return os.path.splitext(os.path.basename(connection_file))[0].removeprefix("kernel-")


def gateway_user() -> str:
    """Return the name of the operating-system user that the gateway runs as."""
    return user_name(os.getuid())


async def make_process_proxy(kernel_manager: RemoteKernelManager) -> BaseProcessProxyABC:
    """Return the process proxy that a kernel's kernelspec names, LocalProcessProxy when it names none.

    Raises
    ------
    KernelLaunchError
        The class cannot be imported.
    """
    stanza = process_proxy_config(kernel_manager.kernel_spec)
    try:
        proxy_class = await offload(_proxy_class, stanza["class_name"])
    except ImportError as error:
        raise KernelLaunchError(
            f"Process proxy {stanza['class_name']!r} of kernelspec {kernel_manager.kernel_name!r} cannot be imported: "
            f"{error}"
        ) from error
    proxy: BaseProcessProxyABC = proxy_class(kernel_manager=kernel_manager, proxy_config=stanza["config"])
    return proxy


def _proxy_class(name: str) -> type[BaseProcessProxyABC]:
    """Import a class, and have ready what its constructor asks for; runs in a thread, as the first call reads files."""
    gateway_user()
    proxy_class: type[BaseProcessProxyABC] = import_item(name)
    return proxy_class


LOCAL_PROXY = f"{__name__}.LocalProcessProxy"


def process_proxy_config(kernel_spec: Any) -> dict[str, Any]:
    """Return ``{"class_name": …, "config": {…}}`` of a kernelspec, completed by defaults."""
    stanza = kernel_spec.metadata.get("process_proxy") or {}
    return {"class_name": stanza.get("class_name") or LOCAL_PROXY, "config": stanza.get("config") or {}}


def launch_timeout(kernel_spec: Any, env: Mapping[str, str]) -> float:
    """Return the seconds that a kernel may take, as a request's variables, its kernelspec or the gateway have it."""
    asked_for = env.get("KERNEL_LAUNCH_TIMEOUT") or kernel_spec.env.get("KERNEL_LAUNCH_TIMEOUT")
    if asked_for:
        return kernelargs.check_launch_timeout(asked_for)
    config = (kernel_spec.metadata.get("kernel_provisioner") or process_proxy_config(kernel_spec)).get("config") or {}
    return float(config.get("launch_timeout") or envvars.EG_KERNEL_LAUNCH_TIMEOUT())


def check_argv(argv: Sequence[str], kernel_name: str) -> None:
    """Refuse a kernelspec without a command."""
    if not argv:
        raise InvalidRequestError(f"Kernelspec {kernel_name!r} has an empty argv.")
