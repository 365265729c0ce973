"""Looks up the addresses of hosts, and tells which ones belong to this machine."""

from __future__ import annotations

import ipaddress
import socket

from ...core.errors import HostUnreachableError
from ...core.offload import offload_to


async def addresses_of(host: str) -> list[str]:
    """Return the IP addresses of a host; see :func:`resolve_all`."""
    return await offload_to(host, resolve_all, host)


def resolve(host: str) -> str:
    """Return the preferred IP address of a host; see :func:`resolve_all`."""
    return resolve_all(host)[0]


def resolve_all(host: str) -> list[str]:
    """Return the IP addresses of a host, preferred one first; blocks.

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
    """Whether ``address`` belongs to this machine, that is, whether a socket can be bound to it."""
    parsed = ipaddress.ip_address(address)
    if parsed.is_loopback:
        return True
    with socket.socket(socket.AF_INET6 if parsed.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
