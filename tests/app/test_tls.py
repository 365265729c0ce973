"""HTTPS and mutual TLS over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp
from tests.support.certificates import Authority
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


def test_client_ca_without_certfile_is_said(tmp_path, authority):
    """TLS that no client could use ends the start."""
    with pytest.raises(AssertionError, match="client_ca and keyfile need certfile"):
        gateway_process(tmp_path / "log", [f"--client-ca={authority.certificate}"]).start()


def test_an_unknown_version_is_refused(server):
    """The option takes any number; serving takes only versions there are."""
    app = EnterpriseGatewayApp(certfile=server[0], keyfile=server[1], ssl_version=99)
    with pytest.raises(ValueError, match="ssl_version 99"):
        app._build_ssl_options()
