"""One lock for each name, while it is in use."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class KeyedLocks:
    """Locks by name; one that is no longer used is removed."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        """Return the lock of a name, the same for all who ask for it meanwhile."""
        return self._locks.setdefault(name, asyncio.Lock())
