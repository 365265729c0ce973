"""Kernels of other languages, through the gateway: the kernelspecs that come with it, with the real kernels."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import toree
from tests.support.gateway import Gateway, KernelSocket, running_gateway
from tests.support.loops import crowded_machine

from .backends import REPOSITORY
from .test_contract import CONFIG, nothing_left

KERNELSPECS = REPOSITORY / "etc" / "kernelspecs"
SPARK_OPTIONS = "--master local[1] --driver-memory 512m --conf spark.ui.enabled=false"


def install(name: str, **env: str) -> Path:
    """Install one of our kernelspecs where the test's gateway looks; ``env`` changes its variables."""
    folder = Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels" / name.lower()
    shutil.copytree(KERNELSPECS / name, folder)
    spec = json.loads((folder / "kernel.json").read_text())
    spec["env"] = {**spec.get("env", {}), **env}
    spec["metadata"]["process_proxy"]["config"].update(remote_hosts="127.0.0.1", launch_timeout=120)
    (folder / "kernel.json").write_text(json.dumps(spec))
    return folder


@pytest.fixture(params=[pytest.param("r", marks=pytest.mark.r), pytest.param("scala", marks=pytest.mark.scala)])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A language's kernelspec, and a few expressions in that language."""
    monkeypatch.setenv("EG_RESPONSE_IP", "127.0.0.1")
    if request.param == "r":
        install("R_distributed", PYSPARK_PYTHON=sys.executable)  # runs the launcher's listener
        return {
            "name": "r_distributed",
            "set": "x <- 41",
            "get": "x + 1",
            "loop": "cat('looping\\n')\nwhile (TRUE) Sys.sleep(0.05)",
        }
    lab: toree.Toree = toree.prepare()
    folder = install(
        "scala_distributed",
        SPARK_HOME=str(lab.spark_home),
        SPARK_LOCAL_IP="127.0.0.1",
        __TOREE_SPARK_OPTS__=SPARK_OPTIONS,
    )
    (folder / "lib").symlink_to(lab.lib)
    loop = 'println("looping"); while (true) Thread.sleep(50)'
    return {"name": "scala_distributed", "set": "var x = 41", "get": "x + 1", "loop": loop}


async def begin(websocket: KernelSocket, code: str) -> str:
    """Send a cell, with every entry of the request: Toree ignores one that lacks any."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    return await websocket.send("execute_request", content)


async def value_of(websocket: KernelSocket, code: str) -> str:
    """Return what a cell shows, which some kernels send after they are idle."""
    msg_id = await begin(websocket, code)
    shown = ""
    while not shown:
        message = await websocket.receive(60)
        if message["parent_header"].get("msg_id") == msg_id:
            shown = message["content"].get("data", {}).get("text/plain", "") or message["content"].get("text", "")
    return shown


async def interrupt(gateway: Gateway, kernel_id: str, websocket: KernelSocket, msg_id: str) -> str:
    """Interrupt a cell once it has printed; return its reply's status."""
    await websocket.receive_until("stream", parent=msg_id, timeout=60)
    await gateway.call(f"/api/kernels/{kernel_id}/interrupt", "POST", {}, status=204)
    reply = (await websocket.receive_until("execute_reply", parent=msg_id, timeout=60))[-1]
    await asyncio.sleep(1)  # IRkernel aborts what comes while it is still recovering from an error
    return str(reply["content"]["status"])


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_kernel_starts_executes_is_interrupted_restarted_and_shut_down(
    language: dict[str, str], expect_log: Any
) -> None:
    """The life of a kernel, with launchers that report in version 2 and take signals from the gateway."""
    # A thread that has to leave its processor keeps the interpreter lock.
    with crowded_machine(0.5, "Java compiles in as many threads as there are processors"):
        async with running_gateway(config=CONFIG) as gateway:
            kernel_id = await gateway.start_kernel(language["name"], env={"KERNEL_USERNAME": "alice"})
            websocket = await gateway.websocket(kernel_id)
            await websocket.execute(language["set"], timeout=120)
            assert "42" in await value_of(websocket, language["get"])
            assert await interrupt(gateway, kernel_id, websocket, await begin(websocket, language["loop"])) != "ok"
            await value_of(websocket, "0")  # the first result after an error may show that error
            assert "42" in await value_of(websocket, language["get"])
            await gateway.call(f"/api/kernels/{kernel_id}/restart", "POST", {}, request_timeout=150)
            _, reply = await websocket.execute(language["get"], timeout=120)
            assert reply["status"] == "error"
            await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
            await nothing_left(kernel_id)
