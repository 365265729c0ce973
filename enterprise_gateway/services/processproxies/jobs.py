"""Descriptions of a process that a host is to start, and of one that it has started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.errors import KernelLaunchError


class LogFolderTakenError(KernelLaunchError):
    """The directory of a kernel's log should be private, but belongs to another user."""


@dataclass(frozen=True)
class Job:
    """One kernel to start on a host.

    Parameters
    ----------
    env
        Its environment on the gateway's own machine.
    env_elsewhere
        The same without the variables of the gateway's own login; also used for other users on the gateway's machine.
    log
        Path of the file to which its output is appended.
    has_private_log
        Whether no other user may access the log's directory.
    cwd_here, cwd_elsewhere
        Working directory on the gateway's machine and on others; empty for that of the login.
    as_user
        The user it is to run as; empty for the user that starts it.
    timeout
        Time-out of the start in seconds.
    """

    kernel_id: str
    argv: list[str]
    env: Mapping[str, str]
    env_elsewhere: Mapping[str, str]
    log: str
    has_private_log: bool
    cwd_here: str | None
    cwd_elsewhere: str
    as_user: str
    timeout: float


@dataclass(frozen=True)
class Started:
    """A process that was started on a host.

    Parameters
    ----------
    pgid
        Its process group; 0 if unknown.
    start_time
        Distinguishes it from a later process with the same id; -1 if unknown.
    reported_pgid
        The process group that the kernel itself reports, which differs from sudo's, for example.
    """

    pid: int = 0
    pgid: int = 0
    start_time: int = -1
    reported_pgid: int = 0

    @property
    def groups(self) -> list[int]:
        """The process groups known to belong to it."""
        return sorted({group for group in (self.pgid, self.reported_pgid) if group > 1})
