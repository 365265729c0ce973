"""When a kernel is culled: a rule of values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class CullPolicy:
    """What makes a kernel one to cull; times in seconds, 0 or less switches a rule off."""

    idle_timeout: float = 0
    connected: bool = False
    busy: bool = False
    max_age: float = 0
    busy_timeout: float = 0

    def for_spec(self, metadata: Mapping[str, Any]) -> CullPolicy:
        """Return the policy for one kernelspec: its metadata ``cull_<rule>`` entries win, if they can be used.

        Times may be written as text (``"600"``), switches as ``"true"`` and ``"false"``; null is no entry.
        """
        overrides, _ = _entries(metadata)
        return replace(self, **overrides) if overrides else self

    @property
    def is_active(self) -> bool:
        """Whether any rule can ever apply."""
        return self.idle_timeout > 0 or self.max_age > 0 or self.busy_timeout > 0

    def reason(self, kernel: KernelUse, now: datetime, within: float = 0) -> str | None:
        """Return why the kernel is to be culled ``within`` so many seconds from ``now``; None when it is not."""
        idle = (now - kernel.last_activity).total_seconds() + within
        age = (now - kernel.started).total_seconds() + within
        if kernel.state == "dead":
            return None if kernel.connections else "it is dead"
        if 0 < self.max_age < age:
            return f"it is older than {self.max_age:g} seconds"
        if kernel.busy_since is not None:
            busy = (now - kernel.busy_since).total_seconds() + within
            if 0 < self.busy_timeout < busy:
                return f"it has been busy for more than {self.busy_timeout:g} seconds"
            if not self.busy:
                return None
        if kernel.connections and not self.connected:
            return None
        if 0 < self.idle_timeout < idle:
            return f"it has been idle for more than {self.idle_timeout:g} seconds"
        return None


def unusable_entries(metadata: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each ``cull_<rule>`` entry of a kernelspec that :meth:`CullPolicy.for_spec` cannot use."""
    return _entries(metadata)[1]


def _entries(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    used: dict[str, Any] = {}
    unusable = []
    for name in CullPolicy.__dataclass_fields__:
        value = metadata.get(f"cull_{name}")
        is_switch = name in {"connected", "busy"}
        try:
            if value is not None:
                used[name] = _as_switch(value) if is_switch else _as_seconds(value)
        except ValueError:
            wanted = "true or false" if is_switch else "a number of seconds"
            unusable.append(f"cull_{name} must be {wanted}, not {value!r:.100}")
    return used, unusable


def _as_switch(value: object) -> bool:
    text = value.strip().lower() if isinstance(value, str) else value
    if text in (True, "true"):
        return True
    if text in (False, "false"):
        return False
    raise ValueError(value)


def _as_seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(value)
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(value)
    return seconds


@dataclass(frozen=True)
class KernelUse:
    """What culling checks of one kernel; times are UTC, ``busy_since`` is None unless it is busy now."""

    state: str
    connections: int
    started: datetime
    last_activity: datetime
    busy_since: datetime | None
