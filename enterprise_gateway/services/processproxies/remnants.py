"""Leftovers of kernels: found by their label, removed on request."""

from __future__ import annotations

import functools
import json
import os
import pwd
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.authorization import UserRules
from ...core.kernelargs import is_kernel_id
from ...core.ownfiles import read_own
from ...transport.localproc import LocalProcess, environment_of, environments, owner_of
from .deployment import LABEL_ENTRY

if TYPE_CHECKING:
    from ...drivers.ssh_shell import SSHShell
    from .shared import SharedResources


_MOST_OF_A_CONNECTION_FILE = 65536


@dataclass(frozen=True)
class Remnant:
    """One labelled leftover.

    Parameters
    ----------
    kernel_id
        The kernel that it was created for.
    what
        Describes what and where it is, for the log and the report.
    remove
        Removes it; blocks. Raises an exception if that fails.
    """

    kernel_id: str
    what: str
    remove: Callable[[], object]


class Owners:
    """Decides whose processes a gateway may end: its own, and those of users that it starts kernels as.

    A label alone proves nothing, because any user can start a process with that label in its environment.

    Parameters
    ----------
    impersonates
        Whether kernels run as the users they are started for.
    rules
        Which users these may be; a user is permitted if one of the rules permits it.
    """

    def __init__(self, impersonates: bool, rules: Collection[UserRules]) -> None:
        self._impersonates = impersonates
        self._rules = rules

    def include(self, is_own: bool, owner: str, username: str) -> bool:
        """Whether a process may be ended.

        Parameters
        ----------
        is_own
            Whether it runs as the gateway's user or, on another host, as the login there.
        owner
            The user that the process runs as.
        username
            The user that its kernel was started for, according to its environment.
        """
        if is_own:
            return True
        return self._impersonates and owner == username and any(rules.permits(owner) for rules in self._rules)

    def include_local(self, pid: int, variables: Mapping[str, str]) -> bool:
        """Whether a process of this machine, with this environment, may be ended; blocks."""
        uid = owner_of(pid)
        if uid is None:
            return False
        return self.include(uid == os.geteuid(), user_name(uid), variables.get("KERNEL_USERNAME", ""))


def owners_of(resources: SharedResources, configs: Collection[Mapping[str, Any]]) -> Owners:
    """Return the possible owners of kernels with these ``metadata.process_proxy.config``."""
    options = resources.options
    rules = [UserRules.for_spec(config, options.authorized_users, options.unauthorized_users) for config in configs]
    return Owners(options.impersonation_enabled, rules)


def local_processes(variable: str, values: Collection[str], owners: Owners) -> Iterator[Remnant]:
    """Yield the processes on this machine whose environment has one of ``values`` for ``variable``; blocks."""
    for pid, variables in environments():
        kernel_id, value = variables.get("KERNEL_ID", ""), variables.get(variable, "")
        if value not in values or not is_kernel_id(kernel_id) or not owners.include_local(pid, variables):
            continue
        process = LocalProcess.find(pid)
        if process is not None:
            end = partial(_end_local, process, variable, value, owners)
            yield Remnant(kernel_id, f"process {pid} on this machine", end)


def _end_local(process: LocalProcess, variable: str, value: str, owners: Owners) -> None:
    # Checked again, because it may have become another program or another process since it was found.
    variables = environment_of(process.pid)
    if variables.get(variable) == value and owners.include_local(process.pid, variables):
        process.kill()


def local_files(directory: Path, labels: Collection[str], excluded: Collection[str] = ()) -> Iterator[Remnant]:
    """Yield the labelled connection files and logs in the Jupyter runtime directory, except of ``excluded``; blocks."""
    for path in directory.glob("kernel-*"):
        stem, _, rest = path.name.removeprefix("kernel-").partition(".")
        if stem in excluded:
            continue
        is_connection = rest == "json" or rest.startswith("json.")  # the latter is a file that was not renamed yet
        label = rest.removesuffix(".log") if rest.endswith(".log") else label_in(path) if is_connection else ""
        if label in labels:
            yield Remnant(stem, f"file {path}", partial(path.unlink, missing_ok=True))


def label_in(path: Path) -> str:
    """Return the label in a connection file; empty if it has none or cannot be read."""
    try:
        content = json.loads(read_own(path, _MOST_OF_A_CONNECTION_FILE))
    except (OSError, ValueError):
        return ""
    label = content.get(LABEL_ENTRY) if isinstance(content, dict) else None
    return label if isinstance(label, str) else ""


def remote_processes(shell: SSHShell, variable: str, values: Collection[str], owners: Owners) -> Iterator[Remnant]:
    """Yield the process groups of an SSH host whose leader has one of ``values`` for ``variable``; blocks.

    Raises
    ------
    KernelLaunchError
        The host does not answer.
    """
    for value in values:
        assignment = f"{variable}={value}"
        for leader in shell.leaders(assignment):
            if is_kernel_id(leader.kernel_id) and owners.include(leader.is_ours, leader.owner, leader.username):
                end = partial(shell.end_leader, leader, assignment)
                yield Remnant(leader.kernel_id, f"process {leader.pid} on {shell.host}", end)


@functools.cache
def user_name(uid: int) -> str:
    """Return a user's name; cached, because a directory service may be slow."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
