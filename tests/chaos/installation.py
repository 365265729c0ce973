"""Three replicas and their database, all of which can be made to fail, and requests to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from tests.clusters.load_balancers import free_ports
from tests.clusters.postgres import PostgresServer
from tests.replicas.conftest import Replicas
from tests.support.gateway import Client, KernelSocket
from tests.support.tcpproxy import TcpProxy

from .journal import Journal
from .plan import LONGEST_FREEZE_SECONDS, REPLICAS, Fault

REQUEST_SECONDS = 42.0
"""How long an answer may take: what Jupyter Server's gateway client waits for by default."""
STOP_SECONDS = 40.0
RECORD_SECONDS = 3.0
"""How long it may take after the store's return until what was launched without it is recorded."""


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 when the replica was stopped or killed before it answered."""

    status: int
    body: Any = None


class Installation(Replicas):
    """Replicas without a load balancer: each client chooses one, so that it is known whether a failure is excused."""

    def __init__(self, directory: Path, server: PostgresServer, proxy: TcpProxy, journal: Journal) -> None:
        super().__init__(directory, server.url.replace(f":{server.port}/", f":{proxy.port}/"))
        self.server, self.proxy_of_store, self.journal = server, proxy, journal
        self._outages: list[tuple[float, float]] = []
        self._troubles: dict[int, list[tuple[float, float]]] = {number: [] for number in range(REPLICAS)}

    async def start_all(self, *options: str) -> None:
        """Start the replicas."""
        self.options, self.ports = list(options), free_ports(REPLICAS)
        self.processes = [self._process(number) for number in range(REPLICAS)]
        await asyncio.gather(*(asyncio.to_thread(process.start) for process in self.processes))
        self.clients = [Client(f"http://127.0.0.1:{port}") for port in self.ports]

    # -- faults -------------------------------------------------------------------------------------------------------

    async def fail(self, fault: Fault) -> None:
        """Let a fault happen, and mend it."""
        number = fault.target
        if fault.kind == "store stops":
            with _noted(self._outages):
                await asyncio.to_thread(self.server.stop)
                await asyncio.sleep(fault.lasts_seconds)
                await asyncio.to_thread(self.server.start)
        elif fault.kind == "store is cut off":
            with _noted(self._outages):
                self.proxy_of_store.refuse = True
                await asyncio.to_thread(self.proxy_of_store.cut)
                await asyncio.sleep(fault.lasts_seconds)
                self.proxy_of_store.refuse = False
        elif fault.kind == "freeze":
            with _noted(self._troubles[number]):
                await self._frozen(number, fault.lasts_seconds)
        else:
            with _noted(self._troubles[number]):
                await self._replaced(number, fault)
        self.journal.note(f"mended: {fault.kind}")

    async def _frozen(self, number: int, seconds: float) -> None:
        process = self.processes[number].process
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            process.send_signal(signal.SIGCONT)

    async def _replaced(self, number: int, fault: Fault) -> None:
        began = time.monotonic()
        if fault.kind == "replica is killed":
            await asyncio.to_thread(self.kill, number)
        else:
            try:
                code = await asyncio.to_thread(self.processes[number].stop, STOP_SECONDS)
            except AssertionError:
                self.journal.violation(f"replica {number} did not end within {STOP_SECONDS:g} s of SIGTERM")
            else:
                if code:
                    self.journal.violation(f"replica {number} ended with {code} after SIGTERM")
        self.journal.note(f"replica {number} has ended after {time.monotonic() - began:.1f} s")
        await asyncio.sleep(fault.lasts_seconds)
        await asyncio.to_thread(self.start_again, number)

    def is_in_trouble(self, number: int) -> bool:
        """Whether a replica is frozen or gone."""
        return self.seconds_of_trouble(number, time.monotonic()) > 0

    def seconds_of_trouble(self, number: int, since: float) -> float:
        """Return for how much of the time since then a replica has been frozen or gone; a moment counts, too."""
        now = time.monotonic()
        recent = [(max(begin, since), min(end, now)) for begin, end in self._troubles[number] if end >= since]
        return sum(max(0.001, end - begin) for begin, end in recent)

    def may_be_unrecorded(self, number: int, began: float) -> bool:
        """Whether what a replica launched then was never recorded, because the replica failed before it could write it.

        Nobody else can reach such a process: it is replaced.
        """
        ends = [end + RECORD_SECONDS for begin, end in self._outages if begin - 1 <= began <= end + 1]
        due = max(ends, default=began + 1)
        return any(begin <= due and end >= began - 1 for begin, end in self._troubles[number])

    def choose(self, random: Random) -> int:
        """Return one of the replicas that are well."""
        return random.choice([number for number in range(REPLICAS) if not self.is_in_trouble(number)])

    # -- requests -----------------------------------------------------------------------------------------------------

    async def ask(
        self, number: int, verb: str, path: str, body: Any = None, *, allowed: Collection[int], kernel_id: str = ""
    ) -> Answer:
        """Send a request to a replica; what comes back is clean, in time, and of an allowed status, or a violation."""
        sent, what = time.monotonic(), f"{verb} {path} of replica {number}"
        try:
            response = await self.clients[number].fetch(
                path, verb, body, request_timeout=REQUEST_SECONDS + LONGEST_FREEZE_SECONDS + 5
            )
        except (HTTPClientError, OSError) as error:
            self._check_time(number, sent, what, kernel_id)
            if not self.seconds_of_trouble(number, sent):
                self.journal.violation(f"{what} was not answered: {error!r}", kernel_id)
            return Answer(0)
        self._check_time(number, sent, what, kernel_id)
        answer = Answer(response.code, _json(response.body))
        if problem := _problem(answer, allowed):
            self.journal.violation(f"{what}: {response.code} {response.body[:500]!r}, {problem}", kernel_id)
        return answer

    async def open(self, number: int, kernel_id: str, session_id: str) -> KernelSocket | None:
        """Open a websocket through a replica; None when it is refused cleanly."""
        sent, what = time.monotonic(), f"a websocket of replica {number}"
        patience = REQUEST_SECONDS + LONGEST_FREEZE_SECONDS + 5
        url = f"{self.clients[number].url}/api/kernels/{kernel_id}/channels?session_id={session_id}"
        request = HTTPRequest(url.replace("http", "ws", 1), connect_timeout=patience, request_timeout=patience)
        try:
            connection = await websocket_connect(request)
        except (HTTPClientError, OSError) as error:
            self._check_time(number, sent, what, kernel_id)
            status = error.code if isinstance(error, HTTPClientError) and error.code < 599 else 0
            if status != 503 and (status or not self.seconds_of_trouble(number, sent)):
                self.journal.violation(f"{what} was refused: {error!r}", kernel_id)
            return None
        self._check_time(number, sent, what, kernel_id)
        return KernelSocket(connection, session_id)

    def _check_time(self, number: int, sent: float, what: str, kernel_id: str) -> None:
        seconds = time.monotonic() - sent - self.seconds_of_trouble(number, sent)
        if seconds > REQUEST_SECONDS:
            self.journal.violation(f"{what} took {seconds:.0f} s", kernel_id, kind="slow answer")

    def end(self) -> None:
        """End what a run that broke off has left, frozen or not; blocks."""
        for process in self.processes:
            if process._process is not None and process.process.poll() is None:
                process.process.kill()
                process.process.wait()
        self._kill_what_is_left()

    def files(self) -> list[str]:
        """Return the files of kernels that there are."""
        data = Path(os.environ["JUPYTER_DATA_DIR"])
        found = [path for root in (data, *self.directory.glob("runtime*")) for path in root.rglob("*kernel-*")]
        return sorted(str(path) for path in found)


@contextlib.contextmanager
def _noted(periods: list[tuple[float, float]]) -> Iterator[None]:
    """Add the time that a block takes; as long as it lasts, without end."""
    began = time.monotonic()
    periods.append((began, float("inf")))
    try:
        yield
    finally:
        periods[-1] = (began, time.monotonic())


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body


def _problem(answer: Answer, allowed: Collection[int]) -> str:
    if answer.status not in allowed:
        return f"allowed are {sorted(allowed)}"
    if answer.status >= 400 and not (isinstance(answer.body, dict) and answer.body.get("message")):
        return "without a message"
    return "with a traceback" if "Traceback" in str(answer.body) else ""
