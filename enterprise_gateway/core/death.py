"""Why a kernel's process has ended, in words."""

from __future__ import annotations

import signal


def describe_exit(exit_code: int | None) -> str:
    """Return what an exit code says: ``-n`` is signal n, None and 0 say nothing about the cause."""
    if not exit_code:
        return "its process has ended"
    if exit_code > 0:
        return f"its process ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = str(-exit_code)
    hint = " (the system may have run out of memory)" if -exit_code == signal.SIGKILL else ""
    return f"its process was killed by signal {name}{hint}"
