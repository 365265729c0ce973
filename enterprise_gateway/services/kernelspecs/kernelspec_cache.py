"""A cache of kernelspecs that is always as fresh as the disk."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from traitlets import Bool
from traitlets.config import SingletonConfigurable

from ...core import envvars
from ...core.errors import BrokenKernelSpecError
from ...core.offload import offload
from ...core.options import EnvironmentDefaults
from .reading import CheckedKernelSpec
from .snapshot import CacheItem, Snapshot, fingerprint, is_resource, resource_files, take_snapshot

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent
    from watchdog.observers.api import BaseObserver

_POSSIBLE_NAME = re.compile(r"[A-Za-z0-9._-]+")


class KernelSpecCache(EnvironmentDefaults, SingletonConfigurable):
    """Keeps the installed kernelspecs in memory; reads them again when their files change.

    An observer (watchdog) reports changes below the directories that hold kernelspecs. Because network file systems
    and symbolic links report nothing, and some systems have no observer, the files' times are also compared, in a
    thread, before a request is answered: at most twice a second with an observer, and every time without one.

    Parameters
    ----------
    kernel_spec_manager
        Finds the kernelspecs. Nothing is cached if its methods are coroutines.
    cache_enabled
        If False, the manager is called every time.
    """

    CHECK_INTERVAL_SECONDS = 0.5

    cache_enabled = Bool(
        envvars.EG_KERNELSPEC_CACHE_ENABLED.default,
        config=True,
        help="Whether kernelspecs are cached in memory; changes on disk are detected. False: read for each request.",
    ).tag(env=envvars.EG_KERNELSPEC_CACHE_ENABLED)

    def __init__(self, kernel_spec_manager: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_spec_manager = kernel_spec_manager
        self.cache_misses = 0
        self.observer: BaseObserver | None = None
        self._observed_dirs: set[str] = set()
        self._unobservable_dirs: set[str] = set()
        self._snapshot = Snapshot()
        self._broken: dict[str, str] = {}
        self._fingerprint: tuple[Any, ...] | None = None
        self._stale = True
        self._checked_at = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._lock = threading.RLock()
        if hasattr(kernel_spec_manager, "observe"):
            kernel_spec_manager.observe(self._mark_stale)

    # -- Called by handlers and managers

    async def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return the kernelspec with that name; case does not matter.

        Raises
        ------
        NoSuchKernel
            There is none, or the manager's ``allowed_kernelspecs`` does not include it.
        BrokenKernelSpecError
            Its ``kernel.json`` cannot be used.
        """
        allowed = getattr(self.kernel_spec_manager, "allowed_kernelspecs", None)
        if allowed and kernel_name.lower() not in {name.lower() for name in allowed}:
            raise NoSuchKernel(kernel_name)
        if self._is_caching:
            item = (await self.snapshot()).items.get(kernel_name.lower())
            if item is not None:
                return self._kernel_spec(item)
            self.cache_misses += 1
            self.log.debug("Cache miss (%d) for kernelspec %s", self.cache_misses, kernel_name)
        if not _POSSIBLE_NAME.fullmatch(kernel_name):  # jupyter_client would log it, including line ends
            raise NoSuchKernel(kernel_name)
        spec = await self._ask_manager(self.kernel_spec_manager.get_kernel_spec, kernel_name)
        if self._is_caching:
            await offload(self._add, kernel_name.lower(), spec)
        return cast(KernelSpec, spec)

    async def get_all_specs(self) -> dict[str, CacheItem]:
        """Return all kernelspecs, as jupyter_client's ``get_all_specs`` does."""
        return dict((await self.snapshot()).items)

    async def snapshot(self) -> Snapshot:
        """Return the present kernelspecs; snapshots with the same generation are identical."""
        if not self._is_caching:
            items = await self._ask_manager(self.kernel_spec_manager.get_all_specs)
            await offload(self._note_broken, items)
            return await offload(take_snapshot, items)
        if self._stale or time.monotonic() - self._checked_at >= self._check_interval:
            if self._refreshing is None or self._refreshing.get_loop() is not asyncio.get_running_loop():
                self._refreshing = asyncio.ensure_future(offload(self._refresh))
                self._refreshing.add_done_callback(self._end_refresh)
            await asyncio.shield(self._refreshing)
        return self._snapshot

    @property
    def cache_items(self) -> dict[str, CacheItem]:
        """The cached kernelspecs by lower-case name; blocks while changed files are read."""
        if not self._is_caching:
            return {}
        if self._stale:
            self._refresh()
        return dict(self._snapshot.items)

    @property
    def observed_dirs(self) -> set[str]:
        """The directories in which changes are noticed at once."""
        if self._is_caching and not self._checked_at:
            self._refresh()
        return self._observed_dirs

    def stop(self) -> None:
        """End the observer; called when the gateway stops. Blocks until its threads have ended."""
        with self._lock:
            observer, self.observer = self.observer, None
            self._observed_dirs.clear()
        if hasattr(self.kernel_spec_manager, "unobserve"):
            self.kernel_spec_manager.unobserve(self._mark_stale)
        if observer is not None:
            observer.stop()
            observer.join()

    # -- Called by the observer's thread

    def dispatch(self, event: FileSystemEvent) -> None:
        """Note that a kernelspec changed; called by watchdog for every event below the observed directories."""
        if event.event_type not in {"created", "modified", "deleted", "moved", "closed"}:
            return  # reading by this process is reported as well
        names = {Path(os.fsdecode(path)).name for path in (event.src_path, event.dest_path) if path}
        if event.is_directory or "kernel.json" in names or any(is_resource(name) for name in names):
            self._mark_stale()

    # -- Internals

    @property
    def _is_caching(self) -> bool:
        return self.cache_enabled and not inspect.iscoroutinefunction(self.kernel_spec_manager.get_all_specs)

    @property
    def _check_interval(self) -> float:
        return 0.0 if self.observer is None or self._unobservable_dirs else self.CHECK_INTERVAL_SECONDS

    def _mark_stale(self, change: Any = None) -> None:
        self._stale = True

    def _end_refresh(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None

    async def _ask_manager(self, method: Any, *args: Any) -> Any:
        if inspect.iscoroutinefunction(method):
            return await method(*args)
        result = await offload(method, *args)
        return await result if inspect.isawaitable(result) else result

    def _refresh(self) -> None:
        """Read the kernelspecs again if they may have changed; blocks, so coroutines offload it."""
        with self._lock:
            was_stale, self._stale = self._stale, False
            if was_stale or self._fingerprint is None or self._take_fingerprint() != self._fingerprint:
                self._scan()
            self._checked_at = time.monotonic()

    def _scan(self) -> None:
        current = take_snapshot(self.kernel_spec_manager.get_all_specs())
        if current != self._snapshot:
            self._snapshot = current
        self._note_broken(current.items)
        self._fingerprint = self._take_fingerprint()
        for resource_dir in self._resource_dirs():
            self._observe(Path(resource_dir).parent)

    def _resource_dirs(self) -> list[str]:
        return [item["resource_dir"] for item in self._snapshot.items.values()] + list(self._broken)

    def _take_fingerprint(self) -> tuple[Any, ...] | None:
        return fingerprint(self.kernel_spec_manager, self._resource_dirs())

    def _note_broken(self, known: Mapping[str, CacheItem]) -> None:
        """Log once why each omitted kernelspec cannot be used, and again if the reason changes."""
        manager = self.kernel_spec_manager
        if getattr(manager, "kernel_spec_class", None) is not CheckedKernelSpec:
            return  # the manager reports problems of its own kernelspecs itself
        broken = {}
        for name, resource_dir in manager.find_kernel_specs().items():
            if name.lower() not in known:
                try:
                    CheckedKernelSpec.from_resource_dir(resource_dir)
                except BrokenKernelSpecError as error:
                    broken[resource_dir] = str(error)
        with self._lock:
            for resource_dir, reason in broken.items():
                if self._broken.get(resource_dir) != reason:
                    self.log.warning("%s", reason)
            self._broken = broken

    def _add(self, name: str, spec: KernelSpec) -> None:
        """Add a kernelspec that the manager knows but the cache did not."""
        item = CacheItem(spec=spec.to_dict(), resource_dir=spec.resource_dir)
        with self._lock:
            known = self._snapshot
            self._snapshot = Snapshot(
                {**known.items, name: item}, {**known.resources, name: resource_files(spec.resource_dir)}
            )
            self._observe(Path(spec.resource_dir).parent)

    def _observe(self, directory: Path) -> None:
        """Watch one of the manager's directories, unless the system has no watches left."""
        known = self._observed_dirs | self._unobservable_dirs
        kernel_dirs = {Path(path) for path in getattr(self.kernel_spec_manager, "kernel_dirs", ())}
        if str(directory) in known or directory not in kernel_dirs:
            return
        try:
            if self.observer is None:
                self.observer = self._start_observer()
            self.observer.schedule(self, str(directory), recursive=True)  # type: ignore[arg-type]
        except OSError as error:
            self.log.warning("The system does not report changes of kernelspecs in %s: %s", directory, error)
            self._unobservable_dirs.add(str(directory))
        else:
            self._observed_dirs.add(str(directory))

    def _start_observer(self) -> BaseObserver:
        from watchdog.observers import Observer

        observer = Observer()
        observer.daemon = True
        observer.start()
        return observer

    def _kernel_spec(self, item: CacheItem) -> KernelSpec:
        kernel_spec_class = getattr(self.kernel_spec_manager, "kernel_spec_class", KernelSpec)
        return cast(KernelSpec, kernel_spec_class(resource_dir=item["resource_dir"], **item["spec"]))
