"""Jupyter Server 2 with ``--gateway-url``: its users never see a difference to kernels of its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Client
from tests.support.loops import crowded_machine
from tests.support.processes import gateway_process, jupyter_server_process

DECODING = "the test's own client takes messages of ten megabytes apart on it"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Client]:
    """Jupyter Server in front of our gateway, both as programs."""
    work = tmp_path / "work"
    work.mkdir()
    async with gateway_process(tmp_path / "gateway.log", ["--EnterpriseGatewayApp.list_kernels=True"]) as gateway:
        argv = [f"--gateway-url={gateway.url}"]
        async with (
            jupyter_server_process(tmp_path / "server.log", argv, root=work) as server,
            Client(server.url) as client,
            Client(gateway.url) as direct,
        ):
            yield client
            for kernel in await client.call("/api/kernels"):
                await client.call(f"/api/kernels/{kernel['id']}", "DELETE", status=204)
            assert await direct.call("/api/kernels") == []


async def test_kernelspecs_come_from_the_gateway(server: Client) -> None:
    """The list that JupyterLab's launcher shows, with its icons."""
    specs = await server.call("/api/kernelspecs")
    assert specs["default"] == "python3"
    logo = specs["kernelspecs"]["python3"]["resources"]["logo-svg"]
    response = await server.fetch(logo)
    assert (response.code, b"<svg" in response.body) == (200, True)


async def test_start_execute_and_shut_down(server: Client) -> None:
    """Code runs, its output and result come back, and the kernel is gone after its shutdown."""
    kernel_id = await server.start_kernel()
    socket = await server.websocket(kernel_id)
    text, reply = await socket.execute("print('out')\n6 * 7")
    assert (text, reply["status"], reply["execution_count"]) == ("out\n42", "ok", 1)
    (model,) = await server.call("/api/kernels")
    assert (model["name"], model["execution_state"], model["connections"]) == ("python3", "idle", 1)
    await server.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
    assert (await server.fetch(f"/api/kernels/{kernel_id}")).code == 404


async def test_an_endless_loop_is_interrupted(server: Client) -> None:
    """The interrupt reaches the running code at once."""
    kernel_id = await server.start_kernel()
    socket = await server.websocket(kernel_id)
    code = "import time\nprint('running', flush=True)\nwhile True: time.sleep(0.01)"
    msg_id = await socket.send("execute_request", {"code": code, "silent": False, "allow_stdin": False})
    await socket.receive_until("stream", parent=msg_id)
    began = time.monotonic()
    await server.call(f"/api/kernels/{kernel_id}/interrupt", "POST", status=204)
    reply = (await socket.receive_until("execute_reply", parent=msg_id))[-1]["content"]
    assert reply["ename"] == "KeyboardInterrupt"
    assert time.monotonic() - began < 10


async def test_a_restart_forgets_variables_and_keeps_the_websocket(server: Client) -> None:
    """The same websocket serves the new kernel."""
    kernel_id = await server.start_kernel()
    socket = await server.websocket(kernel_id)
    await socket.execute("x = 1")
    model = await server.call(f"/api/kernels/{kernel_id}/restart", "POST")
    assert model["id"] == kernel_id
    _, reply = await socket.execute("x")
    assert reply["ename"] == "NameError"


async def test_sessions_bind_a_notebook_to_a_kernel(server: Client) -> None:
    """A session starts a kernel, is found by its path, may change its kernel, and ends with it."""
    body = {"path": "a.ipynb", "name": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    session = await server.call("/api/sessions", "POST", body, status=201)
    again = await server.call("/api/sessions", "POST", body, status=201)
    assert again["id"] == session["id"]
    socket = await server.websocket(session["kernel"]["id"])
    text, _ = await socket.execute("print(1)")
    assert text == "1\n"
    changed = await server.call(f"/api/sessions/{session['id']}", "PATCH", {"kernel": {"name": "python3"}})
    assert changed["kernel"]["id"] != session["kernel"]["id"]
    await server.call(f"/api/sessions/{session['id']}", "DELETE", status=204)
    assert await server.call("/api/kernels") == []


async def test_input_asks_the_user(server: Client) -> None:
    """``input()`` travels over the stdin channel in both directions."""
    kernel_id = await server.start_kernel()
    socket = await server.websocket(kernel_id)
    content = {"code": "name = input('Who? '); print('Hello', name)", "silent": False, "allow_stdin": True}
    msg_id = await socket.send("execute_request", content)
    asked = (await socket.receive_until("input_request", parent=msg_id))[-1]
    assert asked["content"]["prompt"] == "Who? "
    await socket.send("input_reply", {"value": "Ada"}, channel="stdin", parent=asked["header"])
    answered = await socket.receive_until("stream", parent=msg_id)
    assert answered[-1]["content"]["text"] == "Hello Ada\n"
    await socket.receive_until("execute_reply", parent=msg_id)


async def test_an_unknown_kernelspec_is_reported_clearly(server: Client, tmp_path: Path) -> None:
    """The status passes through, and Jupyter Server's log has the gateway's sentence."""
    response = await server.fetch("/api/kernels", "POST", {"name": "nonsense"})
    assert response.code == 404
    assert "No kernelspec named 'nonsense' is installed" in (tmp_path / "server.log").read_text()


async def test_output_over_its_limit_arrives(server: Client) -> None:
    """Jupyter Server cuts the connection at messages over 10 MiB: longer output comes complete nevertheless."""
    socket = await server.websocket(await server.start_kernel())
    with crowded_machine(0.5, DECODING):
        text, reply = await socket.execute("print('x' * 25_000_000)", timeout=60)
    # Counted, not compared: making a second text of that size held the loop for 90 ms on a busy machine.
    counted = (len(text), text.count("x"), text[-1:])
    assert (counted, reply["status"]) == ((25_000_001, 25_000_000, "\n"), "ok")


@pytest.mark.parametrize("kind", ["display_data", "execute_reply"])
async def test_a_message_over_its_limit_is_reported(server: Client, kind: str) -> None:
    """What cannot be split is replaced by a notice in its cell, and the cell ends."""
    socket = await server.websocket(await server.start_kernel())
    content: dict[str, Any] = {"code": "1", "user_expressions": {"x": "'y' * 15_000_000"}}
    if kind == "display_data":
        content = {"code": "print('before'); display({'text/plain': 'y' * 15_000_000}, raw=True); print('after')"}
    msg_id = await socket.send("execute_request", {"silent": False, "allow_stdin": False, **content})
    messages, missing = [], {"execute_reply", "idle"}
    while missing:
        with crowded_machine(0.5, DECODING):
            message = await socket.receive(60)
        if message["parent_header"].get("msg_id") == msg_id:
            messages.append(message)
            missing -= {message["msg_type"], message["content"].get("execution_state")}
    out = [m["content"] for m in messages if m["msg_type"] == "stream"]
    (notice,) = [content["text"] for content in out if content["name"] == "stderr"]
    assert notice.startswith(f"[a {kind} message of 1500")
    assert notice.endswith("larger than the client takes]\n")
    (reply,) = [m["content"] for m in messages if m["msg_type"] == "execute_reply"]
    if kind == "display_data":
        assert "".join(c["text"] for c in out if c["name"] == "stdout") == "before\nafter\n"
        assert reply["status"] == "ok"
    else:
        assert (reply["status"], reply["ename"]) == ("error", "MessageTooLarge")
    text, reply = await socket.execute("print(1)")
    assert (text, reply["status"]) == ("1\n", "ok")
