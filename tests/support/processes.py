"""Programs that tests start: they report where they listen, keep their log, and end with the test."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from typing_extensions import Self

REPOSITORY = Path(__file__).parents[2]


class ServerProcess:
    """A server run as a program, for ``with`` and ``async with`` (which waits in a thread).

    Parameters
    ----------
    command
        What to run.
    ready
        Regular expression searched in its output; the group ``url`` is where it serves.
    log
        File that its output goes to.
    env
        Variables to add to the test's environment; None as a value takes one away.
    timeout
        Seconds to become ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ready: str,
        log: Path,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        timeout: float = 60,
    ) -> None:
        self.command = list(command)
        self.log = log
        self.url = ""
        self.env = {name: value for name, value in {**os.environ, **(env or {})}.items() if value is not None}
        self._ready = re.compile(ready)
        self._cwd = cwd
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running program."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self) -> Self:
        """Start it and wait until it is ready."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command, env=self.env, cwd=self._cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + self._timeout
        while not ((match := self._ready.search(self.output)) and _accepts(match.groupdict().get("url"))):
            if self.process.poll() is not None or time.monotonic() > end:
                code = self.process.poll()  # of its own accord, before it is asked to end
                self.stop()
                raise AssertionError(f"{self.command} did not get ready, exit {code}:\n{self.output}")
            time.sleep(0.02)
        self.url = match.groupdict().get("url", "").rstrip("/")
        return self

    def stop(self, timeout: float = 20) -> int:
        """Ask it to end, wait for that, and return its exit code; kill it when it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.command} did not end within {timeout} s:\n{self.output}") from None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.stop)


def _accepts(url: str | None) -> bool:
    """Whether connections to ``url`` succeed; some servers say where they are before they are there."""
    if not url:
        return True
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout=1).close()
    except OSError:
        return False
    return True


def gateway_process(
    log: Path,
    argv: Sequence[str] = (),
    *,
    port: int = 0,
    env: Mapping[str, str | None] | None = None,
    timeout: float = 60,
) -> ServerProcess:
    """Return our gateway as a program on a port of its own choice: ``with gateway_process(tmp_path / "log") as gw``."""
    return ServerProcess(
        [sys.executable, "-m", "enterprise_gateway", f"--port={port}", "--log-level=INFO", *argv],
        ready=r"is available at (?P<url>https?://\S+)",
        log=log,
        env={"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **(env or {})},
        timeout=timeout,
    )


def jupyter_server_process(
    log: Path,
    argv: Sequence[str] = (),
    *,
    root: Path,
    program: str = "jupyter_server",
    env: Mapping[str, str | None] | None = None,
) -> ServerProcess:
    """Return Jupyter Server (or, with ``program="jupyterlab"``, JupyterLab) serving ``root`` without a token."""
    return ServerProcess(
        [
            *(sys.executable, "-m", program, "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"),
            *("--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={root}"),
            *("--ServerApp.disable_check_xsrf=True", "--ServerApp.terminals_enabled=False"),
            *argv,
        ],
        ready=r"is running at:\s+.*?(?P<url>http://127\.0\.0\.1:\d+/)",
        log=log,
        env={"PYTHONUNBUFFERED": "1", **(env or {})},
    )
