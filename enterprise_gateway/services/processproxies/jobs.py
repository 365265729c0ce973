"""What a host is asked to start, and what it has started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.errors import KernelLaunchError


class LogFolderTakenError(KernelLaunchError):
    """The directory of a kernel's log was to be private, and is somebody else's."""


@dataclass(frozen=True)
class Job:
    """One kernel to be started on a host.

    Parameters
    ----------
    env
        What its environment has on the gateway's own machine.
    env_elsewhere
        The same without what describes the gateway's own login; also for another user on the gateway's machine.
    log
        Path of the file that its output is appended to.
    has_private_log
        Whether nobody else may enter the log's directory.
    cwd_here, cwd_elsewhere
        Working directory on the gateway's machine and on others; empty for the login's.
    as_user
        Whom it is to run as; empty: as who starts it.
    timeout
        Seconds that the start may take.
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
        Its process group; 0 when that is not known.
    start_time
        By which it is told from a later process with its id; -1 when that is not known.
    reported_pgid
        The group that the kernel itself says it is in: another one than sudo's, say.
    """

    pid: int = 0
    pgid: int = 0
    start_time: int = -1
    reported_pgid: int = 0

    @property
    def groups(self) -> list[int]:
        """The process groups that belong to it, as far as they are known."""
        return sorted({group for group in (self.pgid, self.reported_pgid) if group > 1})
