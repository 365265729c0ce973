"""An application built piece by piece inside the test's own process, as programs that embed the gateway do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from traitlets.config import Config

from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp


def make_app(configure: Callable[[EnterpriseGatewayApp], None] | None = None, **options: Any) -> EnterpriseGatewayApp:
    """Return an application with its managers and its web application; ``options`` are its traits."""
    app = EnterpriseGatewayApp(config=Config({"EnterpriseGatewayApp": {"port": 0, **options}}), log_level="WARN")
    if configure is not None:
        configure(app)
    app.init_configurables()
    app.init_webapp()
    return app


@asynccontextmanager
async def serving(app: EnterpriseGatewayApp) -> AsyncIterator[Requests]:
    """Serve ``app`` on loopback and stop it in the end."""
    app.init_http_server()
    app.http_server.add_sockets(app._sockets)
    try:
        yield Requests(f"http://127.0.0.1:{app.port}")
    finally:
        await app.stop()


class Requests:
    """Sends requests to one server and returns every answer, errors among them."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __call__(self, path: str, method: str = "GET", **options: Any) -> HTTPResponse:
        client = AsyncHTTPClient(force_instance=True)
        try:
            return await client.fetch(self.url + path, method=method, raise_error=False, **options)
        finally:
            client.close()

    async def json(self, path: str, **options: Any) -> Any:
        """Return the JSON document of a successful answer."""
        response = await self(path, **options)
        assert response.code == 200, (response.code, response.body)
        return json.loads(response.body)
