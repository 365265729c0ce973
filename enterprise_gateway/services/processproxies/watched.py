"""Tables of states, shared by all kernels of one cluster, that report changes to process proxies."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

from ...core.states import State


class Registration(Protocol):
    """A subscription to changes; returned by :meth:`Watch.register`."""

    def cancel(self) -> None:
        """Stop reporting changes."""


class Watch(Protocol):
    """A table of states that all kernels of one cluster share, such as ``drivers.watch.StateWatch``."""

    def register(
        self, key: Any, on_change: Callable[[State | None], None], *, eager: bool = False, exists: bool = False
    ) -> Registration:
        """Call ``on_change``, in any thread, with the first known state of ``key`` and each later one.

        None means that it is gone: it was seen before, or the caller knows that it ``exists``. ``eager`` means that it
        is about to change.
        """


class Watched(NamedTuple):
    """The entry of a table that reports changes of one kernel's state.

    Parameters
    ----------
    exists
        Whether it existed when ``submit`` returned, so that it is gone if the table does not have it. Otherwise a
        launch script may create it later.
    tells_at_once
        Whether changes are reported as they happen, not only when polled, so that the end of the launcher's connection
        is no news.
    """

    watch: Watch
    key: Hashable
    exists: bool = False
    tells_at_once: bool = False
