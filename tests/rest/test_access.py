"""Who may talk to the gateway: tokens, origins, hosts."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from tornado.httpclient import HTTPClientError
from tornado.websocket import websocket_connect

from tests.support.gateway import running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import gateway_process

UNAUTHORIZED = {"reason": "Unauthorized", "message": ""}


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/api", None, 401),
        ("/api", "token right", 200),
        ("/api", "Bearer right", 200),
        ("/api", "Token right", 401),
        ("/api", "bearer right", 401),
        ("/api", "token wrong", 401),
        ("/api", "right", 401),
        ("/api?token=right", None, 200),
        ("/api?token=wrong", None, 401),
        ("/api?token=right", "token wrong", 200),
        ("/api?token=wrong", "token right", 401),
        ("/api?token=", "token right", 401),
    ],
)
async def test_the_token_is_taken_from_query_or_header(path: str, header: str | None, status: int) -> None:
    """The query argument overrides the header; both schemes are accepted, in exactly their spelling."""
    async with running_gateway(config={"EnterpriseGatewayApp": {"auth_token": "right"}}) as gateway:
        answer = await gateway.call(path, status=status, headers={"Authorization": header} if header else {})
        assert status == 200 or answer == UNAUTHORIZED


async def test_the_token_appears_in_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """Neither access lines nor error lines contain the token of a query."""
    with caplog.at_level(logging.DEBUG):
        async with running_gateway(["--debug"], config={"EnterpriseGatewayApp": {"auth_token": "s3cr3t"}}) as gateway:
            for path in ("/api?token=s3cr3t", "/nowhere?a=b&token=s3cr3t", "/api/kernels/1-2-3-4-5?token=s3cr3t"):
                await gateway.fetch(path)
            await gateway.fetch("/api/kernels?token=s3cr3t", "POST", "{")
            with pytest.raises(HTTPClientError):
                await websocket_connect(
                    gateway.url.replace("http", "ws") + "/api/kernels/1-2-3-4-5/channels?token=s3cr3t"
                )
    assert "GET /api?token=********" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("tok%65n=s3cr3t", 200),
        ("%74%6F%6b%65%6e=s3cr3t", 200),
        ("token=%733cr3t", 200),
        ("token=wrong&token=s3cr3t", 200),
        ("a=b#&token=s3cr3t", 200),
        ("?&&=&token=s3cr3t&=", 200),
        ("token=s3cr3t%ff", 401),
        ("token=%ffs3cr3t", 401),
        ("token=s3cr3t\xff", 401),
        ("Token=s3cr3t", 401),
        ("TOK%45N=s3cr3t", 401),
        ("access_token=s3cr3t", 401),
        ("?token=s3cr3t", 401),
        ("token==s3cr3t", 401),
    ],
)
async def test_a_token_in_any_form_appears_neither_in_the_log_nor_in_the_answer(
    query: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A token is not logged however it is encoded, and neither is an invalid one."""
    with caplog.at_level(logging.DEBUG):
        async with running_gateway(["--debug"], config={"EnterpriseGatewayApp": {"auth_token": "s3cr3t"}}) as gateway:
            for path in ("/api", "/api/kernels/1-2-3-4-5/channels"):
                reader, writer = await asyncio.open_connection("127.0.0.1", gateway.app.port)
                writer.write(f"GET {path}?{query} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("latin-1"))
                answer = await reader.read()
                writer.close()
                assert int(answer.split()[1]) == (404 if status == 200 and path != "/api" else status)
                assert b"s3cr3t" not in answer
    assert f"{status} GET /api?" in caplog.text
    assert not [text for text in ("s3cr3t", "3cr3t") if text in caplog.text]


def test_a_malformed_request_is_not_quoted_in_the_log(tmp_path: Path) -> None:
    """Its header may be the one with the token."""
    with gateway_process(tmp_path / "log", ["--debug"], env={"EG_AUTH_TOKEN": "s3cr3t"}) as gateway:
        port = int(gateway.url.rsplit(":", 1)[1])
        for line in (b"Authorization: token s3cr3t\x01", b"Authorization: token s3cr3t\x7f", b"token s3cr3t"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"GET /api HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n\r\n")
                answer = connection.recv(1000)
                assert answer.split()[1] in (b"400", b"401")
                assert b"s3cr3t" not in answer
    assert "s3cr3t" not in gateway.output


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Origin: http://[evil", 404),
        ("Origin: http://evil]", 404),
        ("Origin: //[", 404),
        ("Origin: \xff", 404),
        ("Origin: http://[::1]:99999999", 404),
        ("Host: [evil", 403),
        ("Host: [::1]evil.example", 403),
        ("Host: a:b:c", 403),
        ("Host: \xff", 403),
        ("Range: bytes=0-" + "9" * 5000, 200),
        ("If-None-Match: \xff", 200),
        ("Content-Length: \xb2", 400),
        ("Content-Length: " + "9" * 5000, 413),
        ("Sec-WebSocket-Extensions: ;;=", 200),
        ("X-Forwarded-For: [::", 200),
    ],
)
async def test_a_header_that_makes_no_sense_is_no_failure_of_the_gateway(header: str, status: int) -> None:
    """It is refused or ignored; tornado refuses some before the gateway sees them, with 400."""
    async with running_gateway(config={"EnterpriseGatewayApp": {"trust_xheaders": True}}) as gateway:
        host = "" if header.startswith("Host") else f"Host: 127.0.0.1:{gateway.app.port}\r\n"
        for more in ("", "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"):
            path = "/api/kernels/1-2-3-4-5/channels" if more else "/api"
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.app.port)
            writer.write(f"GET {path} HTTP/1.1\r\n{host}{more}{header}\r\n\r\n".encode("latin-1"))
            answered = int((await asyncio.wait_for(reader.readline(), 5)).split()[1])
            writer.close()
            assert answered in ({400, 403, 404, 413} if more else {status, 400 if status != 200 else status})


