"""What clients can do before they are known: connections without a token, and what they may cost."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.client import responses
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from enterprise_gateway.base.connections import LINGER_BYTES, network_of
from tests.support.gateway import Gateway, running_gateway
from tests.support.processes import ServerProcess, gateway_process
from tests.support.requirements import NAMESPACES

TOKEN = {"EG_AUTH_TOKEN": "right"}
RIGHT = "Authorization: token right\r\n"


def head(method: str = "GET", path: str = "/api", headers: str = "", length: int | None = None) -> bytes:
    """Return a request without its body."""
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}{size}\r\n".encode()


@asynccontextmanager
async def guarded_gateway(**options: Any) -> AsyncIterator[Gateway]:
    """Run a gateway that asks for a token."""
    async with running_gateway(config={"EnterpriseGatewayApp": {"auth_token": "right", **options}}) as gateway:
        yield gateway


class Line:
    """One connection, on which bytes are sent and answers read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self, timeout: float = 5) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers (in lower case) and body of the next answer."""
        text = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), timeout)).decode()
        status, *lines = text.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(status.split()[1]), headers, body

    async def ends(self, timeout: float = 5) -> bytes:
        """Return what comes until the gateway has closed the connection; TimeoutError if it does not."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self.reader.read(), timeout)
        return b""


