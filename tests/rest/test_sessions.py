"""REST requests about sessions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tornado.simple_httpclient import HTTPTimeoutError

from tests.support.gateway import running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.launchers import eventually

CONFIG = {"EnterpriseGatewayApp": {"list_kernels": True, "unauthorized_users": []}}
LEGACY = {"id": "any", "notebook": {"path": "anywhere"}, "kernel": {"name": "python"}}
BODY = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
ANYTHING = {
    "deep-lists": '{"path": "a", "type": "b", "kernel": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep-objects": '{"path": "a", "type": "b", "name": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "moderately-deep": '{"path": "a", "type": "b", "more": ' + "[" * 500 + "]" * 500 + "}",
    **{
        f"{field}-{value}": '{"path": "a", "type": "b", "' + field + f'": {value}}}'
        for field in ("path", "type", "name", "kernel", "notebook", "id")
        for value in ("[]", "{}", "1", "true", "null", "NaN", "-Infinity", "1e999", r'"\ud800"', r'"\u0000"', '""')
    },
    **{
        f"kernel-{field}-{value}": '{"path": "a", "type": "b", "kernel": {"' + field + f'": {value}}}}}'
        for field in ("name", "id")
        for value in ("[]", "{}", "1", "false", "NaN", r'"\udfff"', r'"\u0000"', '"../x"', '"%"')
    },
    "notebook-path": '{"notebook": {"path": {}}, "type": "b"}',
    "huge-path": '{"path": "' + "a/" * 500_000 + '", "type": "b"}',
    "huge-name": '{"path": "a", "type": "b", "name": "' + "n" * 1_000_000 + '"}',
    "huge-kernel-name": '{"path": "a", "type": "b", "kernel": {"name": "' + "k" * 1_000_000 + '"}}',
    "huge-kernel-id": '{"path": "a", "type": "b", "kernel": {"id": "' + "k" * 1_000_000 + '"}}',
    "huge-key": '{"path": "a", "type": "b", "' + "k" * 1_000_000 + '": 1}',
    "many-digits": '{"path": "a", "type": "b", "name": ' + "9" * 10_000 + "}",
    "many-digits-elsewhere": '{"path": "a", "type": "b", "other": ' + "9" * 10_000 + "}",
    "many-digits-of-a-float": '{"path": "a", "type": "b", "other": 0.' + "9" * 10_000 + "}",
    "duplicate-keys": '{"path": 1, "path": "a", "type": "b", "type": {}}',
    "duplicate-keys-of-which-the-last-is-right": '{"path": 1, "path": "a", "type": [], "type": "b"}',
    "a-list": "[1]",
    "a-number": "5",
    "a-string": '"path"',
    "null": "null",
    "nan": "NaN",
    "not-utf-8": b'{"path": "\xff\xfe", "type": "b"}',
    "utf-16": '{"path": "a", "type": "b"}'.encode("utf-16"),
    "byte-order-mark": b'\xef\xbb\xbf{"path": "a", "type": "b"}',
    "half": '{"path": "a", "type":',
    "two": '{"path": "a", "type": "b"}{}',
}


async def test_a_session_in_the_legacy_format_is_created_listed_and_deleted() -> None:
    """POST is 201 with the model, the list shows it, DELETE ends session and kernel, then it is 410."""
    async with running_gateway(config=CONFIG) as gateway:
        session = await gateway.call("/api/sessions", "POST", LEGACY, status=201)
        assert set(session) == {"id", "path", "name", "type", "notebook", "kernel"}
        assert session["notebook"] == {"path": "anywhere", "name": None}
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


async def test_a_session_uses_the_running_kernel_that_its_request_names() -> None:
    """POST with a kernel's id starts nothing: the session has that kernel, and its model is that of jupyter_server."""
    async with running_gateway(config=CONFIG) as gateway:
        kernel_id = await gateway.start_kernel()
        body = {"path": "a-console", "type": "console", "name": "A", "kernel": {"id": kernel_id, "name": "ignored"}}
        session = await gateway.call("/api/sessions", "POST", body, status=201)
        (kernel,) = await gateway.call("/api/kernels")
        assert kernel["id"] == kernel_id
        console = {"id": session["id"], "path": "a-console", "name": "A", "type": "console", "kernel": kernel}
        assert session == await gateway.call(f"/api/sessions/{session['id']}") == console
        second = await gateway.call("/api/sessions", "POST", {**BODY, "kernel": {"id": kernel_id}}, status=201)
        notebook = {"path": "a.ipynb", "name": None, "type": "notebook", "kernel": kernel}
        assert second == {"id": second["id"], **notebook, "notebook": {"path": "a.ipynb", "name": None}}
        assert await gateway.call("/api/sessions") == [session, second]
        await gateway.call(f"/api/sessions/{session['id']}", "DELETE", status=204)
        assert await gateway.call("/api/sessions") == await gateway.call("/api/kernels") == []


