"""Kernel sessions in files, one per kernel."""

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
        """Return a store in ``sessions_directory``, which is looked up at every call."""
        return FileStore(lambda: self.sessions_directory, self.log)

    @property
    def sessions_directory(self) -> Path:
        """The directory that holds the files."""
        return Path(self.persistence_root) / "kernel_sessions"


class FileStore:
    """Keeps each record in a file ``<kernel id>.json`` that holds ``{kernel id: record}``.

    Only one gateway at a time may use the directory, because files have no leases. Files are written atomically, with
    mode 0600, into a directory of mode 0700; a file that is not a session is renamed to ``<name>.corrupt`` and logged.
    """

    def __init__(self, directory: Callable[[], Path], log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._configured = directory
        self._log = log
        self._prepared: Path | None = None

    def load_all(self) -> dict[str, Record | Unreadable]:
        """Read every file in the directory, and remove other users' access to the files."""
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
                reason = f"Kernel session file {path} cannot be used at present and is left in place: {error}"
                found[path.stem] = Unreadable(reason)
        if loosened:
            self._log.info("Removed other users' access to %d kernel session files (mode 0600).", loosened)
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
            raise ValueError("this kernel id cannot be used as a file name")
        write_atomically(self._directory() / f"{kernel_id}.json", json.dumps({kernel_id: record}))

    def delete(self, kernel_ids: list[str]) -> None:
        """Remove the files of kernels."""
        directory = self._directory()
        for kernel_id in filter(is_usable_id, kernel_ids):
            (directory / f"{kernel_id}.json").unlink(missing_ok=True)
        sync_directory(directory)

    def _directory(self) -> Path:
        """Return the directory, which the first call creates and tightens; later it must still exist.

        A missing directory (an unmounted file system, for example) is an error, not an empty store.
        """
        directory = self._configured()
        if directory != self._prepared:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tighten(directory)
            self._prepared = directory
        elif not directory.is_dir():
            raise FileNotFoundError(f"{directory} no longer exists")
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
                self._log.info("Removed other users' access to %s (mode %04o, now 0700).", directory, former)
        finally:
            os.close(descriptor)


def _record(path: Path, text: bytes) -> Record | Unreadable:
    """Return the record in a file; set the file aside, and return :class:`Unreadable`, if it holds none."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or list(content) != [path.stem]:
            raise ValueError("it does not hold the session of the kernel in its name")
        as_loaded(content)  # only to check that it is a record
    except (ValueError, RecursionError) as error:
        aside = path.with_name(f"{path.name}.corrupt")
        path.replace(aside)
        return Unreadable(f"{path} is not a kernel session ({error}); it was set aside as {aside.name}.")
    record: Record = content[path.stem]
    return record


def _remove_abandoned_files(directory: Path) -> None:
    """Remove temporary files left by writers that were killed."""
    for path in directory.glob(".*.json.*.tmp"):
        try:
            if _is_gone(path.name.split(".")[-3]) or path.stat().st_mtime < time.time() - _ABANDONED_AFTER_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue


def _is_gone(pid: str) -> bool:
    """Whether the process with this id, which wrote a temporary file, no longer exists on this machine."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return True
    except PermissionError:
        pass  # it exists, and belongs to another user
    return False
