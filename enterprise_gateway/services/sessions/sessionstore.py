"""Where records of kernels are kept: the four functions that a store has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from enterprise_gateway.core.sessionrecords import Record


@dataclass(frozen=True)
class Unreadable:
    """What a store returns in place of a record that it has and that is of no use now; ``reason`` is logged."""

    reason: str

    @classmethod
    def now(cls, kernel_id: str, error: BaseException) -> Unreadable:
        """Return what stands for a record that stays in the store, and may be of use later."""
        return cls(f"The session of kernel {kernel_id} cannot be used and stays where it is: {error}")


class SessionStore(Protocol):
    """Keeps records by kernel id, so that kernels outlive the gateway.

    Write a class with these four functions, and have a
    :class:`~enterprise_gateway.services.sessions.storemanager.StoreKernelSessionManager` make one of it. No base class
    is needed.

    * Records are dictionaries of JSON types, ready to be written: where a sealing key is configured, their secrets are
      sealed already. Return what was saved; nothing in it needs to be understood.
    * The functions may block. They are called in threads, several at a time; writes of one kernel come one after the
      other. Who called stops waiting after ``store_timeout`` seconds.
    * An exception, whichever, means "I could not find out" or "I could not write it". Do not catch it: it is logged
      once per outage, clients get 503, writes are repeated until they succeed, and no kernel is taken for gone.
    """

    def load_all(self) -> Mapping[str, Record | Unreadable]:
        """Return every record by kernel id; what cannot be read as :class:`Unreadable`, so that the others can.

        Under the id ``""`` where it is not even known of which kernel it is.
        """
        ...

    def load(self, kernel_id: str) -> Record | Unreadable | None:
        """Return one record, None when there is none.

        :class:`Unreadable` says that what there was is no record and never will be: the kernel counts as unknown, but
        not as gone.
        """
        ...

    def save(self, kernel_id: str, record: Record) -> None:
        """Insert or replace one record."""
        ...

    def delete(self, kernel_ids: list[str]) -> None:
        """Remove records; those that are not there count as removed."""
        ...
