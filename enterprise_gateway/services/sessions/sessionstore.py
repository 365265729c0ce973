"""The interface of a store for kernel records: four functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from enterprise_gateway.core.sessionrecords import Record


@dataclass(frozen=True)
class Unreadable:
    """Returned by a store instead of a record that it has but that cannot be used now; ``reason`` is logged."""

    reason: str

    @classmethod
    def now(cls, kernel_id: str, error: BaseException) -> Unreadable:
        """Return the replacement for a record that stays in the store and may be usable later."""
        return cls(f"The session of kernel {kernel_id} cannot be used and is left in place: {error}")


class SessionStore(Protocol):
    """Keeps records by kernel id, so that kernels outlive the gateway.

    Write a class with these four functions, and return an instance of it from ``make_store`` of a
    :class:`~enterprise_gateway.services.sessions.storemanager.StoreKernelSessionManager`. No base class is needed.

    * Records are dictionaries of JSON types, ready to be written: if a sealing key is configured, their secrets are
      already sealed. Return what was saved; a store need not understand the contents.
    * The functions may block. They are called in threads, several at a time; writes of one kernel come one after the
      other. The caller stops waiting after ``store_timeout`` seconds.
    * Any exception means that the store could not be read or written. Do not catch it: it is logged once per outage,
      clients get 503, writes are retried until they succeed, and no kernel is considered gone.
    """

    def load_all(self) -> Mapping[str, Record | Unreadable]:
        """Return every record by kernel id, and :class:`Unreadable` for a record that cannot be read.

        If the kernel of an unreadable record is unknown, its key is ``""``.
        """
        ...

    def load(self, kernel_id: str) -> Record | Unreadable | None:
        """Return one record, None when there is none.

        :class:`Unreadable` means that the stored data is not a record and never will be: the kernel counts as unknown,
        but not as gone.
        """
        ...

    def save(self, kernel_id: str, record: Record) -> None:
        """Insert or replace one record."""
        ...

    def delete(self, kernel_ids: list[str]) -> None:
        """Remove records; missing ones count as removed."""
        ...
