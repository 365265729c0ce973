"""Kernel sessions in files, one a kernel."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_data_dir
from traitlets import default

from enterprise_gateway.core import envvars
from enterprise_gateway.core.errors import StoreUnavailableError
from enterprise_gateway.core.ownfiles import check_directory_link, open_own, read_own
from enterprise_gateway.core.sessionrecords import Session, is_usable_id

from .basemanager import KernelSessionManager
from .secretfiles import sync_directory, tighten, write_atomically

_ABANDONED_AFTER_SECONDS = 60.0


class FileKernelSessionManager(KernelSessionManager):
    """Keeps sessions in ``<persistence_root>/kernel_sessions/<kernel id>.json``.

    The directory belongs to one gateway at a time: files know no leases. They are written atomically, with mode 0600,
    into a directory of mode 0700; a file that is no session is set aside as ``<name>.corrupt`` and logged.
    """

    @default("persistence_root")
    def _default_persistence_root(self) -> str:
        return envvars.EG_PERSISTENCE_ROOT() or jupyter_data_dir()

    def __init__(self, kernel_manager: Any, **kwargs: Any) -> None:
        super().__init__(kernel_manager, **kwargs)
        self._prepared: Path | None = None

    @property
    def sessions_directory(self) -> Path:
        """Where the files are."""
        return Path(self.persistence_root) / "kernel_sessions"

    def load_sessions(self) -> None:
        """Load every file of the directory."""
        if not self.enable_persistence:
            return
        directory = self._directory()
        self._remove_abandoned_files()
        loosened = 0
        for path in sorted(path for path in directory.iterdir() if path.suffix == ".json" and is_usable_id(path.stem)):
            try:
                with open(open_own(path, os.O_RDONLY), "rb") as file:
                    loosened += bool(tighten(file.fileno(), 0o600))
                    text = file.read()
                self._sessions.update(self._session(path, text))
            except FileNotFoundError:
                continue
            except (OSError, StoreUnavailableError) as error:
                self.unusable.add(path.stem)
                self.log.warning("Kernel session file %s cannot be used now and stays where it is: %s", path, error)
        if loosened:
            self.log.info("Took other users' access to %d kernel session files away (mode 0600).", loosened)

    def load_session(self, kernel_id: str) -> None:
        """Load the file of one kernel, if there is one."""
        if not self.enable_persistence or not is_usable_id(kernel_id):
            return
        path = self._directory() / f"{kernel_id}.json"
        with suppress(FileNotFoundError):
            self._sessions.update(self._session(path, read_own(path)))

    def save_session(self, kernel_id: str) -> None:
        """Write the file of one kernel."""
        if self.enable_persistence and kernel_id in self._sessions:
            if not is_usable_id(kernel_id):
                raise ValueError("this kernel id cannot be the name of a file")
            write_atomically(self._directory() / f"{kernel_id}.json", json.dumps(self.encode_session(kernel_id)))

    def delete_sessions(self, kernel_ids: list[str]) -> None:
        """Remove the files of kernels."""
        if not self.enable_persistence:
            return
        directory = self._directory()
        for kernel_id in filter(is_usable_id, kernel_ids):
            (directory / f"{kernel_id}.json").unlink(missing_ok=True)
        sync_directory(directory)

    def _session(self, path: Path, text: bytes) -> Session:
        """Return the session that a file holds, nothing when the file had to be set aside."""
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or list(content) != [path.stem]:
                raise ValueError("it does not hold the session of the kernel in its name")
            return self.decode_session(content)
        except (ValueError, RecursionError) as error:
            aside = path.with_name(f"{path.name}.corrupt")
            path.replace(aside)
            self.unusable.add(path.stem)
            self.log.warning("%s is not a kernel session (%s); it was set aside as %s.", path, error, aside.name)
            return {}

    def _directory(self) -> Path:
        """Return the directory, made and tightened at the first call; later it must still be there.

        A directory that has vanished (a file system that is not mounted) is no directory without sessions.
        """
        directory = self.sessions_directory
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
            self.log.warning("Other users may read %s, and its mode cannot be changed: %s", directory, error)
        else:
            if former:
                self.log.info("Took other users' access to %s away (mode %04o, now 0700).", directory, former)
        finally:
            os.close(descriptor)

    def _remove_abandoned_files(self) -> None:
        """Remove what a writer that was killed has left of its unfinished file."""
        for path in self.sessions_directory.glob(".*.json.*.tmp"):
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
