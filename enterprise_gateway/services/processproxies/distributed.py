"""Kernels on a set of hosts that are reached through SSH."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ...core import envvars
from ...core.connection import ConnectionInfo
from ...core.errors import HostAuthenticationError, HostUnreachableError, KernelLaunchError, LaunchRefusedError
from ...core.offload import offload_to
from ...core.states import Phase, State
from ...transport.localproc import LocalProcess
from .addresses import addresses_of, is_local_address, resolve
from .cluster import ClusterProcessProxy
from .contract import gateway_user
from .deployment import LABEL_VARIABLE
from .hostchoice import TrackKernelOnHost
from .jobs import Job, LogFolderTakenError, Started
from .launchedkernel import LaunchedKernel
from .ownhost import OwnHost
from .remnants import Remnant, owners_of, remote_processes
from .remotehosts import RemoteHost, RemoteHosts, ssh_hosts
from .shared import SharedResources, gateway_environment
from .watched import Watched

__all__ = ["DistributedProcessProxy", "TrackKernelOnHost"]

_GATEWAYS_OWN = ("HOME", "USER", "LOGNAME", "SHELL", "TMPDIR")  # a login on another host has its own values


class DistributedProcessProxy(ClusterProcessProxy):
    """A kernel on one of ``remote_hosts``, chosen for every launch.

    On the gateway's own host it is a child process, elsewhere it is started through the host's SSH connection. Its
    output is appended to ``<EG_KERNEL_LOG_DIR>/kernel-<id>.log`` on its host, by default in a directory that only
    the user who starts the kernel can access.

    Parameters
    ----------
    proxy_config
        ``remote_hosts``, a comma-separated list; the default is the gateway's option of that name.
    """

    keeps_output = True
    starts_kernel_itself = True
    remembered = ("started_pid", "started_pgid", "sudo_user", "kernel_log")

    def __init__(self, kernel_manager: LaunchedKernel, proxy_config: dict[str, Any] | None) -> None:
        super().__init__(kernel_manager, proxy_config)
        self.hosts = host_names(self.proxy_config.get("remote_hosts") or kernel_manager.options.remote_hosts)
        self.kernel_log = log_path(self.kernel_id, gateway_user())
        self.started_pid = self.started_pgid = 0  # as this gateway saw them; a reported id is not trusted for signals
        self.sudo_user = ""
        self._kernel_cmd: list[str] = []
        self._host: OwnHost | RemoteHost | None = None  # None until one is chosen

    @property
    def output_file(self) -> Path:
        """The kernel's log, if the kernel runs on the gateway's host."""
        return Path(self.kernel_log)

    @property
    def tunnel_host(self) -> str:
        """The name of the host in ``remote_hosts`` and known_hosts."""
        return self.assigned_host

    # -- the verbs -----------------------------------------------------------------------------------------------------

    async def submit(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Start the kernel on the first reachable host; hosts that fail are avoided for a while."""
        self._kernel_cmd = kernel_cmd
        env = kwargs["env"]
        user = self._impersonated(env)
        choice = self._ssh_hosts.choice
        failures: list[KernelLaunchError] = []
        hosts = self._allowed_hosts(env.get("KERNEL_REMOTE_HOST") or "")
        for host in choice.order(hosts, self.kernel_manager.options.load_balancing_algorithm):
            choice.load.add_kernel_id(host, self.kernel_id)
            try:
                await self._start_on(host, user, env, kwargs.get("cwd"))
            except (HostUnreachableError, HostAuthenticationError) as error:
                from ...drivers.ssh_shell import OutcomeUnknownError

                choice.failed(host)
                failures.append(error)
                self.log.warning("Kernel %s cannot be started on %s: %s", self.kernel_id, host, error)
                if isinstance(error, OutcomeUnknownError):
                    with suppress(KernelLaunchError):
                        await self.in_thread(self.remove_leftovers)
                    break  # it may be running there, and a second one elsewhere would be a duplicate
                if self.deadline.expired:
                    break
            else:
                choice.reached(host)
                self.log.info("Kernel %s is starting on %s, process %d", self.kernel_id, host, self.started_pid)
                return
        raise _no_host(self.kernel_id, failures)

    def probe(self) -> State | None:
        """Ask the host for the state of the started process; if none was started, there is no kernel."""
        return self._host.state(self._process) if self._host is not None and self.started_pid else State(Phase.ENDED)

    @property
    def watched(self) -> Watched | None:
        """The host's table of processes."""
        return self._host.watched(self._process) if self._host is not None and self.started_pid else None

    def signal(self, signum: int) -> bool:
        """Signal the process's group."""
        return self._host is not None and self._host.signal(self._process, signum, self.sudo_user)

    def stop(self) -> None:
        """Kill the process group, and stop counting the kernel on its host."""
        self._ssh_hosts.choice.load.delete_kernel_id(self.kernel_id)
        self.signal(signal.SIGKILL)

    def describe(self) -> str:
        """Return the last lines of the kernel's log, or its path."""
        return self._host.describe(self._kernel_cmd, self.kernel_log) if self._host is not None else ""

    # -- one host ------------------------------------------------------------------------------------------------------

    @property
    def _ssh_hosts(self) -> RemoteHosts:
        return ssh_hosts(self.kernel_manager.resources)

    def _host_at(self, name: str, address: str) -> OwnHost | RemoteHost:
        if is_local_address(address):
            return OwnHost(name, self._start_child, self.log)
        return self._ssh_hosts.host(name)

    def _start_child(self, argv: list[str], **kwargs: Any) -> LocalProcess:
        self.local_proc = self.launch_kernel(argv, **kwargs)
        return self.local_proc

    @property
    def _process(self) -> Started:
        start_time = self.local_proc.start_time if isinstance(self.local_proc, LocalProcess) else -1
        return Started(self.started_pid, self.started_pgid, start_time, self.pgid)

    def _impersonated(self, env: Mapping[str, str]) -> str:
        """Return the user that the kernel is to run as; empty for the user that starts it."""
        from ...drivers.shell_scripts import is_user_name

        user = env["KERNEL_USERNAME"]
        if not self.kernel_manager.options.impersonation_enabled:
            return ""
        if user not in (self.remote_user, gateway_user()) and not is_user_name(user):
            raise LaunchRefusedError(f"KERNEL_USERNAME {user[:64]!r} is not a user name that a kernel can run as.")
        return user

    def _allowed_hosts(self, wanted: str) -> list[str]:
        """Return the hosts to choose from: only the client's choice, if there is one and it is configured."""
        if not wanted:
            return self.hosts
        if wanted not in self.hosts:
            raise LaunchRefusedError(f"KERNEL_REMOTE_HOST {wanted[:255]!r} is not one of the configured remote hosts.")
        return [wanted]

    async def _start_on(self, name: str, user: str, env: Mapping[str, str], cwd: str | None) -> None:
        addresses = await addresses_of(name)
        self.restrict_reports(name, addresses)
        self.assigned_host, self.assigned_ip, self.ip = name, addresses[0], addresses[0]
        self._host = self._host_at(name, addresses[0])
        login = gateway_user() if isinstance(self._host, OwnHost) else self.remote_user
        self.sudo_user = user if user != login else ""
        self.kernel_log = log_path(self.kernel_id, login)
        await offload_to(name, self._start, self._host, login, env, cwd)

    def _start(self, host: OwnHost | RemoteHost, login: str, env: Mapping[str, str], cwd: str | None) -> None:
        """Start the kernel; runs in a thread, and notes the process even if the launch was cancelled meanwhile."""
        try:
            started = host.start(self._job(env, cwd))
        except LogFolderTakenError as error:
            # Use a directory whose name nobody can guess: a local account must not be able to block all kernels.
            self.kernel_log = log_path(self.kernel_id, f"{login}-{secrets.token_hex(8)}")
            self.log.warning("The log of kernel %s will be %s: %s", self.kernel_id, self.kernel_log, error)
            started = host.start(self._job(env, cwd))
        self.started_pid, self.started_pgid = started.pid, started.pgid

    def _job(self, env: Mapping[str, str], cwd: str | None) -> Job:
        return Job(
            kernel_id=self.kernel_id,
            argv=self._kernel_cmd,
            env=env,
            env_elsewhere=self._remote_environment(env),
            log=self.kernel_log,
            has_private_log=not envvars.EG_KERNEL_LOG_DIR(),
            cwd_here=cwd,
            cwd_elsewhere=env.get("KERNEL_WORKING_DIR", "") if envvars.EG_MIRROR_WORKING_DIRS() else "",
            as_user=self.sudo_user,
            timeout=max(self.deadline.remaining, 1.0),
        )

    def _remote_environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """Leave out the variables of the gateway's own login, because the login on the host has its own."""
        own = gateway_environment()
        named = {*self.kernel_manager.spec.env, *self.kernel_manager.options.inherited_envs}
        foreign = {name for name in _GATEWAYS_OWN if name not in named and env.get(name) == own.get(name)}
        return {name: value for name, value in env.items() if name not in foreign}

    def _build_startup_command(self, argv_list: Sequence[str], **kwargs: Any) -> str:
        """Return the text that starts ``argv_list`` with ``env`` on a remote host."""
        from ...drivers.shell_scripts import folder_text, startup_text

        spec = self.kernel_manager.kernel_spec
        env = {**(spec.env if spec else {}), **kwargs.get("env", {})}
        log = log_path(env.get("KERNEL_ID", ""), self.remote_user)
        return folder_text(log, private=not envvars.EG_KERNEL_LOG_DIR()) + startup_text(argv_list, env, log)

    def shutdown_listener(self) -> None:
        """Tell the launcher to stop listening, because this back end signals the kernel's process directly."""
        self._stop_listener()

    # -- leftovers -----------------------------------------------------------------------------------------------------

    def remove_leftovers(self) -> bool:
        """End processes with the kernel's id on every possible host, and return whether there were any.

        If the record does not name the host, the gateway ended before it knew the host, and all hosts are searched.

        Raises
        ------
        KernelLaunchError
            A host on which the kernel may run does not answer.
        """
        was_running = super().remove_leftovers()
        failure: KernelLaunchError | None = None
        for host in self._hosts_to_search():
            try:
                for remnant in remote_processes(host.shell, "KERNEL_ID", [self.kernel_id], self._owners):
                    remnant.remove()
                    was_running = True
            except KernelLaunchError as error:
                self.log.warning("Leftovers of kernel %s may not have been removed: %s", self.kernel_id, error)
                failure = error
        if failure is not None:
            raise failure
        return was_running

    def _hosts_to_search(self) -> list[RemoteHost]:
        if self.assigned_host:
            return [self._host] if isinstance(self._host, RemoteHost) else []
        return remote_hosts(self.kernel_manager.resources, self.hosts)

    @classmethod
    def find_remnants(
        cls, resources: SharedResources, labels: Collection[str], configs: Collection[Mapping[str, Any]]
    ) -> Iterator[Remnant]:
        """Yield the labelled processes on all hosts that the gateway's option or a kernelspec names."""
        failures = []
        owners = owners_of(resources, configs)
        named = [resources.options.remote_hosts, *(config.get("remote_hosts") or () for config in configs)]
        for name in dict.fromkeys(name for names in named for name in host_names(names)):
            try:
                for host in remote_hosts(resources, [name]):
                    yield from remote_processes(host.shell, LABEL_VARIABLE, labels, owners)
            except KernelLaunchError as error:
                failures.append(str(error))
        if failures:
            raise HostUnreachableError("; ".join(failures))

    # -- persistence ---------------------------------------------------------------------------------------------------

    def get_process_info(self) -> dict[str, Any]:
        """Add the start time of a process on this machine, because its id may be reused later."""
        info = super().get_process_info()
        if isinstance(self.local_proc, LocalProcess):
            info["start_time"] = self.local_proc.start_time
        return info

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """Find the process again on its host, and count the kernel there."""
        super().load_process_info(process_info)
        if not self.assigned_ip:
            return
        self._host = self._host_at(self.assigned_host or self.assigned_ip, self.assigned_ip)
        start_time = int(process_info.get("start_time") or -1)
        self.local_proc = self._host.adopt(Started(self.started_pid, self.started_pgid, start_time))
        self._ssh_hosts.choice.load.add_kernel_id(self.assigned_host, self.kernel_id)

    async def _accept(self, info: ConnectionInfo) -> None:
        await super()._accept(info)
        self.pid, self.pgid = self.pid or self.started_pid, self.pgid or self.started_pgid


