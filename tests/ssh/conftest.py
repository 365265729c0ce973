"""SSH hosts for the tests of this directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from enterprise_gateway.drivers.ssh_shell import SSHSettings, SSHShell
from tests.clusters import ssh_hosts


@pytest.fixture(scope="session")
def lab() -> Iterator[ssh_hosts.HostLab]:
    """Bring up three real SSH hosts; tests leave them as they found them."""
    if reason := ssh_hosts.why_not():
        pytest.skip(reason)
    with ssh_hosts.host_lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def local_sshd() -> Iterator[ssh_hosts.LocalServer]:
    """Run an SSH server on 127.0.0.1 for whoever runs the tests."""
    with ssh_hosts.local_server() as server:
        yield server


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
