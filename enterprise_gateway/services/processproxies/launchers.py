"""Properties of a launcher known before its launch: its payload version, and the addresses it may report from."""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...core import kernelargs
from ...core.errors import KernelLaunchError
from .addresses import is_local_address

MARKED_BYTES = 8192  # a mark is near the beginning of its file
_MARK = re.compile(rb"\beg-payload-version: *([12])\b")


def marked_version(argv: Sequence[str], resource_dir: str) -> int:
    """Return the payload version that the marks in a kernelspec's files declare, or 1 if there is none; blocks.

    The files on this machine that ``argv`` names by absolute paths are searched. If the launcher runs on another host,
    the gateway's copy at the same path counts.
    """
    words = kernelargs.fill(argv, {"resource_dir": resource_dir, "prefix": sys.prefix})
    return max((_version_in(word) for word in words if os.path.isabs(word)), default=1)


def _version_in(path: str) -> int:
    try:
        found = os.stat(path)
        is_file = stat.S_ISREG(found.st_mode)  # reading a pipe or a device could block
        return _read_version(path, found.st_mtime_ns, found.st_size) if is_file else 1
    except (OSError, ValueError):  # not a path on this machine
        return 1


@functools.lru_cache(maxsize=1024)
def _read_version(path: str, _mtime_ns: int, _size: int) -> int:
    """Return the version in a file's mark; cached until the file changes."""
    with open(path, "rb") as file:
        match = _MARK.search(file.read(MARKED_BYTES))
    return int(match[1]) if match else 1


def demanded_version(config: Mapping[str, Any]) -> int | None:
    """Return the ``payload_version`` of a kernelspec's config; None if it is not set.

    Raises
    ------
    KernelLaunchError
        The version does not exist.
    """
    word = config.get("payload_version")
    if not word:
        return None
    if str(word) not in ("1", "2"):
        raise KernelLaunchError(f"payload_version of the kernelspec must be 1 or 2, not {str(word)[:20]!r}.")
    return int(word)


class Origins:
    """The addresses from which version 1 reports are accepted: the kernel's host, and those a kernelspec adds.

    Parameters
    ----------
    addresses
        Addresses of the kernel's host; any address of this machine includes all its others.
    others
        ``payload_v1_from`` of the kernelspec: addresses and networks, a comma-separated list or a list.
    """

    def __init__(self, addresses: Iterable[str] = (), others: str | Iterable[str] = ()) -> None:
        self._addresses = {ipaddress.ip_address(address.partition("%")[0]) for address in addresses}
        self._is_here = any(is_local_address(str(address)) for address in self._addresses)
        words = others.split(",") if isinstance(others, str) else others
        try:
            self._networks = [ipaddress.ip_network(word.strip(), strict=False) for word in words if word.strip()]
        except ValueError as error:
            raise KernelLaunchError(f"payload_v1_from of the kernelspec cannot be used: {error}.") from error

    def __contains__(self, peer: object) -> bool:
        try:
            address = ipaddress.ip_address(str(peer))
        except ValueError:
            return False
        if address in self._addresses or any(address in network for network in self._networks):
            return True
        return self._is_here and is_local_address(str(peer))
