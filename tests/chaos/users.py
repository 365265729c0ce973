"""The users of the installation: notebooks that count, and people who come and go."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tornado.websocket import WebSocketClosedError

from tests.support.gateway import KernelSocket

from .counting_kernel import COUNT, EXPRESSIONS
from .installation import REQUEST_SECONDS, Installation
from .plan import LONGEST_FREEZE_SECONDS
from .process_table import lives

REFUSED = {503}  # the store is away, or the replica is being stopped
READ_SECONDS = 3600.0
SETTLED_SECONDS = 60.0  # after which a restart that was not granted cannot come any more


@dataclass
class Kernel:
    """A kernel, and what its user knows of it."""

    user: str
    name: str
    kernel_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    is_wanted: bool = False
    """Whether its start was answered, and nobody has asked for its end."""
    pid: int = 0
    count: int = 0
    unsure: int = 0
    """How many cells may still be executed, or were without that their user knows: each once, at any time."""
    told: list[str] = field(default_factory=list)
    """What the user heard of restarts since the last answer."""
    may_be_replaced_until: float = 0.0
    """Until when the user's own request to restart it may take effect."""


class Users:
    """Everything that a client does."""

    def __init__(self, installation: Installation) -> None:
        self._there = installation
        self._journal = installation.journal

    async def start(self, kernel: Kernel, number: int) -> bool:
        """Ask a replica for a kernel; whether it was started."""
        body = {"name": kernel.name, "env": {"KERNEL_ID": kernel.kernel_id, "KERNEL_USERNAME": kernel.user}}
        # 403: a limit. 409: the start was given up, or the kernel is there after all, from an attempt that was cut off.
        allowed = {201, 403, 409, *REFUSED}
        answer = await self._there.ask(
            number, "POST", "/api/kernels", body, allowed=allowed, kernel_id=kernel.kernel_id
        )
        kernel.is_wanted = answer.status == 201
        return kernel.is_wanted

    async def restart(self, kernel: Kernel, number: int) -> bool:
        """Ask a replica to restart a kernel; whether it says that it did."""
        kernel.may_be_replaced_until = float("inf")
        kernel.told.append("(its user asked for a restart)")
        path, allowed = f"/api/kernels/{kernel.kernel_id}/restart", {200, 409, *REFUSED}
        answer = await self._there.ask(number, "POST", path, allowed=allowed, kernel_id=kernel.kernel_id)
        kernel.told.append("(its user asked for a restart)")
        kernel.may_be_replaced_until = time.monotonic() + (5 if answer.status == 200 else SETTLED_SECONDS)
        return answer.status == 200

    async def delete(self, kernel: Kernel, number: int) -> None:
        """Delete a kernel, by that replica first, as often as it takes to hear that it is gone."""
        kernel.is_wanted, end = False, time.monotonic() + REQUEST_SECONDS + LONGEST_FREEZE_SECONDS
        random = Random(kernel.kernel_id)
        while True:
            path, allowed = f"/api/kernels/{kernel.kernel_id}", {204, 404, 409, *REFUSED}
            answer = await self._there.ask(number, "DELETE", path, allowed=allowed, kernel_id=kernel.kernel_id)
            if answer.status in {204, 404}:
                return
            if time.monotonic() > end:
                self._journal.violation("cannot be deleted", kernel.kernel_id)
                return
            await asyncio.sleep(0.5)
            number = self._there.choose(random)

    async def come_and_go(self, user: str, until: asyncio.Event) -> None:
        """Start a kernel, use it for a moment, delete it, and so on."""
        random = Random(user)
        while not until.is_set():
            kernel = Kernel(user, "counting")
            await self.start(kernel, self._there.choose(random))
            if kernel.is_wanted:
                await Notebook(self._there, kernel, random).count_once()
            await self.delete(kernel, self._there.choose(random))
            await asyncio.sleep(random.uniform(0.3, 1.5))


