"""The scenarios: each function runs against one freshly started gateway and returns named numbers."""

from __future__ import annotations

import contextlib
import random
import selectors
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from client import HttpConnection, RequestError, WebSocket, checked
from targets import FARMS, Gateway, kernel_request

Numbers = dict[str, float]
T = TypeVar("T", HttpConnection, WebSocket)


@dataclass(frozen=True)
class Effort:
    """How long to measure; ``quick`` runs are for trying the suite out."""

    seconds: float
    executes: int
    stream: int
    many_kernels: int
    idle_seconds: float
    remote_starts: int
    start_limit_seconds: float


FULL = Effort(3.0, 400, 20000, 1000, 20.0, 8, 90.0)
QUICK = Effort(1.0, 50, 5000, 60, 4.0, 3, 20.0)


def round_trip(gateway: Gateway, effort: Effort) -> Numbers:
    """Execute repeatedly through one websocket; each request follows the previous one's idle status."""
    numbers: Numbers = {}
    kernel_id = start(gateway)
    for name, v1 in (("", True), ("_legacy", False)):
        with contextlib.closing(WebSocket(gateway.port, kernel_id, v1=v1)) as ws:
            ws.complete(ws.request("kernel_info_request"), b"kernel_info_reply")
            for _ in range(10):
                ws.execute()
            times = timed(ws.execute, effort.executes, effort.seconds)
            numbers[f"execute_p50{name}"] = percentile(times, 50)
            numbers[f"execute_p99{name}"] = percentile(times, 99)
    return numbers


def many_kernels(gateway: Gateway, effort: Effort) -> Numbers:
    """50 kernels, a websocket each, all of them executing continuously."""
    with opened(gateway, 50) as sockets:
        return busy(gateway, sockets, effort.seconds)


def busy(gateway: Gateway, sockets: list[WebSocket], seconds: float) -> Numbers:
    """Keep one execute in flight on each websocket, and count how many complete."""
    ids: dict[WebSocket, bytes] = {}
    missing: dict[WebSocket, int] = {}
    with selector_of(sockets) as selector:
        for ws in sockets:
            ids[ws], missing[ws] = ws.request("execute_request"), 2
        done, cpu, started = 0, gateway.cpu(), time.monotonic()
        last = started
        while (now := time.monotonic()) < started + seconds:
            if now > last + 20:
                raise RequestError("no execute completed for 20 s")
            for key, _ in selector.select(1):
                ws = key.data
                for message in ws.feed():
                    if ids[ws] in message and (b"execute_reply" in message or b'"idle"' in message):
                        missing[ws] -= 1
                        if not missing[ws]:
                            ids[ws], missing[ws] = ws.request("execute_request"), 2
                            done, last = done + 1, now
        cpu, elapsed = gateway.cpu() - cpu, time.monotonic() - started
    if not done:
        raise RequestError("no execute completed")
    return {"many_rate": done / elapsed, "many_cpu_ms": cpu / done * 1000}


def stream(gateway: Gateway, effort: Effort) -> Numbers:
    """One cell that prints 20,000 numbered lines, each a message; every line must arrive, in order."""
    numbers: Numbers = {}
    kernel_id = start(gateway)
    for name, v1 in (("", True), ("_legacy", False)):
        with contextlib.closing(WebSocket(gateway.port, kernel_id, v1=v1)) as ws:
            ws.complete(ws.request("kernel_info_request"), b"kernel_info_reply")
            ws.execute()
            cpu, started = gateway.cpu(), time.monotonic()
            msg_id = ws.execute_code(f"stream {effort.stream}")
            missing, lines, messages = 2, 0, 0
            while missing:
                for message in ws.feed():
                    found = message.count(b"~")
                    if found:
                        if b"line %05d~" % lines not in message:
                            raise RequestError(f"line {lines} of {effort.stream} was dropped or is out of order")
                        lines, messages = lines + found, messages + 1
                    elif msg_id in message and (b"execute_reply" in message or b'"idle"' in message):
                        missing -= 1
            elapsed, cpu = time.monotonic() - started, gateway.cpu() - cpu
        if lines != effort.stream:
            raise RequestError(f"{effort.stream - lines} of {effort.stream} stream messages were dropped")
        numbers[f"stream_rate{name}"] = lines / elapsed
        numbers[f"stream_cpu_us{name}"] = cpu / lines * 1e6
        numbers[f"stream_frames{name}"] = messages
    return numbers


