"""Files and directories that hold secrets: permissions are checked, and writes are atomic and durable."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path


def read_secret_file(path: str | Path) -> str:
    """Return the text of a file that others must not be able to read.

    Raises
    ------
    ValueError
        Its permissions let other users read or change it. A group may read a file that belongs to root, because
        Kubernetes mounts secrets that way for a gateway that does not run as root.
    OSError
        It cannot be read.
    """
    with open(path, encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        group_may_read = status.st_uid == 0 and os.geteuid() != 0
        if stat.S_IMODE(status.st_mode) & (0o037 if group_may_read else 0o077):
            raise ValueError(f"{path} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 it")
        return file.read()


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by a file of mode 0600, durably: after a crash it has the old or the new content.

    Raises
    ------
    OSError
        It could not be written; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make changes to the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tighten(descriptor: int, mode: int) -> int:
    """Remove the permissions that are not in ``mode``, and return the previous ones.

    Returns 0 if there was nothing to remove. Raises OSError if this user may not change the permissions.
    """
    present = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if not present & 0o777 & ~mode:
        return 0
    os.fchmod(descriptor, present & ~(0o777 & ~mode))
    return present