class Notebook:
    """Executes one cell after the other, and connects again through any replica when its websocket is closed."""

    def __init__(self, installation: Installation, kernel: Kernel, random: Random) -> None:
        self.kernel = kernel
        self.cells = 0
        self._there, self._journal, self._random = installation, installation.journal, random
        self._session_id = uuid.uuid4().hex
        self._socket: KernelSocket | None = None
        self._reading: asyncio.Task[Any] | None = None

    async def run(self, until: asyncio.Event) -> None:
        """Count until the run ends."""
        while not until.is_set():
            await self._count()
            await asyncio.sleep(self._random.uniform(0.1, 0.4))
        await self.close()

    async def count_once(self, number: int | None = None) -> bool:
        """Execute one cell on a websocket of its own, through that replica; whether it was answered."""
        await self._connect(number)
        answered = await self._count()
        await self.close()
        return answered

    async def close(self) -> None:
        """Close the websocket, and receive what still arrives."""
        socket, self._socket = self._socket, None
        if socket is None:
            return
        socket.close()
        while not socket.has_ended:
            message = await self._receive(socket)
            if message is not None:
                self._hear(message["msg_type"], message["content"])

    async def _receive(self, socket: KernelSocket, seconds: float | None = None) -> Any:
        """Return the next message, None at the end of the websocket.

        Raises
        ------
        TimeoutError
            Nothing came; what comes next is not lost, as it could be if the reading were cancelled.
        """
        self._reading = self._reading or asyncio.create_task(socket.receive(READ_SECONDS))
        if not (await asyncio.wait([self._reading], timeout=seconds))[0]:
            raise TimeoutError
        reading, self._reading = self._reading, None
        return reading.result()

    async def _connect(self, number: int | None = None) -> bool:
        number = self._there.choose(self._random) if number is None else number
        self._socket = await self._there.open(number, self.kernel.kernel_id, self._session_id)
        if self._socket is None:
            await asyncio.sleep(0.3)
        return self._socket is not None

    async def _count(self) -> bool:
        """Execute one cell; whether it was answered."""
        if self._socket is None and not await self._connect():
            return False
        assert self._socket is not None
        kernel = self.kernel
        content = {"code": COUNT, "silent": False, "user_expressions": EXPRESSIONS, "allow_stdin": False}
        sent, kernel.unsure = time.monotonic(), kernel.unsure + 1
        try:
            request = await self._socket.send("execute_request", content)
            reply = await self._reply(request, sent)
        except WebSocketClosedError:
            reply = None
        if reply is None:
            await self.close()
            return False
        self.cells += 1
        if reply["status"] == "ok":
            self._check(*map(int, reply["user_expressions"]["count"]["data"]["text/plain"].strip("'").split()))
        else:
            kernel.told.append(f"{reply.get('ename')}: {reply.get('evalue')}")
        return True

    async def _reply(self, request: str, sent: float) -> dict[str, Any] | None:
        """Return the reply to a request, once the kernel is idle again; None when the user must do without it."""
        socket, reply, is_idle = self._socket, None, False
        assert socket is not None
        while reply is None or not is_idle:
            try:
                message = await self._receive(socket, 1)
            except TimeoutError:
                waited = time.monotonic() - sent
                if self.kernel.told and waited > 5:
                    return None  # the user was told that the kernel is another one, and tries again
                if waited > REQUEST_SECONDS + LONGEST_FREEZE_SECONDS:
                    self._journal.violation(f"a cell has no reply after {waited:.0f} s", self.kernel.kernel_id)
                    return None
                continue
            if message is None:
                return None
            kind, answer, parent = message["msg_type"], message["content"], message["parent_header"].get("msg_id")
            self._hear(kind, answer)
            if parent == request:
                reply = answer if kind == "execute_reply" else reply
                is_idle = is_idle or (kind == "status" and answer["execution_state"] == "idle")
        return reply

    def _hear(self, kind: str, content: dict[str, Any]) -> None:
        """Note messages that report a restart."""
        if kind == "status" and content["execution_state"] in {"restarting", "dead"}:
            self.kernel.told.append(content["execution_state"])
        elif kind == "stream" and any(word in content["text"] for word in ("died", "dead", "restarted once more")):
            self.kernel.told.append(content["text"].strip())

    def _check(self, pid: int, count: int) -> None:
        kernel = self.kernel
        if pid == kernel.pid:
            if not kernel.count < count <= kernel.count + kernel.unsure:
                self._journal.violation(
                    f"process {pid} counted {count} after {kernel.count}, with {kernel.unsure} cells not answered",
                    kernel.kernel_id,
                )
            lies = [text for text in kernel.told if "died" in text or "dead" in text]
            if lies and lives(pid):
                self._journal.violation(f"process {pid} lives, and its user was told {lies}", kernel.kernel_id)
        elif kernel.pid and not kernel.told and time.monotonic() > kernel.may_be_replaced_until:
            self._journal.violation(
                f"the counter went back from {kernel.count} to {count} (process {kernel.pid} is {pid} now), "
                f"and nobody told its user",
                kernel.kernel_id,
            )
        kernel.unsure = max(0, kernel.unsure - (count - kernel.count if pid == kernel.pid else count))
        kernel.pid, kernel.count = pid, count
        kernel.told.clear()