async def test_a_name_in_a_url_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Line ends in it are escaped in the log."""
    with caplog.at_level(logging.DEBUG):
        async with running_gateway() as gateway:
            assert (await gateway.fetch("/api/kernelspecs/a%0aforged")).code == 404
            assert (await gateway.fetch("/kernelspecs/a%0aforged/b%0dforged")).code == 404
    messages = [record.getMessage() for record in caplog.records]
    assert any(r"a\nforged" in message for message in messages)
    assert not [message for message in messages if "\nforged" in message or "\rforged" in message]


async def test_preflight_requests_and_descriptions_need_no_token() -> None:
    """OPTIONS and the OpenAPI documents are open; a path that does not exist is 404 and not 401."""
    async with running_gateway(config={"EnterpriseGatewayApp": {"auth_token": "right"}}) as gateway:
        for path in ("/api", "/api/kernels", "/api/swagger.json", "/api/kernels/1-2-3-4-5/channels"):
            assert (await gateway.fetch(path, "OPTIONS")).code == 200
        assert (await gateway.fetch("/api/swagger.json")).code == 200
        assert (await gateway.fetch("/api/swagger.yaml")).headers["Content-Type"] == "text/x-yaml"
        assert (await gateway.fetch("/tree")).code == 404


async def test_cors_headers_are_sent_as_configured_and_on_errors_too() -> None:
    """A header is sent when its option is set, verbatim; a changed option counts from the next request on."""
    cors = {
        "allow_credentials": "true",
        "allow_headers": "Authorization,Content-Type",
        "allow_methods": "GET,POST",
        "allow_origin": "https://jupyter.org",
        "expose_headers": "X-My-Fancy-Header",
        "max_age": "60",
    }
    async with running_gateway(config={"EnterpriseGatewayApp": {**cors, "auth_token": "right"}}) as gateway:
        for response in (await gateway.fetch("/api", "OPTIONS"), await gateway.fetch("/api")):
            for option, value in cors.items():
                name = "Access-Control-" + option.replace("_", "-")
                assert response.headers[name] == value
        gateway.app.max_age = ""
        assert "Access-Control-Max-Age" not in (await gateway.fetch("/api")).headers


async def test_requests_from_foreign_pages_are_refused_unless_allowed() -> None:
    """An Origin other than the gateway's own is 404, unless allow_origin permits it, exactly or by a star."""
    async with running_gateway() as gateway:
        own = f"http://127.0.0.1:{gateway.app.port}"
        settings = gateway.app.web_app.settings
        for allowed, origin, status in (
            ("", own, 200),
            ("", "https://evil.example", 404),
            ("", "null", 404),
            ("https://good.example", "https://good.example", 200),
            ("https://good.example", "https://GOOD.example", 200),
            ("https://good.example", "https://good.example.evil.org", 404),
            ("*", "https://anywhere.example", 200),
        ):
            settings["allow_origin"] = allowed
            assert (await gateway.fetch("/api", headers={"Origin": origin})).code == status, (allowed, origin)
        settings["allow_origin"] = ""
        post = await gateway.fetch("/api/kernels", "POST", "{}", headers={"Sec-Fetch-Site": "cross-site"})
        assert post.code == 404