async def test_no_session_is_created_for_an_unknown_kernel() -> None:
    """POST with the id of no kernel is 404 with a sentence, also when a kernelspec is named; nothing is started."""
    async with running_gateway(config=CONFIG) as gateway:
        for kernel_id in ("1-2-3-4-5", "../x", "f" * 36):
            body = {**BODY, "kernel": {"id": kernel_id, "name": "python3"}}
            answer = await gateway.call("/api/sessions", "POST", body, status=404)
            assert answer == {"reason": "Not Found", "message": f"Kernel does not exist: {kernel_id}"}
        assert await gateway.call("/api/sessions") == await gateway.call("/api/kernels") == []
        empty = {**BODY, "kernel": {"id": "", "name": ""}}
        assert (await gateway.call("/api/sessions", "POST", empty, status=201))["kernel"]["name"] == "python3"


async def test_every_entry_of_a_session_can_be_changed() -> None:
    """PATCH of path, name and type, and of the kernel's id, which stops the kernel that is replaced."""
    async with running_gateway(config=CONFIG) as gateway:
        session = await gateway.call("/api/sessions", "POST", BODY, status=201)
        path, other = f"/api/sessions/{session['id']}", await gateway.start_kernel()
        change = {"path": "b", "name": "B", "type": "console", "kernel": {"id": other, "name": "ignored"}}
        changed = await gateway.call(path, "PATCH", change)
        kernels = await gateway.call("/api/kernels")
        assert [kernel["id"] for kernel in kernels] == [other]
        expected = {"id": session["id"], "path": "b", "name": "B", "type": "console", "kernel": kernels[0]}
        assert changed == await gateway.call(path) == expected
        legacy = await gateway.call(path, "PATCH", {"notebook": {"path": "c.ipynb"}})
        notebook = {"path": "c.ipynb", "type": "notebook", "notebook": {"path": "c.ipynb", "name": "B"}}
        assert legacy == {**expected, **notebook}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (None, 400, "No JSON data provided"),
        ({"type": "notebook"}, 400, "Missing field in JSON data: path"),
        ({"path": "a"}, 400, "Missing field in JSON data: type"),
        ({"path": 1, "type": "notebook"}, 400, "'path' must be a string"),
        ({"path": "a", "type": "b", "kernel": 5}, 400, "'kernel' must be a JSON object"),
        ({"path": "a", "type": "b", "kernel": {"name": "nope"}}, 404, "The 'nope' kernel is not available"),
    ],
)
async def test_an_invalid_session_request_is_refused_with_a_reason(body: Any, status: int, words: str) -> None:
    """Bad bodies are 4xx, an unknown kernelspec is 404 with what clients show."""
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


async def test_any_body_is_accepted_or_refused_with_a_sentence() -> None:
    """Any body is answered 201 with one kernel, or 4xx with a sentence and no kernel."""
    write_kernelspec("cheap", argv=["sleep", "1000"])
    cheap = {"RemoteMappingKernelManager": {"default_kernel_name": "cheap"}}
    quick = {"RemoteKernelManager": {"shutdown_wait_time": 0.2}}
    async with running_gateway(config={**CONFIG, **cheap, **quick}) as gateway:
        for name, body in ANYTHING.items():
            answer = await gateway.fetch("/api/sessions", "POST", body)
            said = json.loads(answer.body)
            assert answer.code == 201 or (answer.code in {400, 404} and said["message"]), (name, answer.body)
            assert len(answer.body) < 2000, name
            sessions = await gateway.call("/api/sessions")
            kernels = await gateway.call("/api/kernels")
            assert [s["kernel"]["id"] for s in sessions] == [k["id"] for k in kernels], name
            assert len(sessions) == (answer.code == 201), name
            for session in sessions:
                unread = await gateway.fetch(f"/api/sessions/{session['id']}", "PATCH", body)
                assert unread.code in {200, 400, 404}, (name, unread.body)
                await gateway.call(f"/api/sessions/{session['id']}", "DELETE", status=204)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "b", "name": 5},
        {"path": "b", "type": []},
        {"path": "b", "notebook": {"path": 1}},
        {"path": "b", "kernel": {"name": 1}},
        {"path": "b", "kernel": {"name": "python3", "id": 1}},
        {"path": "b" * 5000, "kernel": {"name": "python3"}},
        {"name": 5, "kernel": {"name": "python3"}},
        {"path": "b", "kernel": {"id": "no-such-kernel"}},
        {"path": "b", "kernel": {"name": "no-such-spec"}},
    ],
)
async def test_an_invalid_change_changes_nothing(change: Any) -> None:
    """A PATCH with one bad entry leaves path and kernel as they are, and starts nothing."""
    async with running_gateway(config=CONFIG) as gateway:
        session = await gateway.call("/api/sessions", "POST", BODY, status=201)
        answer = await gateway.fetch(f"/api/sessions/{session['id']}", "PATCH", change)
        assert answer.code in {400, 404}, answer.body
        sessions = await gateway.call("/api/sessions")
        assert [(s["notebook"], s["kernel"]["id"]) for s in sessions] == [
            (session["notebook"], session["kernel"]["id"])
        ]
        assert len(await gateway.call("/api/kernels")) == 1


