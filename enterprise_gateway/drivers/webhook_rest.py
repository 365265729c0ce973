"""The web service that keeps kernel sessions: its four requests."""

from __future__ import annotations

from typing import Any

import requests
from requests.auth import AuthBase, HTTPBasicAuth, HTTPDigestAuth


class WebhookClient:
    """Sends requests to the service, each within ``timeout`` seconds for every wait on the network.

    Certificates are verified. Whatever is no definite answer (also 401, 403, 5xx and redirections) raises
    ``requests.RequestException``; so does an answer that is no JSON.
    """

    def __init__(self, url: str, *, auth_type: str | None, username: str, password: str, timeout: float) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._auth: AuthBase | None = None
        if auth_type == "basic":
            self._auth = HTTPBasicAuth(username, password)
        elif auth_type == "digest":
            self._auth = HTTPDigestAuth(username, password)

    def get_all(self) -> list[Any]:
        """Return the array of all sessions."""
        entries = self._request("GET", self.url).json()
        if not isinstance(entries, list):
            raise requests.exceptions.InvalidJSONError("the web service did not answer with an array")
        return entries

    def get(self, name: str) -> Any:
        """Return one session's object, None when the service says that it has none."""
        absent = (204, 404, 410)
        response = self._request("GET", f"{self.url}/{name}", absent=absent)
        return None if response.status_code in absent else response.json()

    def post(self, name: str, body: str) -> None:
        """Store one session."""
        self._request("POST", f"{self.url}/{name}", body)

    def delete(self, body: str) -> None:
        """Remove the sessions whose ids are in the JSON array ``body``; unknown ones are no error."""
        self._request("DELETE", self.url, body, absent=(404, 410))

    def _request(
        self, method: str, url: str, body: str | None = None, absent: tuple[int, ...] = ()
    ) -> requests.Response:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        response = requests.request(
            method,
            url,
            data=body,
            headers=headers,
            auth=self._auth,
            timeout=self.timeout,
            allow_redirects=False,
        )
        if response.status_code in absent:
            return response
        if not 200 <= response.status_code < 300:
            raise requests.HTTPError(f"{method} was answered by {response.status_code} {response.reason}")
        return response