def open_websocket(gateway: Gateway, effort: Effort) -> Numbers:
    """Open a websocket to a running kernel: the time to the 101 response, and to the first reply."""
    kernel_id = start(gateway)
    shaken: list[float] = []
    replied: list[float] = []
    end = time.monotonic() + effort.seconds * 2
    while len(shaken) < 30 and time.monotonic() < end:
        started = time.monotonic()
        with contextlib.closing(WebSocket(gateway.port, kernel_id, v1=True)) as ws:
            shaken.append((time.monotonic() - started) * 1000)
            ws.complete(ws.request("kernel_info_request"), b"kernel_info_reply")
            replied.append((time.monotonic() - started) * 1000)
        time.sleep(0.02)
    return {"open_101": percentile(shaken[1:], 50), "open_reply": percentile(replied[1:], 50)}


def api_during_starts(gateway: Gateway, _effort: Effort) -> Numbers:
    """Start 20 kernels at once: with GET /api, one after the other with 1 ms between, from first to last; and alone.

    A gateway that answers no other request meanwhile spends no time on it, so that only the latter compares the starts.
    """
    times: list[float] = []
    spans: list[float] = []
    with contextlib.closing(HttpConnection(gateway.port)) as connection:
        get(connection)
        for _ in range(4):
            spans.append(_start_at_once(gateway, lambda: times.append(get(connection))))
    alone = [_start_at_once(gateway) for _ in range(4)]
    return {
        "api_starts_p50": percentile(times, 50),
        "api_starts_p99": percentile(times, 99),
        "starts_20": percentile(spans, 50),
        "starts_20_alone": percentile(alone, 50),
    }


def _start_at_once(gateway: Gateway, meanwhile: Callable[[], None] = lambda: None) -> float:
    """Start 20 kernels at once and call ``meanwhile`` again and again; return the milliseconds to the last answer."""
    posts = [HttpConnection(gateway.port) for _ in range(20)]
    started = time.monotonic()
    for number, post in enumerate(posts):
        post.send("POST", "/api/kernels", kernel_request(f"tiny{number % FARMS}"))
    waiting = set(posts)
    with selector_of(posts) as selector:
        while waiting and time.monotonic() < started + 60:
            meanwhile()
            for key, _ in selector.select(0.001):
                key.data.feed()
                answer = key.data.parse()
                if answer is not None:
                    checked(answer)
                    waiting.discard(key.data)
    if waiting:
        raise RequestError("kernels did not start within 60 s")
    span = (time.monotonic() - started) * 1000
    for post in posts:
        post.close()
    return span


def kernelspecs(gateway: Gateway, effort: Effort) -> Numbers:
    """GET /api/kernelspecs with 60 specs over 4 keep-alive connections, each sending the next request at once."""
    connections = [HttpConnection(gateway.port) for _ in range(4)]
    listed = connections[0].call("GET", "/api/kernelspecs")["kernelspecs"]
    if len(listed) < 60:
        raise RequestError(f"{len(listed)} kernelspecs were listed, not 60")
    done, end = 0, time.monotonic() + effort.seconds
    with selector_of(connections) as selector:
        for connection in connections:
            connection.send("GET", "/api/kernelspecs")
        started = time.monotonic()
        while time.monotonic() < end:
            for key, _ in selector.select(1):
                key.data.feed()
                answer = key.data.parse()
                if answer is not None:
                    if answer[0] != 200:
                        checked(answer)
                    done += 1
                    key.data.send("GET", "/api/kernelspecs")
        elapsed = time.monotonic() - started
    for connection in connections:
        connection.close()
    return {"kernelspecs_rate": done / elapsed}


