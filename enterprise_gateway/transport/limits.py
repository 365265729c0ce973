"""The options of the relay as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

UNTRACKED_MESSAGE_TYPES = frozenset(
    f"{name}_{kind}"
    for name in ("comm_info", "kernel_info", "shutdown", "interrupt", "debug", "input")
    for kind in ("request", "reply")
) | {
    "stream",
    "display_data",
    "update_display_data",
    "execute_input",
    "execute_result",
    "error",
    "status",
    "clear_output",
    "debug_event",
}


@dataclass(frozen=True)
class ChannelLimits:
    """What the relay keeps, passes on and waits for; one object shared by all kernels.

    Sizes are bytes, times seconds.

    Parameters
    ----------
    replay
        Output kept for one kernel's detached clients; 0 keeps nothing.
    pending
        What clients may have sent that the kernel has not taken.
    max_message
        A larger message of the kernel is replaced by a notice.
    info_timeout
        How long a kernel may take to answer until clients' messages are passed on without having heard of it.
    detached_sessions, detached_seconds
        How many sessions without a websocket are remembered for replay, and for how long.
    allowed_message_types
        Other messages of clients are dropped; empty allows all.
    allow_tracebacks, traceback_replacement
        Whether errors are passed on as they are, and what stands in their place else.
    untracked_message_types
        Types that are no sign of activity.
    """

    replay: int = 10 << 20
    pending: int = 32 << 20
    max_message: int = 100 << 20
    info_timeout: float = 60.0
    detached_sessions: int = 16
    detached_seconds: float = 3600.0
    allowed_message_types: frozenset[str] = frozenset()
    allow_tracebacks: bool = True
    traceback_replacement: str = "An exception occurred at runtime, which is not shown due to security reasons."
    untracked_message_types: frozenset[str] = field(default=UNTRACKED_MESSAGE_TYPES, repr=False)
