"""The API's version and its description."""

from __future__ import annotations

from pathlib import Path

import jupyter_server
from tornado import web

from ..._version import __version__
from ...base.handlers import GatewayHandler

DESCRIPTIONS = Path(__file__).parent


class APIVersionHandler(GatewayHandler):
    """``/api``: the versions of the API and of the gateway."""

    def get(self) -> None:
        """Return the versions of jupyter_server's API and of the gateway; also the cheapest liveness check."""
        self.finish_json({"version": jupyter_server.__version__, "gateway_version": __version__})


class DescriptionHandler(GatewayHandler):
    """``/api/swagger.json``, ``/api/swagger.yaml``: the OpenAPI document; readable without a token."""

    TYPES = {"json": "application/json", "yaml": "text/x-yaml"}

    def check_token(self) -> None:
        """Allow access without a token, because the description contains nothing about this installation."""

    def get(self, form: str) -> None:
        """Return the document."""
        self.set_header("Content-Type", self.TYPES[form])
        self.finish((DESCRIPTIONS / f"swagger.{form}").read_bytes())


default_handlers: list[tuple[str, type[web.RequestHandler]]] = [
    (r"/api", APIVersionHandler),
    (r"/api/swagger\.(?P<form>json|yaml)", DescriptionHandler),
]