@asynccontextmanager
async def line_to(gateway: Gateway, *sent: bytes) -> AsyncIterator[Line]:
    """Connect, and send what there is to send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.app.port)
    for data in sent:
        writer.write(data)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head("POST", "/api/kernels", length=900_000), 401),
        (head("POST", "/api/kernels", "Expect: 100-continue\r\n", length=900_000), 401),
        (head("POST", "/api/kernels", "Transfer-Encoding: chunked\r\n"), 401),
        (head("PATCH", "/api/sessions/1-2-3-4-5", length=10), 401),
        (head("GET", "/api/kernels/1-2-3-4-5/channels", length=10), 401),
        (head("POST", "/api/kernels", RIGHT + "Origin: http://evil.example\r\n", length=900_000), 404),
        (head("POST", "/nowhere", length=900_000), 404),
        (head("BREW", "/api/kernels", length=900_000), 405),
        (head("POST", "/api/kernels", RIGHT, length=900_000_000), 413),
    ],
)
async def test_a_refusal_does_not_wait_for_the_body(request_head: bytes, status: int) -> None:
    """It is sent when the headers have arrived, says that the connection ends, and asks for no body."""
    async with guarded_gateway() as gateway, line_to(gateway, request_head) as line:
        answered, headers, body = await line.answer()
        assert (answered, headers["connection"]) == (status, "close")
        assert set(json.loads(body)) == {"reason", "message"}
        assert await line.ends() == b"", "and nothing else follows"
        assert not gateway.app.traffic.requests


async def test_a_client_that_is_still_sending_sees_the_refusal() -> None:
    """What is still being sent when a request is refused is read and discarded: a reset would lose the answer."""
    async with guarded_gateway() as gateway, line_to(gateway, head("POST", "/api/kernels", length=500_000)) as line:
        for _ in range(10):
            await asyncio.sleep(0.02)
            line.writer.write(bytes(50_000))
            await line.writer.drain()
        assert (await line.answer())[0] == 401


async def test_a_client_that_never_stops_sending_is_cut_off() -> None:
    """The moment is over after a second or so, whatever still comes."""
    async with guarded_gateway() as gateway, line_to(gateway, head("POST", "/api", length=10**9)) as line:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 10:
                line.writer.write(b"x")
                await line.writer.drain()
                await asyncio.sleep(0.02)
        assert time.monotonic() < began + 5


async def test_a_body_is_accepted_however_it_is_sent() -> None:
    """In pieces, in chunks, asked for by 100-continue; and the connection serves the next request."""
    body = json.dumps({"name": "no-such-kernel"}).encode()
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    async with guarded_gateway() as gateway, line_to(gateway) as line:
        for more, sent in (
            ("", body),
            ("Expect: 100-continue\r\n", body),
            ("Transfer-Encoding: chunked\r\n", chunked),
        ):
            length = None if sent is chunked else len(body)
            line.writer.write(head("POST", "/api/kernels", RIGHT + more, length))
            if more.startswith("Expect"):
                assert (await line.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            for byte in sent:
                line.writer.write(bytes([byte]))
                await line.writer.drain()
            status, headers, answer = await line.answer()
            assert (status, "connection" in headers) == (404, False)
            assert b"No kernelspec named 'no-such-kernel'" in answer


@pytest.mark.parametrize("form", ["declared", "one chunk", "many chunks"])
async def test_a_body_over_the_limit_is_413(form: str) -> None:
    """In one sentence that names the option, whether the size was declared beforehand or not."""
    async with guarded_gateway(max_body_size=100_000) as gateway, line_to(gateway) as line:
        if form == "declared":
            line.writer.write(head("POST", "/api/kernels", RIGHT, 100_001))
        else:
            line.writer.write(head("POST", "/api/kernels", RIGHT + "Transfer-Encoding: chunked\r\n"))
            chunks = [100_001] if form == "one chunk" else [1001] * 100
            for size in chunks:
                line.writer.write(b"%x\r\n%s\r\n" % (size, bytes(size)))
        status, _, body = await line.answer()
        assert (status, json.loads(body)["reason"]) == (413, responses[413])
        assert "100000 bytes (max_body_size)" in json.loads(body)["message"]
        assert await line.ends() == b""


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/api/kernels", 400), ("GET", "/api", 200)])
async def test_a_body_of_tiny_chunks_does_not_block_other_requests(method: str, path: str, status: int) -> None:
    """Others have their turn while it is taken apart, be it kept or dropped."""

    def send(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head(method, path, RIGHT + "Transfer-Encoding: chunked\r\n"))
            connection.sendall(b"1\r\nx\r\n" * 900_000 + b"0\r\n\r\n")
            return connection.recv(12)

    async with guarded_gateway() as gateway:
        assert await asyncio.to_thread(send, gateway.app.port) == b"HTTP/1.1 %d" % status


def chunk(size: int) -> bytes:
    """Return a piece of a body of undeclared length."""
    return b"%x\r\n%s\r\n" % (size, bytes(size))


CHUNKED = head("POST", "/api/kernels", RIGHT + "Transfer-Encoding: chunked\r\n")


@pytest.mark.parametrize("size", [1000, 50_000])
@pytest.mark.parametrize("ends", [True, False])
async def test_a_client_that_sends_too_much_sees_the_refusal(size: int, ends: bool) -> None:
    """Also if that turns out only as it comes: what follows is dropped for a moment, and does nothing."""
    async with guarded_gateway(max_body_size=20_000, list_kernels=True) as gateway:
        async with line_to(gateway, CHUNKED) as line:
            for _ in range(40):
                line.writer.write(chunk(size))
                await line.writer.drain()
                await asyncio.sleep(0.01)
            if ends:
                line.writer.write(b"0\r\n\r\n")
            status, headers, body = await line.answer()
            assert (status, headers["connection"]) == (413, "close")
            assert "20000 bytes (max_body_size)" in json.loads(body)["message"]
            assert not gateway.app.traffic.requests, "it holds up no orderly stop"
            assert await line.ends() == b""
        async with line_to(gateway, head(path="/api/kernels", headers=RIGHT)) as line:
            assert json.loads((await line.answer())[2]) == []
        assert len(gateway.app.connections.open) <= 1


@pytest.mark.parametrize("size", [1, 65_536])
async def test_a_client_that_never_stops_sending_too_much_is_cut_off(size: int) -> None:
    """After a second or so, or a few megabytes; nobody else is held up meanwhile."""
    async with guarded_gateway(max_body_size=20_000) as gateway, line_to(gateway, CHUNKED, chunk(20_001)) as line:
        began, sent, pieces = time.monotonic(), 0, chunk(size) * (1 if size > 1000 else 1000)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 10:
                line.writer.write(pieces)
                sent += len(pieces)
                await line.writer.drain()
                await asyncio.sleep(0.001)
        assert time.monotonic() < began + 5
        if size > 1000:
            assert sent < 4 * LINGER_BYTES


async def test_a_body_that_never_arrives_does_not_delay_the_stop() -> None:
    """A request whose client disconnects in the middle of the body is no longer in progress."""
    async with guarded_gateway() as gateway:
        for path in ("/api/kernels", "/api/kernels/1-2-3-4-5/channels"):
            method = "POST" if path == "/api/kernels" else "GET"
            async with line_to(gateway, head(method, path, RIGHT, 1000)):
                while not gateway.app.traffic.requests:
                    await asyncio.sleep(0.01)
            while gateway.app.traffic.requests:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/api/kernels", "/api/swagger.json"])
async def test_bodies_of_requests_that_need_no_token_are_discarded(path: str) -> None:
    """The body of a pre-flight request, or of one for the description, is not kept."""
    method = "OPTIONS" if path == "/api/kernels" else "GET"
    async with guarded_gateway(max_body_size=2048) as gateway:
        for length, status in ((2000, 200), (3000, 413)):
            async with line_to(gateway, head(method, path, length=length), bytes(length)) as line:
                assert (await line.answer())[0] == status
        async with line_to(gateway, head(method, path, length=2000)) as line:
            assert await line.ends() == b"", "it has a moment only"
            assert not gateway.app.traffic.requests, "and holds up no orderly stop"


@pytest.mark.parametrize("sent", [b"", b"GET /api HTTP/1.1\r\nHost: localhost\r\nX-A: ", head()[:-1]])
async def test_headers_must_arrive_within_seconds(sent: bytes) -> None:
    """All of it together, however steadily bytes drip."""
    async with guarded_gateway() as gateway:
        gateway.app.connections.header_seconds = 0.5
        async with line_to(gateway, sent) as line:
            ended = asyncio.create_task(line.ends())
            began = time.monotonic()
            while not ended.done() and time.monotonic() < began + 5:
                line.writer.write(b"a")
                await asyncio.sleep(0.05)
            assert await ended == b""
            assert 0.4 < time.monotonic() - began < 3


async def test_a_known_client_may_pause() -> None:
    """Between its requests, as long as tornado's own limit for idle connections permits; unknown clients may not."""
    async with guarded_gateway() as gateway:
        gateway.app.connections.header_seconds = 0.3
        async with line_to(gateway, head(headers=RIGHT)) as known, line_to(gateway, head("OPTIONS")) as stranger:
            assert (await known.answer())[0] == (await stranger.answer())[0] == 200
            assert await stranger.ends(3) == b""
            known.writer.write(head(headers=RIGHT))
            assert (await known.answer())[0] == 200


