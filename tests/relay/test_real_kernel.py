"""The relay with ipykernel."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from jupyter_client.connect import write_connection_file

from enterprise_gateway.core.connection import ConnectionInfo
from tests.support.loops import loop_may_be_held
from tests.support.wsclient import ABSENT, texts, types

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class IPykernel:
    """A Python kernel in a process of its own; ``info`` changes with each start."""

    def __init__(self, directory):
        self.path = str(directory / "kernel.json")

    async def start(self):
        # Whatever asks the system for a port gets one from 32768 on: the kernel takes some seconds to bind these.
        ports = dict(zip(PORTS, random.sample(range(20_000, 32_000), len(PORTS)), strict=True))
        self.path, _ = write_connection_file(self.path, key=os.urandom(8).hex().encode(), **ports)
        self.info = ConnectionInfo.from_dict(json.loads(Path(self.path).read_text()))
        self.process = await asyncio.create_subprocess_exec(sys.executable, "-m", "ipykernel_launcher", "-f", self.path)

    async def stop(self):
        self.process.kill()
        await self.process.wait()
        os.unlink(self.path)


@pytest.fixture
async def ipykernel(tmp_path):
    kernel = IPykernel(tmp_path)
    await kernel.start()
    yield kernel
    await kernel.stop()


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
async def test_the_first_cells_lose_no_output(relay, ipykernel, v1):
    """Cells sent while the kernel still starts lose nothing of their output, and ``input()`` works at once."""
    kernel_id, channels = await relay.add(ipykernel, ready=False)
    async with await relay.open(kernel_id, "s", v1=v1) as client:
        first = client.execute("print('out'); x = input('name? ')", allow_stdin=True)
        second = client.execute("print(x * 2)")
        prompt = (await client.until("input_request", first, timeout=30))[-1]
        assert prompt["content"]["prompt"] == "name? "
        client.send("stdin", "input_reply", {"value": "ab"})
        assert texts(await client.finish(first)) == "out\n"
        assert texts(await client.finish(second)) == "abab\n"
        assert "iopub_welcome" not in types(client.history)
        sessions = {m["parent_header"].get("session") for m in client.history}
        assert sessions <= {client.session, None}
    assert channels.kernel_info["language_info"]["name"] == "python"


async def test_debugger_comms_and_restart_work(relay, ipykernel):
    """Debug messages, comms with buffers and a restart with other ports work with a real kernel."""
    kernel_id, channels = await relay.add(ipykernel, ready=False)
    await channels.ready(30)
    async with await relay.open(kernel_id, "s") as client:
        client.send("control", "debug_request", {"type": "request", "seq": 1, "command": "debugInfo", "arguments": {}})
        assert (await client.until("debug_reply", timeout=20))[-1]["content"]["success"]
        code = (
            "from ipykernel.comm import Comm\n"
            "c = Comm('target', data={}, buffers=[b'\\x00\\xff'])\n"
            "c.on_msg(lambda m: c.send({'n': len(m['buffers'][0])}, buffers=m['buffers']))"
        )
        opened = next(m for m in await client.run(code, timeout=20) if m["header"]["msg_type"] == "comm_open")
        assert opened["buffers"] == [b"\x00\xff"]
        client.send("shell", "comm_msg", {"comm_id": opened["content"]["comm_id"], "data": {}}, [bytes(1000)])
        answer = (await client.until("comm_msg"))[-1]
        assert (answer["content"]["data"], answer["buffers"]) == ({"n": 1000}, [bytes(1000)])

        channels.hold()
        await ipykernel.stop()
        await ipykernel.start()
        channels.connect(replace(ipykernel.info))
        messages = await client.run("print('again', 'c' in globals())", timeout=30)
        assert texts(messages) == "again False\n"
        assert (await channels.request("shutdown_request", {"restart": False}))["status"] == "ok"


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
async def test_subshells_are_created_used_and_deleted(relay, ipykernel, v1):
    """A subshell is created, runs code while the main shell is busy, and is deleted; its id passes in the header."""
    kernel_id, channels = await relay.add(ipykernel, ready=False)
    await channels.ready(30)
    if "kernel subshells" not in channels.kernel_info.get("supported_features", ()):
        pytest.skip("not applicable: ipykernel 6 has no subshells")
    async with await relay.open(kernel_id, "s", v1=v1) as client:
        created = client.send("control", "create_subshell_request", {})
        reply = (await client.until("create_subshell_reply", created, timeout=20))[-1]
        assert (reply["channel"], reply["content"]["status"]) == ("control", "ok")
        subshell = reply["content"]["subshell_id"]

        await client.run("import threading; go = threading.Event()", timeout=20)
        busy = client.execute("print('main', go.wait(20))")
        await client.until("execute_input", busy, timeout=20)
        code = "import threading; print(threading.current_thread() is threading.main_thread())"
        answers = await client.run(code, timeout=20, subshell_id=subshell)
        assert texts(answers) == "False\n"
        assert {m["parent_header"]["subshell_id"] for m in answers} == {subshell}
        assert channels.execution_state == "busy"  # the main shell is
        await client.run("go.set()", timeout=20, subshell_id=subshell)
        assert texts(await client.finish(busy, timeout=20)) == "main True\n"

        for request in ("list_subshell", "delete_subshell", "list_subshell"):
            content = {"subshell_id": subshell} if request == "delete_subshell" else {}
            sent = client.send("control", f"{request}_request", content)
            reply = (await client.until(f"{request}_reply", sent, timeout=20))[-1]
            assert reply["content"]["status"] == "ok"
        assert reply["content"]["subshell_id"] == []


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
@pytest.mark.parametrize("session", [ABSENT, "", None], ids=["absent", "empty", "null"])
async def test_a_request_without_a_session_is_answered_on_its_websocket(relay, ipykernel, session, v1):
    """Reply, output and question come to the websocket that asked, and the reply and the question to no other."""
    kernel_id, channels = await relay.add(ipykernel, ready=False)
    await channels.ready(30)
    async with await relay.open(kernel_id, "a", v1=v1) as client, await relay.open(kernel_id, "b", v1=v1) as other:
        await other.run("1", timeout=20, session=session)
        msg_id = client.execute("print(input('name? ')); 6 * 7", allow_stdin=True, session=session)
        await client.until("input_request", msg_id, timeout=20)
        client.send("stdin", "input_reply", {"value": "ab"}, session=session)
        messages = await client.finish(msg_id, timeout=20)
        assert texts(messages) == "ab\n"
        (result,) = [m["content"]["data"] for m in messages if m["header"]["msg_type"] == "execute_result"]
        assert result["text/plain"] == "42"
        info = client.send("shell", "kernel_info_request", {}, session=session)
        assert (await client.until("kernel_info_reply", info, timeout=20))[-1]["content"]["status"] == "ok"
        assert not {"execute_reply", "input_request", "kernel_info_reply"} & set(types(await other.pending()))


async def test_long_output_arrives_complete_and_in_order(relay, ipykernel):
    """Everything that a loop prints arrives, in order."""
    kernel_id, _ = await relay.add(ipykernel, ready=False)
    async with await relay.open(kernel_id, "s", v1=False) as client:
        messages = await client.run("for i in range(20_000): print(i, flush=i % 20 == 0)", timeout=60)
        with loop_may_be_held("the comparison takes its time"):
            assert texts(messages) == "".join(f"{number}\n" for number in range(20_000))
