"""Whether a kernel that two launchers have reported for is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.errors import KernelLaunchError, LaunchTimeoutError

if TYPE_CHECKING:
    from ...transport.response import Conflict
    from .remotekernel import RemoteKernelManager
    from .restarter import KernelRestarter
    from .table import KernelTable


async def prove(kernel: RemoteKernelManager) -> None:
    """Wait until a kernel that is connected and that two launchers have reported for has proved that it has its key.

    Returns at once for all other kernels.

    Raises
    ------
    KernelLaunchError
        It has not within the launch time-out, or is known to be another's.
    """
    conflict = kernel.process.conflict
    if conflict is None:
        return
    channels = kernel.channels
    assert channels is not None
    both = f"from {conflict.accepted_from} and then from {conflict.refused_from}"
    reported = f"KernelID: '{kernel.kernel_id}' was reported twice, {both}"
    try:
        await channels.ready(kernel.process.launch_seconds_left)
    except (TimeoutError, ConnectionError) as error:
        raise LaunchTimeoutError(f"{reported}, and has not proved that it has the key: {error}") from error
    conflict = kernel.process.conflict
    if conflict is not None and conflict.is_forged:
        raise KernelLaunchError(f"{reported}, where only the second one had the secret of the launch")


def note_conflict(table: KernelTable, restarter: KernelRestarter, conflict: Conflict) -> None:
    """Let a kernel of the table whose report may have been another's prove that it is ours.

    Called by the response server. One that is known to be another's is dead to its clients at once.
    """
    kernel = table.get(conflict.kernel_id)
    if kernel is None or kernel.channels is None:
        return
    if conflict.is_forged:
        restarter.end(kernel, f"another launcher, at {conflict.accepted_from}, has reported in its place")
    elif not conflict.is_proven:
        kernel.channels.contest()
