"""Start a kernel on a gateway, run code on it and stop it: check_gateway.py URL.

Needs only the gateway's own packages, so that it can check a minimal installation of the gateway.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
import uuid
from typing import Any

from tornado.websocket import websocket_connect


def call(url: str, method: str = "GET", body: Any = None) -> Any:
    """Return the JSON response to one request."""
    request = urllib.request.Request(url, method=method, data=None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=90) as answer:
        return json.loads(answer.read() or b"null")


def wait_until_it_answers(url: str, seconds: float = 60) -> None:
    """Wait until the gateway answers its first request."""
    end = time.monotonic() + seconds
    while True:
        try:
            print(call(f"{url}/api"))
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


async def execute(url: str, kernel_id: str, code: str) -> str:
    """Run ``code`` and return what it prints."""
    websocket = await websocket_connect(f"{url}/api/kernels/{kernel_id}/channels".replace("http", "ws", 1))
    msg_id = uuid.uuid4().hex
    header = {"msg_id": msg_id, "msg_type": "execute_request", "session": msg_id, "username": "", "version": "5.4"}
    content = {"code": code, "silent": False, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await websocket.write_message(json.dumps(message))
    while data := await websocket.read_message():
        reply = json.loads(data)
        if reply["parent_header"].get("msg_id") == msg_id and reply["msg_type"] == "stream":
            websocket.close()
            return str(reply["content"]["text"])
    raise ConnectionError("the websocket was closed")


def main(url: str) -> None:
    """Check the gateway at ``url``."""
    wait_until_it_answers(url)
    kernel = call(f"{url}/api/kernels", "POST", {"name": "python3", "env": {"KERNEL_USERNAME": "check"}})
    try:
        text = asyncio.run(asyncio.wait_for(execute(url, kernel["id"], "print(6 * 7)"), 60))
    finally:
        call(f"{url}/api/kernels/{kernel['id']}", "DELETE")
    if text.strip() != "42":
        raise SystemExit(f"the kernel answered {text!r}")
    print(f"{url} runs kernels")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