def slow_session(kernel: str, seconds: float, proxy: str = "SlowProxy") -> dict[str, Any]:
    """Write a kernelspec whose kernels take that long to be launched; return the body for a session with it."""
    stanza = {"class_name": f"tests.support.proxies.{proxy}", "config": {"seconds": seconds}}
    write_kernelspec(kernel, metadata={"process_proxy": stanza})
    return {**BODY, "kernel": {"name": kernel}}


async def test_simultaneous_requests_for_one_path_share_one_session() -> None:
    """Three simultaneous POSTs are answered with one session and its one kernel; another path has its own."""
    body = slow_session("slow", 0.3)
    async with running_gateway(config=CONFIG) as gateway:
        bodies = [body, body, {**body, "name": "other"}, {**BODY, "path": "b.ipynb"}]
        answers = await asyncio.gather(*(gateway.call("/api/sessions", "POST", each, status=201) for each in bodies))
        assert answers[0]["id"] == answers[1]["id"] == answers[2]["id"] != answers[3]["id"]
        assert len(await gateway.call("/api/sessions")) == len(await gateway.call("/api/kernels")) == 2


async def test_requests_that_share_a_start_share_its_failure() -> None:
    """All are told why the kernel did not start; the next request tries again."""
    body = slow_session("failing", 0, proxy="FailingProxy")
    async with running_gateway(config=CONFIG) as gateway:
        posts = (gateway.call("/api/sessions", "POST", body, status=503) for _ in range(3))
        assert all("The cluster is on holiday" in str(answer) for answer in await asyncio.gather(*posts))
        unknown = {**BODY, "kernel": {"name": "nope"}}
        posts = (gateway.call("/api/sessions", "POST", unknown, status=404) for _ in range(3))
        assert all("'nope'" in answer["message"] for answer in await asyncio.gather(*posts))
        assert await gateway.call("/api/kernels") == []
        await gateway.call("/api/sessions", "POST", BODY, status=201)


async def test_a_start_goes_on_for_the_others_when_one_client_disconnects() -> None:
    """The one that began the start disconnects, the other gets its session; when all disconnect, nothing is left."""
    body = slow_session("slow", 1.5)
    async with running_gateway(config=CONFIG) as gateway:
        starts = gateway.app.kernel_manager.launches.under_way
        leaving = asyncio.create_task(gateway.fetch("/api/sessions", "POST", body, request_timeout=0.5))
        await asyncio.sleep(0.2)
        session = await gateway.call("/api/sessions", "POST", body, status=201)
        with pytest.raises(HTTPTimeoutError):
            await leaving
        assert [kernel["id"] for kernel in await gateway.call("/api/kernels")] == [session["kernel"]["id"]]

        other = {**body, "path": "b.ipynb"}
        posts = (gateway.fetch("/api/sessions", "POST", other, request_timeout=0.4) for _ in range(2))
        gone = await asyncio.gather(*posts, return_exceptions=True)
        assert [type(error) for error in gone] == [HTTPTimeoutError] * 2
        await eventually(lambda: not starts)
        assert (await gateway.call("/api/sessions", "POST", other, status=201))["id"] != session["id"]
        assert len(await gateway.call("/api/kernels")) == 2


async def test_a_kernel_started_for_a_session_that_has_ended_is_stopped() -> None:
    """DELETE of a session while PATCH starts its next kernel: 404 for the PATCH, and no kernel remains."""
    body = slow_session("slow", 0.7)
    async with running_gateway(config=CONFIG) as gateway:
        session = await gateway.call("/api/sessions", "POST", BODY, status=201)
        path = f"/api/sessions/{session['id']}"
        change = asyncio.create_task(gateway.call(path, "PATCH", {"kernel": body["kernel"]}, status=404))
        await asyncio.sleep(0.2)
        await gateway.call(path, "DELETE", status=204)
        await change
        assert await gateway.call("/api/kernels") == []
