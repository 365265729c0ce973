"""The mixins of ``enterprise_gateway.mixins`` on objects that are not handlers of the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from tornado import httpserver, netutil, web

from enterprise_gateway.core.errors import InvalidRequestError
from enterprise_gateway.mixins import CORSMixin, JSONErrorsMixin, TokenAuthorizationMixin
from tests.support.embedded import Requests


class Prepares:
    """What comes after the mixins: it has a ``prepare`` of its own."""

    is_prepared = False

    def prepare(self) -> str:
        """Note that it was called."""
        self.is_prepared = True
        return "prepared"


class Bare(TokenAuthorizationMixin, Prepares):
    """Not a handler, but what the token's check needs of one."""

    def __init__(
        self, method: str = "GET", headers: Mapping[str, str] | None = None, arguments: Mapping[str, str] | None = None
    ) -> None:
        self.settings = {"eg_auth_token": "right"}
        self.request: Any = SimpleNamespace(method=method, headers=headers or {})
        self.arguments = arguments or {}
        self.sent: list[int] = []

    def get_argument(self, name: str, default: Any = None, strip: bool = True) -> Any:
        """Return an argument of the query."""
        return self.arguments.get(name, default)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Note the status."""
        self.sent.append(status_code)


@pytest.mark.parametrize(
    ("bare", "allowed"),
    [
        (Bare(), False),
        (Bare(headers={"Authorization": "token wrong"}), False),
        (Bare(headers={"Authorization": "token right"}), True),
        (Bare(headers={"Authorization": "Bearer right"}), True),
        (Bare(arguments={"token": "right"}), True),
        (Bare(arguments={"token": "wrong"}, headers={"Authorization": "token right"}), False),
        (Bare(method="OPTIONS"), True),
    ],
)
def test_the_token_is_checked_on_any_object(bare: Bare, allowed: bool) -> None:
    """``prepare`` sends 401, or goes on to the next class."""
    result = bare.prepare()
    assert (bare.is_prepared, bare.sent, result) == (allowed, [] if allowed else [401], "prepared" if allowed else None)


def test_without_a_token_every_request_is_accepted() -> None:
    """An empty setting, or none, checks nothing; a class without ``prepare`` behind the mixin is fine."""
    for settings in ({"eg_auth_token": ""}, {}):
        bare = Bare()
        bare.settings = settings
        assert bare.prepare() == "prepared"
    alone: Any = type("Alone", (TokenAuthorizationMixin,), {"settings": {}, "request": SimpleNamespace(method="GET")})()
    assert alone.prepare() is None


class Answer(JSONErrorsMixin):
    """Not a handler, but what the writing of errors needs of one."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, Any] = {}
        self.document: Any = None

    def set_status(self, status_code: int, reason: str | None = None) -> None:
        """Note the status."""
        self.status = status_code

    def set_header(self, name: str, value: Any) -> None:
        """Note a header."""
        self.headers[name] = value

    def finish(self, chunk: Any = None) -> Any:
        """Note the body."""
        self.document = json.loads(chunk)


@pytest.mark.parametrize(
    ("status", "error", "reason", "message"),
    [
        (404, None, "Not Found", ""),
        (405, None, "Method Not Allowed", ""),
        (500, web.HTTPError(500, reason="The disk is full"), "The disk is full", ""),
        (410, web.HTTPError(410, log_message="It is gone"), "Gone", "It is gone"),
        (410, web.HTTPError(410, "%s is gone", "it"), "Gone", "it is gone"),
        (400, InvalidRequestError("Say what you want."), "Bad Request", "Say what you want."),
        (500, KeyError("secret"), "Internal Server Error", "Unknown server error"),
    ],
)
def test_errors_are_written_on_any_object(status: int, error: Exception | None, reason: str, message: str) -> None:
    """``write_error`` finishes with the document, also when ``exc_info`` has no traceback."""
    answer = Answer()
    answer.write_error(status, **({"exc_info": [None, error]} if error else {}))
    assert (answer.status, answer.document) == (status, {"reason": reason, "message": message})
    assert answer.headers["Content-Type"] == "application/json"


class Plain(TokenAuthorizationMixin, JSONErrorsMixin, CORSMixin, web.RequestHandler):
    """A handler of another program."""

    def set_default_headers(self) -> None:
        """Allow pages of the configured origin."""
        self.set_cors_headers()

    def get(self) -> None:
        """Answer, or fail as the argument says."""
        if self.get_argument("fail", ""):
            raise InvalidRequestError("Say what you want.")
        self.finish("here")


@pytest.fixture
async def plain() -> AsyncIterator[Requests]:
    """Serve the handler of another program, and nothing of ours."""
    settings = {"eg_auth_token": "right", "eg_allow_origin": "https://jupyter.org"}
    server = httpserver.HTTPServer(web.Application([("/", Plain)], **settings))  # type: ignore[arg-type]
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    yield Requests(f"http://127.0.0.1:{sockets[0].getsockname()[1]}")
    server.stop()
    await server.close_all_connections()


async def test_a_plain_handler_of_tornado_has_token_and_json_errors(plain: Requests) -> None:
    """Wrong token 401, failure of our family its own status, 405 with Allow, all as JSON; else the handler answers."""
    for path, method, status, said in (
        ("/", "GET", 401, {"reason": "Unauthorized", "message": ""}),
        ("/?token=right&fail=1", "GET", 400, {"reason": "Bad Request", "message": "Say what you want."}),
        ("/?token=right", "DELETE", 405, {"reason": "Method Not Allowed", "message": ""}),
    ):
        answer = await plain(path, method)
        assert (answer.code, json.loads(answer.body)) == (status, said)
    assert answer.headers["Allow"] == "GET, OPTIONS"
    right = await plain("/", headers={"Authorization": "token right"})
    assert (right.code, right.body) == (200, b"here")
    preflight = await plain("/", "OPTIONS")
    assert (preflight.code, preflight.headers["Access-Control-Allow-Origin"]) == (200, "https://jupyter.org")
