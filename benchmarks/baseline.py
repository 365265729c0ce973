"""The same measurements with no gateway at all: a client on the kernel's own ZMQ sockets."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator

import zmq
from client import RequestError
from scenarios import Effort, Numbers, percentile, timed
from targets import Farms, free_port

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class DirectKernel:
    """A tiny kernel started by hand, with a shell and an iopub socket connected to it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], farms: Farms, number: int) -> None:
        self.key = uuid.uuid4().hex
        info: dict[str, object] = {name: free_port() for name in PORTS}
        path = farms.directory / f"direct-{os.getpid()}-{number}.json"
        path.write_text(json.dumps({**info, "key": self.key}))
        self.stub = subprocess.Popen(["/bin/sh", str(farms.local_stub()), str(path)])
        self.shell = context.socket(zmq.DEALER)
        self.iopub = context.socket(zmq.SUB)
        self.iopub.rcvhwm = 0
        self.iopub.subscribe(b"")
        self.shell.connect(f"tcp://127.0.0.1:{info['shell_port']}")
        self.iopub.connect(f"tcp://127.0.0.1:{info['iopub_port']}")
        self.poller = zmq.Poller()
        self.poller.register(self.shell, zmq.POLLIN)
        self.poller.register(self.iopub, zmq.POLLIN)
        self.request("1")
        if not self.shell.poll(10000):
            raise RequestError("the tiny kernel did not answer")
        self.shell.recv_multipart()
        time.sleep(0.05)
        while self.iopub.poll(50):
            self.iopub.recv_multipart()

    def request(self, code: str) -> None:
        """Send an execute request."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "direct"}
        content = {"code": code, "silent": False}
        parts = [json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode()]
        signature = hmac.digest(self.key.encode(), b"".join(parts), "sha256").hex().encode()
        self.shell.send_multipart([b"<IDS|MSG>", signature, *parts])

    def execute(self) -> None:
        """Execute once and wait for the reply and the idle status."""
        self.request("1")
        missing = 2
        while missing:
            for sock, _ in self.poller.poll(10000):
                missing -= self.done(sock)

    def done(self, sock: object) -> int:
        """Receive all pending messages of a socket; return how many replies and idle statuses came."""
        found = 0
        with contextlib.suppress(zmq.Again):
            while True:
                if sock is self.shell:
                    self.shell.recv_multipart(zmq.NOBLOCK)
                    found += 1
                else:
                    found += self.iopub.recv_multipart(zmq.NOBLOCK)[-1] == b'{"execution_state": "idle"}'
        return found


@contextlib.contextmanager
def kernels(farms: Farms, count: int) -> Iterator[list[DirectKernel]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    started: list[DirectKernel] = []
    try:
        for number in range(count):
            started.append(DirectKernel(context, farms, number))
        yield started
    finally:
        for kernel in started:
            kernel.stub.kill()
            kernel.stub.wait()
        context.destroy(linger=0)


def round_trip(farms: Farms, effort: Effort) -> Numbers:
    """Execute repeatedly on the kernel's sockets."""
    with kernels(farms, 1) as (kernel,):
        timed(kernel.execute, 10, 5)
        times = timed(kernel.execute, effort.executes, effort.seconds)
    return {"execute_p50": percentile(times, 50), "execute_p99": percentile(times, 99)}


def many_kernels(farms: Farms, effort: Effort) -> Numbers:
    """50 kernels, all of them executing continuously."""
    with kernels(farms, 50) as started:
        poller = zmq.Poller()
        owners: dict[object, DirectKernel] = {}
        missing = {}
        for kernel in started:
            for sock in (kernel.shell, kernel.iopub):
                poller.register(sock, zmq.POLLIN)
                owners[sock] = kernel
            kernel.request("1")
            missing[kernel] = 2
        done, began = 0, time.monotonic()
        while time.monotonic() < began + effort.seconds:
            for sock, _ in poller.poll(1000):
                kernel = owners[sock]
                missing[kernel] -= kernel.done(sock)
                if not missing[kernel]:
                    kernel.request("1")
                    missing[kernel] = 2
                    done += 1
        return {"many_rate": done / (time.monotonic() - began)}


def stream(farms: Farms, effort: Effort) -> Numbers:
    """One cell that prints many lines, each a message."""
    with kernels(farms, 1) as (kernel,):
        began = time.monotonic()
        kernel.request(f"stream {effort.stream}")
        lines, idle = 0, False
        while not idle:
            content = kernel.iopub.recv_multipart()[-1]
            lines += b"~" in content
            idle = content == b'{"execution_state": "idle"}'
        if lines != effort.stream:
            raise RequestError(f"{effort.stream - lines} messages were dropped")
        return {"stream_rate": lines / (time.monotonic() - began)}
