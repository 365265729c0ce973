"""Output files of processes on this machine, kept small while the processes write."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Collection
from pathlib import Path

from ..core import envvars
from ..core.offload import offload
from ..core.ownfiles import open_own

LOOK_SECONDS = 10.0
BUSY_LOOK_SECONDS = 0.5
BEGINNING = 64 * 1024
_CHUNK = 1024 * 1024
_ROUNDS = 64
LEFT_OUT = b"\n[... what was written here was left out, for the file not to grow beyond its limit ...]\n"


class OutputFiles:
    """Looks at all output files every few seconds and cuts those that have grown beyond ``EG_KERNEL_OUTPUT_LIMIT``.

    One for all kernels of a gateway, part of SharedResources. The processes write by themselves, so that they go on
    when the gateway has ended; what they write between two looks comes on top of the limit. After a look that found a
    file to cut the next one comes soon.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._paths: set[str] = set()
        self._looking: asyncio.Task[None] | None = None

    def add(self, path: Path) -> None:
        """Keep a file small from now on; it need not exist yet. Called on the event loop."""
        self._paths.add(str(path))
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="look at output files")

    def remove(self, path: Path) -> None:
        """Look at a file no more: its process has ended, or belongs to another gateway by now."""
        self._paths.discard(str(path))
        if not self._paths:
            self.close()

    def close(self) -> None:
        """Stop looking; called when the gateway ends."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _look(self) -> None:
        pause = LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            has_cut = await offload(self._cut_all, list(self._paths), envvars.EG_KERNEL_OUTPUT_LIMIT())
            pause = BUSY_LOOK_SECONDS if has_cut else LOOK_SECONDS

    def _cut_all(self, paths: Collection[str], limit: int) -> bool:
        """Cut the files that are too large; return whether there were any."""
        has_cut = False
        for path in paths:
            try:
                has_cut = cut(path, limit) or has_cut
            except OSError as error:
                self._log.debug("Output file %s cannot be kept small: %s", path, error)
        return has_cut


def cut(path: str | Path, limit: int) -> bool:
    """Take the middle out of a file that is larger than ``limit`` bytes; return whether it was.

    The first 64 KiB stay (of a small limit a quarter), as much of the end as is half the limit, and what is written
    meanwhile, on top of the limit if need be. Who writes must append (O_APPEND); what comes in the instant between the
    last read and the cut is lost. Of several that cut at once one does.

    Raises
    ------
    OSError
        The file cannot be read or written, or is not ours.
    """
    try:
        if os.stat(path).st_size <= limit:
            return False
        descriptor = open_own(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_size > limit:  # still, for another one may have been faster
            _cut(descriptor, limit)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _cut(descriptor: int, limit: int) -> None:
    size = os.fstat(descriptor).st_size
    end = os.pread(descriptor, limit // 2, max(0, size - limit // 2))
    _, newline, rest = end.partition(b"\n")
    kept = LEFT_OUT + (rest if newline else end)
    target = min(BEGINNING, limit // 4)
    target += os.pwrite(descriptor, kept, target)
    # What was written since moves down too, all of it, for its end may be the process's last words. A process that
    # writes as fast as this reads must not occupy the thread for ever.
    for _ in range(_ROUNDS):
        late = os.pread(descriptor, _CHUNK, size)
        if not late:
            break
        size += len(late)
        target += os.pwrite(descriptor, late, target)
    os.ftruncate(descriptor, target)
