"""Kernels on a set of hosts that are reached by SSH."""

from __future__ import annotations

import asyncio
import secrets
import signal
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...core import envvars
from ...core.connection import ConnectionInfo
from ...core.errors import (
    HostAuthenticationError,
    HostUnreachableError,
    KernelLaunchError,
    LauncherFailedError,
    LaunchRefusedError,
)
from ...core.offload import offload, offload_to
from ...core.ownfiles import make_private_directory
from ...transport.commport import CommPortError, connection_ended
from ...transport.localproc import LocalProcess
from .deployment import LABEL_VARIABLE
from .hostchoice import TrackKernelOnHost
from .processproxy import ENDING_SIGNALS, NEVER_ENDING, RemoteProcessProxy, gateway_user
from .remnants import Remnant, owners_of, remote_processes
from .remotehosts import RemoteHost, addresses_of, is_local_address, resolve
from .shared import SharedResources, gateway_environment

if TYPE_CHECKING:
    from ..kernels.remotemanager import RemoteKernelManager

__all__ = ["DistributedProcessProxy", "TrackKernelOnHost"]

_GATEWAYS_OWN = ("HOME", "USER", "LOGNAME", "SHELL", "TMPDIR")  # of the login on a host, not of the gateway's
_LAST_LINES = 20
_SUDO_SECONDS = 10.0


