"""Kernel ports through real SSH connections."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from enterprise_gateway.core.connection import CHANNEL_PORTS, ConnectionInfo
from enterprise_gateway.core.errors import PortRangeError
from enterprise_gateway.core.ports import PortRange
from enterprise_gateway.drivers.ssh_shell import SSHSettings, SSHShell
from enterprise_gateway.transport.tunnels import HostTunnels
from tests.clusters.ssh_hosts import Host, HostLab
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ssh

PORTS = range(21001, 21007)  # below those that the system gives away
CONNECTION = ConnectionInfo("127.0.0.1", *PORTS[:5], key=b"secret", comm_port=PORTS[5])
ANY = PortRange()


@pytest.fixture
def host(lab: HostLab, shell: SSHShell) -> Iterator[Host]:
    """Return a host with six echoing ports that a firewall closes to everybody outside."""
    server = Path(__file__).with_name("echo_server.py")
    log = str(lab.folder / "echo.log")
    command = [sys.executable, str(server), *map(str, PORTS)]
    pid, pgid = shell.start_detached(command, env={}, log_path=log)
    wait_for(lambda: shell.tail(log, 1) == "ready\n")
    lab.hosts[0].firewall()
    yield lab.hosts[0]
    lab.hosts[0].no_firewall()
    shell.signal(pid, pgid, 9)
    wait_for(lambda: not shell.alive([pid]))
    Path(log).unlink()


@pytest.fixture
def tunnels(shell: SSHShell) -> Iterator[HostTunnels]:
    """Return the tunnels of the first host."""
    tunnels = HostTunnels("egssh1", shell.open_channel)
    yield tunnels
    tunnels.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def echoed(connection: socket.socket, data: bytes) -> bool:
    connection.sendall(data)
    received = b""
    while len(received) < len(data):
        part = connection.recv(65536)
        if not part:
            break
        received += part
    return received == data


def test_all_ports_are_reached_through_the_firewall(host: Host, tunnels: HostTunnels) -> None:
    """Six local ports lead to the kernel's six; the key stays what it is."""
    with pytest.raises(TimeoutError):
        socket.create_connection((host.address, PORTS[0]), timeout=0.2)

    local = tunnels.open(CONNECTION, ANY, 5).connection

    assert (local.ip, local.key) == ("127.0.0.1", b"secret")
    for name in (*CHANNEL_PORTS, "comm_port"):
        with connect(getattr(local, name)) as connection:
            assert echoed(connection, name.encode())


def test_a_hundred_kernels_share_a_connection_and_a_few_threads(
    host: Host, tunnels: HostTunnels, shell: SSHShell
) -> None:
    """Six hundred connections at once need no SSH connection more and no thread each."""
    logins, threads = host.logins(), threading.active_count()
    kernels = [tunnels.open(CONNECTION, ANY, 5).connection for _ in range(100)]
    with ExitStack() as stack:
        ports = [getattr(kernel, name) for kernel in kernels for name in (*CHANNEL_PORTS, "comm_port")]
        connections = [stack.enter_context(connect(port)) for port in ports]
        assert all(echoed(connection, b"hello") for connection in connections)

        assert host.logins() == logins
        assert threading.active_count() - threads <= 6


def test_megabytes_go_both_ways_at_once(host: Host, tunnels: HostTunnels) -> None:
    """Much data arrives whole and in order, also when the reader is slow to begin."""
    local = tunnels.open(CONNECTION, ANY, 5).connection
    block = bytes(range(256)) * 4096
    with connect(local.iopub_port) as connection:
        sender = threading.Thread(target=lambda: [connection.sendall(block) for _ in range(40)])
        sender.start()
        time.sleep(0.5)
        received = bytearray()
        while len(received) < 40 * len(block):
            received += connection.recv(1 << 20)
        sender.join()
    assert received == block * 40


def test_one_end_may_stop_sending(host: Host, tunnels: HostTunnels) -> None:
    """A sender that has said all gets its answer, then the end."""
    local = tunnels.open(CONNECTION, ANY, 5).connection
    with connect(local.comm_port) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(100):
            received += part
    assert received == b"last words"


