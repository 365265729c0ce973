"""The application as a library: other programs build it, serve it on their loop and stop it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from jupyter_server.auth.authorizer import Authorizer

from tests.support.embedded import make_app, serving


class DenyAll(Authorizer):
    """Permits nothing."""

    def is_authorized(self, handler, user, action, resource):
        return False


def test_shutdown_without_a_loop(expect_log):
    """``shutdown`` stops everything before it returns, when no loop runs.

    In a thread of its own, since until Python 3.13 who asks for the main thread's loop makes one.
    """
    app = make_app()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(app.shutdown).result() is None


async def test_shutdown_within_a_loop():
    """Within a running loop ``shutdown`` gives the task that stops."""
    from tests.support.loops import loop_may_be_held

    with loop_may_be_held("the application is built"):
        app = make_app()
    await app.shutdown()


@pytest.mark.parametrize("base_url", ["fake/path", "/fake/path", "/fake/path/"])
def test_base_url_may_be_given_with_or_without_slashes(base_url):
    """All spellings mean the same prefix."""
    assert make_app(base_url=base_url).web_app.settings["base_url"] == "/fake/path/"


@pytest.fixture
def guarded(request):
    return make_app(authorizer_class=f"{__name__}.DenyAll", list_kernels=True)


@pytest.fixture
def forwarded():
    return make_app(trust_xheaders=True)


async def test_an_authorizer_is_asked(guarded):
    """The configured class decides about kernels."""
    assert type(guarded.web_app.settings["authorizer"]).__name__ == "DenyAll"
    async with serving(guarded) as request:
        assert (await request("/api/kernels")).code == 403


async def test_the_authorizer_may_come_from_the_environment(monkeypatch):
    """EG_AUTHORIZER_CLASS names a class by its dotted path."""
    from tests.support.loops import loop_may_be_held

    monkeypatch.setenv("EG_AUTHORIZER_CLASS", f"{__name__}.DenyAll")
    with loop_may_be_held("the application is built"):
        assert type(make_app().web_app.settings["authorizer"]).__name__ == "DenyAll"
    monkeypatch.undo()


async def test_x_headers_are_believed_when_trusted(forwarded, caplog):
    """With trust_xheaders the access log names the client that the proxy tells of."""
    caplog.set_level("INFO", logger="tornado.access")
    async with serving(forwarded) as request:
        await request("/api", headers={"X-Forwarded-For": "203.0.113.9"})
    assert "(203.0.113.9)" in caplog.text


async def test_changed_settings_apply_to_the_next_request(guarded):
    """Programs may change the settings of the running web application directly."""
    async with serving(guarded) as request:
        guarded.web_app.settings["eg_auth_token"] = "x"
        response = await request("/api")
        assert (response.code, json.loads(response.body)["reason"]) == (401, "Unauthorized")
        guarded.web_app.settings["eg_auth_token"] = ""
        assert (await request("/api")).code == 200
