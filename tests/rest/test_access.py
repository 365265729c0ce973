"""Who may talk to the gateway: tokens, origins, hosts."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError
from tornado.websocket import websocket_connect

from tests.support.gateway import running_gateway

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
    """The query argument wins over the header; both schemes are known, in exactly their spelling."""
    async with running_gateway(config={"EnterpriseGatewayApp": {"auth_token": "right"}}) as gateway:
        answer = await gateway.call(path, status=status, headers={"Authorization": header} if header else {})
        assert status == 200 or answer == UNAUTHORIZED


async def test_the_token_appears_in_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """Neither access lines nor error lines hold the token of a query."""
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


async def test_a_name_in_a_url_writes_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Line ends in it are escaped where the log tells of it."""
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


async def test_requests_of_foreign_pages_are_refused_unless_allowed() -> None:
    """An Origin other than the gateway's own is 404, until allow_origin permits it, exactly or by a star."""
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
    """The handshake of a page of another origin is 403 with the documented text."""
    config = {"EnterpriseGatewayApp": {"unauthorized_users": []}}
    async with running_gateway(config=config) as gateway:
        kernel_id = await gateway.start_kernel()
        with pytest.raises(HTTPClientError) as refused:
            await gateway.websocket(kernel_id, Origin="https://evil.example")
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
        ("evil.example", {}, 403),
        ("evil.example:8888", {}, 403),
        ("127.0.0.1.evil.example", {}, 403),
        ("my.host", {"allowed_hosts": ["my.host"]}, 200),
        ("evil.example", {"auth_token": "right"}, 401),
    ],
)
async def test_without_a_token_loopback_answers_to_its_own_names_only(
    host: str, config: dict[str, Any], status: int
) -> None:
    """DNS rebinding: a page that makes its own name point to 127.0.0.1 is refused."""
    async with running_gateway(config={"EnterpriseGatewayApp": config}) as gateway:
        response = await gateway.fetch("/api", headers={"Host": host})
        assert response.code == status
        assert set(json.loads(response.body)) in ({"version", "gateway_version"}, {"reason", "message"})
