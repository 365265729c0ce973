"""The base class of all of the gateway's HTTP handlers, and the handler of unknown paths."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from jupyter_server.auth.identity import User
from tornado import web
from tornado.log import access_log

from ..core.errors import InvalidRequestError
from .bodies import EarlyHandler
from .mixins import CORSMixin, JSONErrorsMixin, TokenAuthorizationMixin, redacted_uri

if TYPE_CHECKING:
    from ..services.kernels.remotemanager import RemoteMappingKernelManager
    from .connections import Connections
    from .traffic import Traffic

ANONYMOUS = User(username="anonymous")

_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::[0-9]*)?")


def log_request(handler: web.RequestHandler) -> None:
    """Write one access-log line without the token; given to tornado as ``log_function``."""
    status = handler.get_status()
    level = logging.INFO if status < 500 else logging.ERROR
    request = handler.request
    access_log.log(
        level,
        "%d %s %.200s (%s) %.2fms",
        status,
        request.method,
        redacted_uri(request),
        request.remote_ip,
        1000.0 * request.request_time(),
    )


class GatewayHandler(CORSMixin, JSONErrorsMixin, TokenAuthorizationMixin, EarlyHandler):
    """Checks token, host and origin before the body is read and a verb runs; gives verbs access to the managers."""

    def set_default_headers(self) -> None:
        """Set the headers of every response; called by tornado, also before an error is written."""
        self.set_header("Content-Type", "application/json")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_cors_headers()

    def prepare(self) -> None:
        """Refuse requests with a wrong token, host, origin or certificate before they reach a verb."""
        if self.refuse_when_draining():
            return
        self.check_token()
        self.check_peer_certificate()
        self.check_host()
        if self.request.method != "OPTIONS":
            self.check_cross_site()
        self.expect_body()
        traffic: Traffic | None = self.settings.get("eg_traffic")
        if traffic is not None and self.keeps_body:  # an unauthenticated request does not delay an orderly stop
            traffic.requests.add(self)

    def check_token(self) -> None:
        """Refuse the request with 401 unless the token is right; mark the connection as authenticated."""
        super().check_token()
        if self.request.method == "OPTIONS":
            return
        self.keeps_body = True
        connections: Connections | None = self.settings.get("eg_connections")
        if connections is not None:
            connections.admit(self.request.connection.stream)  # type: ignore[union-attr]

    async def head(self, *args: str, **kwargs: str) -> None:
        """Answer as GET does, or with 405 if there is no GET; tornado omits the body."""
        answer = self.get(*args, **kwargs)
        if answer is not None:
            await answer

    def _implemented_methods(self) -> list[str]:
        methods = super()._implemented_methods()
        return methods if "GET" in methods else [method for method in methods if method != "HEAD"]

    def refuse_when_draining(self) -> bool:
        """Answer with 503 and return True if the gateway is stopping."""
        traffic: Traffic | None = self.settings.get("eg_traffic")
        if traffic is None or not traffic.is_draining:
            return False
        self.set_header("Connection", "close")
        self.set_header("Retry-After", "1")
        message = "The gateway is being stopped; please try again."
        self.finish_json({"reason": "Service Unavailable", "message": message}, 503)
        return True

    def on_finish(self) -> None:
        """Note that the request has been answered; called by tornado."""
        traffic: Traffic | None = self.settings.get("eg_traffic")
        if traffic is not None:
            traffic.leave(self)

    def check_host(self) -> None:
        """Refuse foreign Host headers when clients need neither a token nor a certificate (DNS rebinding)."""
        if self.settings.get("eg_auth_token") or self.settings.get("eg_client_ca"):
            return
        host = self.request.host
        if not is_allowed_host(host, self.settings.get("eg_allowed_hosts", ())):
            name = hostname(host) or host
            raise web.HTTPError(
                403, "The Host header names %r; add it to allowed_hosts (EG_ALLOWED_HOSTS) or set auth_token.", name
            )

    def check_cross_site(self) -> None:
        """Refuse requests from pages of another origin, unless ``allow_origin`` permits it."""
        origin = self.request.headers.get("Origin")
        if origin is None:
            state_changing = self.request.method not in {"GET", "HEAD"}
            if state_changing and self.request.headers.get("Sec-Fetch-Site") == "cross-site":
                raise web.HTTPError(404)
        elif not self.is_allowed_origin(origin):
            raise web.HTTPError(404)

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether ``origin`` is the gateway's own, or permitted by the setting ``allow_origin``."""
        if origin_host(origin) == self.request.host.lower():
            return True
        allowed = self.settings.get("allow_origin", "")
        return bool(allowed == "*" or origin.lower() == allowed.lower() != "")

    def check_peer_certificate(self) -> None:
        """Refuse TLS peers whose certificate does not carry the name ``authorized_origin``."""
        expected = self.settings.get("eg_authorized_origin")
        if not expected:
            return
        try:
            certificate: Any = self.request.get_ssl_certificate()
        except AttributeError:  # not a TLS connection
            certificate = None
        alternatives = (certificate or {}).get("subjectAltName", ())
        if expected not in [value for kind, value in alternatives if kind in {"DNS", "IP Address"}]:
            raise web.HTTPError(403)

    def get_current_user(self) -> User:
        """Return the requesting user; without an identity provider every user is anonymous."""
        return ANONYMOUS

    async def authorize(self, action: str, resource: str) -> None:
        """Ask the configured authorizer; refuse the request with 403 if it denies it.

        Parameters
        ----------
        action
            ``read``, ``write`` or ``execute``.
        resource
            ``kernels``, ``sessions``, ``kernelspecs`` or ``api``.
        """
        authorizer = self.settings.get("authorizer")
        if authorizer is None:
            return
        allowed = authorizer.is_authorized(self, self.current_user, action, resource)
        if hasattr(allowed, "__await__"):
            allowed = await allowed
        if not allowed:
            raise web.HTTPError(403, "%s is not authorized to %s %s.", self.current_user.username, action, resource)

    @property
    def kernel_manager(self) -> RemoteMappingKernelManager:
        """The manager of all kernels."""
        return self.settings["kernel_manager"]

    @property
    def base_url(self) -> str:
        """The prefix of all routes, ending in a slash."""
        return str(self.settings.get("base_url", "/"))

    def get_json_body(self) -> dict[str, Any]:
        """Return the request's JSON object; an empty body is an empty object.

        Raises
        ------
        InvalidRequestError
            The body is not JSON, or not an object.
        """
        text = self.request.body.strip()
        if not text:
            return {}
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError("Invalid JSON in body of request") from error
        if not isinstance(body, dict):
            raise InvalidRequestError("The body of the request must be a JSON object.")
        return body

    def finish_json(self, model: Any, status: int = 200) -> None:
        """Finish the response with ``model`` as JSON."""
        self.set_status(status)
        self.finish(json.dumps(model))