def hundred(gateway: Gateway, effort: Effort) -> Numbers:
    """100 local kernels, a websocket each, which peers can still serve."""
    return crowd(gateway, replace(effort, many_kernels=100, idle_seconds=effort.idle_seconds / 3), "tiny", "hundred")


def thousand(gateway: Gateway, effort: Effort) -> Numbers:
    """1,000 local kernels, a websocket each: memory per kernel, idle CPU, and a check that each still executes."""
    return crowd(gateway, effort, "tiny", "thousand")


def thousand_remote(gateway: Gateway, effort: Effort) -> Numbers:
    """1,000 kernels behind remote launchers, a websocket each: idle CPU with liveness checks on."""
    return crowd(gateway, effort, "remote", "remote_thousand")


def crowd(gateway: Gateway, effort: Effort, spec: str, prefix: str) -> Numbers:
    with contextlib.closing(HttpConnection(gateway.port)) as connection:
        for number in range(FARMS):
            delete(connection, gateway.start_kernel(connection, f"{spec}{number}"))
    time.sleep(0.5)
    before = gateway.memory()
    started = time.monotonic()
    with opened(gateway, effort.many_kernels, spec, effort.start_limit_seconds) as sockets:
        numbers = {f"{prefix}_start_s": time.monotonic() - started}
        time.sleep(2)
        after = gateway.memory()
        cpu, began = gateway.cpu(), time.monotonic()
        time.sleep(effort.idle_seconds)
        numbers[f"{prefix}_idle"] = (gateway.cpu() - cpu) / (time.monotonic() - began) * 100
        for kind in ("rss", "uss", "pss"):
            numbers[f"{prefix}_{kind}_kb"] = (after[kind] - before[kind]) / len(sockets)
        for ws in sockets:
            ws.execute()
    return numbers


def remote_start(gateway: Gateway, effort: Effort) -> Numbers:
    """Sequential remote starts, minus the time that the launcher itself needs."""
    launcher = launcher_time(gateway)
    times = []
    with contextlib.closing(HttpConnection(gateway.port)) as connection:
        gateway.start_kernel(connection, "remote0")
        for _ in range(effort.remote_starts):
            began = time.monotonic()
            gateway.start_kernel(connection, "remote0")
            times.append((time.monotonic() - began) * 1000)
    post = percentile(times, 50)
    return {"remote_start": post - launcher, "remote_post": post, "launcher": launcher}


def launcher_time(gateway: Gateway) -> float:
    """Milliseconds from starting the stub launcher by hand to the end of its response, the median of nine."""
    import base64
    import socket

    from Cryptodome.PublicKey import RSA

    public_key = base64.b64encode(RSA.generate(2048).publickey().export_key("DER")).decode()
    times = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        for number in range(9):
            began = time.monotonic()
            argv = ["/bin/sh", str(gateway.farms.remote_stub())]
            words = [f"bench-{number}", f"127.0.0.1:{server.getsockname()[1]}", public_key, "0..0"]
            for word in words:
                argv += ["--option", word]
            stub = subprocess.Popen(argv, start_new_session=True)
            connection, _ = server.accept()
            with connection:
                while connection.recv(65536):
                    pass
            times.append((time.monotonic() - began) * 1000)
            stub.kill()
            stub.wait()
    return percentile(times, 50)


