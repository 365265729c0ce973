"""Tells whether the process of a kernel's record is the one that this gateway is connected to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...core.sessionrecords import as_stored


class RecordedProcess:
    """What this gateway knows of the record of its kernel's process, which other gateways read and may replace."""

    def __init__(self) -> None:
        self._fingerprint = ""
        self._is_certain = True

    @property
    def is_certain(self) -> bool:
        """Whether the store is known to have a record of the process."""
        return self._is_certain

    def is_in(self, record: Mapping[str, Any]) -> bool:
        """Whether a record describes the process that this gateway is connected to."""
        return self._fingerprint == _fingerprint(record)

    def recorded(self, record: Mapping[str, Any] | None, *, certain: bool) -> None:
        """Note what was recorded of the process.

        Parameters
        ----------
        record
            None when there is no record to compare with.
        certain
            False while the store is away and may not have it.
        """
        self._fingerprint = _fingerprint(record) if record is not None else ""
        self._is_certain = certain

    def loaded(self, record: Mapping[str, Any]) -> None:
        """Note that the process is the one that this record describes."""
        self._fingerprint = _fingerprint(record)

    def replaced(self) -> None:
        """Note that the process of no record is ours: another gateway replaces it, and we are to connect anew."""
        self._fingerprint = ""

    def settled(self) -> None:
        """Note that it was found out whether the store has the record: if not, the process was ended."""
        self._is_certain = True


def _fingerprint(record: Mapping[str, Any]) -> str:
    """Return a text that is another one when the record's kernel has another process or connection."""
    told = {name: record.get(name) for name in ("connection_info", "process_info")}
    return json.dumps(as_stored({"": told})[""], sort_keys=True)