class NotFoundHandler(JSONErrorsMixin, EarlyHandler):
    """Answers 404 as JSON for every path that no other handler serves."""

    def prepare(self) -> None:
        """Refuse the request, whatever its verb."""
        raise web.HTTPError(404)


def hostname(host: str) -> str:
    """Return the name of a Host header without its port, in lower case; empty if the header is invalid."""
    match = _HOST.fullmatch(host)
    return match[1].strip("[]").lower() if match else ""


def origin_host(origin: str) -> str | None:
    """Return host and port of an Origin header, in lower case; None if the header is invalid."""
    try:
        return urlparse(origin).netloc.lower()
    except ValueError:
        return None


def is_allowed_host(host: str, allowed: Iterable[str]) -> bool:
    """Whether a Host header is one that a page of another host cannot make a browser send.

    That is an empty one, an address, ``localhost``, this machine's name, or one of the option ``allowed_hosts``.
    """
    name = hostname(host).removesuffix(".")
    if not name:
        return not host
    if is_loopback(name) or is_address(name) or name in own_names():
        return True
    for pattern in map(str.lower, allowed):
        if pattern in {"*", name} or (pattern.startswith(".") and f".{name}".endswith(pattern)):
            return True
    return False


@cache
def own_names() -> frozenset[str]:
    """Return the name of this machine, with and without its domain."""
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0]})


def is_address(host: str) -> bool:
    """Whether ``host`` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether ``host`` is ``localhost`` or a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


default_handlers = [(r".*", NotFoundHandler)]
