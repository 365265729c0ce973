"""Another machine, for connections to this one whose cable can be cut: a network namespace with a veth pair.

Needs root and the package ``iproute2``. Nothing outside the namespace is changed but for the near end of the pair.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

from typing_extensions import Self

_CLONE_NEWNET = 0x40000000


class Faraway:
    """The other machine, for ``with``; this one has :attr:`address` for it."""

    def __init__(self) -> None:
        number = os.getpid() % 65536
        self._name = f"egfar{number}"
        self._network = f"10.{252 + (number >> 15)}.{number >> 7 & 255}.{(number & 63) * 4}"
        self.address = self._host(1)

    def __enter__(self) -> Self:
        _ip("netns", "add", self._name)
        # The far end is made inside its namespace: never let an interface of this machine be moved by mistake.
        _ip("link", "add", self._name, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        _ip("addr", "add", f"{self.address}/30", "dev", self._name)
        _ip("link", "set", self._name, "up")
        _ip("-n", self._name, "addr", "add", f"{self._host(2)}/30", "dev", "eth0")
        self.plug_in()
        return self

    def __exit__(self, *exc_info: object) -> None:
        _ip("link", "del", self._name)
        _ip("netns", "del", self._name)

    def pull_out(self) -> None:
        """Cut the cable: nothing arrives any more, in neither direction, and nobody is told."""
        _ip("-n", self._name, "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        """Mend the cable."""
        _ip("-n", self._name, "link", "set", "eth0", "up")

    def connect(self, port: int) -> socket.socket:
        """Return a connection of the other machine to a port of :attr:`address`."""
        with ThreadPoolExecutor(1) as pool:  # a thread can be in another namespace than its process
            return pool.submit(self._connect, port).result()

    def _connect(self, port: int) -> socket.socket:
        with open(f"/run/netns/{self._name}", "rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        return socket.create_connection((self.address, port), timeout=5)

    def _host(self, number: int) -> str:
        start, _, last = self._network.rpartition(".")
        return f"{start}.{int(last) + number}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
