"""Rolling restarts: replicas are replaced one after the other while clients keep working."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import pytest
from tornado import web
from tornado.websocket import WebSocketClosedError

from tests.clusters.load_balancers import free_ports, haproxy
from tests.support.gateway import Client
from tests.support.kernelspecs import write_kernelspec

from .conftest import connected, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# Several replicas on one SQLite database are for one machine, and the rare case.
RESTARTS = {"postgresql": 20, "sqlite": 6}
SLOW = {"class_name": "tests.support.proxies.SlowProxy", "config": {"seconds": 3}}
GET, POST = ("GET",), ("POST", {})


class Notebook:
    """A client that executes all the time: it counts in the kernel, and reconnects when its websocket is closed."""

    def __init__(self, client, kernel_id):
        self.client, self.kernel_id = client, kernel_id
        self.done = self.cut = 0
        self.longest = 0.0

    async def run(self, until):
        socket, last = await connected(self.client, self.kernel_id), time.monotonic()
        value = 0
        while not until.is_set():
            try:
                text, reply = await socket.execute("x = globals().get('x', 0) + 1; print(x)", timeout=20)
            except (AssertionError, WebSocketClosedError):
                self.cut += 1  # the client was told: it does not know whether its last cell was executed
                socket = await connected(self.client, self.kernel_id, socket.session_id)
                continue
            assert reply["status"] == "ok"
            assert int(text) in range(value + 1, value + 3 + self.cut), "the kernel is another one"
            value = int(text)
            self.done += 1
            self.longest = max(self.longest, time.monotonic() - last)
            last = time.monotonic()
            await asyncio.sleep(0.02)
        text, _ = await socket.execute("x")
        assert self.done <= int(text) <= self.done + self.cut


class Requests:
    """A client that sends requests all the time, each on a connection of its own."""

    def __init__(self, client, kernel_ids):
        self.client, self.kernel_ids = client, kernel_ids
        self.answers = Counter()

    async def run(self, until):
        while not until.is_set():
            kernels = await self.client.fetch("/api/kernels")
            self.answers["GET", kernels.code] += 1
            if kernels.code == 200:
                assert set(self.kernel_ids) <= {kernel["id"] for kernel in json.loads(kernels.body)}
            for kernel_id in self.kernel_ids:
                answer = await self.client.fetch(f"/api/kernels/{kernel_id}")
                self.answers["GET", answer.code] += 1
            await asyncio.sleep(0.05)

    async def start_and_delete(self, until):
        while not until.is_set():
            kernel = await self.client.fetch("/api/kernels", "POST", {"name": "python3"})
            self.answers["POST", kernel.code] += 1
            if kernel.code == 201:
                await self._delete(kernel)
            await asyncio.sleep(0.5)

    async def _delete(self, kernel):
        path = kernel.headers["Location"]
        while True:
            answer = await self.client.fetch(path, "DELETE")
            self.answers["DELETE", answer.code] += 1
            if answer.code in {204, 404}:
                return


async def all_of(*work):
    """Run all to their ends, or to the first failure."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _restart_in_turn(replicas, until):
    for number in range(RESTARTS[replicas.database_url.partition(":")[0]]):
        await replicas.restart(number % 2)
        await asyncio.sleep(0.3)
    until.set()


async def test_rolling_restarts_lose_nothing(replicas):
    """A replica is gracefully stopped and started again and again under clients that never pause.

    Every request is answered or ends with a clean error (502 or 503, or a closed websocket, after which the client goes
    on through the other replica), and every kernel stays the same process with its variables.
    """
    await replicas.start()
    client = replicas.through_proxy
    kernel_ids = [await client.start_kernel() for _ in range(3)]
    until = asyncio.Event()
    notebooks = [Notebook(client, kernel_id) for kernel_id in kernel_ids]
    requests = Requests(client, kernel_ids)
    work = [*(notebook.run(until) for notebook in notebooks), requests.run(until), requests.start_and_delete(until)]
    await all_of(_restart_in_turn(replicas, until), *work)
    print({"done": [n.done for n in notebooks], "cut": [n.cut for n in notebooks]}, dict(requests.answers))
    # 502: of the proxy, for a request in progress to a replica that ended; 409: a start that was cancelled
    # then; 404: a second attempt to delete, where only the answer to the first was lost.
    errors = {entry for entry in requests.answers if entry[1] >= 400}
    assert errors <= {(verb, code) for verb in ("GET", "POST", "DELETE") for code in (502, 503)} | {
        ("POST", 409),
        ("DELETE", 404),
    }
    assert all(notebook.longest < 5 for notebook in notebooks), [notebook.longest for notebook in notebooks]
    assert {kernel["id"] for kernel in await client.call("/api/kernels")} == set(kernel_ids)
    assert "Traceback" not in replicas.output
    assert "has died" not in replicas.output


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("load_balancer", ["haproxy", "nginx"])
async def test_starts_in_progress_are_answered_when_their_replica_is_stopped(replicas, load_balancer):
    """However long they take; the load balancer finds the replica's port closed meanwhile and cuts nothing."""
    replicas.load_balancer = load_balancer
    await replicas.start()
    write_kernelspec("slow", metadata={"process_proxy": SLOW})
    client = replicas.through_proxy
    starts = [asyncio.create_task(client.fetch("/api/kernels", "POST", {"name": "slow"})) for _ in range(4)]
    await asyncio.sleep(1)
    await replicas.restart(0)
    answers = await asyncio.gather(*starts)
    assert [answer.code for answer in answers] == [201] * 4
    kernel_ids = {json.loads(answer.body)["id"] for answer in answers}
    assert {kernel["id"] for kernel in await client.call("/api/kernels")} == kernel_ids


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_suspended_replica_gets_no_more_requests(replicas):
    """HAProxy notices within seconds; the replica answers what it had received when it continues."""
    await replicas.start()
    client = replicas.through_proxy
    with replicas.frozen(0):
        caught = [asyncio.create_task(client.fetch("/api/kernels")) for _ in range(2)]

        async def all_are_answered():
            quick = [client.fetch("/api/kernels", request_timeout=1) for _ in range(4)]
            answers = await asyncio.gather(*quick, return_exceptions=True)
            return all(getattr(answer, "code", 0) == 200 for answer in answers)

        await eventually(all_are_answered)
    assert [(await request).code for request in caught] == [200, 200]


class Replica(web.RequestHandler):
    """A replica between the signal to stop and the closing of its port, or one that stays."""

    def initialize(self, code):
        self.code = code

    def get(self):
        self.set_status(200 if self.request.path == "/api" else self.code)  # it passed the last check of its health

    def post(self):
        self.set_status(self.code)


@pytest.mark.needs("haproxy")
async def test_a_get_that_a_replica_refuses_is_retried_on_another(tmp_path):
    """With the documented HAProxy; a request that may have had an effect is not sent twice."""
    ports = free_ports(2)
    replicas = [
        web.Application([("/.*", Replica, {"code": code})]).listen(port, "127.0.0.1")
        for port, code in zip(ports, (503, 200), strict=True)
    ]
    proxy = haproxy(tmp_path, ports)
    url = proxy.url
    async with proxy, Client(url) as client:

        async def only_gets_are_sent_twice():
            try:
                codes = [{(await client.fetch("/api/x", *verb)).code for _ in range(4)} for verb in (POST, GET, POST)]
            except OSError:  # it does not listen yet
                return False
            return codes == [{200, 503}, {200}, {200, 503}]

        await eventually(only_gets_are_sent_twice)
    for replica in replicas:
        replica.stop()
