"""The gateway's own machine as one of the hosts that kernels run on."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import KernelLaunchError
from ...core.ownfiles import make_private_directory
from ...core.states import Phase, State
from ...transport.localproc import LocalProcess
from .jobs import Job, LogFolderTakenError, Started
from .watched import Watched

_SUDO_SECONDS = 10.0


class OwnHost:
    """Runs one kernel as a child process, through sudo if it runs as another user.

    Parameters
    ----------
    name
        Its name in the list of remote hosts.
    launch
        Starts a child process: ``BaseProcessProxyABC.launch_kernel``.
    """

    def __init__(
        self, name: str, launch: Callable[..., LocalProcess], log: logging.Logger | logging.LoggerAdapter[Any]
    ) -> None:
        self.name = name
        self.process: LocalProcess | None = None
        self._launch = launch
        self._log = log

    def start(self, job: Job) -> Started:
        """Start a kernel; runs in a thread.

        Raises
        ------
        LogFolderTakenError
            The directory of its log should be private, but belongs to another user.
        KernelLaunchError
            It cannot be started.
        """
        from ...drivers.shell_scripts import sudo_command

        argv, stdin = job.argv, b""
        if job.as_user:
            try:
                argv, script = sudo_command(job.argv, job.env_elsewhere, job.as_user)
            except ValueError as error:
                raise KernelLaunchError(f"Kernel {job.kernel_id} cannot be started: {error}.") from error
            stdin = script.encode(errors="surrogateescape")
        folder = Path(job.log).parent
        if job.has_private_log:
            try:
                make_private_directory(folder)
            except PermissionError as error:
                raise LogFolderTakenError(str(error)) from error
        else:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.process = self._launch(argv, env=job.env, cwd=job.cwd_here, stdin=stdin)
        return Started(self.process.pid, self.process.pgid, self.process.start_time)

    def adopt(self, started: Started) -> LocalProcess | None:
        """Return a process that an earlier gateway started; None if it is gone."""
        self.process = LocalProcess.adopt(started.pid, started.start_time, takes_group=True)
        return self.process

    def watched(self, started: Started) -> Watched:
        """Return the table that reports the end of the process."""
        return Watched(self, started, exists=True, tells_at_once=True)

    def state(self, started: Started) -> State:
        """Return the state of the process."""
        return _state_of(None if self.process is None else self.process.poll(), self.process is None)

    def register(
        self,
        key: Started,
        on_change: Callable[[State | None], None],
        *,
        eager: bool = False,
        exists: bool = False,
    ) -> EndOfProcess:
        """Have ``on_change`` called when the process has ended."""
        return EndOfProcess(self.process, on_change)

    def signal(self, started: Started, signum: int, as_user: str) -> bool:
        """Send a signal to the kernel's process group, as its user; return whether that succeeded."""
        if self.process is None:
            return False
        if not as_user:
            return self.process.send_signal(signum)
        sent = self._signal_by_sudo(started, signum, as_user)
        if signum == signal.SIGKILL:
            # sudo suspends itself together with its kernel, and then does not see it end; only root may signal it.
            self.process.send_signal(signum)
        return sent

    def _signal_by_sudo(self, started: Started, signum: int, as_user: str) -> bool:
        """Signal another user's kernel as that user, because the gateway's user may not."""
        command = ["sudo", "-n", "-u", as_user, "--", "kill", "-s", str(int(signum)), "--"]
        command += [f"-{group}" for group in started.groups]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SUDO_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self._log.warning("Signal %d could not be sent to process %d: %s", signum, started.pid, error)
            return False
        if done.returncode == 0:
            return True
        complaint = done.stderr.decode(errors="replace").strip()
        self._log.warning("Signal %d could not be sent to process %d through sudo: %s", signum, started.pid, complaint)
        return False

    def describe(self, argv: list[str], log: str) -> str:
        """Return the path of the kernel's log; its last lines are reported with the exit code."""
        return f"The kernel's log is {log}"


class EndOfProcess:
    """Reports the end of a child process; created on the event loop by :meth:`OwnHost.register`."""

    def __init__(self, process: LocalProcess | None, on_change: Callable[[State | None], None]) -> None:
        self._task = asyncio.ensure_future(self._tell(process, on_change))

    async def _tell(self, process: LocalProcess | None, on_change: Callable[[State | None], None]) -> None:
        if process is not None and process.poll() is None:
            on_change(State(Phase.STARTED))
        on_change(_state_of(await process.wait_for_exit() if process is not None else None, process is None))

    def cancel(self) -> None:
        """Stop reporting."""
        self._task.cancel()


def _state_of(exit_code: int | None, is_gone: bool) -> State:
    return State(Phase.ENDED if is_gone or exit_code is not None else Phase.STARTED, exit_code=exit_code)