def test_a_port_nobody_listens_on_ends_the_connection(host: Host, tunnels: HostTunnels) -> None:
    """A dead kernel looks dead through a tunnel too; the other tunnels do not notice."""
    local = tunnels.open(replace(CONNECTION, shell_port=49999), ANY, 5).connection
    with connect(local.shell_port) as refused, connect(local.hb_port) as served:
        assert refused.recv(1) == b""
        assert echoed(served, b"alive")


def test_local_ports_are_taken_from_the_range(host: Host, tunnels: HostTunnels) -> None:
    """The kernel's port range holds for the gateway's side of its tunnels; a range used up is an error."""
    port_range = PortRange(24000, 24200)
    local = tunnels.open(CONNECTION, port_range, 50).connection
    assert all(24000 <= getattr(local, name) <= 24200 for name in (*CHANNEL_PORTS, "comm_port"))

    with pytest.raises(PortRangeError, match=r"within 24000\.\.24003"):
        tunnels.open(CONNECTION, PortRange(24000, 24003), 50)


def test_closing_leaves_nothing(host: Host, tunnels: HostTunnels) -> None:
    """One kernel's end takes its listeners and connections, another's stay."""
    first, second = (tunnels.open(CONNECTION, ANY, 5) for _ in range(2))
    with connect(first.connection.shell_port) as ending, connect(second.connection.shell_port) as staying:
        assert echoed(ending, b"x")
        assert echoed(staying, b"x")
        first.close()

        with suppress(ConnectionResetError):
            assert ending.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(first.connection.shell_port)
        assert echoed(staying, b"still here")
        second.close()
    first.close()
    wait_for(lambda: not any(thread.name.startswith("eg-tunnel") for thread in threading.enumerate()))


def test_tunnels_are_made_again_after_a_drop(host: Host, tunnels: HostTunnels, shell: SSHShell) -> None:
    """When the SSH connection breaks, connections end at once and new ones go through a new connection."""
    local = tunnels.open(CONNECTION, ANY, 5).connection
    with connect(local.shell_port) as before:
        assert echoed(before, b"before")
        host.drop_connections()
        with suppress(ConnectionResetError):
            assert before.recv(1) == b""
    with connect(local.shell_port) as after:
        assert echoed(after, b"after")
    assert shell.connections_made == 2


def test_zeromq_recovers_by_itself_when_a_cut_link_is_back(
    lab: HostLab, host: Host, settings: SSHSettings, expect_log: Callable[..., object]
) -> None:
    """A socket keeps working over a cut of the link: what is sent meanwhile arrives when the link is back."""
    shell = SSHShell(host.address, replace(settings, connect_timeout=1.0))
    tunnels = HostTunnels("egssh1", shell.open_channel)
    listening = "import zmq; s = zmq.Context().socket(zmq.REP); s.bind('tcp://*:21010'); print('up', flush=True)"
    program = f"{listening}\nwhile True: s.send(s.recv())"
    log = str(lab.folder / "rep.log")
    pid, pgid = shell.start_detached([sys.executable, "-c", program], env={}, log_path=log)
    with zmq.Context() as context, closing(context.socket(zmq.REQ)) as request, closing(tunnels), closing(shell):
        request.linger, request.rcvtimeo = 0, 20_000
        request.set(zmq.REQ_RELAXED, 1)
        wait_for(lambda: shell.tail(log, 1) == "up\n")
        local = tunnels.open(replace(CONNECTION, shell_port=21010), ANY, 5).connection
        request.connect(f"tcp://127.0.0.1:{local.shell_port}")
        request.send(b"one")
        assert request.recv() == b"one"

        with expect_log("tunnels to egssh1 are interrupted"):  # type: ignore[attr-defined]
            host.link_down()
            shell.disconnect()  # what the system finds out by itself after 20 seconds
            time.sleep(0.5)  # what is on its way while a connection ends is lost, as ever with ZeroMQ
            request.send(b"two")
            assert request.poll(2500) == 0
            host.link_up()
            assert request.recv() == b"two"
        assert shell.signal(pid, pgid, 9)