async def test_websockets_of_foreign_pages_are_refused() -> None:
    """The handshake of a page of another origin, or of none, is 403 with the documented text."""
    config = {"EnterpriseGatewayApp": {"unauthorized_users": []}}
    async with running_gateway(config=config) as gateway:
        kernel_id = await gateway.start_kernel()
        for origin in ("https://evil.example", "http://[evil"):
            with pytest.raises(HTTPClientError) as refused:
                await gateway.websocket(kernel_id, Origin=origin)
            assert refused.value.code == 403
            assert b"Cross origin websockets not allowed" in refused.value.response.body
        plain = await gateway.fetch(f"/api/kernels/{kernel_id}/channels")
        assert (plain.code, plain.body) == (400, b'Can "Upgrade" only to "WebSocket".')


@pytest.mark.parametrize(
    ("host", "config", "status"),
    [
        ("localhost:8888", {}, 200),
        ("127.0.0.1", {}, 200),
        ("[::1]:8888", {}, 200),
        ("LocalHost.", {}, 200),
        ("192.0.2.1:8888", {}, 200),
        ("[2001:db8::1]", {}, 200),
        (socket.gethostname().upper(), {}, 200),
        ("evil.example", {}, 403),
        ("evil.example:8888", {}, 403),
        ("evil.example.", {}, 403),
        ("127.0.0.1.evil.example", {}, 403),
        ("0x7f.1", {}, 403),
        ("my.host", {"allowed_hosts": ["my.host"]}, 200),
        ("MY.host.:80", {"allowed_hosts": ["My.Host"]}, 200),
        ("a.my.host", {"allowed_hosts": ["my.host"]}, 403),
        ("a.my.host", {"allowed_hosts": [".my.host"]}, 200),
        ("my.host", {"allowed_hosts": [".my.host"]}, 200),
        ("evilmy.host", {"allowed_hosts": [".my.host"]}, 403),
        ("evil.example", {"allowed_hosts": ["*"]}, 200),
        ("evil.example", {"auth_token": "right"}, 401),
    ],
)
async def test_without_a_token_the_gateway_answers_to_its_own_names_only(
    host: str, config: dict[str, Any], status: int
) -> None:
    """DNS rebinding: a page whose own name resolves to the gateway is refused, whatever the gateway serves."""
    async with running_gateway(config={"EnterpriseGatewayApp": config}) as gateway:
        response = await gateway.fetch("/api", headers={"Host": host})
        assert response.code == status
        assert set(json.loads(response.body)) in ({"version", "gateway_version"}, {"reason", "message"})
        preflight = await gateway.fetch("/api", "OPTIONS", headers={"Host": host})
        assert preflight.code == (200 if status == 401 else status)