@pytest.mark.parametrize("token", ["right", ""])
@pytest.mark.parametrize("how", ["after a pause", "with the request before", "while that is answered"])
async def test_headers_of_a_known_client_must_arrive_within_seconds(how: str, token: str) -> None:
    """From its first byte, whenever that came; a client that needs no token is known after its first request."""
    half = head(headers=RIGHT)[:-4]
    async with running_gateway(config={"EnterpriseGatewayApp": {"auth_token": token}}) as gateway:
        gateway.app.connections.header_seconds = 0.5
        slow = head("POST", "/api/kernels", RIGHT, 2) + b"{}"
        first = head(headers=RIGHT) + (half if how == "with the request before" else b"")
        async with line_to(gateway, slow if how == "while that is answered" else first) as line:
            if how == "while that is answered":
                await asyncio.sleep(0.1)
                line.writer.write(half)
            await line.answer(30)
            if how == "after a pause":
                await asyncio.sleep(0.8)
                line.writer.write(half)
            began = time.monotonic()
            ended = asyncio.create_task(line.ends())
            while not ended.done() and time.monotonic() < began + 5:
                line.writer.write(b"a")
                await asyncio.sleep(0.05)
            assert await ended == b""
            assert time.monotonic() - began < 3


async def test_a_known_client_is_served_after_every_pause() -> None:
    """Whether its headers come in one piece or in several, and its bodies late; no time-out runs during the pause."""
    async with guarded_gateway() as gateway:
        gateway.app.connections.header_seconds = 0.3
        async with line_to(gateway, head(headers=RIGHT)) as line:
            assert (await line.answer())[0] == 200
            for cut in (None, 1, 20, -1):
                await asyncio.sleep(0.5)
                request = head("POST", "/api/kernels", RIGHT, 24)
                line.writer.write(request[:cut])
                if cut is not None:
                    await asyncio.sleep(0.05)
                    line.writer.write(request[cut:])
                await asyncio.sleep(0.5)
                line.writer.write(b'{"name": "no-such-name"}')
                assert (await line.answer())[0] == 404
            line.writer.write(head(headers=RIGHT) * 3)
            for _ in range(3):
                assert (await line.answer())[0] == 200


