"""What all kernels on remote hosts share: a connection, tunnels and a watch for each host."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from ...core.errors import HostUnreachableError
from ...core.offload import offload_to
from .hostchoice import HostChoice

if TYPE_CHECKING:
    from ...drivers.ssh_shell import SSHPool, SSHShell
    from ...drivers.watch import StateWatch
    from ...transport.tunnels import HostTunnels

WATCH_SECONDS = 3.0
STARTING_WATCH_SECONDS = 0.25


class RemoteHost:
    """One host: its SSH connection, the tunnels through it, and the watch over processes on it.

    Nothing is connected and no thread runs before it is needed.
    """

    def __init__(self, shell: SSHShell, log: logging.Logger) -> None:
        from ...drivers.watch import StateWatch
        from ...transport.tunnels import HostTunnels

        self.shell = shell
        self.tunnels: HostTunnels = HostTunnels(shell.host, shell.open_channel, log)
        self.processes: StateWatch[int, bool] = StateWatch(
            shell.host,
            lambda pids: dict.fromkeys(shell.alive(pids), True),
            interval=WATCH_SECONDS,
            eager_interval=STARTING_WATCH_SECONDS,
            log=log,
        )

    async def process_ended(self, pid: int, *, eager: bool = False) -> None:
        """Return when the process ``pid`` has ended; while the host cannot be asked, it is taken to live."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def finish() -> None:
            if not ended.done():
                ended.set_result(None)

        def on_change(alive: bool | None) -> None:
            if not alive:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(finish)

        registration = self.processes.register(pid, on_change, eager=eager, exists=True)
        try:
            await ended
        finally:
            registration.cancel()

    def close(self) -> None:
        """Close everything; processes on the host live on."""
        self.tunnels.close()
        self.processes.close()
        self.shell.close()


class RemoteHosts:
    """The hosts that kernels run on; one for a gateway, in :class:`.shared.SharedResources`."""

    def __init__(self, log: logging.Logger) -> None:
        self.choice = HostChoice()
        self._log = log
        self._pool: SSHPool | None = None
        self._hosts: dict[str, RemoteHost] = {}
        self._lock = threading.Lock()

    def host(self, name: str) -> RemoteHost:
        """Return the host of that name or address; SSH settings are read when the first one is wanted."""
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
            except Exception:  # noqa: BLE001 -- of one host; the others are closed
                self._log.exception("The connection to %s was not closed in order; the others are", host.shell.host)


async def addresses_of(host: str) -> list[str]:
    """Return the IP addresses of a host; see :func:`resolve_all`."""
    return await offload_to(host, resolve_all, host)


def resolve(host: str) -> str:
    """Return the IP address of a host that is used to reach it; see :func:`resolve_all`."""
    return resolve_all(host)[0]


def resolve_all(host: str) -> list[str]:
    """Return the IP addresses of a host, the one that is used first; blocks.

    Raises
    ------
    HostUnreachableError
        The name cannot be resolved.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise HostUnreachableError(f"{host}: the name cannot be resolved") from error
    by_family = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(str(entry[4][0]) for entry in by_family))


def is_local_address(address: str) -> bool:
    """Tell whether ``address`` is one of this machine's: whether a socket can be bound to it."""
    parsed = ipaddress.ip_address(address)
    if parsed.is_loopback:
        return True
    with socket.socket(socket.AF_INET6 if parsed.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
