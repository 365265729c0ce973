"""Files of ours in directories that others can write to: another user's file, link or pipe is never mistaken for ours.

A name there may be taken before we use it: by a pipe, on which ``open`` blocks for ever; by a link that leads to
another file; by a file that its maker goes on to read. Everything here blocks no longer than its file system does.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_FILE = (errno.ELOOP, errno.EMLINK, errno.ENXIO)  # the errors for a link, and for a pipe without a reader
_ROOT = 0


def open_own(path: str | Path, flags: int, names: int = 1) -> int:
    """Return the descriptor of a regular file that belongs to us, or to root, and has ``names`` names at most.

    With ``O_CREAT`` one is made where there is none, which only we may read. From one that is to be written, others'
    access is taken away.

    Raises
    ------
    FileNotFoundError
        There is none.
    PermissionError
        What has the name is no such file; the text is a sentence that says so.
    OSError
        It cannot be opened.
    """
    if flags & os.O_CREAT:
        with suppress(FileExistsError):
            return _that_waits(os.open(path, flags | _SAFELY | os.O_EXCL, 0o600))
    try:
        descriptor = os.open(path, (flags & ~os.O_CREAT) | _SAFELY)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _refusal(path, "a symbolic link, a pipe or a device") from error
        raise
    try:
        status = os.fstat(descriptor)
        _check(path, status, names)
        if flags & (os.O_WRONLY | os.O_RDWR) and status.st_uid == os.geteuid() and status.st_mode & 0o077:
            os.fchmod(descriptor, status.st_mode & 0o700)
        return _that_waits(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def read_own(path: str | Path, limit: int = -1, names: int = 1) -> bytes:
    """Return what is in a file, ``limit`` bytes at most; raises as :func:`open_own` does."""
    with open(open_own(path, os.O_RDONLY, names), "rb") as file:
        return file.read(limit)


def check_own(path: str | Path) -> None:
    """Refuse what :func:`open_own` refuses, without opening it: for files that a library goes on to open.

    Raises
    ------
    FileNotFoundError
        There is none.
    PermissionError
        What has the name is no file of ours; the text is a sentence that says so.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise _refusal(path, "a symbolic link")
    _check(path, status, names=1)


def check_directory_link(path: str | Path) -> None:
    """Refuse a directory that is a symbolic link, if neither we nor root have made that.

    Raises
    ------
    PermissionError
        Somebody else has; the text is a sentence that says so.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode) and status.st_uid not in (os.geteuid(), _ROOT):
        raise PermissionError(f"{path} is a symbolic link that the user with id {status.st_uid} has made: remove it")


def make_private_directory(path: str | Path) -> None:
    """Make a directory that only we may enter, or see to it that the one which is there is such a one.

    Raises
    ------
    PermissionError
        What has the name is no directory of ours; the text is a sentence that says so.
    OSError
        It cannot be made.
    """
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    try:
        descriptor = os.open(path, os.O_DIRECTORY | _SAFELY)
    except OSError as error:
        raise _refusal(path, "no directory of its user") from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise _refusal(path, f"a directory of the user with id {status.st_uid}")
        if status.st_mode & 0o077:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def _check(path: str | Path, status: os.stat_result, names: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, "a pipe, a device or a directory")
    if status.st_nlink > names:
        raise _refusal(path, "a file that has another name as well")
    if status.st_uid not in (os.geteuid(), _ROOT) and status.st_uid != _our_id_beside(path):
        raise _refusal(path, f"a file of the user with id {status.st_uid}")


def _our_id_beside(path: str | Path) -> int:
    """Return as whose a file is seen that we make in the same directory: file servers may map users."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(path) or ".") as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return os.geteuid()


def _refusal(path: str | Path, what: str) -> PermissionError:
    return PermissionError(f"{path} is {what}, where the gateway wants to have one of its own: remove it")


def _that_waits(descriptor: int) -> int:
    """Let reads and writes wait again, for those who inherit the descriptor as well."""
    os.set_blocking(descriptor, True)
    return descriptor