async def test_the_headers_of_a_request_have_a_limit() -> None:
    """More of them end the connection."""
    async with guarded_gateway() as gateway:
        async with line_to(gateway, head(headers=RIGHT + f"Cookie: {'a' * 20_000}\r\n")) as line:
            assert (await line.answer())[0] == 200
        async with line_to(gateway, head(headers=RIGHT + f"Cookie: {'a' * 100_000}\r\n")) as line:
            assert b"200" not in await line.ends()


@pytest.mark.parametrize(
    ("option", "warning"),
    [
        ("max_pending_connections_per_address", "More than 3 connections from 127.0.0.1"),
        ("max_pending_connections", "More than 3 connections have"),
    ],
)
async def test_the_oldest_stranger_is_disconnected_when_there_are_too_many(
    option: str, warning: str, expect_log: Any
) -> None:
    """Of an address, or of all: a client that sends its request at once is served whatever flood there is."""
    async with guarded_gateway() as gateway, contextlib.AsyncExitStack() as stack:
        setattr(gateway.app, option, 3)
        known = await stack.enter_async_context(line_to(gateway, head(headers=RIGHT)))
        assert (await known.answer())[0] == 200
        strangers = [await stack.enter_async_context(line_to(gateway)) for _ in range(3)]
        while len(gateway.app.connections.pending) < 3:
            await asyncio.sleep(0.01)
        with expect_log(warning):
            strangers.append(await stack.enter_async_context(line_to(gateway)))
            assert await strangers[0].ends() == b""
        async with line_to(gateway, head(headers=RIGHT)) as line:
            assert (await line.answer())[0] == 200
        known.writer.write(head(headers=RIGHT))
        assert (await known.answer())[0] == 200, "known ones are left alone"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::1", "2001:db8:0:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_all_addresses_of_one_party_count_as_one(address: str, network: str) -> None:
    """An IPv4 address, however it is written; of IPv6 a network of 2^64; Unix sockets have none."""
    assert network_of(address) == network


@contextmanager
def network_with(*addresses: str) -> Iterator[ThreadPoolExecutor]:
    """Yield a thread in a network of its own that has these IPv6 addresses, and the loopback of IPv4."""

    def enter() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for address in addresses:
            subprocess.run(["ip", "addr", "add", f"{address}/128", "dev", "lo", "nodad"], check=True)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(enter).result()
        yield thread


@pytest.mark.needs("ip", NAMESPACES)
async def test_all_addresses_of_a_site_count_as_one(expect_log: Any) -> None:
    """A stranger with an IPv6 network does not use up all places; other networks, and IPv4, have their own."""
    mine, others = [f"2001:db8:0:1::{number}" for number in range(1, 5)], ["2001:db8:0:2::1", "::ffff:127.0.0.1"]
    loop = asyncio.get_running_loop()
    with network_with(*mine, others[0]) as thread, contextlib.ExitStack() as sockets:

        def listen() -> socket.socket:
            return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)

        def connect(address: str) -> socket.socket:
            target = "::ffff:127.0.0.1" if address.startswith("::ffff") else "2001:db8:0:1::1"
            to = (target, server.getsockname()[1])
            return sockets.enter_context(socket.create_connection(to, timeout=5, source_address=(address, 0)))

        async with guarded_gateway(max_pending_connections_per_address=3) as gateway:
            server = await loop.run_in_executor(thread, listen)
            server.setblocking(False)
            gateway.app.http_server.add_sockets([server])
            strangers = [await loop.run_in_executor(thread, connect, address) for address in [*others, *mine[:3]]]
            while len(gateway.app.connections.pending) < 5:
                await asyncio.sleep(0.01)
            with expect_log("More than 3 connections from 2001:db8:0:1::/64"):
                strangers.append(await loop.run_in_executor(thread, connect, mine[3]))
                assert await loop.run_in_executor(thread, strangers[2].recv, 1) == b""
            assert len(gateway.app.connections.pending) == 5


