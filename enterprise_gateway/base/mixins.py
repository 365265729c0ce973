"""Mixins for all of the gateway's HTTP handlers: CORS headers, the token check, JSON errors."""

from __future__ import annotations

import hmac
import json
import logging
import traceback
from http.client import responses
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from tornado import web
from tornado.httputil import HTTPServerRequest

from ..core.errors import GatewayError, KernelLaunchError, LimitReachedError

log = logging.getLogger(__name__)

# Plain mixins: third parties add them to their own handlers, and to any object with the attributes they use.
if TYPE_CHECKING:
    Handler = web.RequestHandler
else:
    Handler = object


def redacted_uri(request: HTTPServerRequest) -> str:
    """Return the request's path and query, on one line, with the value of any argument named like a token masked."""
    path, mark, query = (request.uri or "").partition("?")
    return one_line(path + mark + "&".join(map(_redacted, query.split("&"))))


def _redacted(argument: str) -> str:
    # The decoded name is compared, because tok%65n authenticates, too.
    name, sign, _ = argument.partition("=")
    return f"{name}=********" if sign and "token" in unquote_plus(name).lower() else argument


def one_line(text: str) -> str:
    """Return ``text`` with unprintable characters escaped, so that a name in a URL cannot forge log lines."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class CORSMixin(Handler):
    """Answers pre-flight requests and adds the configured CORS headers to every response."""

    SETTINGS_TO_HEADERS = {
        "eg_allow_credentials": "Access-Control-Allow-Credentials",
        "eg_allow_headers": "Access-Control-Allow-Headers",
        "eg_allow_methods": "Access-Control-Allow-Methods",
        "eg_allow_origin": "Access-Control-Allow-Origin",
        "eg_expose_headers": "Access-Control-Expose-Headers",
        "eg_max_age": "Access-Control-Max-Age",
    }

    def set_cors_headers(self) -> None:
        """Add each CORS header whose setting is not empty, verbatim."""
        for setting, header in self.SETTINGS_TO_HEADERS.items():
            value = self.settings.get(setting)
            if value:
                self.set_header(header, str(value))

    def options(self, *args: str, **kwargs: str) -> None:
        """Answer a pre-flight request with an empty body; no token is needed."""
        self.finish()


class TokenAuthorizationMixin(Handler):
    """Compares the client's token with the setting ``eg_auth_token`` before anything else happens.

    Needs ``settings``, ``request`` (``method``, ``headers``), ``get_argument`` and ``send_error``.
    """

    SCHEMES = ("token ", "Bearer ")

    def prepare(self) -> Any:
        """Answer 401 unless the token is right, otherwise call the next class; called by tornado."""
        if self.is_refused():
            return self.send_error(401)
        prepare = getattr(super(), "prepare", None)
        return prepare() if prepare is not None else None

    def is_refused(self) -> bool:
        """Whether the token is wrong or missing; pre-flight requests are exempt."""
        return self.request.method != "OPTIONS" and not self.has_valid_token()

    def has_valid_token(self) -> bool:
        """Whether no token is configured, or the client sent the right one.

        An argument ``token`` takes precedence over the ``Authorization`` header, even if it is wrong.
        """
        expected = self.settings.get("eg_auth_token")
        if not expected:
            return True
        try:
            given = self.get_argument("token", None)
        except web.HTTPError:  # not UTF-8; tornado would quote it, to the client and in the log
            return False
        if given is None:
            header = self.request.headers.get("Authorization", "")
            scheme = next((s for s in self.SCHEMES if header.startswith(s)), None)
            given = header[len(scheme) :] if scheme else ""
        # Header values arrive as latin-1, the query's as UTF-8; a non-ASCII token is accepted in either encoding.
        candidates = {given.encode(errors="replace"), given.encode("latin-1", errors="replace")}
        return any(hmac.compare_digest(candidate, str(expected).encode()) for candidate in candidates)

    def check_token(self) -> None:
        """Refuse the request with 401 unless the token is right; for handlers with their own ``prepare``."""
        if self.is_refused():
            raise web.HTTPError(401)


class JSONErrorsMixin(Handler):
    """Answers every failure with ``{"reason": …, "message": …}`` and never with a traceback.

    Needs ``set_status``, ``set_header`` and ``finish``.
    """

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Use the status of the gateway's own errors; called by tornado for any exception."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, GatewayError):
            status_code = error.status
        super().send_error(status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write the error document; called by tornado."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        reason = responses.get(status_code, "Unknown")
        message = ""
        if isinstance(error, web.HTTPError):
            reason = error.reason or reason
            message = (error.log_message or "") % error.args if error.args else error.log_message or ""
        elif isinstance(error, LimitReachedError) or (
            isinstance(error, GatewayError) and not isinstance(error, KernelLaunchError)
        ):
            message = str(error)
        elif isinstance(error, KernelLaunchError):
            # Enterprise Gateway 3.x sends the cause of a failed launch as the reason; clients show one or the other.
            reason = message = str(error)
        elif error is not None:
            message = "Unknown server error"
        self.set_status(status_code)
        self.set_header("Content-Type", "application/json")
        if status_code == 405:
            self.set_header("Allow", ", ".join(self._implemented_methods()))
        self.finish(json.dumps({"reason": reason, "message": message}))

    def _implemented_methods(self) -> list[str]:
        return [
            method
            for method in getattr(self, "SUPPORTED_METHODS", ())
            if getattr(type(self), method.lower()) is not getattr(web.RequestHandler, method.lower())
        ]

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log a failure once, without a token in the query."""
        where = f"{self.request.method} {redacted_uri(self.request):.200}"
        if isinstance(value, GatewayError):
            level, text = (logging.INFO, one_line(str(value))) if value.status < 500 else (logging.ERROR, str(value))
            log.log(level, "%d %s: %s", value.status, where, text)
            if value.__cause__ is not None:
                log.debug("caused by %s", "".join(traceback.format_exception(value.__cause__)))
        elif isinstance(value, web.HTTPError):
            if value.log_message:
                log.info("%d %s: %s", value.status_code, where, one_line(value.log_message % value.args))
        else:
            log.error("Unexpected failure of %s", where, exc_info=(typ, value, tb))
