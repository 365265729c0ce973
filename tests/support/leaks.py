"""What a process has open: threads, file descriptors and child processes, before and after a test."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

# Threads that live as long as the process by design: the gateway's hand-over to threads, and the loop watchdog.
LASTING_THREADS = ("eg-offload", "test-loop-watchdog")
# An SSH server's answer to somebody who knocked and has not logged in; it ends by itself.
PASSING_PROCESSES = ("sshd: [accepted]", "sshd: [net]")
_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Snapshot:
    """What is open at one moment; each entry is told apart from a later one that reuses its number."""

    threads: frozenset[tuple[int | None, str]]
    descriptors: frozenset[tuple[int, str]]
    processes: dict[tuple[int, float], str]

    @classmethod
    def take(cls, root: Path) -> Snapshot:
        """Look at this process, its descendants, and every process whose command line names a path below ``root``."""
        return cls(_threads(), _descriptors(), _processes(str(root)))

    def new_since(self, before: Snapshot) -> list[str]:
        """Return a sentence for each thing that is open now and was not before."""
        return [
            *(f"thread left running: {name}" for _, name in self.threads - before.threads),
            *(
                f"file descriptor left open: {number} -> {what}"
                for number, what in self.descriptors - before.descriptors
            ),
            *(
                f"process left behind: {key[0]} {what}"
                for key, what in self.processes.items()
                if key not in before.processes
            ),
        ]


def leaks_since(before: Snapshot, root: Path) -> list[str]:
    """Return what has been open since ``before`` and stays open, after a little time for what is being closed."""
    end = time.monotonic() + _GRACE_SECONDS
    pause = 0.005
    while True:
        leaks = Snapshot.take(root).new_since(before)
        if not leaks or time.monotonic() > end:
            return leaks
        gc.collect()
        time.sleep(pause)
        pause = min(pause * 2, 0.2)


def _threads() -> frozenset[tuple[int | None, str]]:
    return frozenset(
        (thread.ident, thread.name) for thread in threading.enumerate() if not thread.name.startswith(LASTING_THREADS)
    )


def _descriptors() -> frozenset[tuple[int, str]]:
    """Return open descriptors with what they point to; sockets and pipes carry their inode, so reuse shows."""
    found = set()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the listing's own descriptor
            continue
        found.add((int(name), target))
    return frozenset(found)


def _processes(root: str) -> dict[tuple[int, float], str]:
    """Return command lines by process id and start time; a program may become another one by exec."""
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    found = {}
    for pid in psutil.pids():
        try:
            command = _command(pid)
            if command.startswith(PASSING_PROCESSES) or pid == os.getpid():
                continue
            if pid in children or root in command:
                process = psutil.Process(pid)
                found[pid, process.create_time()] = command or f"({process.name()}, {process.status()})"
        except (OSError, psutil.Error):
            continue
    return found


def _command(pid: int) -> str:
    """Return a command line; every test asks for all of them twice, so where there is /proc that is read at once."""
    if not os.path.isdir("/proc/self"):
        return " ".join(psutil.Process(pid).cmdline())
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
