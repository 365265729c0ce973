"""Watches the kernels' processes all the time: what it sees is compared with the gateway's answers."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LOOK_SECONDS = 0.15


@dataclass
class Life:
    """One process of a kernel, from when it was first seen until it was missing."""

    pid: int
    kernel_id: str
    user: str
    replica: int
    """Which replica has started it."""
    began: float
    ended: float | None = None
    was_killed: bool = False
    """Whether we have killed it."""


class ProcessTable:
    """The processes that run with the connection file of a kernel, of replicas whose files are in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._marker = re.compile(re.escape(f"{directory}/runtime").encode() + rb"(\d+)/")
        self._strangers: set[int] = set()
        self._new: dict[int, float] = {}
        self.lives: dict[int, Life] = {}
        self.ended: list[Life] = []
        self.at_once: list[Life] = []
        """The processes of the last look that all lived at one moment."""

    def of(self, kernel_id: str) -> list[Life]:
        """Return the processes of a kernel, as of the last look."""
        return [life for life in list(self.lives.values()) if life.kernel_id == kernel_id]  # a thread may add to it

    def kill(self, kernel_id: str) -> list[int]:
        """Kill the processes of a kernel, and return which."""
        killed = []
        for life in self.of(kernel_id):
            life.was_killed = True
            try:
                os.kill(life.pid, signal.SIGKILL)
                killed.append(life.pid)
            except ProcessLookupError:
                continue
        return killed

    def look(self) -> None:
        """Bring everything up to date; blocks for some milliseconds."""
        now = time.monotonic()
        pids = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}
        self._strangers &= pids
        for pid in pids - self._strangers - self.lives.keys():
            life = self._identify(pid, now)
            if life is not None:
                self.lives[pid] = life
            elif now - self._new.setdefault(pid, now) > 5:  # until then it may become another program
                self._strangers.add(pid)
        self._new = {pid: at for pid, at in self._new.items() if pid in pids - self._strangers}
        # Whoever lives now did so when the newest was found: all lived at that moment.
        self.at_once = [life for life in self.lives.values() if lives(life.pid)]
        for pid in self.lives.keys() - {life.pid for life in self.at_once}:
            life = self.lives.pop(pid)
            life.ended = time.monotonic()
            self.ended.append(life)

    def count(self) -> tuple[int, Counter[str], Counter[str]]:
        """Return how many lived at once: all, by user, and by kernel."""
        users, kernels = (Counter(getattr(each, name) for each in self.at_once) for name in ("user", "kernel_id"))
        return len(self.at_once), users, kernels

    def _identify(self, pid: int, now: float) -> Life | None:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if (found := re.search(self._marker, command)) is None:
                return None
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if _has_command_of_parent(pid, command):
                return None
        except OSError:
            return None
        entries = dict(entry.partition(b"=")[::2] for entry in environment.split(b"\0"))
        kernel_id, user = (entries.get(name, b"").decode() for name in (b"KERNEL_ID", b"KERNEL_USERNAME"))
        return Life(pid, kernel_id, user, int(found[1]), now) if kernel_id else None


def _has_command_of_parent(pid: int, command: bytes) -> bool:
    """Whether a process was forked by one like it, and has not become another program yet: ipykernel asks ``uname``."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    parent = int(stat.rpartition(b")")[2].split()[1])
    try:
        return Path(f"/proc/{parent}/cmdline").read_bytes() == command
    except OSError:
        return False


def lives(pid: int) -> bool:
    """Whether a process lives; one that ends has no memory, and so no environment, any more."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes() != b""
    except OSError:
        return False
