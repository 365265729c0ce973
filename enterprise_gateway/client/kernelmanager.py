"""A kernel manager whose kernel runs on a gateway: for nbclient, papermill and other programs that accept one.

::

    from nbclient import NotebookClient
    from enterprise_gateway.client.kernelmanager import GatewayKernelManager

    NotebookClient(notebook, kernel_manager_class=GatewayKernelManager).execute()

``JUPYTER_GATEWAY_URL`` and ``JUPYTER_GATEWAY_AUTH_TOKEN`` configure the gateway, as for Jupyter Server. Managers share
nothing: one process can use several gateways.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import uuid
import weakref
from typing import Any
from urllib.parse import urlsplit

from jupyter_client.manager import AsyncKernelManager
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import StreamClosedError
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from traitlets import Bool, Dict, Float, List, Type, Unicode

from ..core import envvars
from ..core.deadline import Deadline
from ..core.envvars import EnvVar
from ..core.offload import offload, uninterrupted
from ..core.options import EnvironmentDefaults
from .gateway_client import KERNEL_LAUNCH_TIMEOUT
from .kernelclient import GatewayKernelClient

URL = EnvVar(("JUPYTER_GATEWAY_URL",), str, "", "Address of the gateway.")
AUTH_TOKEN = EnvVar(("JUPYTER_GATEWAY_AUTH_TOKEN",), str, "", "The gateway's token.")
CA_CERTS = EnvVar(("JUPYTER_GATEWAY_CA_CERTS",), str, "", "PEM file of the authorities to trust.")
CLIENT_CERT = EnvVar(("JUPYTER_GATEWAY_CLIENT_CERT",), str, "", "File of the client's certificate.")
CLIENT_KEY = EnvVar(("JUPYTER_GATEWAY_CLIENT_KEY",), str, "", "File of the certificate's key.")
VALIDATE_CERT = EnvVar(("JUPYTER_GATEWAY_VALIDATE_CERT",), envvars.boolean, True, "Whether to check certificates.")
CONNECT_TIMEOUT = EnvVar(("JUPYTER_GATEWAY_CONNECT_TIMEOUT",), float, 20.0, "Seconds to wait for a connection.")
REQUEST_TIMEOUT = EnvVar(("JUPYTER_GATEWAY_REQUEST_TIMEOUT",), float, 60.0, "Seconds that a request may take.")
RECONNECT_TIMEOUT = EnvVar(
    ("JUPYTER_GATEWAY_RECONNECT_TIMEOUT",), float, 300.0, "Seconds to try to reconnect to a lost gateway."
)
ALLOWED_ENVS: EnvVar[tuple[str, ...]] = EnvVar(
    ("JUPYTER_GATEWAY_ALLOWED_ENVS",), envvars.comma_list, (), "Further variables to send to kernels."
)
KERNEL_ID = EnvVar(
    ("JUPYTER_GATEWAY_KERNEL_ID",), envvars.optional_text, None, "A kernel to attach to instead of starting one."
)

# The gateway answers within the launch time-out; its answer must still have time to arrive.
_MARGIN_SECONDS = 5.0
_ADVICE = {401: "check the token", 403: "check the token and who may start kernels"}


class GatewayError(RuntimeError):
    """The gateway refused a request or could not be reached; the message is one sentence that says what failed and why.

    Parameters
    ----------
    status
        HTTP status of its response; 0 if there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class GatewayKernelManager(EnvironmentDefaults, AsyncKernelManager):
    """Starts a kernel on a gateway, or attaches to one, and creates clients for it.

    Pass the class as ``kernel_manager_class`` to ``NotebookClient`` and ``papermill.execute_notebook``; options come
    from the environment, from ``config``, or as keyword arguments if the caller creates the manager.
    """

    url = Unicode(help="URL of the gateway, including its base URL if it has one.").tag(config=True, env=URL)
    auth_token = Unicode(help="The gateway's token, which is only sent in headers.").tag(config=True, env=AUTH_TOKEN)
    ca_certs = Unicode(help="PEM file of the authorities to trust, instead of the system's.").tag(
        config=True, env=CA_CERTS
    )
    client_cert = Unicode(help="PEM file of a client certificate.").tag(config=True, env=CLIENT_CERT)
    client_key = Unicode(help="PEM file of the certificate's key.").tag(config=True, env=CLIENT_KEY)
    validate_cert = Bool(help="Whether to check the gateway's certificate.").tag(config=True, env=VALIDATE_CERT)
    connect_timeout = Float(help="Seconds to wait for a connection.").tag(config=True, env=CONNECT_TIMEOUT)
    request_timeout = Float(help="Seconds that a request may take.").tag(config=True, env=REQUEST_TIMEOUT)
    launch_timeout = Float(help="Seconds that a kernel may take to start.").tag(config=True, env=KERNEL_LAUNCH_TIMEOUT)
    reconnect_timeout = Float(
        help="Seconds for which a client tries to reconnect to a lost gateway before it considers the kernel dead."
    ).tag(config=True, env=RECONNECT_TIMEOUT)
    env = Dict(help="Variables for the kernel; this program's KERNEL_* variables take precedence.").tag(config=True)
    allowed_envs = List(Unicode(), help="Names of further variables of this program to send.").tag(
        config=True, env=ALLOWED_ENVS
    )
    kernel_id = Unicode(allow_none=True, help="A running kernel to attach to.").tag(config=True, env=KERNEL_ID)
    keep_kernel = Bool(
        None,
        allow_none=True,
        help="Whether the kernel is kept at the end; by default only a kernel that was attached to is kept.",
    ).tag(config=True)
    client_factory = Type(klass=GatewayKernelClient)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.restarts = 0
        """How many restarts this manager has asked for; its clients use it to recognize automatic ones."""
        self._clients: weakref.WeakSet[GatewayKernelClient] = weakref.WeakSet()
        self._has_kernel = False
        self._is_attached = False
        self._tls: ssl.SSLContext | None = None

    @property
    def has_kernel(self) -> bool:
        """Whether this manager has a kernel: started or attached to, and not shut down since."""
        return self._has_kernel

    async def start_kernel(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Start a kernel, or attach to the one that ``kernel_id`` names.

        Parameters
        ----------
        kwargs
            As for jupyter_client: ``kernel_name``, ``env``, ``cwd`` (sent as ``KERNEL_WORKING_DIR``) and ``kernel_id``
            are used; the others are ignored.

        Raises
        ------
        GatewayError
            The gateway refused or cannot be reached, or the kernel did not start. Nothing is left on the gateway.
        """
        self.shutting_down = False
        if kernel_id := kwargs.get("kernel_id") or self.kernel_id:
            model = await self._call("GET", f"/{kernel_id}", what=f"attach to kernel {kernel_id}")
            self._is_attached = True
        else:
            name = kwargs.get("kernel_name") or self.kernel_name
            model = await self._launch(name, self._kernel_env(kwargs.get("env") or {}, kwargs.get("cwd")))
            self._is_attached = False
        self.kernel_id = model["id"]
        self._has_kernel = True
        self.log.info("%s kernel %s", "Attached to" if self._is_attached else "Started", self.kernel_id)

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
        """Shut the kernel down, unless it is to be kept (see ``keep_kernel``); a missing kernel is not an error.

        Raises
        ------
        GatewayError
            The gateway refused, or could not be reached within ``request_timeout``.
        """
        if not self._has_kernel:
            return
        self.shutting_down = True
        self._has_kernel = False
        if not (self._is_attached if self.keep_kernel is None else self.keep_kernel):
            await uninterrupted(self._delete(str(self.kernel_id)))
        self._is_attached = False

    async def restart_kernel(self, now: bool = False, **kwargs: Any) -> None:  # type: ignore[override]
        """Restart the kernel; its clients stay connected, and their open requests are answered with an error."""
        self.restarts += 1
        timeout = self.launch_timeout + _MARGIN_SECONDS
        await self._call("POST", f"/{self.kernel_id}/restart", {}, what="restart the kernel", timeout=timeout)
        for client in self._clients:
            client.probe()

    async def interrupt_kernel(self) -> None:  # type: ignore[override]
        """Interrupt what the kernel is doing."""
        await self._call("POST", f"/{self.kernel_id}/interrupt", {}, what="interrupt the kernel")

    async def is_alive(self) -> bool:  # type: ignore[override]
        """Ask the gateway whether the kernel is alive; it counts as alive while the gateway cannot tell."""
        if not self._has_kernel:
            return False
        try:
            model = await self._call("GET", f"/{self.kernel_id}", what="check the kernel")
        except GatewayError as error:
            return error.status != 404
        return bool(model["execution_state"] != "dead")

    _async_is_alive = is_alive

    async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
        """Remove a dead kernel from the gateway, because no caller shuts it down."""
        if self._has_kernel and not restart:
            try:
                await self.shutdown_kernel(now=True)
            except GatewayError as error:
                self.log.warning("Kernel %s may still exist: %s", self.kernel_id, error)

    def client(self, **kwargs: Any) -> GatewayKernelClient:  # type: ignore[override]
        """Return a client of the kernel; each has its own websocket and session."""
        client: GatewayKernelClient = self.client_factory(parent=self, **kwargs)
        self._clients.add(client)
        return client

    async def request(self, path: str, method: str = "GET", *, timeout: float, **options: Any) -> HTTPRequest:
        """Return a request for a path below ``/api/kernels``, with token and certificates; called by clients."""
        if urlsplit(self.url).scheme not in {"http", "https"}:
            raise GatewayError(
                f"{self.url!r} is not the URL of a gateway: set JUPYTER_GATEWAY_URL to https://name:port"
            )
        headers = {"Authorization": f"token {self.auth_token}"} if self.auth_token else {}
        return HTTPRequest(
            f"{self.url.rstrip('/')}/api/kernels{path}",
            method=method,
            headers=headers,
            connect_timeout=self.connect_timeout,
            request_timeout=timeout,
            follow_redirects=False,  # the token is for this gateway only
            ssl_options=await self._ssl_context() if self.url.startswith("https") else None,
            **options,
        )

    def explain(self, what: str, error: Exception, body: bytes = b"") -> GatewayError:
        """Return an error that says in one sentence what failed, and why; called by clients."""
        if not isinstance(error, HTTPClientError) or error.code == 599:
            return GatewayError(f"Cannot {what}: gateway {self.url} cannot be reached ({error})")
        reason = _ADVICE.get(error.code, "") if error.code == 401 else _reason(body) or _ADVICE.get(error.code, "")
        sentence = f"Cannot {what}: gateway {self.url} answered {error.code} {error.message}"
        return GatewayError(f"{sentence}: {reason}" if reason else sentence, error.code)

    async def _launch(self, name: str, env: dict[str, str]) -> Any:
        own_id = str(uuid.uuid4())
        body = {"name": name, "env": {"KERNEL_ID": own_id, **env}}
        timeout = self.launch_timeout + _MARGIN_SECONDS
        start = asyncio.ensure_future(self._call("POST", "", body, what=f"start a kernel of {name!r}", timeout=timeout))
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            await uninterrupted(self._call_off(start, own_id))
            raise
        except GatewayError as error:
            # the request was sent but not answered, so the kernel may have been started
            if not error.status and isinstance(error.__cause__, (HTTPClientError, StreamClosedError)):
                await self._call_off(start, own_id)
            raise

    async def _call_off(self, start: asyncio.Future[Any], kernel_id: str) -> None:
        """Delete a kernel repeatedly until its start has ended, because a deletion may arrive before the start."""
        while not start.done():
            await self._discard(kernel_id)
            await asyncio.wait([start], timeout=0.5)
        start.exception()  # marked as retrieved; no caller waits for it
        await self._discard(kernel_id)

    async def _discard(self, kernel_id: str) -> None:
        try:
            await self._call("DELETE", f"/{kernel_id}", what="shut the kernel down", timeout=self.connect_timeout)
        except GatewayError as error:
            if error.status != 404:
                self.log.warning("Kernel %s may have been started: %s", kernel_id, error)

    async def _delete(self, kernel_id: str) -> None:
        """Retry until the gateway answers, because it may be restarting, and no caller retries."""
        deadline = Deadline(self.request_timeout)
        while True:
            try:
                await self._call("DELETE", f"/{kernel_id}", what="shut the kernel down")
            except GatewayError as error:
                if error.status == 404:
                    return
                if error.status not in {0, 502, 503, 504} or deadline.expired:
                    raise
                await asyncio.sleep(min(1.0, deadline.remaining))
            else:
                return

    def _kernel_env(self, more: dict[str, str], directory: str | None) -> dict[str, str]:
        own = envvars.process_environment()
        sent = {name: value for name, value in own.items() if name.startswith("KERNEL_") or name in self.allowed_envs}
        where = {"KERNEL_WORKING_DIR": str(directory)} if directory else {}
        return {"KERNEL_LAUNCH_TIMEOUT": f"{self.launch_timeout:g}", **where, **self.env, **sent, **more}

    async def _call(self, method: str, path: str, body: Any = None, *, what: str, timeout: float | None = None) -> Any:
        options = {} if body is None else {"body": json.dumps(body)}
        request = await self.request(path, method, timeout=timeout or self.request_timeout, **options)
        client = SimpleAsyncHTTPClient(force_instance=True)
        try:
            response = await client.fetch(request)
        except (HTTPClientError, OSError) as error:
            answer = getattr(error, "response", None)
            raise self.explain(what, error, answer.body if answer is not None else b"") from error
        finally:
            client.close()
        return json.loads(response.body) if response.body else None

    async def _ssl_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = await offload(self._load_certificates)
        return self._tls

    def _load_certificates(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_certs or None)
            if self.client_cert:
                context.load_cert_chain(self.client_cert, self.client_key or None, password=_no_password)
        except OSError as error:
            files = ", ".join(filter(None, (self.ca_certs, self.client_cert, self.client_key)))
            raise GatewayError(f"The certificates in {files} cannot be used: {error}") from error
        if not self.validate_cert:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


def _reason(body: bytes) -> str:
    """Return the message of a gateway's error; empty if there is none."""
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    return str(answer.get("message") or answer.get("reason") or "") if isinstance(answer, dict) else ""


def _no_password() -> str:
    raise OSError("the key is encrypted")