async def test_all_connections_together_have_a_limit(expect_log: Any) -> None:
    """Including websockets: beyond it strangers are disconnected first; if there are none, no new ones are let in."""
    async with guarded_gateway(max_connections=3) as gateway, contextlib.AsyncExitStack() as stack:
        kernel_id = json.loads((await gateway.fetch("/api/kernels?token=right", "POST", {})).body)["id"]
        await gateway.websocket(kernel_id, Authorization="token right")
        gateway.http.close()
        stranger = await stack.enter_async_context(line_to(gateway))
        known = []
        with expect_log("The limit of 3 connections"):
            for _ in range(2):
                line = await stack.enter_async_context(line_to(gateway, head(headers=RIGHT)))
                assert (await line.answer())[0] == 200
                known.append(line)
            assert await stranger.ends() == b""
            async with line_to(gateway, head(headers=RIGHT)) as late:
                assert await late.ends() == b""
        known.pop().writer.close()
        while len(gateway.app.connections.open) > 1:
            await asyncio.sleep(0.01)
        async with line_to(gateway, head(headers=RIGHT)) as line:
            assert (await line.answer())[0] == 200


def memory(gateway: ServerProcess, field: str) -> int:
    """Return the gateway's memory as the system reports it, in bytes."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) << 10


@contextlib.contextmanager
def honest_client(url: str, waits: list[float]) -> Iterator[None]:
    """Send one request after the other, each on a connection of its own, and note how long each took."""
    over = threading.Event()
    parts = urlsplit(url)

    def ask() -> None:
        while not over.wait(0.05):
            began = time.monotonic()
            with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as connection:
                connection.sendall(head(headers=RIGHT))
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            waits.append(time.monotonic() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.skipif(not psutil.LINUX, reason="not applicable: the peak of a process's memory is read from /proc")
def test_a_flood_of_bodies_without_a_token_costs_little(tmp_path: Path) -> None:
    """1,200 connections with a megabyte each take no 100 MB, and others are answered meanwhile."""
    body = bytes(1_000_000)
    waits: list[float] = []

    async def flood(host: str, port: int) -> None:
        loop = asyncio.get_running_loop()

        async def one() -> None:
            with socket.socket() as connection, contextlib.suppress(ConnectionError):
                connection.setblocking(False)
                await loop.sock_connect(connection, (host, port))
                await loop.sock_sendall(connection, head("POST", "/api/kernels", length=len(body)))
                with contextlib.suppress(asyncio.TimeoutError):  # all but the last byte: it has to be kept, then
                    await asyncio.wait_for(loop.sock_sendall(connection, body[:-1]), 10)
                await asyncio.sleep(2)

        await asyncio.gather(*(one() for _ in range(1200)))

    with gateway_process(tmp_path / "log", env=TOKEN) as gateway:
        parts = urlsplit(gateway.url)
        with honest_client(gateway.url, waits):
            time.sleep(0.5)
            before = memory(gateway, "VmRSS")
            asyncio.run(flood(parts.hostname or "", parts.port or 0))
        assert memory(gateway, "VmHWM") - before < 100 << 20
        assert len(waits) > 10
        assert max(waits) < 5


def test_idle_connections_leave_file_descriptors_for_kernels(tmp_path: Path) -> None:
    """However few file descriptors the system permits: strangers have half of them at most."""
    gateway = gateway_process(tmp_path / "log", env={**TOKEN, "EG_MAX_PENDING_CONNECTIONS_PER_ADDRESS": "100000"})
    gateway.command[:0] = ["sh", "-c", 'ulimit -n 256 && exec "$0" "$@"']
    with gateway, contextlib.ExitStack() as stack:
        parts = urlsplit(gateway.url)
        address = parts.hostname or "", parts.port or 0
        for _ in range(400):
            stack.enter_context(socket.create_connection(address, timeout=10))
        body = b'{"name": "python3"}'
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(head("POST", "/api/kernels", RIGHT, len(body)) + body)
            assert connection.recv(1000).startswith(b"HTTP/1.1 201")
    assert "(max_connections) is reached" in gateway.output
