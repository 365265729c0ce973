"""The API's version and its description."""

from __future__ import annotations

from pathlib import Path

import jupyter_server
from tornado import web

from ..._version import __version__
from ...base.handlers import GatewayHandler

DESCRIPTIONS = Path(__file__).parent


class APIVersionHandler(GatewayHandler):
    """``/api``: which versions speak."""

    def get(self) -> None:
        """Answer the versions of jupyter_server's API and of the gateway; also the cheapest liveness check."""
        self.finish_json({"version": jupyter_server.__version__, "gateway_version": __version__})


class DescriptionHandler(GatewayHandler):
    """``/api/swagger.json``, ``/api/swagger.yaml``: the OpenAPI document; readable without a token."""

    TYPES = {"json": "application/json", "yaml": "text/x-yaml"}

    def check_token(self) -> None:
        """Let everybody read the description, who is not known by that; it holds nothing of this installation."""

    def get(self, form: str) -> None:
        """Answer the document."""
        self.set_header("Content-Type", self.TYPES[form])
        self.finish((DESCRIPTIONS / f"swagger.{form}").read_bytes())


default_handlers: list[tuple[str, type[web.RequestHandler]]] = [
    (r"/api", APIVersionHandler),
    (r"/api/swagger\.(?P<form>json|yaml)", DescriptionHandler),
]
