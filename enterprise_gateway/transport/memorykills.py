"""How often the system has killed a process of this machine, or of this container, for lack of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

RECENT_SECONDS = 30.0


class MemoryKills:
    """Tells whether such a kill was recent; :meth:`look` must be called every few seconds.

    The kernel (Linux) counts kills in ``/proc/vmstat`` and, for a container, in its control group. It does not say
    which process it was, so who knows that a process was killed *and* that a kill was recent can only assume that the
    two are one. Elsewhere than on Linux there are no counters: no kill is ever recent.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are mounted; tests have their own.
    clock
        Returns seconds; tests inject their own.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._files = [root / "proc/vmstat", *control_group_files(root)]
        self._counts = self._read()
        self._last_rise = -RECENT_SECONDS

    def look(self) -> None:
        """Read the counters, and note the time when one has risen since the last look."""
        counts = self._read()
        if any(count > self._counts.get(path, count) for path, count in counts.items()):
            self._last_rise = self._clock()
        self._counts = counts

    def was_recent(self) -> bool:
        """Look, and return whether a counter rose within the last ``RECENT_SECONDS``."""
        self.look()
        return self._clock() - self._last_rise < RECENT_SECONDS

    def _read(self) -> dict[Path, int]:
        return {path: count for path in self._files if (count := kills_in(path)) is not None}


def control_group_files(root: Path) -> Iterator[Path]:
    """Yield the files with the counters of this process's control group, of either version, that exist."""
    try:
        groups = (root / "proc/self/cgroup").read_text().split("\n")
    except OSError:
        return
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            candidates = [root / "sys/fs/cgroup" / path.lstrip("/") / "memory.events"]
            candidates.append(root / "sys/fs/cgroup/memory.events")  # how it looks from inside a container
        elif "memory" in controllers.split(","):
            candidates = [root / "sys/fs/cgroup/memory" / path.lstrip("/") / "memory.oom_control"]
            candidates.append(root / "sys/fs/cgroup/memory/memory.oom_control")
        else:
            continue
        yield from [candidate for candidate in candidates if candidate.exists()][:1]


def kills_in(path: Path) -> int | None:
    """Return the value of a file's line ``oom_kill N``, None when it has none."""
    try:
        for line in path.read_text().split("\n"):
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return None
