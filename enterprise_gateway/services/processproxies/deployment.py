"""The *label* put on a kernel's processes and files, by which gateways on the same store recognize them.

Every kernel has the label in its environment (``EG_DEPLOYMENT_ID``); connection files and logs on this machine have it
as well. Anything that has the label and belongs to no recorded kernel was left behind.

* Gateways with a store share the label of the store, which is kept next to the records.
* A gateway without a store has its own label for each run. It holds a lock while it runs, so the next gateway knows
  which runs are over, and that anything with their labels is stale.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ...core.errors import InvalidRequestError
from ...core.offload import offload
from ...core.ownfiles import open_own, read_own

LABEL_VARIABLE = "EG_DEPLOYMENT_ID"
LABEL_ENTRY = "eg_deployment_id"  # in connection files
_PREFIX, _SUFFIX = "gateway-run-", ".lock"


class Deployment:
    """The label in use; part of SharedResources. This class has none, so nothing is swept."""

    _is_known = False

    @property
    def label(self) -> str:
        """The label; empty if there is none."""
        return ""

    async def known(self) -> str:
        """Return the label; the first call reads or creates it in a thread, so that later uses do not block."""
        if not self._is_known:
            await offload(lambda: self.label)
            self._is_known = True
        return self.label

    def close(self) -> None:
        """Mark this run as over; called at an orderly stop of the gateway."""


class StoreDeployment(Deployment):
    """The label of all gateways that share one store.

    Parameters
    ----------
    directory
        Holds the random part of the label, which is created if it is missing.
    store
        Identifies the store, because two stores may use the same directory.
    label
        Configured by the administrator; if set, nothing is written.
    """

    def __init__(self, directory: Path, store: str, label: str = "") -> None:
        self._file = directory / LABEL_ENTRY
        self._store = store
        self._label = label

    @property
    def label(self) -> str:
        """The label; read or created at the first use."""
        if not self._label:
            part = read_or_make(self._file)
            self._label = hashlib.sha256(f"{part}\n{self._store}".encode()).hexdigest()[:32]
        return self._label


class RunDeployment(Deployment):
    """The label of one run of a gateway without a store.

    Parameters
    ----------
    directory
        The Jupyter runtime directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._label = ""
        self._lock = -1
        self._making = threading.Lock()

    @property
    def label(self) -> str:
        """The label; created, and its lock acquired, at the first use."""
        with self._making:
            if not self._label:
                label = uuid.uuid4().hex
                path = self._directory / f"{_PREFIX}{label}{_SUFFIX}"
                self._lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                self._label = label
            return self._label

    def close(self) -> None:
        """Release the lock, because nothing of the run is left."""
        if self._lock >= 0:
            forget_run(self._directory, self._label)
            os.close(self._lock)
            self._lock = -1


def ended_runs(directory: Path) -> Iterator[str]:
    """Yield the labels of runs that ended without an orderly stop."""
    for path in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
        try:
            lock = open_own(path, os.O_RDWR)
        except OSError:
            continue  # it is another user's, or was just removed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # this run is still active
        else:
            yield path.name[len(_PREFIX) : -len(_SUFFIX)]
        finally:
            os.close(lock)


def forget_run(directory: Path, label: str) -> None:
    """Remove the lock file of a run of which nothing is left."""
    (directory / f"{_PREFIX}{label}{_SUFFIX}").unlink(missing_ok=True)


def read_or_make(path: Path) -> str:
    """Return the random text in a file, which the first gateway that needs it creates.

    Raises
    ------
    OSError
        The directory cannot be written to.
    """
    text = uuid.uuid4().hex
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{text}")
    try:
        with open(open_own(draft, os.O_WRONLY | os.O_CREAT), "w") as file:
            file.write(text)
        with suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, a link never replaces a file
    finally:
        draft.unlink(missing_ok=True)
    kept = read_own(path, names=2).decode().strip()  # for a moment, another gateway's draft is the second name
    if not kept:
        raise InvalidRequestError(f"{path} is empty; if you remove it, anything labelled before is no longer swept.")
    return kept
