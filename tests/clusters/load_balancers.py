"""HAProxy and nginx in front of replicas of the gateway, configured as the documentation says; no sticky sessions."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import REPOSITORY, ServerProcess
from tests.support.requirements import found

PAGE = REPOSITORY / "docs" / "operators" / "config-availability.md"
SERVER_LINE = re.compile(r"^( +server .*?)gateway\d\.example\.org:8888(.*)\n", re.MULTILINE)

# What the page leaves to the file that its snippet is put into.
NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr info;
user root;
events {{
}}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-bodies;
    proxy_temp_path {directory}/nginx-answers;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    scgi_temp_path {directory}/nginx-scgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
{snippet}
}}
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
    """Return a HAProxy for the replicas on ``ports`` of this machine."""
    [port] = free_ports(1)
    file = directory / "haproxy.cfg"
    file.write_text(_snippet("HAProxy", ports).replace("bind :8888", f"bind 127.0.0.1:{port}"))
    return _at(port, ServerProcess([found("haproxy"), "-db", "-f", str(file)], ready="", log=file.with_suffix(".log")))


def nginx(directory: Path, ports: Sequence[int]) -> ServerProcess:
    """Return an nginx for the replicas on ``ports`` of this machine."""
    [port] = free_ports(1)
    snippet = _snippet("nginx", ports).replace("listen 8888", f"listen 127.0.0.1:{port}")
    file = directory / "nginx.conf"
    file.write_text(NGINX.format(directory=directory, snippet=snippet))
    command = [found("nginx"), "-c", str(file), "-e", "stderr"]
    return _at(port, ServerProcess(command, ready="start worker process", log=file.with_suffix(".log")))


LOAD_BALANCERS = {"haproxy": haproxy, "nginx": nginx}


def _snippet(name: str, ports: Sequence[int]) -> str:
    """Return the page's configuration of a load balancer, with the replicas on ``ports`` for the page's."""
    found = re.search(rf"^{name}:\n\n```\w+\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{PAGE} has nothing about {name}"
    *others, last = SERVER_LINE.finditer(found[1])
    servers = "".join(
        f"{last[1].replace('replica2', f'replica{number}')}127.0.0.1:{port}{last[2]}\n"
        for number, port in enumerate(ports, 1)
    )
    return found[1][: others[0].start()] + servers + found[1][last.end() :]


def _at(port: int, process: ServerProcess) -> ServerProcess:
    process.url = f"http://127.0.0.1:{port}"
    return process
