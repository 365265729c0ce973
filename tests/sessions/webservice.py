"""A web service that keeps kernel sessions as Enterprise Gateway's webhook wants it, and can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USER, PASSWORD = "gateway", "webhook-password"


class SessionService:
    """Runs in a thread of this process, on a free port."""

    def __init__(self) -> None:
        self.sessions: dict[str, Any] = {}
        self.requests: list[tuple[str, str]] = []
        self.auth: str | None = None  # None, basic or digest
        self.status: int | None = None  # answer everything with this
        self.delay = 0.0  # seconds before each answer
        self.body: bytes | None = None  # answer GET with this
        self._nonce = secrets.token_hex(8)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="session-service")
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/sessions"

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and wait for requests in progress."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def is_allowed(self, method: str, authorization: str) -> bool:
        if self.auth == "basic":
            expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            return authorization == f"Basic {expected}"
        if self.auth == "digest":
            fields = dict(re.findall(r'(\w+)="?([^",]+)"?', authorization.removeprefix("Digest ")))
            first = _md5(f"{USER}:sessions:{PASSWORD}")
            second = _md5(f"{method}:{fields.get('uri')}")
            middle = f"{self._nonce}:{fields.get('nc')}:{fields.get('cnonce')}:auth"
            return fields.get("response") == _md5(f"{first}:{middle}:{second}")
        return True

    @property
    def challenge(self) -> str:
        if self.auth == "digest":
            return f'Digest realm="sessions", nonce="{self._nonce}", qop="auth", algorithm=MD5'
        return 'Basic realm="sessions"'

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        kernel_id = path.removeprefix("/sessions").strip("/")
        if method == "GET" and not kernel_id:
            return 200, [{"kernel_id": k, "kernel_session": session} for k, session in self.sessions.items()]
        if method == "GET":
            if kernel_id not in self.sessions:
                return 404, None
            return 200, {"kernel_id": kernel_id, "kernel_session": self.sessions[kernel_id]}
        if method == "POST":
            self.sessions[kernel_id] = json.loads(body)
        else:
            for name in json.loads(body):
                self.sessions.pop(name, None)
        return 204, None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                service.requests.append((self.command, self.path))
                time.sleep(service.delay)
                if not service.is_allowed(self.command, self.headers.get("Authorization", "")):
                    self._send(401, None, {"WWW-Authenticate": service.challenge})
                elif service.status is not None:
                    self._send(service.status, None, {})
                elif service.body is not None and self.command == "GET":
                    self._send(200, service.body, {})
                else:
                    status, answer = service.answer(self.command, self.path, body)
                    self._send(status, None if answer is None else json.dumps(answer).encode(), {})

            do_GET = do_POST = do_DELETE = _handle  # noqa: N815

            def _send(self, status: int, body: bytes | None, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                try:
                    self.wfile.write(body or b"")
                except OSError:
                    return  # the caller gave up

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()
