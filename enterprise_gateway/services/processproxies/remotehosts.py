"""Resources shared by all kernels on remote hosts: a connection, tunnels and a watch for each host."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from ...core.errors import HostUnreachableError, KernelLaunchError
from ...core.states import Phase, State
from ...transport.localproc import LocalProcess
from .hostchoice import HostChoice
from .jobs import Job, LogFolderTakenError, Started
from .watched import Watched

if TYPE_CHECKING:
    from ...drivers.ssh_shell import SSHPool, SSHShell
    from ...drivers.watch import StateWatch
    from ...transport.tunnels import HostTunnels
    from .shared import SharedResources

WATCH_SECONDS = 3.0
STARTING_WATCH_SECONDS = 0.25
RUNNING = State(Phase.STARTED)
_LAST_LINES = 20


class RemoteHost:
    """One host: its SSH connection, the tunnels through it, and the watch over processes on it.

    Connections are opened, and threads started, only when they are needed.
    """

    def __init__(self, shell: SSHShell, log: logging.Logger) -> None:
        from ...drivers.watch import StateWatch
        from ...transport.tunnels import HostTunnels

        self.shell = shell
        self.tunnels: HostTunnels = HostTunnels(shell.host, shell.open_channel, log)
        self.processes: StateWatch[int, State] = StateWatch(
            shell.host,
            lambda pids: dict.fromkeys(shell.alive(pids), RUNNING),
            interval=WATCH_SECONDS,
            eager_interval=STARTING_WATCH_SECONDS,
            log=log,
        )

    @property
    def name(self) -> str:
        """The host's name in the list of remote hosts."""
        return self.shell.host

    def start(self, job: Job) -> Started:
        """Start a kernel through SSH; runs in a thread.

        Raises
        ------
        LogFolderTakenError
            The directory of its log should be private, but belongs to another user.
        KernelLaunchError
            The host cannot be reached, or could not start it.
        """
        from ...drivers.ssh_shell import FolderTakenError

        try:
            pid, pgid = self.shell.start_detached(
                job.argv,
                env=job.env_elsewhere,
                log_path=job.log,
                private=job.has_private_log,
                cwd=job.cwd_elsewhere,
                as_user=job.as_user,
                timeout=job.timeout,
            )
        except FolderTakenError as error:
            raise LogFolderTakenError(str(error)) from error
        except ValueError as error:
            raise KernelLaunchError(f"Kernel {job.kernel_id} cannot be started: {error}.") from error
        return Started(pid, pgid)

    def adopt(self, started: Started) -> LocalProcess | None:
        """Return None, because processes on another host are only known by their ids."""
        return None

    def watched(self, started: Started) -> Watched:
        """Return the table that reports the end of a process."""
        return Watched(self.processes, started.pid, exists=True)

    def state(self, started: Started) -> State:
        """Return the state of a process on the host; blocks.

        Raises
        ------
        HostUnreachableError
            It does not answer.
        """
        try:
            return RUNNING if self.shell.alive([started.pid]) else State(Phase.ENDED)
        except KernelLaunchError as error:
            raise HostUnreachableError(f"It is unknown whether a kernel on {self.name} is alive: {error}.") from error

    def signal(self, started: Started, signum: int, as_user: str) -> bool:
        """Send a signal to a process's group, as its user; return False if it does not exist. Blocks."""
        return started.pid > 1 and self.shell.signal(started.pid, started.pgid, signum, as_user=as_user)

    def describe(self, argv: list[str], log: str) -> str:
        """Return the last lines of a kernel's log, and what is wrong with its scripts; blocks."""
        said = ""
        with suppress(KernelLaunchError):
            for script in self.shell.windows_scripts(argv):
                said = f"{script} has Windows line ends (CR LF): convert it, for example with dos2unix. "
                break
        try:
            lines = self.shell.tail(log, _LAST_LINES).strip()
        except KernelLaunchError as error:
            lines = f"(not available: {error})"
        return f"{said}Last lines of {log}: {lines}"

    def close(self) -> None:
        """Close everything; processes on the host keep running."""
        self.tunnels.close()
        self.processes.close()
        self.shell.close()


class RemoteHosts:
    """The hosts that kernels run on; one instance per gateway, see :func:`ssh_hosts`."""

    def __init__(self, log: logging.Logger) -> None:
        self.choice = HostChoice()
        self._log = log
        self._pool: SSHPool | None = None
        self._hosts: dict[str, RemoteHost] = {}
        self._lock = threading.Lock()

    def host(self, name: str) -> RemoteHost:
        """Return the host of that name or address; SSH settings are read at the first call."""
        from ...drivers.ssh_shell import SSHPool

        with self._lock:
            if name not in self._hosts:
                self._pool = self._pool or SSHPool(self._log)
                self._hosts[name] = RemoteHost(self._pool.shell(name), self._log)
            return self._hosts[name]

    def close(self) -> None:
        """Close all connections; called in a thread when the gateway ends."""
        with self._lock:
            hosts, self._hosts, self._pool = list(self._hosts.values()), {}, None
        for host in hosts:
            try:
                host.close()
            except Exception:  # noqa: BLE001 -- of one host; the others are still closed
                self._log.exception("The connection to %s could not be closed cleanly", host.shell.host)


def ssh_hosts(resources: SharedResources) -> RemoteHosts:
    """Return the SSH hosts of a gateway, which connect when they are needed."""
    return resources.cluster("ssh", lambda: RemoteHosts(resources.log))
