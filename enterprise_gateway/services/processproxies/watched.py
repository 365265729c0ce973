"""Where process proxies are told of changes: tables of states that all kernels of one cluster share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

from ...core.states import State


class Registration(Protocol):
    """Somebody who is told of changes; returned by :meth:`Watch.register`."""

    def cancel(self) -> None:
        """Tell no more."""


class Watch(Protocol):
    """A table of states that all kernels of one cluster share, such as ``drivers.watch.StateWatch``."""

    def register(
        self, key: Any, on_change: Callable[[State | None], None], *, eager: bool = False, exists: bool = False
    ) -> Registration:
        """Have ``on_change`` called, in any thread, with the first known state of ``key`` and each later one.

        None says that it is gone: it was seen before, or the caller knows that it ``exists``. ``eager``: it is about
        to change.
        """


class Watched(NamedTuple):
    """Where the changes of one kernel's state are told.

    Parameters
    ----------
    exists
        Whether it was there when ``submit`` returned: then it is gone when the table does not have it. Else it may
        come to be there later, made by a launch script.
    tells_at_once
        Whether changes are told as they happen, not when they are asked for: then the end of the launcher's connection
        says nothing new.
    """

    watch: Watch
    key: Hashable
    exists: bool = False
    tells_at_once: bool = False