class DistributedProcessProxy(RemoteProcessProxy):
    """A kernel on one of ``remote_hosts``, chosen anew for every launch.

    On the gateway's own host it is a child process, elsewhere it is started through the host's SSH connection. Its
    output is appended to ``<EG_KERNEL_LOG_DIR>/kernel-<id>.log`` on its host, by default in a directory that nobody
    but the user who starts the kernel may enter.

    Parameters
    ----------
    proxy_config
        ``remote_hosts`` (comma list), else the gateway's option of that name.
    """

    keeps_output = True
    starts_kernel_itself = True

    def __init__(self, kernel_manager: RemoteKernelManager, proxy_config: dict[str, Any] | None) -> None:
        super().__init__(kernel_manager, proxy_config)
        self.hosts = host_names(self.proxy_config.get("remote_hosts") or kernel_manager.options.remote_hosts)
        self.kernel_log = log_path(self.kernel_id, gateway_user())
        self.started_pid = self.started_pgid = 0  # by us, on whose word a signal is sent
        self.sudo_user = self._wanted_user = ""
        self._kernel_cmd: list[str] = []
        self._host: RemoteHost | None = None  # None: the gateway's own, or not known yet

    @property
    def output_file(self) -> Path:
        """The kernel's log, where the kernel runs on the gateway's host."""
        return Path(self.kernel_log)

    @property
    def tunnel_host(self) -> str:
        """The host as it is named in ``remote_hosts`` and known_hosts."""
        return self.assigned_host

    # -- launch --------------------------------------------------------------------------------------------------------

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Start the kernel on the first host that can be reached, and wait for its response."""
        await super().launch_process(kernel_cmd, **kwargs)
        self._wanted_user = self._impersonated(kwargs["env"])
        await self._start(kernel_cmd, **kwargs)
        await self.confirm_remote_startup()

    def _impersonated(self, env: Mapping[str, str]) -> str:
        """Return the user whom the kernel is to run as; empty: the one that starts it."""
        from ...drivers.shell_scripts import is_user_name

        user = env["KERNEL_USERNAME"]
        if not self.kernel_manager.options.impersonation_enabled:
            return ""
        if user not in (self.remote_user, gateway_user()) and not is_user_name(user):
            raise LaunchRefusedError(f"KERNEL_USERNAME {user[:64]!r} is no user name that a kernel can be started as.")
        return user

    def _allowed_hosts(self, wanted: str) -> list[str]:
        """Return the hosts to choose from: the one that the client asks for, if the administrator allows it."""
        if not wanted:
            return self.hosts
        if wanted not in self.hosts:
            raise LaunchRefusedError(f"KERNEL_REMOTE_HOST {wanted[:255]!r} is not one of the configured remote hosts.")
        return [wanted]

    async def _start(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Try one host after the other; every one that fails is avoided for a while."""
        choice = self.kernel_manager.resources.hosts.choice
        hosts = self._allowed_hosts(kwargs["env"].get("KERNEL_REMOTE_HOST") or "")
        failures: list[KernelLaunchError] = []
        for host in choice.order(hosts, self.kernel_manager.options.load_balancing_algorithm):
            choice.load.add_kernel_id(host, self.kernel_id)
            try:
                await self._start_on(host, kernel_cmd, **kwargs)
            except (HostUnreachableError, HostAuthenticationError) as error:
                from ...drivers.ssh_shell import OutcomeUnknownError

                choice.failed(host)
                failures.append(error)
                self.log.warning("Kernel %s cannot be started on %s: %s", self.kernel_id, host, error)
                if isinstance(error, OutcomeUnknownError):
                    with suppress(KernelLaunchError):
                        await self.in_thread(self.remove_leftovers)
                    break  # it may be running there: a second one elsewhere would be one too many
                if self.deadline.expired:
                    break
            else:
                choice.reached(host)
                self.log.info("Kernel %s is starting on %s, process %d", self.kernel_id, host, self.started_pid)
                return
        raise _no_host(self.kernel_id, failures)

    async def _start_on(self, host: str, kernel_cmd: list[str], **kwargs: Any) -> None:
        addresses = await addresses_of(host)
        self.restrict_reports(host, addresses)
        address = addresses[0]
        self.assigned_host, self.assigned_ip, self.ip = host, address, address
        is_here = is_local_address(address)
        login = gateway_user() if is_here else self.remote_user
        self.sudo_user = self._wanted_user if self._wanted_user != login else ""
        self.kernel_log = log_path(self.kernel_id, login)
        if is_here:
            self._host = None
            await offload(self._start_here, kernel_cmd, kwargs)
        else:
            self._host = self.kernel_manager.resources.hosts.host(host)
            await offload_to(host, self._start_there, self._host, kernel_cmd, kwargs["env"])

    def _start_here(self, kernel_cmd: list[str], kwargs: dict[str, Any]) -> None:
        """Start the kernel as a child process; in a thread, like :meth:`_start_there`."""
        from ...drivers.shell_scripts import sudo_command

        if self.sudo_user:
            try:
                kernel_cmd, script = sudo_command(kernel_cmd, self._remote_environment(kwargs["env"]), self.sudo_user)
            except ValueError as error:
                raise KernelLaunchError(f"Kernel {self.kernel_id} cannot be started: {error}.") from error
            kwargs = {**kwargs, "stdin": script.encode(errors="surrogateescape")}
        if envvars.EG_KERNEL_LOG_DIR():
            Path(self.kernel_log).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            self._make_private_folder()
        self.local_proc = self.launch_kernel(kernel_cmd, **kwargs)
        self.started_pid, self.started_pgid = self.local_proc.pid, self.local_proc.pgid

    def _make_private_folder(self) -> None:
        """Make the directory of the log on this machine, under another name where somebody else has made it."""
        try:
            make_private_directory(Path(self.kernel_log).parent)
        except PermissionError as error:
            self._log_elsewhere(gateway_user(), error)
            make_private_directory(Path(self.kernel_log).parent)

    def _log_elsewhere(self, login: str, reason: Exception) -> None:
        """Choose a directory that nobody can have made: a local account must not keep all kernels from starting."""
        self.kernel_log = log_path(self.kernel_id, f"{login}-{secrets.token_hex(8)}")
        self.log.warning("The log of kernel %s will be %s: %s", self.kernel_id, self.kernel_log, reason)

    def _start_there(self, host: RemoteHost, kernel_cmd: list[str], env: Mapping[str, str]) -> None:
        """Start the kernel by SSH; runs in a thread, and notes the process even if nobody waits for it any more."""
        from ...drivers.ssh_shell import FolderTakenError

        self._kernel_cmd = kernel_cmd

        def start() -> tuple[int, int]:
            return host.shell.start_detached(
                kernel_cmd,
                env=self._remote_environment(env),
                log_path=self.kernel_log,
                private=not envvars.EG_KERNEL_LOG_DIR(),
                cwd=env.get("KERNEL_WORKING_DIR", "") if envvars.EG_MIRROR_WORKING_DIRS() else "",
                as_user=self.sudo_user,
                timeout=max(self.deadline.remaining, 1.0),
            )

        try:
            try:
                self.started_pid, self.started_pgid = start()
            except FolderTakenError as error:
                self._log_elsewhere(self.remote_user, error)
                self.started_pid, self.started_pgid = start()
        except ValueError as error:
            raise KernelLaunchError(f"Kernel {self.kernel_id} cannot be started: {error}.") from error

    def _remote_environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """Leave out what describes the gateway's own login: the login on the host has its own."""
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

    async def watch_for_failure(self) -> None:
        """Notice at once that the launcher has ended, wherever it runs."""
        if self._host is None:
            await super().watch_for_failure()
        else:
            await self._host.process_ended(self.started_pid, eager=True)
            await asyncio.sleep(0.2)  # its response may be on its way
            raise LauncherFailedError(
                f"The launcher of kernel {self.kernel_id} ended on {self.assigned_host}. {await self._diagnosis()}"
                f"Last lines of {self.kernel_log}: {await self._last_lines()}"
            )
        await asyncio.sleep(NEVER_ENDING)

    async def _diagnosis(self) -> str:
        """Return a sentence about a mistake that the launcher's own output does not tell; empty when there is none."""
        assert self._host is not None
        with suppress(KernelLaunchError):
            for script in await offload(self._host.shell.windows_scripts, self._kernel_cmd):
                return f"{script} has Windows line ends (CR LF): convert it, for example with dos2unix. "
        return ""

    async def describe_timeout(self, seconds: float) -> str:
        """Add where the kernel's log is, and its end."""
        sentence = await super().describe_timeout(seconds)
        place = f"{sentence}. The kernel's log is {self.assigned_host}:{self.kernel_log}"
        return place if self._host is None else f"{place}; its last lines: {await self._last_lines()}"

    async def _last_lines(self) -> str:
        assert self._host is not None
        try:
            return (await offload_to(self._place, self._host.shell.tail, self.kernel_log, _LAST_LINES)).strip()
        except KernelLaunchError as error:
            return f"(not available: {error})"

    # -- life ----------------------------------------------------------------------------------------------------------

    def poll(self) -> Any:
        """Return None while the kernel lives; its process decides, where its launcher does not answer.

        Raises
        ------
        HostUnreachableError
            Whether it lives is not known.
        """
        if self.local_proc is not None:
            return self.local_proc.poll()
        if self._host is None or not (self.started_pid or self.pid):
            return False  # nothing was started
        gone = False
        if self.comm is not None:
            try:
                if self.comm.probe():
                    return None
                gone = self._tunnels is None
            except (OSError, CommPortError) as error:
                self.log.debug("The launcher of kernel %s did not answer: %s", self.kernel_id, error)
        try:
            return None if self._host.shell.alive([self.started_pid or self.pid]) else False
        except KernelLaunchError as error:
            if gone:
                return False
            raise HostUnreachableError(f"Whether kernel {self.kernel_id} lives is not known: {error}.") from error

    async def wait_for_exit(self) -> int:
        """Wait until the kernel is gone: for its child process, its launcher's connection, or the host's watch."""
        if isinstance(self.local_proc, LocalProcess):
            return await self.local_proc.wait_for_exit()
        while (host := self._host) is not None:
            try:
                if await self.poll_in_thread() is not None:
                    break
            except HostUnreachableError as error:
                self.log.debug("%s", error)
            connection = self.comm.duplicate() if self.comm is not None else None
            if connection is not None:
                await connection_ended(connection)
            else:
                await host.process_ended(self.started_pid or self.pid)
                break
        return 0

    def send_signal(self, signum: int) -> bool | None:
        """Signal the kernel through its launcher; to end it, its whole process group."""
        if signum == 0:
            return None if self.poll() is None else False
        if self.comm is not None and signum not in ENDING_SIGNALS:
            try:
                return None if self.comm.signal(signum) else False
            except (OSError, CommPortError) as error:
                self.log.warning("The launcher of kernel %s did not take signal %d: %s", self.kernel_id, signum, error)
        return self._signal_group(signum)

    def _signal_group(self, signum: int) -> bool | None:
        if self.local_proc is not None and not self.sudo_user:
            return None if self.local_proc.send_signal(signum) is not False else False
        if self._host is None:
            return self._signal_here(signum)
        pid = self.started_pid or self.pid
        if pid <= 1:
            return False
        try:
            sent = self._host.shell.signal(pid, self.started_pgid, signum, as_user=self.sudo_user)
        except KernelLaunchError as error:
            self.log.warning("Kernel %s could not be sent signal %d: %s", self.kernel_id, signum, error)
            return super().send_signal(signum) if self.comm is not None else False
        return None if sent else False

    def _signal_here(self, signum: int) -> bool | None:
        if self.local_proc is None:
            return super().send_signal(signum)
        sent = self._signal_by_sudo(signum)
        if signum == signal.SIGKILL:
            # sudo stops when its kernel does, and then does not see it end; it may be signalled by root only.
            self.local_proc.send_signal(signum)
        return sent

    def _signal_by_sudo(self, signum: int) -> bool | None:
        """Signal a kernel of another user on the gateway's host: as that user, for we may not."""
        groups = {group for group in (self.started_pgid, self.pgid) if group > 1}
        command = ["sudo", "-n", "-u", self.sudo_user, "--", "kill", "-s", str(int(signum)), "--"]
        command += [f"-{group}" for group in sorted(groups)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SUDO_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self.log.warning("Kernel %s could not be sent signal %d: %s", self.kernel_id, signum, error)
            return super().send_signal(signum)
        if done.returncode == 0:
            return None
        complaint = done.stderr.decode(errors="replace").strip()
        self.log.warning("Kernel %s could not be sent signal %d by sudo: %s", self.kernel_id, signum, complaint)
        return super().send_signal(signum)

    def shutdown_listener(self) -> None:
        """Tell the launcher to stop listening: signals that end the kernel go to its process here."""
        self._stop_listener()

    def remove_leftovers(self) -> bool:
        """End what carries the kernel's id, wherever it may be, and return whether there was a process.

        Where the record does not name the host, the gateway ended before it knew: all hosts are asked then.

        Raises
        ------
        KernelLaunchError
            A host where the kernel may be cannot be asked.
        """
        was_running = super().remove_leftovers()
        failure: KernelLaunchError | None = None
        for host in self._hosts_to_search():
            try:
                for remnant in remote_processes(host.shell, "KERNEL_ID", [self.kernel_id], self._owners):
                    remnant.remove()
                    was_running = True
            except KernelLaunchError as error:
                self.log.warning("What is left of kernel %s may not have been removed: %s", self.kernel_id, error)
                failure = error
        if failure is not None:
            raise failure
        return was_running

    def _hosts_to_search(self) -> list[RemoteHost]:
        if self.assigned_host:
            return [self._host] if self._host is not None else []
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

    def cleanup(self) -> None:
        """Count the kernel on its host no more."""
        self.kernel_manager.resources.hosts.choice.load.delete_kernel_id(self.kernel_id)
        super().cleanup()

    # -- persistence ---------------------------------------------------------------------------------------------------

    def get_process_info(self) -> dict[str, Any]:
        """Add the process that was started, and as whom."""
        info = super().get_process_info()
        info.update(started_pid=self.started_pid, started_pgid=self.started_pgid, sudo_user=self.sudo_user)
        info["kernel_log"] = self.kernel_log
        if isinstance(self.local_proc, LocalProcess):
            info["start_time"] = self.local_proc.start_time
        return info

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """Find the process again, on whichever host it runs, and count it there."""
        self.started_pid = int(process_info.get("started_pid") or 0)
        self.started_pgid = int(process_info.get("started_pgid") or 0)
        self.sudo_user = process_info.get("sudo_user") or ""
        self.kernel_log = process_info.get("kernel_log") or self.kernel_log
        super().load_process_info(process_info)
        if not self.assigned_ip:
            return
        if is_local_address(self.assigned_ip):
            self.local_proc = LocalProcess.adopt(
                self.started_pid, int(process_info.get("start_time") or -1), takes_group=self.starts_kernel_itself
            )
        else:
            self._host = self.kernel_manager.resources.hosts.host(self.assigned_host or self.assigned_ip)
        self.kernel_manager.resources.hosts.choice.load.add_kernel_id(self.assigned_host, self.kernel_id)

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
    return [resources.hosts.host(name) for name in names if not is_local_address(resolve(name))]


def host_names(configured: str | Iterable[str]) -> list[str]:
    """Return the names in a value of ``remote_hosts``: a comma list or a list."""
    return list(envvars.comma_list(configured if isinstance(configured, str) else ",".join(configured)))


def log_path(kernel_id: str, login: str) -> str:
    """Return the path of a kernel's log on its host, where ``login`` starts it."""
    folder = envvars.EG_KERNEL_LOG_DIR() or envvars.DEFAULT_KERNEL_LOG_DIR.format(login.replace("/", "_"))
    return str(PurePosixPath(folder) / f"kernel-{kernel_id}.log")


def _no_host(kernel_id: str, failures: Sequence[KernelLaunchError]) -> KernelLaunchError:
    """Return the error for a kernel that no host took: with each host's reason."""
    reasons = "; ".join(map(str, failures)) or "no remote hosts are configured"
    only_refusals = failures and all(isinstance(failure, HostAuthenticationError) for failure in failures)
    error_class = HostAuthenticationError if only_refusals else HostUnreachableError
    return error_class(f"Kernel {kernel_id} could not be started on any host: {reasons}.")