def remote_burst(gateway: Gateway, _effort: Effort) -> Numbers:
    """30 concurrent remote starts: the time until the last is answered, and until each has executed a cell."""
    with contextlib.closing(HttpConnection(gateway.port)) as connection:
        gateway.start_kernel(connection, "remote0")
    posts = [HttpConnection(gateway.port) for _ in range(30)]
    sockets: list[WebSocket] = []
    began = time.monotonic()
    for number, post in enumerate(posts):
        post.send("POST", "/api/kernels", kernel_request(f"remote{number % FARMS}"))
    waiting = set(posts)
    with selector_of(posts) as selector:
        while waiting and time.monotonic() < began + 60:
            for key, _ in selector.select(1):
                key.data.feed()
                answer = key.data.parse()
                if answer is not None:
                    kernel_id = checked(answer)["id"]
                    waiting.discard(key.data)
                    sockets.append(WebSocket(gateway.port, kernel_id, v1=True))
                    sockets[-1].request("execute_request")
    answered = time.monotonic() - began
    if waiting:
        raise RequestError(f"{len(waiting)} of 30 remote starts were not answered within 60 s")
    for ws in sockets:
        while not any(b"execute_reply" in message for message in ws.feed()):
            pass
    usable = time.monotonic() - began
    for ws in sockets:
        ws.close()
    return {"remote_burst_answered": answered, "remote_burst_usable": usable}


def remote_api(gateway: Gateway, effort: Effort) -> Numbers:
    """GET /api every few milliseconds before the first kernel, and again with 50 remote kernels alive."""
    with contextlib.closing(HttpConnection(gateway.port)) as connection:
        without = paced(connection, effort.seconds * 1.5)
        with opened(gateway, 50, "remote"):
            time.sleep(1)
            with_remote = paced(connection, effort.seconds * 2.5)
    return {
        "remote_api_without": percentile(without, 50),
        "remote_api_with": percentile(with_remote, 50),
        "remote_api_with_p99": percentile(with_remote, 99),
    }


def paced(connection: HttpConnection, seconds: float) -> list[float]:
    """Time GET /api at irregular intervals, to avoid synchronizing with periodic work of the gateway."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        times.append(get(connection))
        time.sleep(random.uniform(0.001, 0.01))
    return times


def get(connection: HttpConnection) -> float:
    """Milliseconds that one GET /api takes."""
    began = time.monotonic()
    connection.call("GET", "/api")
    return (time.monotonic() - began) * 1000


def start(gateway: Gateway, name: str = "tiny0") -> str:
    with contextlib.closing(HttpConnection(gateway.port)) as connection:
        return gateway.start_kernel(connection, name)


def delete(connection: HttpConnection, kernel_id: str) -> None:
    connection.call("DELETE", f"/api/kernels/{kernel_id}")


@contextlib.contextmanager
def opened(gateway: Gateway, count: int, spec: str = "tiny", limit: float = 60) -> Iterator[list[WebSocket]]:
    """Start kernels, eight at a time, and open a websocket to each that has executed once."""
    end = time.monotonic() + limit
    sockets: list[WebSocket] = []
    failures: list[str] = []
    usable: list[int] = []

    def one(number: int) -> None:
        if failures:
            return
        try:
            if time.monotonic() > end:
                raise RequestError(f"not started within {limit:.0f} s")
            kernel_id = start(gateway, f"{spec}{number % FARMS}")
            ws = WebSocket(gateway.port, kernel_id, v1=True)
            sockets.append(ws)
            ws.execute()
            usable.append(number)
        except (RequestError, OSError) as error:
            failures.append(f"with {len(usable)} of {count} kernels in use: {error or type(error).__name__}")

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(count)))
        if failures:
            raise RequestError(f"{failures[0]}; last log line: {gateway.last_words()}")
        yield sockets
    finally:
        for ws in sockets:
            ws.close()


@contextlib.contextmanager
def selector_of(items: list[T]) -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as selector:
        for item in items:
            selector.register(item.socket, selectors.EVENT_READ, item)
        yield selector


def timed(action: Callable[[], None], count: int, seconds: float) -> list[float]:
    """Milliseconds of each call, until ``count`` calls or ``seconds`` have passed."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < count and time.monotonic() < end:
        began = time.perf_counter()
        action()
        times.append((time.perf_counter() - began) * 1000)
    return times


def percentile(values: list[float], percent: int) -> float:
    """Return the smallest value that ``percent`` of all values do not exceed; for 50, the median."""
    if percent == 50:
        return statistics.median(values)
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * percent // 100) - 1)]
