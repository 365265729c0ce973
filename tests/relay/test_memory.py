"""What one client's messages cost of a real gateway's memory, and what remains when the client is gone."""

from __future__ import annotations

import http.client
import json
import re
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.support.attacker import HEADER, PONG, attack, binary_frame, text_frame, v1_frame
from tests.support.processes import ServerProcess, gateway_process
from tests.support.wsclient import random_id

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of memory")

MEGABYTE = 1 << 20
TOO_BIG, TRY_AGAIN_LATER = 1009, 1013


class Attacked:
    """A gateway with one kernel, and what it takes in memory at most."""

    def __init__(self, gateway: ServerProcess) -> None:
        self.port = urlsplit(gateway.url).port or 0
        self._status = Path(f"/proc/{gateway.process.pid}/status")
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("POST", "/api/kernels", "{}")
            self.kernel_id = json.loads(connection.getresponse().read())["id"]
        self.send([text_frame(channel="shell")])  # once, so that all is there that a message needs
        self._clear = Path(f"/proc/{gateway.process.pid}/clear_refs")
        self._clear.write_text("5")  # the peak is what is in use now
        self._before = self._memory("VmRSS")
        self.kernel = next(
            child for child in psutil.Process(gateway.process.pid).children() if "ipykernel" in str(child.cmdline())
        )

    def send(self, frames: list[bytes], *, opcode: int = 1, v1: bool = False) -> int:
        path = f"/api/kernels/{self.kernel_id}/channels?session_id={random_id()}"
        return attack(self.port, path, frames, opcode=opcode, v1=v1)

    @property
    def peak(self) -> float:
        """Most megabytes in use, beyond those at the beginning."""
        return self._memory("VmHWM") - self._before

    @property
    def growth(self) -> float:
        """Megabytes in use now, beyond those at the beginning."""
        return self._memory("VmRSS") - self._before

    def _memory(self, name: str) -> float:
        found = re.search(rf"{name}:\s*(\d+) kB", self._status.read_text())
        assert found is not None
        return int(found[1]) / 1024


@pytest.fixture
def attacked(tmp_path):
    """Yield a gateway that runs as a program, with a Python kernel."""
    with gateway_process(tmp_path / "log", env={"EG_UNAUTHORIZED_USERS": ""}) as gateway:
        yield Attacked(gateway)


def test_headers_of_megabytes_are_not_kept(attacked):
    """Sixty requests with headers of 20 MB are refused; nothing of them is left, nor was ever more than two of them."""
    frame = text_frame(header=json.dumps({**HEADER, "msg_type": "execute_request", "x": "x" * (20 * MEGABYTE)}))
    outcomes = [attacked.send([frame]) for _ in range(60)]
    assert attacked.growth < 50
    assert attacked.peak < 100
    assert set(outcomes) == {TOO_BIG}


def _text() -> bytes:
    return text_frame('{"a":[' + "[]," * (10 * MEGABYTE) + "0]}")


@pytest.mark.parametrize(
    ("make_frame", "options"),
    [
        (_text, {}),
        (lambda: binary_frame(_text(), [b"x"]), {"opcode": 2}),
        (
            lambda: v1_frame([json.dumps(HEADER).encode(), b"{}", b"{}", b'"' + b"x" * (30 * MEGABYTE) + b'"']),
            {"opcode": 2, "v1": True},
        ),
        (
            lambda: v1_frame([json.dumps(HEADER).encode(), *[b"{}"] * 3, *[b""] * (4 * MEGABYTE)]),
            {"opcode": 2, "v1": True},
        ),
    ],
    ids=["text", "binary", "v1", "v1 buffers"],
)
def test_a_frame_costs_a_small_multiple_of_its_size(attacked, make_frame: Callable[[], bytes], options):
    """Thirty megabytes of lists, and four million buffers, are never built."""
    frame = make_frame()
    assert attacked.send([frame], **options) in {PONG, TOO_BIG}
    assert attacked.peak < 4 * len(frame) / MEGABYTE


def test_messages_that_a_kernel_does_not_accept_are_bounded(attacked):
    """A kernel that stands still takes nothing; who goes on sending is told to try later."""
    frame = v1_frame(
        [json.dumps(HEADER).encode(), b"{}", b"{}", b"{}", b"x" * (20 * MEGABYTE)],
        channel="shell",
    )
    attacked.kernel.send_signal(signal.SIGSTOP)
    try:
        outcome = attacked.send([frame] * 30, opcode=2, v1=True)
        peak = attacked.peak
    finally:
        attacked.kernel.send_signal(signal.SIGCONT)
    assert peak < 250
    assert outcome == TRY_AGAIN_LATER
