"""The contract of a kernel back end, on which the gateway and third-party process proxies rely."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tornado import web

from ...core import envvars, kernelargs, kernelenv
from ...core.authorization import UserRules
from ...core.errors import LauncherFailedError
from ...core.offload import offload_to
from ...core.ports import PortRange
from ...transport.localproc import LocalProcess
from ...transport.outputfiles import cut
from .remnants import Owners, local_processes, user_name

if TYPE_CHECKING:
    from .launchedkernel import LaunchedKernel
    from .remnants import Remnant
    from .shared import SharedResources

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

    The provisioner constructs one for every launch and relaunch. ``poll``, ``wait``, ``send_signal``, ``kill``
    and ``terminate`` work as in Popen: ``poll`` returns None while the kernel is alive. They may be plain methods,
    which the provisioner calls in a thread, or coroutines, which it awaits.

    Parameters
    ----------
    kernel_manager
        The proxy's view of the kernel: its id, kernelspec, options and shared resources.
    proxy_config
        ``metadata.process_proxy.config`` of the kernelspec.
    """

    calls_block = True
    """Whether plain ``poll``, ``send_signal`` … may block and so must run in a thread."""

    keeps_output = False
    """Whether :attr:`output_file` is kept after the kernel has ended."""

    starts_kernel_itself = False
    """Whether :meth:`launch_kernel` starts the kernel itself, and not a script: its process group ends with it."""

    def __init__(self, kernel_manager: LaunchedKernel, proxy_config: dict[str, Any] | None) -> None:
        self.kernel_manager = kernel_manager
        self.proxy_config = dict(proxy_config or {})
        self.log = kernel_manager.log
        self.progress = kernel_manager.progress
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
        self._call_lock = asyncio.Lock()
        self._current_poll: asyncio.Task[Any] | None = None

    @property
    def _place(self) -> str:
        """Names what the kernel's blocking methods wait for: calls for different names never wait for each other."""
        return type(self).__qualname__

    async def in_thread(self, method: Callable[..., Any], *args: Any, place: str = "", **kwargs: Any) -> Any:
        """Run one of the proxy's plain methods in a thread; called by the provisioner.

        One at a time, because third parties do not write them to be thread-safe.
        """
        async with self._call_lock:
            return await offload_to(place or self._place, method, *args, **kwargs)

    async def poll_in_thread(self) -> Any:
        """Return the result of a plain :meth:`poll`; a call shares the result of a poll in progress."""
        task = self._current_poll
        if task is None:
            task = self._current_poll = asyncio.create_task(self.in_thread(self.poll))
            task.add_done_callback(self._poll_ended)
        return await asyncio.shield(task)

    def _poll_ended(self, task: asyncio.Task[Any]) -> None:
        self._current_poll = None
        if not task.cancelled():
            task.exception()  # marked as retrieved: the waiting callers, if any are left, got it

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
        # The contract of 3.x: back ends go on with the very dictionary that they were given. It is changed here only.
        env.update(self.launcher_variables(env))
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
            "Launching kernel %s with environment %s",
            self.kernel_id,
            kernelenv.redact(env, envvars.EG_SENSITIVE_ENV_KEYS(), envvars.EG_REDACTION_MASK()),
        )

    def launcher_variables(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return what the launcher is to find besides ``env``; called by :meth:`launch_process`."""
        return {}

    def launch_kernel(self, cmd: list[str], **kwargs: Any) -> LocalProcess:
        """Start ``cmd`` as a child of the gateway; back ends use it for kernels and for launch scripts.

        Its output goes to :attr:`output_file`, whose last lines explain an early end; ``stdin`` is its input.

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
        """The file for the output of a process started by :meth:`launch_kernel`."""
        label = self.kernel_manager.resources.deployment.label
        return Path(self.kernel_manager.connection_file).with_suffix(f".{label}.log" if label else ".log")

    def poll(self) -> Any:
        """Return None while the kernel is alive, and anything else otherwise; called by the provisioner."""
        if self.local_proc is not None:
            return self.local_proc.poll()
        return self.send_signal(0)

    def wait(self) -> Any:
        """Block until the kernel has ended, for at most ``EG_MAX_POLL_ATTEMPTS`` polls; runs in a thread."""
        if self.local_proc is not None:
            return self.local_proc.wait()
        for _ in range(envvars.EG_MAX_POLL_ATTEMPTS()):
            if self.poll() is not None:
                break
            time.sleep(envvars.EG_POLL_INTERVAL())
        return None

    def send_signal(self, signum: int) -> bool | None:
        """Signal the kernel's process group; return None if it exists, False if not."""
        if self.local_proc is not None:
            return None if self.local_proc.send_signal(signum) is not False else False
        return False

    def kill(self) -> bool | None:
        """Kill the kernel; return None on success, False on failure."""
        return self.send_signal(signal.SIGKILL)

    def terminate(self) -> bool | None:
        """Ask the kernel's process to end."""
        return self.send_signal(signal.SIGTERM)

    def cleanup(self) -> None:
        """Release the resources of the launch; called once, after the kernel has ended or its launch has failed."""
        if isinstance(self.local_proc, LocalProcess):
            self.local_proc.close()
        if not self.keeps_output:
            self.output_file.unlink(missing_ok=True)
        else:
            with suppress(OSError):
                cut(self.output_file, envvars.EG_KERNEL_OUTPUT_LIMIT())

    def remove_leftovers(self) -> bool:
        """Remove the leftovers of an interrupted launch of this kernel, and return whether a process was among them.

        Runs in a thread.

        The base removes processes of this machine that carry the kernel's id in their environment.
        """
        remnants = list(local_processes("KERNEL_ID", [self.kernel_id], self._owners))
        for remnant in remnants:
            self.log.warning("Kernel %s has left behind %s, which is now removed", self.kernel_id, remnant.what)
            remnant.remove()
        return bool(remnants)

    @property
    def _owners(self) -> Owners:
        """The users who may own the kernel's processes."""
        return Owners(self.kernel_manager.options.impersonation_enabled, [self.user_rules])

    @classmethod
    def find_remnants(
        cls,
        resources: SharedResources,  # noqa: ARG003
        labels: Collection[str],  # noqa: ARG003
        configs: Collection[Mapping[str, Any]],  # noqa: ARG003
    ) -> Iterator[Remnant]:
        """Yield the labelled leftovers of this back end's kernels; runs in a thread.

        Called by the sweeper for every class that an installed kernelspec names. Leftovers on the gateway's own
        machine are found without this.

        Parameters
        ----------
        resources
            The resources that all kernels of the gateway share, including the options.
        labels
            The labels to look for: values of ``EG_DEPLOYMENT_ID`` in a kernel's environment.
        configs
            ``metadata.process_proxy.config`` of the installed kernelspecs that name the class.

        Raises
        ------
        KernelLaunchError
            The back end, or some part of it, does not answer; what was yielded before is valid.
        """
        yield from ()

    def select_ports(self, count: int) -> list[int]:
        """Return free ports of this machine within the port range, reserved until the kernel has ended."""
        return self.kernel_manager.resources.ports.take(count, self.port_range, envvars.EG_MAX_PORT_RANGE_RETRIES())

    def get_process_info(self) -> dict[str, Any]:
        """Return the values that :meth:`load_process_info` needs after a restart of the gateway, in JSON types."""
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


def kernel_id_of(connection_file: str) -> str:
    """Return the kernel id in the name of a connection file, ``kernel-<id>.json``."""
    return os.path.splitext(os.path.basename(connection_file))[0].removeprefix("kernel-")


def gateway_user() -> str:
    """Return the name of the operating-system user that the gateway runs as."""
    return user_name(os.getuid())
