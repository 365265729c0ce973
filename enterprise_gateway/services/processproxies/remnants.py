"""What was left behind of kernels: found by its label, removed on request."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import KernelLaunchError
from ...transport.localproc import LocalProcess, environments
from ...transport.ownfiles import read_own
from .deployment import LABEL_ENTRY, LABEL_VARIABLE

if TYPE_CHECKING:
    from ...drivers.ssh_shell import SSHShell


_MOST_OF_A_CONNECTION_FILE = 65536


@dataclass(frozen=True)
class Remnant:
    """One thing that carries a label.

    Parameters
    ----------
    kernel_id
        The kernel that it was made for.
    what
        Says what and where it is, for the log and the report.
    remove
        Removes it; blocks. Raises an exception when that failed.
    """

    kernel_id: str
    what: str
    remove: Callable[[], object]


def local_processes(labels: Collection[str]) -> Iterator[Remnant]:
    """Yield the labelled processes of this machine; blocks."""
    for pid, variables in environments():
        kernel_id = variables.get("KERNEL_ID", "")
        process = LocalProcess.find(pid) if kernel_id and variables.get(LABEL_VARIABLE) in labels else None
        if process is not None:
            yield Remnant(kernel_id, f"process {pid} of this machine", process.kill)


def local_files(directory: Path, labels: Collection[str], besides: Collection[str] = ()) -> Iterator[Remnant]:
    """Yield the labelled connection files and logs in the Jupyter runtime directory, not ``besides``' ones; blocks."""
    for path in directory.glob("kernel-*"):
        stem, _, rest = path.name.removeprefix("kernel-").partition(".")
        if stem in besides:
            continue
        is_connection = rest == "json" or rest.startswith("json.")  # the latter was on its way into its place
        label = rest.removesuffix(".log") if rest.endswith(".log") else label_in(path) if is_connection else ""
        if label in labels:
            yield Remnant(stem, f"file {path}", partial(path.unlink, missing_ok=True))


def label_in(path: Path) -> str:
    """Return the label in a connection file; empty when it has none or cannot be read."""
    try:
        content = json.loads(read_own(path, _MOST_OF_A_CONNECTION_FILE))
    except (OSError, ValueError):
        return ""
    label = content.get(LABEL_ENTRY) if isinstance(content, dict) else None
    return label if isinstance(label, str) else ""


def remote_processes(shell: SSHShell, labels: Collection[str]) -> Iterator[Remnant]:
    """Yield the labelled process groups of an SSH host; blocks.

    Raises
    ------
    KernelLaunchError
        The host cannot be asked.
    """
    for label in labels:
        for pid, kernel_id in shell.labelled_leaders(f"{LABEL_VARIABLE}={label}").items():
            yield Remnant(kernel_id, f"process {pid} on {shell.host}", partial(_end_remote, shell, pid, label))


def _end_remote(shell: SSHShell, pid: int, label: str) -> None:
    # Asked once more: between the report and the removal the process id may have been reused.
    if pid in shell.leaders(f"{LABEL_VARIABLE}={label}") and not shell.signal(pid, pid, signal.SIGKILL):
        raise KernelLaunchError(f"Process {pid} on {shell.host} could not be ended.")
