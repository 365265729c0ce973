"""Processes of this machine: start them, watch them end, signal their group, adopt them after a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..core.deadline import Deadline
from ..core.ownfiles import open_own

ADOPTED_POLL_SECONDS = 0.5
BLOCKING_POLL_SECONDS = 0.05
NO_LIMIT = 10.0**9

# Who makes a process keeps the interpreter lock until that has had a processor: if many do so at once, the event loop
# waits for all of them. One that hangs, because its file system does, delays the others only briefly.
_BEING_MADE = threading.BoundedSemaphore(2)
_MAKING_SECONDS = 1.0


class LocalProcess:
    """A kernel's or launcher's process on this machine, started by us or adopted.

    Looks like a ``subprocess.Popen`` to those who expect one (``pid``, ``poll``, ``wait``, ``send_signal``,
    ``terminate``, ``kill``). A process is identified by its id *and* its start time, so that a reused process id is
    never signalled. :meth:`wait_for_exit` belongs to the event loop; everything else may be called in any thread.

    Parameters
    ----------
    takes_group
        Whether what is left of its process group is killed as soon as its own end is noticed.
    """

    def __init__(self, pid: int, start_time: int, is_child: bool, takes_group: bool = False) -> None:
        self.pid = pid
        self.start_time = start_time
        self.pgid = _group_of(pid)
        self._is_child = is_child
        self._takes_group = takes_group
        self._returncode: int | None = None
        self._exit: asyncio.Future[int] | None = None
        self._pidfd = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._lock = threading.Lock()

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None = None,
        output: Path | None = None,
        independent: bool = False,
        stdin: bytes = b"",
        takes_group: bool = False,
    ) -> LocalProcess:
        """Start ``argv`` in a session of its own; may block for some milliseconds.

        Parameters
        ----------
        output
            File that receives standard output and error, appended; None discards them. It is one of ours: what
            another user may have put there is refused.
        independent
            False tells kernels (by ``JPY_PARENT_PID``) to end when the gateway has died.
        stdin
            What it finds on its standard input.
        takes_group
            Whether the processes that it started, and that did not leave its group, end with it.

        Raises
        ------
        OSError
            The command does not exist or cannot be executed, or the output file is not ours.
        """
        environment = dict(env)
        if not independent:
            environment["JPY_PARENT_PID"] = str(os.getpid())
        sink: int = subprocess.DEVNULL
        if output is not None:
            sink = open_own(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        source = _unnamed_file(stdin) if stdin else subprocess.DEVNULL
        has_turn = _BEING_MADE.acquire(timeout=_MAKING_SECONDS)
        try:
            child = subprocess.Popen(
                list(argv),
                env=environment,
                cwd=cwd,
                stdin=source,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        finally:
            if has_turn:
                _BEING_MADE.release()
            for descriptor in (sink, source):
                if descriptor >= 0:
                    os.close(descriptor)
        # The process is reaped here, not by the Popen object: it may outlive the gateway, which Popen warns of.
        child.returncode = 0
        return cls(child.pid, start_time_of(child.pid) or 0, is_child=True, takes_group=takes_group)

    @classmethod
    def adopt(cls, pid: int, start_time: int, *, takes_group: bool = False) -> LocalProcess | None:
        """Return a handle on a process of an earlier gateway, or None when that process is gone."""
        if pid <= 1 or start_time_of(pid) != start_time:
            return None
        return cls(pid, start_time, is_child=False, takes_group=takes_group)

    @classmethod
    def find(cls, pid: int) -> LocalProcess | None:
        """Return a handle on whatever process has this id now, or None when there is none."""
        return cls.adopt(pid, start_time_of(pid) or -1)

    def poll(self) -> int | None:
        """Return None while the process lives, else its exit code: ``-n`` for signal n, 0 when unknown."""
        with self._lock:
            return self._poll()

    def _poll(self) -> int | None:
        if self._returncode is None:
            if self._is_child:
                self._reap()
            elif start_time_of(self.pid) != self.start_time:
                self._returncode = 0
            if self._returncode is not None and self._takes_group and self.pgid == self.pid:
                self._end_group()
        return self._returncode

    def _end_group(self) -> None:
        """Kill what the process has left of its group, now that its end was noticed.

        The group's id stays its own as long as it has a member. Of a group without one it may be another process's,
        but ids are given out in turn: not within the moment since the end, and later that process can be seen.
        """
        if start_time_of(self.pid) is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pgid, signal.SIGKILL)

    def _reap(self) -> None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            self._returncode = 0
        else:
            if pid == self.pid:
                self._returncode = os.waitstatus_to_exitcode(status)

    async def wait_for_exit(self) -> int:
        """Wait until the process has ended and return its exit code; costs nothing while it lives."""
        if self._exit is None:
            self._loop, self._loop_thread = asyncio.get_running_loop(), threading.get_ident()
            self._exit = self._loop.create_future()
            self._watch()
        return await asyncio.shield(self._exit)

    def _watch(self) -> None:
        if self.poll() is not None:
            self._finish()
        elif sys.platform == "linux":
            try:
                self._pidfd = os.pidfd_open(self.pid)
            except ProcessLookupError:
                self._finish()
            else:
                asyncio.get_running_loop().add_reader(self._pidfd, self._finish)
        else:
            asyncio.get_running_loop().call_later(ADOPTED_POLL_SECONDS, self._watch)

    def _finish(self) -> None:
        exit_code = self.poll()
        if exit_code is None:  # the pidfd is readable before the child can be reaped only for a moment
            asyncio.get_running_loop().call_later(0.001, self._finish)
            return
        self.close()
        if self._exit is not None and not self._exit.done():
            self._exit.set_result(exit_code)

    def close(self) -> None:
        """Stop watching; the process is left alone."""
        with self._lock:
            pidfd, self._pidfd = self._pidfd, -1
        if pidfd < 0:
            return
        assert self._loop is not None  # else there were no descriptor
        if threading.get_ident() == self._loop_thread:
            self._unwatch(pidfd)
            return
        try:
            self._loop.call_soon_threadsafe(self._unwatch, pidfd)
        except RuntimeError:  # the loop has ended
            os.close(pidfd)

    def _unwatch(self, pidfd: int) -> None:
        assert self._loop is not None
        self._loop.remove_reader(pidfd)
        os.close(pidfd)

    def send_signal(self, signum: int) -> bool:
        """Signal the process's group when it leads one, else the process; return whether it was there.

        Also False when the process belongs to another user, so that it cannot be signalled.
        """
        with self._lock:  # else the process could be reaped, and its id reused, in between
            if self._poll() is not None:
                return False
            try:
                if self.pgid == self.pid:
                    os.killpg(self.pgid, signum)
                else:
                    os.kill(self.pid, signum)
            except (ProcessLookupError, PermissionError):
                return False
            return True

    def wait(self, timeout: float | None = None) -> int | None:
        """Block until the process has ended, or ``timeout`` seconds; for callers in threads and third-party proxies."""
        deadline = Deadline(NO_LIMIT if timeout is None else timeout)
        while self.poll() is None and not deadline.expired:
            time.sleep(min(BLOCKING_POLL_SECONDS, deadline.remaining))
        return self.poll()

    def terminate(self) -> None:
        """Ask the process's group to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process's group."""
        self.send_signal(signal.SIGKILL)


def start_time_of(pid: int) -> int | None:
    """Return when a process started, in an arbitrary unit that is unique until reboot; None when it is gone.

    A zombie counts as gone: nothing can be done with it any more.
    """
    if sys.platform != "linux":
        return _start_time_by_signal(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name in parentheses may itself contain blanks and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _start_time_by_signal(pid: int) -> int | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return 0


def environments() -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the id and the environment of all processes whose environment may be read; blocks.

    This process itself is left out.
    """
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        variables = environment_of(pid) if pid != os.getpid() else {}
        if variables:
            yield pid, variables


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with; empty when it is gone, or another user's."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    variables = (entry.decode(errors="replace").partition("=") for entry in reversed(entries) if entry)
    return {name: value for name, _, value in variables}  # of a name that comes twice, programs see the first


def owner_of(pid: int) -> int | None:
    """Return the user whose process it is; None when it is gone, or when its real and effective user differ.

    Whoever starts such a program has set its environment, too.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    real, effective = status.partition(b"\nUid:")[2].split(None, 2)[:2]
    return int(real) if real == effective else None


def _unnamed_file(content: bytes) -> int:
    """Return the descriptor of a file that only its holders can read; a pipe would keep a writer waiting."""
    if sys.platform == "linux":
        file = os.memfd_create("stdin")
    else:
        file, name = tempfile.mkstemp()
        os.unlink(name)
    with os.fdopen(os.dup(file), "wb") as writer:
        writer.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def last_lines(path: Path, count: int = 10) -> str:
    """Return the last lines of an output file of ours, or an empty text when there are none."""
    try:
        with open(open_own(path, os.O_RDONLY), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            text = file.read(8192).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().split("\n")[-count:])
