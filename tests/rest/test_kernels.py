"""REST requests about kernels: their answers, and what a request may affect."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from tornado.simple_httpclient import HTTPTimeoutError

from tests.support.gateway import Gateway, running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.launchers import eventually

OPEN: dict[str, Any] = {"list_kernels": True, "unauthorized_users": []}


def options(**changes: Any) -> dict[str, Any]:
    """Return the configuration of a gateway that lists kernels and starts them for everybody."""
    return {"EnterpriseGatewayApp": {**OPEN, **changes}}


@pytest.fixture
def slow_kernelspec() -> str:
    """A kernelspec whose back end takes half a minute to launch."""
    write_kernelspec("slow", metadata={"process_proxy": {"class_name": "tests.support.proxies.SlowProxy"}})
    return "slow"


async def environment_of(gateway: Gateway, kernel_id: str) -> dict[str, str]:
    """Return what a kernel finds in ``os.environ``."""
    websocket = await gateway.websocket(kernel_id)
    text, _ = await websocket.execute("import json, os; print(json.dumps(dict(os.environ)))")
    return json.loads(text)


async def test_a_kernel_is_started_shown_listed_and_stopped() -> None:
    """POST answers 201 with Location and model, GET the model, DELETE 204; afterwards the id is unknown."""
    async with running_gateway(config=options()) as gateway:
        created = await gateway.fetch("/api/kernels", "POST", {"name": "python3"})
        model = json.loads(created.body)
        kernel_path = f"/api/kernels/{model['id']}"

        assert (created.code, created.headers["Location"]) == (201, kernel_path)
        assert set(model) == {"id", "name", "last_activity", "execution_state", "connections", "phases"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", model["last_activity"])
        assert (await gateway.call(kernel_path))["name"] == "python3"
        (listed,) = await gateway.call("/api/kernels")
        assert listed["id"] == model["id"]
        assert set(listed) == set(model) - {"phases"}
        await gateway.call(kernel_path, "DELETE", status=204)
        gone = await gateway.call(kernel_path, status=404)
        assert gone == {"reason": "Not Found", "message": f"Kernel does not exist: {model['id']}"}
        assert await gateway.call("/api/kernels") == []


async def test_listing_kernels_is_forbidden_unless_switched_on() -> None:
    """Without list_kernels, GET /api/kernels is 403; the option takes effect on the next request."""
    async with running_gateway(config=options(list_kernels=False)) as gateway:
        refused = await gateway.call("/api/kernels", status=403)
        sentence = "Listing is disabled; the gateway's option list_kernels (EG_LIST_KERNELS) enables it."
        assert refused == {"reason": "Forbidden", "message": sentence}
        assert await gateway.call("/api/sessions", status=403) == refused
        gateway.app.list_kernels = True
        assert await gateway.call("/api/kernels") == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "Invalid JSON in body of request"),
        ("[" * 100_000, 400, "Invalid JSON"),
        ("[]", 400, "must be a JSON object"),
        ("3", 400, "must be a JSON object"),
        ({"name": 1}, 400, "'name' must be a string"),
        ({"path": ["x"]}, 400, "'path' must be a string"),
        ({"path": "a\0b"}, 400, "'path' must be a string without NUL"),
        ({"name": "\ud800"}, 400, "not valid Unicode"),
        ({"path": "a/" * 500_000}, 400, "'path' must not be longer than 4096 bytes"),
        ({"name": "x" * 5000}, 400, "'name' must not be longer than 4096 bytes"),
        ({"env": {f"KERNEL_{i}": "x" * 4000 for i in range(200)}}, 400, "'env' must not hold more than"),
        ({"env": {f"KERNEL_{i}": "" for i in range(600)}}, 400, "'env' must not hold more than"),
        ({"env": {"KERNEL_USERNAME": "\x1b[31m"}}, 400, "contains prohibited characters"),
        ({"env": 7}, 400, "'env' must be a JSON object"),
        ({"env": ["KERNEL_X"]}, 400, "'env' must be a JSON object"),
        ({"env": {"KERNEL_X": 1}}, 400, "Environment variable 'KERNEL_X' value must be a string"),
        ({"env": {"KERNEL_X": "x" * 4097}}, 400, "'KERNEL_X' exceeds maximum length"),
        ({"env": {"KERNEL_X": "$(id)"}}, 400, "'KERNEL_X' contains prohibited characters"),
        ({"env": {"KERNEL_X": "a\nb"}}, 400, "'KERNEL_X' contains prohibited characters"),
        ({"env": {"KERNEL_X": "\ud800"}}, 400, "'KERNEL_X' is not valid Unicode"),
        ({"env": {"KERNEL_A=B": "x"}}, 400, "must match"),
        ({"env": {"KERNEL_ID": "../../etc"}}, 400, "must be a version 4 UUID"),
        ({"env": {"KERNEL_ID": str(uuid.uuid1())}}, 400, "must be a version 4 UUID"),
        ({"env": {"KERNEL_LAUNCH_TIMEOUT": "soon"}}, 400, "positive number of seconds"),
        ({"env": {"KERNEL_LAUNCH_TIMEOUT": "nan"}}, 400, "positive number of seconds"),
        ({"name": "no-such-kernel"}, 404, "No kernelspec named 'no-such-kernel'"),
        ({"name": "../python3"}, 404, "No kernelspec named"),
    ],
)
async def test_an_invalid_request_is_refused_with_one_sentence(body: Any, status: int, words: str) -> None:
    """Bad input is a 4xx whose message says what to change, never a traceback; nothing is started."""
    async with running_gateway(config=options()) as gateway:
        answer = await gateway.call("/api/kernels", "POST", body, status=status)
        assert set(answer) == {"reason", "message"}
        assert words in answer["message"]
        assert "Traceback" not in answer["message"]
        assert await gateway.call("/api/kernels") == []


async def test_a_body_that_is_too_large_is_not_read() -> None:
    """A body over max_body_size is refused before it is buffered."""
    async with running_gateway(config=options()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.app.port)
        writer.write(b"POST /api/kernels HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413")


async def test_a_kernel_id_that_is_in_use_is_a_conflict() -> None:
    """A client may choose the kernel's id once; the second time is 409."""
    kernel_id = str(uuid.uuid4())
    body = {"env": {"KERNEL_ID": kernel_id}}
    async with running_gateway(config=options()) as gateway:
        first, second = await asyncio.gather(*(gateway.fetch("/api/kernels", "POST", body) for _ in range(2)))
        assert sorted([first.code, second.code]) == [201, 409]
        third = await gateway.call("/api/kernels", "POST", body, status=409)
        assert kernel_id in third["message"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_kernel_is_not_found(method: str) -> None:
    """Requests for an id that no kernel has are 404, also for what only looks like an id."""
    async with running_gateway(config=options()) as gateway:
        for kernel_id in (str(uuid.uuid4()), "1-2-3-4-5"):
            answer = await gateway.call(f"/api/kernels/{kernel_id}", method, status=404)
            assert answer["message"] == f"Kernel does not exist: {kernel_id}"


async def test_actions_on_an_unknown_kernel_are_not_found() -> None:
    """Interrupt and restart of an unknown kernel are 404."""
    async with running_gateway(config=options()) as gateway:
        for action in ("interrupt", "restart"):
            answer = await gateway.call(f"/api/kernels/1-2-3-4-5/{action}", "POST", {}, status=404)
            assert answer["message"] == "Kernel does not exist: 1-2-3-4-5"


async def test_no_environment_of_one_request_reaches_the_kernel_of_another() -> None:
    """Overlapping starts, with and without env, each get their own variables only."""
    async with running_gateway(config=options()) as gateway:
        bodies = [
            {"env": {"KERNEL_USERNAME": "alice", "KERNEL_SECRET": "hers"}},
            {"env": {"KERNEL_USERNAME": "bob"}},
            {},
        ]
        ids = await asyncio.gather(*(gateway.start_kernel(**body) for body in bodies))
        alice, bob, nobody = [await environment_of(gateway, kernel_id) for kernel_id in ids]

        assert (alice["KERNEL_USERNAME"], alice["KERNEL_SECRET"]) == ("alice", "hers")
        assert bob["KERNEL_USERNAME"] == "bob"
        assert "KERNEL_SECRET" not in bob
        assert "KERNEL_SECRET" not in nobody
        assert nobody["KERNEL_USERNAME"] not in {"alice", "bob"}
        assert [alice["KERNEL_ID"], bob["KERNEL_ID"], nobody["KERNEL_ID"]] == ids


async def test_the_gateways_environment_reaches_a_kernel_only_as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start without env follows the same rules as one with an empty env: the base and inherited_envs, no more."""
    monkeypatch.setenv("CLOUD_CREDENTIAL", "secret")
    monkeypatch.setenv("HADOOP_CONF_DIR", "/etc/hadoop")
    monkeypatch.setenv("EG_AUTH_TOKEN", "")
    async with running_gateway(config=options(inherited_envs=["HADOOP_CONF_DIR", "EG_AUTH_TOKEN"])) as gateway:
        for body in ({}, {"env": {}}, {"env": None}):
            environment = await environment_of(gateway, await gateway.start_kernel(**body))
            assert environment["HADOOP_CONF_DIR"] == "/etc/hadoop"
            assert "PATH" in environment
            assert environment["KERNEL_GATEWAY"] == "1"
            assert not {"CLOUD_CREDENTIAL", "EG_AUTH_TOKEN"} & set(environment)


async def test_client_variables_pass_by_rule_and_loader_variables_only_by_name() -> None:
    """KERNEL_* pass, `*` lets others pass but none that loads other code; naming one literally does."""
    loaders = {
        "LD_PRELOAD",
        "PYTHONSTARTUP",
        "SPARK_HOME",
        "JAVA_HOME",
        "GIT_SSH_COMMAND",
        "HTTPS_PROXY",
        "EG_AUTH_TOKEN",
    }
    env = {"KERNEL_A": "1", "OTHER": "2", "BASH_ENV": "x", **dict.fromkeys(loaders, "/tmp/x")}
    async with running_gateway(config=options()) as gateway:
        environment = await environment_of(gateway, await gateway.start_kernel(env=env))
        assert environment["KERNEL_A"] == "1"
        assert not {"OTHER", "BASH_ENV", *loaders} & set(environment)
        gateway.app.client_envs = ["*", "BASH_ENV"]
        environment = await environment_of(gateway, await gateway.start_kernel(env=env))
        assert (environment["OTHER"], environment["BASH_ENV"]) == ("2", "x")
        assert not loaders & set(environment)


async def test_an_unauthorized_user_is_refused_and_nothing_is_left() -> None:
    """403 with the documented text as reason; neither a kernel nor a connection file remains."""
    async with running_gateway(config=options(unauthorized_users=["mallory"])) as gateway:
        answer = await gateway.call("/api/kernels", "POST", {"env": {"KERNEL_USERNAME": "mallory"}}, status=403)
        assert answer["reason"].startswith("User 'mallory' is not authorized to start kernel 'Python 3")
        assert await gateway.call("/api/kernels") == []
        assert not list(Path(gateway.app.runtime_dir).glob("kernel-*"))


async def test_limits_count_starts_in_progress() -> None:
    """However fast clients are, no more than max_kernels run."""
    async with running_gateway(config=options(max_kernels=2)) as gateway:
        answers = await asyncio.gather(*(gateway.fetch("/api/kernels", "POST", {}) for _ in range(6)))
        assert sorted(answer.code for answer in answers) == [201, 201, 403, 403, 403, 403]
        refused = next(json.loads(answer.body) for answer in answers if answer.code == 403)
        assert refused["reason"] == "Forbidden"
        assert "Resource Limit" in refused["message"]
        assert len(await gateway.call("/api/kernels")) == 2


async def test_limits_per_user_do_not_affect_other_users() -> None:
    """max_kernels_per_user refuses the user who has so many, and nobody else."""
    async with running_gateway(config=options(max_kernels_per_user=1)) as gateway:
        for user, status in (("alice", 201), ("alice", 403), ("bob", 201)):
            await gateway.call("/api/kernels", "POST", {"env": {"KERNEL_USERNAME": user}}, status=status)


async def test_a_start_that_is_cancelled_by_delete_leaves_nothing(slow_kernelspec: str) -> None:
    """DELETE of a kernel that is starting ends the start: its client gets 409, and the id is free again."""
    kernel_id = str(uuid.uuid4())
    body = {"name": slow_kernelspec, "env": {"KERNEL_ID": kernel_id}}
    async with running_gateway(config=options()) as gateway:
        start = asyncio.create_task(gateway.fetch("/api/kernels", "POST", body))
        while kernel_id not in gateway.app.kernel_manager.launches.under_way:
            await asyncio.sleep(0.01)
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
        assert (await start).code == 409
        assert await gateway.call("/api/kernels") == []
        assert await gateway.start_kernel(env={"KERNEL_ID": kernel_id}) == kernel_id


async def test_a_client_that_disconnects_cancels_its_start(slow_kernelspec: str) -> None:
    """A start whose client has closed its connection is cancelled: no kernel is left that no client knows of."""
    kernel_id = str(uuid.uuid4())
    body = json.dumps({"name": slow_kernelspec, "env": {"KERNEL_ID": kernel_id}}).encode()
    async with running_gateway(config=options()) as gateway:
        launching = gateway.app.kernel_manager.launches.under_way
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.app.port)
        request = f"POST /api/kernels HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(request.encode() + body)
        while kernel_id not in launching:
            await asyncio.sleep(0.01)
        writer.transport.abort()
        for _ in range(100):
            if kernel_id not in launching:
                break
            await asyncio.sleep(0.02)
        assert kernel_id not in launching
        assert await gateway.call("/api/kernels") == []


class SlowAuthorizer:
    """Allows everything, after a while."""

    async def is_authorized(self, *_: Any) -> bool:
        await asyncio.sleep(0.5)
        return True


async def test_no_kernel_is_started_for_a_client_that_disconnected_before(slow_kernelspec: str) -> None:
    """Its connection was closed while its request was being authorized."""
    async with running_gateway(config=options()) as gateway:
        gateway.app.web_app.settings["authorizer"] = SlowAuthorizer()
        with pytest.raises(HTTPTimeoutError):
            await gateway.fetch("/api/kernels", "POST", {"name": slow_kernelspec}, request_timeout=0.25)
        await asyncio.sleep(0.5)
        await eventually(lambda: not gateway.app.kernel_manager.launches.under_way, timeout=5)
        assert await gateway.call("/api/kernels") == []


async def test_clients_that_disconnect_at_once_leave_nothing(slow_kernelspec: str) -> None:
    """A request whose client is already disconnected when it is read starts no kernel."""
    body = json.dumps({"name": slow_kernelspec}).encode()
    request = f"POST /api/kernels HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    async with running_gateway(config=options()) as gateway:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.app.port)
            writer.write(request.encode() + body)
            writer.close()
        await asyncio.sleep(0.3)
        await eventually(lambda: not gateway.app.kernel_manager.launches.under_way)
        assert await gateway.call("/api/kernels") == []


async def test_a_launch_that_fails_after_its_process_was_started_leaves_no_process() -> None:
    """A back end's failure reaches the client with its status and reason, and its process is ended."""
    write_kernelspec("failing", metadata={"process_proxy": {"class_name": "tests.support.proxies.FailingProxy"}})
    async with running_gateway(config=options()) as gateway:
        answer = await gateway.call("/api/kernels", "POST", {"name": "failing"}, status=503)
        assert answer["reason"] == "The cluster is on holiday."
        assert await gateway.call("/api/kernels") == []


async def test_a_process_proxy_of_version_3_works_unchanged() -> None:
    """Synchronous poll, wait, send_signal and kill, asynchronous launch: start, run, interrupt, restart, stop."""
    write_kernelspec("thirdparty", metadata={"process_proxy": {"class_name": "tests.support.proxies.ThirdPartyProxy"}})
    async with running_gateway(config=options()) as gateway:
        kernel_id = await gateway.start_kernel("thirdparty")
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("6 * 7"))[0] == "42"
        sleep = asyncio.create_task(websocket.execute("import time; time.sleep(30)"))
        await asyncio.sleep(0.5)
        await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", {}, status=204)
        assert (await sleep)[1]["ename"] == "KeyboardInterrupt"
        await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {})
        assert (await websocket.execute("'time' in globals()"))[0] == "False"
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)


