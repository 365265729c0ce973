"""Which of this host's addresses launchers call back."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence

from ..core.errors import InvalidRequestError

# Documentation addresses (RFC 5737, RFC 3849): a datagram socket is connected to them, nothing is ever sent.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def response_ip(configured: str | None = None, prohibited: Sequence[str] = ()) -> str:
    """Return the address that launchers are told to report to; called once when the response server is made.

    Neither asks a name server nor sends anything, so it may be called on the event loop.

    Parameters
    ----------
    configured
        ``EG_RESPONSE_IP``: taken as it is.
    prohibited
        ``EG_PROHIBITED_LOCAL_IPS``: regular expressions for addresses that must not be used; none prohibits nothing.
        Empty ones are ignored.

    Raises
    ------
    InvalidRequestError
        One of ``prohibited`` is no regular expression, or they leave no address.
    """
    if configured:
        return configured
    patterns = _compile(prohibited)
    found = local_ips()
    allowed = [ip for ip in found if not any(pattern.match(ip) for pattern in patterns)]
    if not allowed:
        raise InvalidRequestError(
            f"EG_PROHIBITED_LOCAL_IPS leaves no address to report to (of {', '.join(found)}); set EG_RESPONSE_IP"
        )
    return allowed[0]


def local_ips() -> list[str]:
    """Return this host's addresses, best first: those that lead elsewhere, IPv4 before IPv6, loopback last."""
    found = [ip for family, elsewhere in _ELSEWHERE if (ip := _source_address(family, elsewhere))]
    return list(dict.fromkeys([*found, *_interface_addresses(), "127.0.0.1"]))


def _source_address(family: int, destination: str) -> str:
    """Return the address that the system would send from; empty when it knows no way."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((destination, 9))
            address = str(probe.getsockname()[0])
    except OSError:
        return ""
    return "" if ipaddress.ip_address(address).is_link_local else address


def _interface_addresses() -> Iterable[str]:
    """Yield each network interface's IPv4 address where the system tells it (Linux)."""
    try:
        import fcntl
    except ImportError:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(query, 0x8915, name.encode()[:15].ljust(40, b"\0"))  # SIOCGIFADDR
            except OSError:
                continue
            address = socket.inet_ntoa(answer[20:24])
            if not ipaddress.ip_address(address).is_loopback:
                yield address


def _compile(expressions: Iterable[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(text.strip()) for text in expressions if text.strip()]
    except re.error as error:
        raise InvalidRequestError(f"EG_PROHIBITED_LOCAL_IPS: {error.pattern!r} is no regular expression") from error
