"""HTTPS and mutual TLS over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives import serialization

from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp
from tests.support.certificates import Authority
from tests.support.gateway import running_gateway
from tests.support.processes import gateway_process


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def server(authority):
    return authority.issue("localhost", "127.0.0.1")


def ask(url, context, path="/api"):
    """Send one request over TLS and return status and document."""
    parts = urlsplit(url)
    with closing(http.client.HTTPSConnection(parts.hostname, parts.port, context=context, timeout=20)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def negotiated(url, context):
    """Return the TLS version that a handshake with the gateway ends in."""
    parts = urlsplit(url)
    with (
        socket.create_connection((parts.hostname, parts.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=parts.hostname) as secured,
    ):
        return secured.version()


def test_https_is_served_with_tls_1_2_and_1_3(tmp_path, authority, server):
    """A certificate and a key are enough; clients of TLS 1.2 and 1.3 are served, older ones are not."""
    argv = [f"--certfile={server[0]}", f"--keyfile={server[1]}"]
    with gateway_process(tmp_path / "log", argv) as gateway:
        assert gateway.url.startswith("https://")
        assert ask(gateway.url, authority.client_context())[0] == 200
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = authority.client_context()
            context.minimum_version = context.maximum_version = version
            assert negotiated(gateway.url, context) == version.name.replace("_", ".")
        with pytest.raises(OSError, match=r"(?i)reset|closed|protocol|alert|EOF"):
            handshake_of_tls_1_1(gateway.url)


def handshake_of_tls_1_1(url):
    """Offer TLS 1.1 and nothing newer, and return if the gateway accepts it."""
    parts = urlsplit(url)
    hello_body = b"\x03\x02" + bytes(32) + b"\x00" + b"\x00\x04\xc0\x13\x00\x2f" + b"\x01\x00" + b"\x00\x00"
    hello = b"\x01" + len(hello_body).to_bytes(3, "big") + hello_body
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as plain:
        plain.sendall(b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello)
        answer = plain.recv(100)
    if not answer or answer[0] == 21:
        raise OSError("the handshake was closed with an alert")


def test_ssl_version_restricts_to_one_version(tmp_path, authority, server):
    """ssl_version=5 serves TLS 1.2 only."""
    argv = [f"--certfile={server[0]}", f"--keyfile={server[1]}", "--ssl_version=5"]
    with gateway_process(tmp_path / "log", argv) as gateway:
        assert negotiated(gateway.url, authority.client_context()) == "TLSv1.2"


def test_clients_need_a_certificate_of_client_ca(tmp_path, authority, server):
    """With client_ca, a client without certificate, or with one of another authority, is refused."""
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other")
    argv = [f"--certfile={server[0]}", f"--keyfile={server[1]}", f"--client-ca={authority.certificate}"]
    with gateway_process(tmp_path / "log", argv) as gateway:
        assert ask(gateway.url, authority.client_context(authority.issue("client.example")))[0] == 200
        for certificate in (None, other.issue("client.example")):
            with pytest.raises(OSError, match=r"(?i)certificate|unknown ca|reset|closed|EOF|broken pipe"):
                ask(gateway.url, authority.client_context(certificate))


def test_authorized_origin_names_the_client(tmp_path, authority, server):
    """With authorized_origin only clients whose certificate carries that name are let in; others get 403."""
    argv = [f"--certfile={server[0]}", f"--keyfile={server[1]}", f"--client-ca={authority.certificate}"]
    env = {"EG_AUTHORIZED_ORIGIN": "good.example"}
    with gateway_process(tmp_path / "log", argv, env=env) as gateway:
        assert ask(gateway.url, authority.client_context(authority.issue("good.example")))[0] == 200
        status, answer = ask(gateway.url, authority.client_context(authority.issue("bad.example")))
        assert (status, answer["reason"]) == (403, "Forbidden")


def test_preflight_requests_need_the_certificate_too(tmp_path, authority, server):
    """OPTIONS shows no token, but is no way around authorized_origin."""
    argv = [f"--certfile={server[0]}", f"--keyfile={server[1]}", f"--client-ca={authority.certificate}"]
    env = {"EG_AUTHORIZED_ORIGIN": "good.example"}
    with gateway_process(tmp_path / "log", argv, env=env) as gateway:
        for name, status in (("good.example", 200), ("bad.example", 403)):
            parts, context = urlsplit(gateway.url), authority.client_context(authority.issue(name))
            with closing(http.client.HTTPSConnection(parts.hostname, parts.port, context=context)) as connection:
                connection.request("OPTIONS", "/api/kernels", headers={"Host": "by.any.name"})
                assert connection.getresponse().status == status


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a hello"])
async def test_a_handshake_that_stops_ends_after_seconds(server, sent):
    """Who begins one and says nothing more does not keep a connection."""
    async with running_gateway([f"--certfile={server[0]}", f"--keyfile={server[1]}"]) as gateway:
        gateway.app.connections.header_seconds = 0.5
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.app.port)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert not gateway.app.connections.open


async def test_a_header_of_a_known_client_has_seconds_to_come_over_tls(authority, server):
    """From its first byte; a pause before that is none of its time."""
    argv = [f"--certfile={server[0]}", f"--keyfile={server[1]}", "--EnterpriseGatewayApp.auth_token=right"]
    request = b"GET /api HTTP/1.1\r\nHost: localhost\r\nAuthorization: token right\r\n\r\n"
    async with running_gateway(argv) as gateway:
        gateway.app.connections.header_seconds = 0.5
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.app.port, ssl=authority.client_context(), server_hostname="localhost"
        )
        for _ in range(2):
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"}")
            await asyncio.sleep(0.8)
        writer.write(request[:-1])
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_a_client_refused_over_tls_gets_the_reason(authority, server):
    """Also while the body is being sent: it is read and discarded for a moment."""
    argv = [f"--certfile={server[0]}", f"--keyfile={server[1]}", "--EnterpriseGatewayApp.auth_token=right"]
    async with running_gateway(argv) as gateway:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.app.port, ssl=authority.client_context(), server_hostname="localhost"
        )
        writer.write(b"POST /api/kernels HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n")
        for _ in range(5):
            await asyncio.sleep(0.02)
            writer.write(bytes(100_000))
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 401")
        writer.close()


def test_client_ca_without_certfile_is_reported(tmp_path, authority):
    """TLS that no client could use ends the start."""
    with pytest.raises(AssertionError, match="client_ca and keyfile need certfile"):
        gateway_process(tmp_path / "log", [f"--client-ca={authority.certificate}"]).start()


def test_an_unknown_version_is_refused(server):
    """The option takes any number; serving takes only versions there are."""
    app = EnterpriseGatewayApp(certfile=server[0], keyfile=server[1], ssl_version=99)
    with pytest.raises(ValueError, match="ssl_version 99"):
        app._build_ssl_options()


def start_with_encrypted_key(server, tmp_path):
    """Return the arguments of a gateway whose key needs the passphrase ``open``."""
    key = serialization.load_pem_private_key(Path(server[1]).read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"open")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (tmp_path / "encrypted.key").write_bytes(pem)
    options = [f"--certfile={server[0]}", f"--keyfile={tmp_path}/encrypted.key", "--port=0"]
    return [sys.executable, "-m", "enterprise_gateway", *options]


def test_an_encrypted_key_without_a_terminal_is_reported(tmp_path, server):
    """The program ends with a sentence that says what to do, and a status that is not 0."""
    command = start_with_encrypted_key(server, tmp_path)
    done = subprocess.run(
        command,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "TLS" in line]
    assert f"{tmp_path}/encrypted.key: the key is encrypted, and there is no terminal to ask for its passphrase" in line
    assert f"openssl pkey -in {tmp_path}/encrypted.key -out tls.key" in line
    assert "Traceback" not in done.stderr


def read_until(terminal, pattern, seconds=60):
    """Return the match of ``pattern`` in what comes from a terminal."""
    said, end = b"", time.monotonic() + seconds
    while not (match := re.search(pattern, said)):
        assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], said
        said += os.read(terminal, 1000)
    return match


def test_the_passphrase_of_an_encrypted_key_is_asked_for_at_a_terminal(tmp_path, authority, server):
    """Who types it has a gateway that serves."""
    command = start_with_encrypted_key(server, tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    try:
        read_until(terminal, rb"Passphrase of ")
        os.write(terminal, b"open\n")
        match = read_until(terminal, rb"is available at (https://\S+?)\s")
        assert ask(match[1].decode(), authority.client_context())[0] == 200
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        os.close(terminal)
