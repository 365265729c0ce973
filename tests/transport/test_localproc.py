"""Processes of this machine: watched, signalled and reaped by several at a time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.localproc import LocalProcess, start_time_of

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


LEAVES_A_CHILD = ("sh", "-c", "sleep 1000 & echo $! >&1; exec sleep 0.2")


def pid_in(output: Path) -> int:
    """Return the process id that a process has written."""
    end = time.monotonic() + 10
    while not output.exists() or not output.read_text().endswith("\n"):
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.01)
    return int(output.read_text())


def has_ended(pid: int) -> bool:
    """Wait until there is no such process any more."""
    end = time.monotonic() + 5
    while start_time_of(pid) is not None and time.monotonic() < end:
        time.sleep(0.01)
    return start_time_of(pid) is None


async def test_the_rest_of_a_process_group_ends_with_its_leader(tmp_path: Path) -> None:
    """As soon as its end is noticed, if that is wanted; else the rest of the group lives on."""
    for takes_group in (True, False):
        output = tmp_path / f"output-{takes_group}"
        process = await offload(
            LocalProcess.spawn, LEAVES_A_CHILD, env=dict(os.environ), output=output, takes_group=takes_group
        )
        child = await offload(pid_in, output)
        assert await process.wait_for_exit() == 0
        if takes_group:
            assert await offload(has_ended, child)
        else:
            assert start_time_of(child) is not None
            os.kill(child, signal.SIGKILL)


async def test_the_group_of_an_adopted_process_goes_with_it(tmp_path: Path) -> None:
    """Its parent is somebody else, who may have reaped it already."""
    output = tmp_path / "output"
    with output.open("wb") as file:
        child = subprocess.Popen(LEAVES_A_CHILD, stdout=file, start_new_session=True)
    process = LocalProcess.adopt(child.pid, start_time_of(child.pid) or 0, takes_group=True)
    assert process is not None
    orphan = await offload(pid_in, output)
    await offload(child.wait)
    assert await process.wait_for_exit() == 0
    assert await offload(has_ended, orphan)


def test_a_group_whose_id_is_another_ones_by_now_is_left_alone() -> None:
    """The leader's id was given to a new process: nothing can be left of the old group."""
    other = spawn("sleep", "100")
    former = LocalProcess(other.pid, other.start_time - 1, is_child=False, takes_group=True)
    assert former.poll() == 0
    assert other.wait(0.2) is None
    other.kill()
    other.wait(5)
