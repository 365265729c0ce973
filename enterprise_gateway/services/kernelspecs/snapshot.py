"""Snapshots of the installed kernelspecs, and how they are read from disk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypedDict

from jupyter_client.kernelspec import KernelSpecManager

_generations = count(1)
# Files newer than this may change again without a visible change of their modification time.
_SETTLED_SECONDS = 0.1


class CacheItem(TypedDict):
    """One kernelspec as jupyter_client's ``get_all_specs`` gives it."""

    spec: dict[str, Any]
    resource_dir: str


@dataclass(frozen=True)
class Snapshot:
    """The kernelspecs by lower-case name, and the names of the resource files of each.

    ``generation`` is different for every snapshot of the process, so that responses built from one can be cached.
    """

    items: Mapping[str, CacheItem] = field(default_factory=dict)
    resources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    generation: int = field(default_factory=lambda: next(_generations), compare=False)


def take_snapshot(items: Mapping[str, CacheItem]) -> Snapshot:
    """Add the resource files to ``items``; blocks on the file system."""
    by_name = {name.lower(): item for name, item in items.items()}
    return Snapshot(by_name, {name: resource_files(item["resource_dir"]) for name, item in by_name.items()})


def resource_files(resource_dir: str) -> tuple[str, ...]:
    """Return the files of a kernelspec for clients: kernel.js, kernel.css and logos."""
    try:
        names = sorted(entry.name for entry in Path(resource_dir).iterdir())
    except OSError:
        return ()
    return tuple(name for name in names if is_resource(name))


def is_resource(name: str) -> bool:
    """Whether a file of this name is offered to clients as a kernelspec's resource."""
    return name in {"kernel.js", "kernel.css"} or name.startswith("logo-")


def is_on_disk(manager: Any) -> bool:
    """Whether the manager finds kernelspecs in its ``kernel_dirs`` only, so that checking these shows every change."""
    own = type(manager)
    return all(
        getattr(own, name, None) is getattr(KernelSpecManager, name)
        for name in ("find_kernel_specs", "get_all_specs", "get_kernel_spec")
    )


def fingerprint(manager: Any, resource_dirs: Iterable[str]) -> tuple[Any, ...] | None:
    """Return a value that changes with the kernelspecs on disk; None if only reading them again can tell.

    ``resource_dirs`` are the directories of the known kernelspecs, including broken ones.
    """
    if not is_on_disk(manager):
        return None
    directories = list(manager.kernel_dirs)
    paths = directories + [path for resource_dir in resource_dirs for path in _watched_paths(resource_dir)]
    stats = [_stat(path) for path in paths]
    newest = max((stat[0] for stat in stats if stat), default=0)
    if time.time_ns() - newest < _SETTLED_SECONDS * 1e9:
        return None
    allowed = frozenset(manager.allowed_kernelspecs)
    return (tuple(paths), tuple(stats), allowed, manager.ensure_native_kernel)


def _watched_paths(resource_dir: str) -> tuple[str, str]:
    return resource_dir, str(Path(resource_dir, "kernel.json"))


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