async def test_methods_and_paths_that_do_not_exist_are_answered_as_json() -> None:
    """405 and 404 carry the error document; no slash is tolerated at the end, nothing is served at the root."""
    async with running_gateway(config=options()) as gateway:
        for path in ("/", "/tree", "/api/", "/api/contents", "/api/status", "/metrics", "/login"):
            assert await gateway.call(path, status=404) == {"reason": "Not Found", "message": ""}
        assert (await gateway.call("/api/kernels", "PUT", {}, status=405))["reason"] == "Method Not Allowed"
        assert (await gateway.fetch("/api/kernels/1-2-3-4-5/interrupt", "HEAD")).code == 405


async def test_answers_carry_their_type_and_no_content_security_policy() -> None:
    """JSON answers are typed and not sniffed, GET has an ETag."""
    async with running_gateway(config=options()) as gateway:
        response = await gateway.fetch("/api")
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "Content-Security-Policy" not in response.headers
        again = await gateway.fetch("/api", headers={"If-None-Match": response.headers["Etag"]})
        assert again.code == 304


async def test_an_unexpected_failure_shows_no_traceback(expect_log: Any) -> None:
    """Whatever fails inside, the client gets one line and the operator the traceback."""

    class Broken:
        def is_authorized(self, *arguments: Any) -> bool:
            raise RuntimeError("a secret detail")

    async with running_gateway(config=options()) as gateway:
        gateway.app.web_app.settings["authorizer"] = Broken()
        with expect_log("Unexpected failure"):
            answer = await gateway.call("/api/kernels", status=500)
        assert answer == {"reason": "Internal Server Error", "message": "Unknown server error"}


async def test_an_authorizer_is_asked_and_may_refuse() -> None:
    """The configured authorizer decides by user, action and resource."""
    asked = []

    class Reader:
        def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
            asked.append((user.username, action, resource))
            return action == "read"

    async with running_gateway(config=options()) as gateway:
        gateway.app.web_app.settings["authorizer"] = Reader()
        await gateway.call("/api/kernels")
        await gateway.call("/api/kernels", "POST", {}, status=403)
        assert asked == [("anonymous", "read", "kernels"), ("anonymous", "write", "kernels")]
