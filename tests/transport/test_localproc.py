"""Processes of this machine: watched, signalled and reaped by several at a time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.localproc import LocalProcess

REPOSITORY = Path(__file__).parents[2]


def spawn(*argv: str, output: Path | None = None) -> LocalProcess:
    return LocalProcess.spawn(argv, env=dict(os.environ), output=output)


async def test_a_watch_can_be_closed_in_another_thread() -> None:
    """A process proxy's cleanup runs in a thread while the loop watches: the descriptor is closed all the same."""
    process = await offload(spawn, "sleep", "100")
    watch = asyncio.create_task(process.wait_for_exit())
    await asyncio.sleep(0.05)
    before = await offload(os.listdir, "/proc/self/fd")
    await offload(process.close)
    await asyncio.sleep(0.05)
    assert len(await offload(os.listdir, "/proc/self/fd")) == len(before) - 1
    watch.cancel()
    process.kill()
    assert await offload(process.wait) == -signal.SIGKILL


async def test_the_watch_tells_the_exit_code() -> None:
    """Who waits on the loop hears how the process has ended, however it was seen first."""
    process = await offload(spawn, "sh", "-c", "sleep 0.1; exit 7")
    waiting = asyncio.create_task(process.wait_for_exit())
    assert await offload(process.wait) == 7
    assert await waiting == 7


def test_pollers_in_many_threads_see_the_same_exit_code() -> None:
    """Only one of them can reap the process; the others must not take it for one whose end is not known."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            process = spawn("sh", "-c", "exit 7")
            assert set(pool.map(lambda _, ended=process: ended.wait(5), range(8))) == {7}


def test_output_is_not_written_through_a_symbolic_link(tmp_path: Path) -> None:
    """In a directory that others can write to, a link may lead to a file of ours."""
    precious, output = tmp_path / "precious", tmp_path / "kernel.log"
    precious.write_text("mine")
    output.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        spawn("echo", "yours", output=output)
    assert precious.read_text() == "mine"


def test_what_it_can_read_is_handed_over_whole_and_at_once(tmp_path: Path) -> None:
    """More than a pipe holds, to a program that is in no hurry to read; then the input is at its end."""
    output, text = tmp_path / "output", b"0123456789abcdef" * 20_000
    program = ("sh", "-c", "sleep 0.2; exec cat")
    process = LocalProcess.spawn(program, env=dict(os.environ), output=output, stdin=text)
    assert process.poll() is None
    assert process.wait(10) == 0
    assert output.read_bytes() == text


@pytest.mark.skipif(os.getuid() != 0, reason="not applicable: needs processes of two users")
def test_another_users_process_is_not_signalled() -> None:
    """That it may not be is an answer, no error: sudo's own process, for one, is root's."""
    process = spawn("sleep", "100")
    code = (
        "import os, sys; from enterprise_gateway.transport.localproc import LocalProcess as P; os.setuid(65534); "
        "print(P.adopt(int(sys.argv[1]), int(sys.argv[2])).send_signal(15))"
    )
    command = [sys.executable, "-c", code, str(process.pid), str(process.start_time)]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.strip() == "False"
    assert process.poll() is None
    process.kill()
    process.wait(5)
