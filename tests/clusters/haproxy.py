"""A HAProxy in front of replicas of the gateway: no sticky sessions, requests go to the next one in turn."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import ServerProcess

CONFIGURATION = """
global
    maxconn 2000

defaults
    mode http
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout tunnel 24h
    # A replica that has just ended refuses connections: the request, which it has not seen, goes to another one.
    retries 3
    option redispatch 1
    # One that it may have seen is sent once more only if that does no harm.
    retry-on conn-failure empty-response
    # A connection that is kept open may be closed by a replica that ends while a request is on its way to it.
    http-reuse never

frontend gateway
    bind 127.0.0.1:{port}
    default_backend replicas
    http-request disable-l7-retry unless METH_GET

backend replicas
    balance roundrobin
    option httpchk GET /api
    default-server check inter 500ms fall 1 rise 1 on-marked-down shutdown-sessions
{servers}
"""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on at the moment."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def haproxy(directory: Path, ports: Sequence[int]) -> ServerProcess:
    """Return a proxy for the replicas on ``ports`` of this machine."""
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    [port] = free_ports(1)
    servers = "\n".join(f"    server replica{n} 127.0.0.1:{replica}" for n, replica in enumerate(ports))
    file = directory / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(port=port, servers=servers))
    proxy = ServerProcess([program, "-db", "-f", str(file)], ready="", log=directory / "haproxy.log")
    proxy.url = f"http://127.0.0.1:{port}"
    return proxy
