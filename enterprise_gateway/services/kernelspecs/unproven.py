"""Finds kernelspecs whose launchers do not authenticate their reports, because payload version 1 is accepted."""

from __future__ import annotations

from collections.abc import Mapping

from traitlets.utils.importstring import import_item

from ..processproxies.remote import RemoteProcessProxy
from .snapshot import CacheItem


def unproven_kernelspecs(items: Mapping[str, CacheItem]) -> list[str]:
    """Return the names of these kernelspecs; blocks, and imports the classes that they name."""
    return sorted(name for name, item in items.items() if _is_unproven(item))


def _is_unproven(item: CacheItem) -> bool:
    spec = item["spec"]
    stanza = (spec.get("metadata") or {}).get("process_proxy") or {}
    if not stanza.get("class_name"):
        return False
    try:
        proxy_class = import_item(stanza["class_name"])
        if not issubclass(proxy_class, RemoteProcessProxy):
            return False
        return proxy_class.launcher_version(spec["argv"], item["resource_dir"], stanza.get("config") or {}) < 2
    except Exception:  # noqa: BLE001 -- such a kernelspec cannot start kernels; the others are still listed
        return False
