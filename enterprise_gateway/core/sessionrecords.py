"""What is kept of a kernel so that it outlives the gateway: the session record.

A record is a dictionary of JSON types. Its keys up to ``process_info`` are Enterprise Gateway's; the others were added
later and are ignored by version 3.x, which can therefore load what this version saved (unless it is sealed)::

    kernel_id, username, kernel_name     text
    connection_info                      transport, ip, five ports, signature_scheme, key (text at rest, else bytes)
    launch_args                          what the kernel was started with: env, kernel_headers, kernel_name, path …
    process_info                         what its process proxy needs to find it again
    state                                one of PHASES
    saved_at                             seconds since the epoch
    schema_version                       SCHEMA_VERSION
    sealed                               paths of the entries that are sealed (at rest only)

At rest, records are the values of an object keyed by kernel id: a *session*.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

Record = dict[str, Any]
Session = dict[str, Record]

Phase = Literal["starting", "running", "restarting", "stopping"]
PHASES: tuple[str, ...] = get_args(Phase)
SCHEMA_VERSION = 1


class Activity(NamedTuple):
    """What the replica that owns a kernel tells the others about it; ``last_activity`` in seconds of the epoch."""

    execution_state: str
    last_activity: float


class StoredKernel(NamedTuple):
    """What a store that replicas share knows of a kernel, without its record."""

    kernel_id: str
    kernel_name: str
    state: str
    """One of PHASES."""
    version: float
    """Another number whenever the record was saved."""
    owner: str | None
    """The replica that owns it now."""
    execution_state: str | None
    last_activity: float | None
    connections: int
    """How many websockets the other replicas have for it."""


class Beat(NamedTuple):
    """What a replica learns from its heartbeat: the fencing tokens of its leases, and all kernels by id."""

    tokens: dict[str, int]
    kernels: dict[str, StoredKernel]
    unrecorded: dict[str, int]
    """The tokens of its leases whose kernels have no record."""


_KEY_NAMES = ("key", "curve_publickey", "curve_secretkey")
_USABLE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
_LEFT_OUT = object()


def is_usable_id(kernel_id: object) -> bool:
    """Tell whether ``kernel_id`` may name a file or the last part of an address."""
    return isinstance(kernel_id, str) and _USABLE_ID.match(kernel_id) is not None


def phase_of(record: Mapping[str, Any]) -> str:
    """Return the record's phase; records of Enterprise Gateway 3.x have none and were written of running kernels."""
    return str(record.get("state") or "running")


def as_stored(session: Mapping[str, Mapping[str, Any]]) -> Session:
    """Return a deep copy of JSON types only: bytes become text, sets lists, and what JSON cannot hold is left out."""
    stored: Session = _plain(session)
    return stored


def as_loaded(session: Mapping[str, Any]) -> Session:
    """Return a deep copy in which the connection keys are bytes, as jupyter_client wants them.

    Raises
    ------
    ValueError
        This is not an object of records, each with its own kernel id.
    """
    loaded = as_stored(session)
    for kernel_id, record in loaded.items():
        if not isinstance(record, dict) or record.get("kernel_id", kernel_id) != kernel_id:
            raise ValueError("not a kernel session record")
        record["kernel_id"] = kernel_id
        info = record.get("connection_info")
        if isinstance(info, dict):
            info.update({name: info[name].encode() for name in _KEY_NAMES if isinstance(info.get(name), str)})
    return loaded


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        entries = ((str(name), _plain(entry)) for name, entry in value.items())
        return {name: entry for name, entry in entries if entry is not _LEFT_OUT}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [entry for entry in map(_plain, value) if entry is not _LEFT_OUT]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, (str, int, float, bool)) else _LEFT_OUT
