"""Kernel sessions in files, one a kernel."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_data_dir
from traitlets import default

from enterprise_gateway.core import envvars
from enterprise_gateway.core.ownfiles import check_directory_link, open_own, read_own
from enterprise_gateway.core.sessionrecords import Record, as_loaded, is_usable_id

from .secretfiles import sync_directory, tighten, write_atomically
from .sessionstore import Unreadable
from .storemanager import StoreKernelSessionManager

_ABANDONED_AFTER_SECONDS = 60.0


class FileKernelSessionManager(StoreKernelSessionManager):
    """Keeps sessions in ``<persistence_root>/kernel_sessions/<kernel id>.json``."""

    @default("persistence_root")
    def _default_persistence_root(self) -> str:
        return envvars.EG_PERSISTENCE_ROOT() or jupyter_data_dir()

    def make_store(self) -> FileStore:
        """Return the files of ``sessions_directory``, whatever that is when they are asked for."""
        return FileStore(lambda: self.sessions_directory, self.log)

    @property
    def sessions_directory(self) -> Path:
        """Where the files are."""
        return Path(self.persistence_root) / "kernel_sessions"


class FileStore:
    """Keeps each record in a file ``<kernel id>.json`` that holds ``{kernel id: record}``.

    The directory belongs to one gateway at a time: files know no leases. They are written atomically, with mode 0600,
    into a directory of mode 0700; a file that is no session is set aside as ``<name>.corrupt`` and logged.
    """

    def __init__(self, directory: Callable[[], Path], log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._configured = directory
        self._log = log
        self._prepared: Path | None = None

    def load_all(self) -> dict[str, Record | Unreadable]:
        """Read every file of the directory; take other users' access to them away."""
        directory = self._directory()
        _remove_abandoned_files(directory)
        found: dict[str, Record | Unreadable] = {}
        loosened = 0
        for path in sorted(path for path in directory.iterdir() if path.suffix == ".json" and is_usable_id(path.stem)):
            try:
                with open(open_own(path, os.O_RDONLY), "rb") as file:
                    loosened += bool(tighten(file.fileno(), 0o600))
                    text = file.read()
                found[path.stem] = _record(path, text)
            except FileNotFoundError:
                continue
            except OSError as error:
                reason = f"Kernel session file {path} cannot be used now and stays where it is: {error}"
                found[path.stem] = Unreadable(reason)
        if loosened:
            self._log.info("Took other users' access to %d kernel session files away (mode 0600).", loosened)
        return found

    def load(self, kernel_id: str) -> Record | Unreadable | None:
        """Read the file of one kernel, if there is one."""
        if not is_usable_id(kernel_id):
            return None
        path = self._directory() / f"{kernel_id}.json"
        try:
            return _record(path, read_own(path))
        except FileNotFoundError:
            return None

    def save(self, kernel_id: str, record: Record) -> None:
        """Write the file of one kernel."""
        if not is_usable_id(kernel_id):
            raise ValueError("this kernel id cannot be the name of a file")
        write_atomically(self._directory() / f"{kernel_id}.json", json.dumps({kernel_id: record}))

    def delete(self, kernel_ids: list[str]) -> None:
        """Remove the files of kernels."""
        directory = self._directory()
        for kernel_id in filter(is_usable_id, kernel_ids):
            (directory / f"{kernel_id}.json").unlink(missing_ok=True)
        sync_directory(directory)

    def _directory(self) -> Path:
        """Return the directory, made and tightened at the first call; later it must still be there.

        A directory that has vanished (a file system that is not mounted) is no directory without sessions.
        """
        directory = self._configured()
        if directory != self._prepared:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tighten(directory)
            self._prepared = directory
        elif not directory.is_dir():
            raise FileNotFoundError(f"{directory} has vanished")
        return directory

    def _tighten(self, directory: Path) -> None:
        check_directory_link(directory)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            former = tighten(descriptor, 0o700)
        except PermissionError as error:
            self._log.warning("Other users may read %s, and its mode cannot be changed: %s", directory, error)
        else:
            if former:
                self._log.info("Took other users' access to %s away (mode %04o, now 0700).", directory, former)
        finally:
            os.close(descriptor)


def _record(path: Path, text: bytes) -> Record | Unreadable:
    """Return the record that a file holds, or what says that the file had to be set aside."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or list(content) != [path.stem]:
            raise ValueError("it does not hold the session of the kernel in its name")
        as_loaded(content)  # only to see whether it is a record
    except (ValueError, RecursionError) as error:
        aside = path.with_name(f"{path.name}.corrupt")
        path.replace(aside)
        return Unreadable(f"{path} is not a kernel session ({error}); it was set aside as {aside.name}.")
    record: Record = content[path.stem]
    return record


def _remove_abandoned_files(directory: Path) -> None:
    """Remove what a writer that was killed has left of its unfinished file."""
    for path in directory.glob(".*.json.*.tmp"):
        try:
            if _is_gone(path.name.split(".")[-3]) or path.stat().st_mtime < time.time() - _ABANDONED_AFTER_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue


def _is_gone(pid: str) -> bool:
    """Whether the writer of an unfinished file, named in it, is no process of this machine any more."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return True
    except PermissionError:
        pass  # another user's: it is there
    return False
