"""Sessions in a web service: requests, logins, and services that misbehave."""

from __future__ import annotations

import asyncio
import json

import pytest

from enterprise_gateway.core.errors import StoreUnavailableError
from enterprise_gateway.services.sessions.kernelsessionmanager import WebhookKernelSessionManager

from .conftest import a_kernel_id, a_start
from .test_file_store import DATA, DISTRIBUTED
from .webservice import PASSWORD, USER


async def test_requests_are_those_of_3x(make, service):
    """POST <url>/<id> with the session, GET <url>/<id>, GET <url>, DELETE <url>; bodies as 3.x sends them."""
    manager, kernel_id = make("webhook"), a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start())
    assert list(service.sessions[kernel_id]) == [kernel_id]
    assert service.sessions[kernel_id][kernel_id]["connection_info"]["key"] == "connection-key"
    await manager.fetch_session(kernel_id)
    await manager.fetch_sessions()
    await manager.forget_session(kernel_id)
    assert service.requests == [
        ("POST", f"/sessions/{kernel_id}"),
        ("GET", f"/sessions/{kernel_id}"),
        ("GET", "/sessions"),
        ("DELETE", "/sessions"),
    ]
    assert service.sessions == {}


async def test_sessions_of_3x_load(make, service):
    """What 3.x has posted loads, also from a service that returns the session as text."""
    content = json.loads((DATA / f"{DISTRIBUTED}.json").read_text())
    for kept in (content, json.dumps(content)):
        service.sessions[DISTRIBUTED] = kept
        record = await make("webhook").fetch_session(DISTRIBUTED)
        assert record["connection_info"]["key"] == content[DISTRIBUTED]["connection_info"]["key"].encode()
        assert list(await make("webhook").fetch_sessions()) == [DISTRIBUTED]


@pytest.mark.parametrize("auth_type", ["basic", "Digest"])
async def test_logins(make, service, auth_type, expect_log):
    """Basic and digest logins work for all four requests; a wrong password is an outage, not an empty store."""
    service.auth = auth_type.lower()
    options = {"auth_type": auth_type, "webhook_username": USER}
    manager, kernel_id = make("webhook", webhook_password=PASSWORD, **options), a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start())
    assert await make("webhook", webhook_password=PASSWORD, **options).fetch_session(kernel_id)
    assert await manager.fetch_sessions()
    with expect_log("answered by 401") as records, pytest.raises(StoreUnavailableError):
        await make("webhook", webhook_password="wrong", **options).fetch_session(kernel_id)
    assert "wrong" not in "".join(record.getMessage() for record in records)
    await manager.forget_session(kernel_id)
    assert service.sessions == {}


@pytest.mark.parametrize("status", [500, 503, 302, 401, 403])
async def test_a_service_that_fails_is_no_empty_store(make, service, status, expect_log):
    """Any answer but a definite one raises the error with status 503, in a sentence without the cause."""
    service.status = status
    with expect_log(f"answered by {status}"), pytest.raises(StoreUnavailableError) as raised:
        await make("webhook").fetch_session(a_kernel_id())
    assert str(raised.value) == "The kernel session store is not available at the moment; please try again later."
    assert raised.value.status == 503


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"kernel_session": 5}', b"[1]"])
async def test_nonsense_is_no_answer(make, service, body, expect_log):
    """A body that is no session does not mean that there is none."""
    service.body = body
    with expect_log("not available"), pytest.raises(StoreUnavailableError):
        await make("webhook").fetch_session(a_kernel_id())


@pytest.mark.parametrize("body", [b"null", b"{}", b"[]"])
async def test_an_empty_answer_means_that_there_is_none(make, service, body):
    """Services that answer 200 with nothing for an unknown kernel are understood."""
    service.body = body
    assert await make("webhook").fetch_session(a_kernel_id()) is None


async def test_bad_entries_do_not_spoil_the_others(make, service, expect_log):
    """Of a list with unusable entries the usable ones load; the others are logged."""
    kernel_id = a_kernel_id()
    await make("webhook").record_phase(kernel_id, "running", **a_start())
    service.sessions["broken"] = "no session"
    service.sessions["empty"] = None
    with expect_log("cannot be used and is left in place"):
        assert list(await make("webhook").fetch_sessions()) == [kernel_id]
    assert len(service.sessions) == 3


async def test_a_refused_connection_is_an_outage(make, service, expect_log):
    """With nobody listening, asking raises the error with status 503."""
    manager = make("webhook", webhook_url="http://127.0.0.1:9/sessions")
    with expect_log("not available"), pytest.raises(StoreUnavailableError):
        await manager.fetch_sessions()


async def test_a_slow_service_does_not_block_others(make, service, expect_log):
    """A request waits for store_timeout only, and the event loop is free all the time."""
    manager, kernel_id = make("webhook", store_timeout=0.3), a_kernel_id()
    service.delay = 1.0
    loop = asyncio.get_running_loop()
    started = loop.time()
    with expect_log("no answer within 0.3 seconds|Timeout"), pytest.raises(StoreUnavailableError):
        await manager.fetch_session(kernel_id)
    assert loop.time() - started < 0.6
    service.delay = 0
    assert await manager.fetch_session(kernel_id) is None
    assert manager.store_available


async def test_a_password_in_the_address_is_not_logged(make, service, expect_log):
    """Where the address holds a login, the log does not show it."""
    manager = make("webhook", webhook_url="http://someone:pa55word@127.0.0.1:9/sessions")
    with expect_log("not available") as records, pytest.raises(StoreUnavailableError):
        await manager.fetch_sessions()
    assert "pa55word" not in records[0].getMessage()


async def test_without_an_address_the_store_is_not_available(make, expect_log):
    """Persistence without webhook_url is said in the log."""
    with expect_log("webhook_url is not configured"), pytest.raises(StoreUnavailableError):
        await make("webhook", webhook_url=None).fetch_sessions()


def test_plain_http_to_another_machine_is_warned_about(expect_log, monkeypatch):
    """Keys that cross a network in clear are worth a warning; loopback and https are not."""
    monkeypatch.setenv("EG_WEBHOOK_URL", "http://store.example/sessions")
    monkeypatch.setenv("EG_AUTH_TYPE", "DIGEST")
    from .conftest import LOG

    with expect_log("sent unencrypted"):
        assert WebhookKernelSessionManager(None, log=LOG).auth_type == "digest"
    WebhookKernelSessionManager(None, log=LOG, webhook_url="https://store.example/sessions")
    WebhookKernelSessionManager(None, log=LOG, webhook_url="http://localhost:8080/sessions")
