"""Kernel sessions in a web service."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from traitlets import CaselessStrEnum, Unicode, default

from enterprise_gateway.core import envvars
from enterprise_gateway.core.sessionrecords import Record, is_usable_id

from .sessionstore import Unreadable
from .storemanager import StoreKernelSessionManager

if TYPE_CHECKING:
    from enterprise_gateway.drivers.webhook_rest import WebhookClient

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class WebhookKernelSessionManager(StoreKernelSessionManager):
    """Keeps sessions in a web service at ``webhook_url``."""

    webhook_url = Unicode(None, config=True, allow_none=True, help="URL of the service. (EG_WEBHOOK_URL env var)")
    webhook_username = Unicode(
        None, config=True, allow_none=True, help="User name for the service. (EG_WEBHOOK_USERNAME env var)"
    )
    webhook_password = Unicode(
        None, config=True, allow_none=True, help="Password for the service. (EG_WEBHOOK_PASSWORD env var)"
    )
    auth_type = CaselessStrEnum(
        ["basic", "digest"],
        None,
        config=True,
        allow_none=True,
        help="How to log in to the service: basic, digest or None. (EG_AUTH_TYPE env var)",
    )

    @default("webhook_url")
    def _default_webhook_url(self) -> str | None:
        return envvars.EG_WEBHOOK_URL()

    @default("webhook_username")
    def _default_webhook_username(self) -> str | None:
        return envvars.EG_WEBHOOK_USERNAME()

    @default("webhook_password")
    def _default_webhook_password(self) -> str | None:
        return envvars.EG_WEBHOOK_PASSWORD()

    @default("auth_type")
    def _default_auth_type(self) -> str | None:
        return envvars.EG_AUTH_TYPE() or None

    def __init__(self, kernel_manager: Any, **kwargs: Any) -> None:
        super().__init__(kernel_manager, **kwargs)
        address = urlsplit(self.webhook_url or "")
        if address.scheme == "http" and address.hostname not in _LOOPBACK:
            self.log.warning("webhook_url is not https: kernels' connection keys are sent unencrypted.")

    @property
    def store_identity(self) -> str:
        """The URL of the service."""
        return self.webhook_url or ""

    def make_store(self) -> WebhookStore:
        """Return the store; each request uses the current values of the options."""
        return WebhookStore(self._client)

    def _client(self) -> WebhookClient:
        from enterprise_gateway.drivers.webhook_rest import WebhookClient

        if not self.webhook_url:
            raise ValueError("webhook_url is not configured")
        return WebhookClient(
            self.webhook_url,
            auth_type=self.auth_type,
            username=self.webhook_username or "",
            password=self.webhook_password or "",
            timeout=self.store_timeout,
        )


class WebhookStore:
    """Keeps records in a web service.

    The service answers ``GET <url>`` with an array of objects whose ``kernel_session`` is ``{kernel id: record}``, and
    ``GET <url>/<kernel id>`` with one of these objects or 404. It accepts ``POST <url>/<kernel id>`` with the session
    as body, and ``DELETE <url>`` with an array of kernel ids; it answers both with 204.
    """

    def __init__(self, client: Callable[[], WebhookClient]) -> None:
        self._client = client

    def load_all(self) -> dict[str, Record | Unreadable]:
        """Return every session in the service."""
        found: dict[str, Record | Unreadable] = {}
        for entry in self._client().get_all():
            try:
                found.update(_records(entry))
            except ValueError as error:
                kernel_id = str(entry.get("kernel_id") or "") if isinstance(entry, dict) else ""
                reason = f"A session in the web service cannot be used and is left in place: {error}"
                found[kernel_id] = Unreadable(reason)
        return found

    def load(self, kernel_id: str) -> Record | None:
        """Return the session of one kernel, if the service has it."""
        entry = self._client().get(quote(kernel_id)) if is_usable_id(kernel_id) else None
        return _records(entry).get(kernel_id) if entry else None

    def save(self, kernel_id: str, record: Record) -> None:
        """Send the session of one kernel to the service."""
        self._client().post(quote(kernel_id, safe=""), json.dumps({kernel_id: record}))

    def delete(self, kernel_ids: list[str]) -> None:
        """Delete the sessions of kernels from the service."""
        if kernel_ids:
            self._client().delete(json.dumps(kernel_ids))


def _records(entry: Any) -> dict[str, Record]:
    """Return the records in the service's entry for a kernel."""
    session = entry.get("kernel_session") if isinstance(entry, dict) else None
    if isinstance(session, str):  # some services keep the body as text
        session = json.loads(session)
    if not isinstance(session, dict) or not all(isinstance(record, dict) for record in session.values()):
        raise ValueError("not a kernel session record")
    return session
