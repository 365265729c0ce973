"""Logging in to hosts by Kerberos: a real KDC, real sshd, and a gateway with a paramiko that can still do it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clusters import kerberos
from tests.clusters.ssh_hosts import HostLab
from tests.support.gateway import Client
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import REPOSITORY, ServerProcess, gateway_process

pytestmark = [pytest.mark.ssh, pytest.mark.kerberos, pytest.mark.slow, pytest.mark.timeout(300)]

LAUNCHER = REPOSITORY / "etc" / "kernel-launchers" / "python" / "scripts" / "launch_ipykernel.py"
PROXY = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
OPTIONS = (
    *("--kernel-id", "{kernel_id}", "--port-range", "{port_range}", "--response-address", "{response_address}"),
    *("--public-key", "{public_key}", "--cluster-type", "none"),
)


@dataclass(frozen=True)
class Site:
    """Two hosts that let in who has a ticket; the realm knows the first of them only."""

    lab: HostLab
    realm: kerberos.Realm
    ticket: Path
    paramiko: Path

    def gateway(self, log: Path, **env: str) -> ServerProcess:
        """Return a gateway that has a ticket and nothing else to log in with."""
        home = log.parent / "home"
        home.mkdir()
        given = {
            **self.lab.environment(),
            "HOME": str(home),
            "JUPYTER_DATA_DIR": os.environ["JUPYTER_DATA_DIR"],
            "PYTHONPATH": f"{self.paramiko}:{REPOSITORY}",
            "EG_SSH_KEY_FILES": "",
            "EG_REMOTE_GSS_SSH": "true",
            "EG_RESPONSE_PORT": "0",
            "EG_KERNEL_LOG_DIR": str(log.parent / "logs"),
            "KRB5_CONFIG": self.realm.environment["KRB5_CONFIG"],
            "KRB5CCNAME": str(self.ticket),
            **env,
        }
        return gateway_process(
            log, ["--EnterpriseGatewayApp.unauthorized_users="], env={**given, "SSH_AUTH_SOCK": None}
        )

    def spec(self, name: str, host: int) -> None:
        """Write a kernelspec for one of the hosts."""
        stanza = {"class_name": PROXY, "config": {"remote_hosts": self.lab.hosts[host].address, "payload_version": 2}}
        write_kernelspec(name, argv=(sys.executable, str(LAUNCHER), *OPTIONS), metadata={"process_proxy": stanza})


@pytest.fixture(scope="module")
def site(lab: HostLab) -> Iterator[Site]:
    """Have a realm, and two of the lab's hosts in it."""
    paramiko = kerberos.paramiko_with_gssapi()
    with kerberos.realm() as realm:
        realm.add_host(lab.hosts[0].address)
        ticket = realm.ticket("root")
        for host in lab.hosts[:2]:
            host.power_off()
            host.start_sshd("GSSAPIAuthentication=yes", "GSSAPIStrictAcceptorCheck=no", env=realm.environment)
        yield Site(lab, realm, ticket, paramiko)
        for host in lab.hosts[:2]:
            host.power_off()
            host.start_sshd()


async def test_a_gateway_logs_in_by_its_ticket(site: Site, tmp_path: Path) -> None:
    """A kernel starts on a host that was entered without key or password, and has the ticket that was handed on."""
    site.spec("kerberized", 0)
    async with site.gateway(tmp_path / "log") as server, Client(server.url) as gateway:
        kernel_id = await gateway.start_kernel("kerberized")
        socket = await gateway.websocket(kernel_id)
        code = "import os, socket, subprocess as s; print(socket.gethostname(), s.getoutput('klist'))"
        text, _ = await socket.execute(code)
        assert text.startswith(f"{site.lab.hosts[0].name} ")
        assert f"Default principal: root@{kerberos.NAME}" in text
        assert str(site.ticket) not in text
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        while await socket.receive() is not None:
            pass
    log = await asyncio.to_thread(site.lab.hosts[0].log_file.read_text)
    assert f"Accepted gssapi-with-mic for root from {site.lab.gateway_address}" in log


@pytest.mark.parametrize(
    ("host", "env", "sentence"),
    [
        (0, {"KRB5CCNAME": "/nonexistent/ticket"}, "No Kerberos credentials available"),
        (0, {"EG_REMOTE_USER": "ted"}, "user ted was refused"),
        (1, {}, "not found in Kerberos database"),
    ],
    ids=["no-ticket", "another-user", "unknown-host"],
)
async def test_a_missing_or_wrong_ticket_is_reported_clearly(
    site: Site, tmp_path: Path, host: int, env: dict[str, str], sentence: str
) -> None:
    """A ticket that is missing, another user's, or not to be had for the host: a refusal that says so."""
    site.spec("kerberized", host)
    async with site.gateway(tmp_path / "log", **env) as server, Client(server.url) as gateway:
        answer = await gateway.call("/api/kernels", "POST", {"name": "kerberized"}, status=403)
        assert f"{site.lab.hosts[host].address}: " in answer["message"]
        assert sentence in answer["message"]
