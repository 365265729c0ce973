"""Why a kernel's process has ended, in words."""

from __future__ import annotations

import signal


def describe_exit(exit_code: int | None, *, memory_kill: bool = False) -> str:
    """Return what an exit code says: ``-n`` is signal n, None and 0 say nothing about the cause.

    Parameters
    ----------
    memory_kill
        Whether the system has killed a process for lack of memory at that time.
    """
    if not exit_code:
        return "its process has ended"
    if exit_code > 0:
        return f"its process ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = str(-exit_code)
    if -exit_code == signal.SIGKILL and memory_kill:
        return f"its process was killed by signal {name}: the system ran out of memory"
    return f"its process was killed by signal {name}"
