"""Tells whether a kernel is still the process that one is connected to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...core.sessionrecords import as_stored


def reached_as(record: Mapping[str, Any]) -> str:
    """Return a text that is another one when the record's kernel has another process or connection."""
    told = {name: record.get(name) for name in ("connection_info", "process_info")}
    return json.dumps(as_stored({"": told})[""], sort_keys=True)
