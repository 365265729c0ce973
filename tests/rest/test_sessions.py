"""REST requests about sessions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.gateway import running_gateway

CONFIG = {"EnterpriseGatewayApp": {"list_kernels": True, "unauthorized_users": []}}
LEGACY = {"id": "any", "notebook": {"path": "anywhere"}, "kernel": {"name": "python"}}


async def test_a_session_of_the_legacy_form_lives_and_ends() -> None:
    """POST 201 with the model of version 3, list shows it, DELETE ends session and kernel, then 410."""
    async with running_gateway(config=CONFIG) as gateway:
        session = await gateway.call("/api/sessions", "POST", LEGACY, status=201)
        assert set(session) == {"id", "notebook", "kernel"}
        assert session["notebook"] == {"path": "anywhere"}
        assert session["kernel"]["name"] == "python3"
        assert await gateway.call("/api/sessions") == [session]
        await gateway.call(f"/api/sessions/{session['id']}", "DELETE", status=204)
        assert await gateway.call("/api/sessions") == []
        assert await gateway.call("/api/kernels") == []
        gone = await gateway.call(f"/api/sessions/{session['id']}", "DELETE", status=410)
        assert gone["message"] == "Kernel deleted before session"


async def test_a_session_is_shown_changed_and_found_again_by_its_path() -> None:
    """GET and PATCH answer the model; a POST of an existing path answers that session and starts nothing."""
    body = {"path": "a.ipynb", "type": "notebook", "name": "A", "kernel": {"name": "python3"}}
    async with running_gateway(config=CONFIG) as gateway:
        session = await gateway.call("/api/sessions", "POST", body, status=201)
        path = f"/api/sessions/{session['id']}"
        assert (await gateway.call("/api/sessions", "POST", body, status=201))["id"] == session["id"]
        assert (await gateway.call(path))["notebook"]["path"] == "a.ipynb"
        assert (await gateway.call(path, "PATCH", {"path": "b.ipynb"}))["notebook"]["path"] == "b.ipynb"
        replaced = await gateway.call(path, "PATCH", {"kernel": {"name": "python3"}})
        assert replaced["kernel"]["id"] != session["kernel"]["id"]
        assert [kernel["id"] for kernel in await gateway.call("/api/kernels")] == [replaced["kernel"]["id"]]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (None, 400, "No JSON data provided"),
        ({"type": "notebook"}, 400, "Missing field in JSON data: path"),
        ({"path": "a"}, 400, "Missing field in JSON data: type"),
        ({"path": 1, "type": "notebook"}, 400, "'path' must be a string"),
        ({"path": "a", "type": "b", "kernel": 5}, 400, "'kernel' must be a JSON object"),
        ({"path": "a", "type": "b", "kernel": {"name": "nope"}}, 501, "The 'nope' kernel is not available"),
    ],
)
async def test_a_session_request_that_cannot_be_used_says_why(body: Any, status: int, words: str) -> None:
    """Bad bodies are 4xx, an unknown kernelspec is 501, as clients of version 3 know it."""
    async with running_gateway(config=CONFIG) as gateway:
        answer = await gateway.call("/api/sessions", "POST", body, status=status)
        assert words in answer["message"]
        assert await gateway.call("/api/kernels") == []


async def test_unknown_sessions_are_not_found() -> None:
    """GET and PATCH of an unknown session are 404."""
    async with running_gateway(config=CONFIG) as gateway:
        await gateway.call("/api/sessions/1-2-3-4-5", status=404)
        await gateway.call("/api/sessions/1-2-3-4-5", "PATCH", {}, status=404)


async def test_a_session_whose_kernel_is_gone_is_forgotten() -> None:
    """Listing does not fail because of a kernel that was deleted by other means."""
    async with running_gateway(config=CONFIG) as gateway:
        session = await gateway.call("/api/sessions", "POST", LEGACY, status=201)
        await gateway.call(f"/api/kernels/{session['kernel']['id']}", "DELETE", status=204)
        assert await gateway.call("/api/sessions") == []
