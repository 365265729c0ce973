"""JupyterLab's debugger works through the gateway: requests on the control channel, events on iopub."""

from __future__ import annotations

from typing import Any

from tests.support.gateway import KernelSocket, running_gateway

CODE = "total = 0\nfor i in range(3):\n    total += i\nprint(total)\n"


class Debugger:
    """Speaks the debug adapter protocol over a kernel's control channel, as JupyterLab does."""

    def __init__(self, socket: KernelSocket) -> None:
        self._socket = socket
        self._sequence = 0
        self.events: list[Any] = []
        self.text = ""

    async def request(self, command: str, **arguments: Any) -> Any:
        """Send one request and return the body of its reply; other messages are kept."""
        self._sequence += 1
        content = {"type": "request", "seq": self._sequence, "command": command, "arguments": arguments}
        msg_id = await self._socket.send("debug_request", content, channel="control")
        *others, reply = await self._socket.receive_until("debug_reply", parent=msg_id)
        self._keep(others)
        assert reply["content"]["success"], reply["content"]
        return reply["content"].get("body") or {}

    async def event(self, name: str) -> Any:
        """Return the body of the next event of that name."""
        while not any(event["event"] == name for event in self.events):
            self._keep(await self._socket.receive_until("debug_event"))
        event = next(event for event in self.events if event["event"] == name)
        self.events.remove(event)
        return event.get("body")

    async def output(self) -> str:
        """Return what the code has printed; waits for a whole line."""
        while not self.text.endswith("\n"):
            self._keep(await self._socket.receive_until("stream"))
        return self.text

    def _keep(self, messages: list[Any]) -> None:
        """Keep what came on other channels: their order among each other is nobody's promise."""
        for message in messages:
            if message["msg_type"] == "debug_event":
                self.events.append(message["content"])
            elif message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                self.text += message["content"]["text"]


async def test_a_breakpoint_stops_the_code_and_shows_its_variables() -> None:
    """The code stops where it was told to, its variables are there, and it goes on to the end."""
    async with running_gateway() as gateway:
        socket = await gateway.websocket(await gateway.start_kernel())
        debugger = Debugger(socket)
        await debugger.request("initialize", clientID="test", adapterID="", linesStartAt1=True, columnsStartAt1=True)
        await debugger.request("attach")
        cell = await debugger.request("dumpCell", code=CODE)
        source = {"path": cell["sourcePath"]}
        placed = await debugger.request("setBreakpoints", source=source, breakpoints=[{"line": 3}])
        assert placed["breakpoints"][0]["verified"]
        await debugger.request("configurationDone")

        content = {"code": CODE, "silent": False, "store_history": True, "allow_stdin": False}
        await socket.send("execute_request", content)
        stopped = await debugger.event("stopped")
        assert stopped["reason"] == "breakpoint"
        frames = await debugger.request("stackTrace", threadId=stopped["threadId"])
        frame = frames["stackFrames"][0]
        assert (frame["line"], frame["source"]["path"]) == (3, cell["sourcePath"])
        variables = (await debugger.request("inspectVariables"))["variables"]
        assert {"total", "i"} <= {variable["name"] for variable in variables}

        await debugger.request("setBreakpoints", source=source, breakpoints=[])
        await debugger.request("continue", threadId=stopped["threadId"])
        assert await debugger.output() == "3\n"
        await debugger.request("disconnect", restart=False, terminateDebuggee=False)