@pytest.mark.parametrize("ip", ["127.0.0.1", "0.0.0.0", ""])
def test_a_request_for_a_foreign_name_is_told_what_to_do_on_every_address(ip: str, tmp_path: Path) -> None:
    """It is told of both remedies; a health probe, which has no Host, is served."""
    with gateway_process(tmp_path / "log", [f"--ip={ip}"]) as gateway:
        port = int(gateway.url.rsplit(":", 1)[1])
        for request, status in (
            (b"GET /api HTTP/1.1\r\nHost: enterprise-gateway:8888\r\n\r\n", b"403"),
            (b"GET /api HTTP/1.0\r\n\r\n", b"200"),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(request)
                answer = connection.recv(2000)
            assert answer.split()[1] == status
            assert b"'enterprise-gateway'; add it to allowed_hosts (EG_ALLOWED_HOSTS) or set auth_token" in answer or (
                status == b"200"
            )


async def test_head_is_answered_where_get_is() -> None:
    """HEAD has the status and headers of GET and no body; where there is no GET, and for websockets, it is 405."""
    write_kernelspec("plain", files={"logo-64x64.png": b"png"})
    async with running_gateway(config={"EnterpriseGatewayApp": {"list_kernels": True}}) as gateway:
        kernel_id = await gateway.start_kernel()
        body = {"path": "a", "type": "notebook", "kernel": {"id": kernel_id}}
        session = await gateway.call("/api/sessions", "POST", body, status=201)
        for path, status in (
            ("/api", 200),
            ("/api/swagger.json", 200),
            ("/api/kernelspecs", 200),
            ("/api/kernelspecs/plain", 200),
            ("/kernelspecs/plain/logo-64x64.png", 200),
            ("/api/kernels", 200),
            (f"/api/kernels/{kernel_id}", 200),
            ("/api/kernels/1-2-3-4-5", 404),
            ("/api/sessions", 200),
            (f"/api/sessions/{session['id']}", 200),
            ("/nowhere", 404),
        ):
            get, head = await gateway.fetch(path), await gateway.fetch(path, "HEAD")
            assert (head.code, head.body) == (get.code, b"") == (status, b""), path
            for name in ("Content-Length", "Content-Type", "Etag"):
                assert head.headers.get(name) == get.headers.get(name), (path, name)
        for path, allowed in (("interrupt", "POST, OPTIONS"), ("channels", "GET, OPTIONS")):
            refused = await gateway.fetch(f"/api/kernels/{kernel_id}/{path}", "HEAD")
            assert (refused.code, refused.headers["Allow"]) == (405, allowed)
        gateway.app.list_kernels = False
        assert (await gateway.fetch("/api/kernels", "HEAD")).code == 403


@pytest.mark.parametrize("base_url", ["/übung 1/日本", "/%C3%BCbung%201/%e6%97%a5%e6%9c%ac/"])
async def test_a_base_url_in_any_script_is_served_in_the_form_that_requests_have(base_url: str) -> None:
    """However it is written in the option: requests encode it, in either case, and links in answers are encoded."""
    async with running_gateway(config={"EnterpriseGatewayApp": {"base_url": base_url}}) as gateway:
        root = f"http://127.0.0.1:{gateway.app.port}"
        gateway.url = root + quote("/übung 1/日本")
        created = await gateway.fetch("/api/kernels", "POST", {})
        kernel_id = json.loads(created.body)["id"]
        assert unquote(created.headers["Location"]) == f"/übung 1/日本/api/kernels/{kernel_id}"
        assert created.headers["Location"].isascii()
        socket = await gateway.websocket(kernel_id)
        assert (await socket.execute("print(6 * 7)"))[0].strip() == "42"
        resources = (await gateway.call("/api/kernelspecs/python3"))["resources"]
        for url in resources.values():
            assert (await gateway.http.fetch(root + url)).code == 200
        gateway.url = root + quote("/übung 1/日本").lower()
        await gateway.call("/api")
        gateway.url = root
        assert (await gateway.fetch("/api")).code == 404
        _, port = root.rsplit(":", 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write("GET /übung%201/日本/api HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        assert b" 200 OK" in await reader.readline(), "as curl sends it"
        writer.close()


async def test_a_base_url_is_not_a_pattern() -> None:
    """A dot is matched literally, and so are parentheses and a plus."""
    async with running_gateway(config={"EnterpriseGatewayApp": {"base_url": "/a.b/c+(d)"}}) as gateway:
        await gateway.call("/api")
        gateway.url = gateway.url.replace("a.b", "axb")
        assert (await gateway.fetch("/api")).code == 404
