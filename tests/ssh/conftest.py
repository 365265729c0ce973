"""SSH hosts for the tests of this directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from enterprise_gateway.drivers.ssh_shell import SSHSettings, SSHShell
from tests.clusters import ssh_hosts


@pytest.fixture
def settings(lab: ssh_hosts.HostLab) -> SSHSettings:
    """Return settings that open every host of the lab."""
    return SSHSettings(user="root", key_files=(str(lab.key_file),), known_hosts=(str(lab.known_hosts),))


@pytest.fixture
def connect() -> Iterator[Callable[[str, SSHSettings], SSHShell]]:
    """Make shells that are closed when the test ends."""
    shells = []

    def shell(host: str, settings: SSHSettings) -> SSHShell:
        shells.append(SSHShell(host, settings))
        return shells[-1]

    yield shell
    for each in shells:
        each.close()


@pytest.fixture
def shell(lab: ssh_hosts.HostLab, settings: SSHSettings, connect: Callable[[str, SSHSettings], SSHShell]) -> SSHShell:
    """Return a shell on the first host."""
    return connect(lab.hosts[0].address, settings)
