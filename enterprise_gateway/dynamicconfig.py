"""Options that change while the gateway runs: config files are read again when they change or appear."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Protocol

from traitlets import TraitError
from traitlets.config import Config, Configurable

from .core.offload import offload

FileState = tuple[int, int, int]


class ConfiguredApplication(Protocol):
    """What is asked of the application."""

    cli_config: Any

    @property
    def log(self) -> logging.Logger | logging.LoggerAdapter[Any]:
        """Where changes are told."""

    def read_config_files(self) -> Config:
        """Return what the config files say now."""

    def config_file_candidates(self) -> list[str]:
        """Return the paths of all config files that would be read, if they were there."""


class DynamicConfig:
    """Watches the application's config files and hands their values to the registered objects.

    Every file that could be loaded at a start is watched, also one that does not exist yet. What the command line
    sets keeps priority. An option that disappears from a file keeps its value until the gateway is restarted.

    Parameters
    ----------
    app
        Says where config files are, and what the command line sets.
    """

    def __init__(self, app: ConfiguredApplication) -> None:
        self._app = app
        self._configurables: dict[str, Configurable] = {}
        self._seen = self._file_states()
        self._poller: asyncio.Task[None] | None = None

    def add(self, name: str, configurable: Configurable) -> None:
        """Register an object whose options follow the config files.

        Raises
        ------
        RuntimeError
            The object has no options.
        """
        if not isinstance(configurable, Configurable):
            raise RuntimeError(
                f"'{name}' is not a Configurable: {type(configurable).__name__} has no options to update."
            )
        self._configurables[name] = configurable

    def note_loaded(self) -> None:
        """Take the files' present state as the loaded one; called when the application loads its config files."""
        self._seen = self._file_states()

    def update(self) -> bool:
        """Read changed files and apply them; blocks. Return whether there were any."""
        config = self._read_changed()
        return config is not None and self._apply(config)

    async def update_async(self) -> bool:
        """Do what ``update`` does without blocking the event loop."""
        config = await offload(self._read_changed)
        return config is not None and self._apply(config)

    def start_polling(self, interval: float) -> None:
        """Look every ``interval`` seconds from now on; 0 stops. Needs the running event loop."""
        self.stop_polling()
        if interval > 0:
            self._log_excluded()
            self._poller = asyncio.get_running_loop().create_task(self._poll(interval))

    def stop_polling(self) -> None:
        """Look no more."""
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None

    async def _poll(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            try:
                await self.update_async()
            except Exception:
                self._app.log.exception("The config files could not be read again")

    def _read_changed(self) -> Config | None:
        states = self._file_states()
        if states == self._seen:
            return None
        config = self._app.read_config_files()
        self._seen = states  # only now: files that failed are tried again
        return config

    def _apply(self, config: Config) -> bool:
        config.merge(self._app.cli_config)
        for name, configurable in self._configurables.items():
            try:
                configurable.update_config(config)
            except TraitError as error:
                self._app.log.error("The config files hold a value that %s cannot take: %s", name, error)
        self._app.log.info("Config files changed; updated: %s", ", ".join(self._configurables))
        return True

    def _file_states(self) -> dict[str, FileState]:
        """Return time, size and inode of each config file that exists."""
        states = {}
        for path in self._app.config_file_candidates():
            try:
                stat = Path(path).stat()
            except OSError:
                continue
            states[path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        return states

    def _log_excluded(self) -> None:
        options: dict[str, Any] = self._app.cli_config
        given = [f"{section}.{option}" for section, values in options.items() for option in values]
        if given:
            self._app.log.info("Set on the command line and so not changed by config files: %s", ", ".join(given))