def remote_hosts(resources: SharedResources, names: Iterable[str]) -> list[RemoteHost]:
    """Return those of the named hosts that are not the gateway's own machine; blocks.

    Raises
    ------
    HostUnreachableError
        A name cannot be resolved.
    """
    return [ssh_hosts(resources).host(name) for name in names if not is_local_address(resolve(name))]


def host_names(configured: str | Iterable[str]) -> list[str]:
    """Return the host names in a value of ``remote_hosts``: a comma-separated list or a list."""
    return list(envvars.comma_list(configured if isinstance(configured, str) else ",".join(configured)))


def log_path(kernel_id: str, login: str) -> str:
    """Return the path of a kernel's log on its host, for a kernel that ``login`` starts."""
    folder = envvars.EG_KERNEL_LOG_DIR() or envvars.DEFAULT_KERNEL_LOG_DIR.format(login.replace("/", "_"))
    return str(PurePosixPath(folder) / f"kernel-{kernel_id}.log")


def _no_host(kernel_id: str, failures: Sequence[KernelLaunchError]) -> KernelLaunchError:
    """Return the error for a kernel that could not be started on any host, with each host's reason."""
    reasons = "; ".join(map(str, failures)) or "no remote hosts are configured"
    only_refusals = failures and all(isinstance(failure, HostAuthenticationError) for failure in failures)
    error_class = HostAuthenticationError if only_refusals else HostUnreachableError
    return error_class(f"Kernel {kernel_id} could not be started on any host: {reasons}.")
