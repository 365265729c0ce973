"""What a gateway leaves to the next one about the conversation with a kernel that it cannot ask the kernel for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

_END_OF_TIME = 2.0**37  # in seconds of the epoch: what dates can be made of

PROOF_SECONDS = 1.0  # an idle kernel answers sooner

GATEWAY_RESTARTED = "GatewayRestarted"  # name of an error
GAP_NOTICE = "[The gateway was restarted while this cell was running; anything it wrote meanwhile is lost.]\n"
LOST_REPLY = (
    "The gateway was restarted before it had the kernel's reply to this request, and the reply is lost. The code has "
    "most likely run: variables and files are as it has left them."
)


@dataclass
class Memory:
    """What is known of a kernel apart from how to connect to it; recorded, so JSON values only.

    Parameters
    ----------
    execution_state
        By its last status message; empty when not known.
    last_activity, busy_since
        Seconds since the epoch; 0 when not known or not busy.
    last_cell
        Header (JSON text) of the request that was executed last.
    requests
        Headers (JSON text) of execute requests that were not replied to.
    sessions
        The sessions of each client that may reconnect.
    identities
        Those of sockets to which the kernel may still reply: the gateway's, and what is left of earlier ones.
    """

    execution_state: str = ""
    last_activity: float = 0.0
    busy_since: float = 0.0
    last_cell: str = "{}"
    requests: tuple[str, ...] = ()
    sessions: tuple[tuple[str, ...], ...] = ()
    identities: tuple[str, ...] = ()

    @classmethod
    def from_record(cls, value: object) -> Memory:
        """Return what a record holds; entries of another type, as another version may write them, are left out."""
        known = value if isinstance(value, Mapping) else {}
        memory = cls()
        for name in (field.name for field in fields(cls)):
            entry = known.get(name)
            default = getattr(memory, name)
            if name == "sessions":
                memory.sessions = tuple(filter(None, map(_texts, entry if isinstance(entry, list) else ())))
            elif isinstance(default, tuple):
                setattr(memory, name, _texts(entry))
            elif isinstance(default, float) and isinstance(entry, (int, float)) and 0 <= entry < _END_OF_TIME:
                setattr(memory, name, float(entry))
            elif isinstance(default, str) and _is_text(entry):
                setattr(memory, name, entry)
        return memory

    def to_record(self) -> dict[str, Any]:
        """Return the JSON values for the record."""
        return asdict(self)


def _texts(entry: object) -> tuple[str, ...]:
    return tuple(filter(_is_text, entry)) if isinstance(entry, list) else ()


def _is_text(value: object) -> bool:
    """Whether ``value`` is text that can be encoded: in JSON a surrogate may stand alone."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value
