"""What a cluster says of a kernel, and how far its start has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from typing import Any


class Phase(str, Enum):
    """The phases of a start, in their order; a back end skips those that it does not know of."""

    QUEUED = "queued"
    """It waits for its turn: in the gateway, or in the queue of the cluster."""
    SUBMITTED = "submitted"
    """The cluster, or the host, has been asked to start it."""
    SCHEDULED = "scheduled"
    """It has a place: a node, a container."""
    PULLING = "pulling"
    """Its image is being loaded."""
    STARTED = "started"
    """Its process, or the launcher's, runs."""
    REPORTED = "reported"
    """Its launcher has reported where it listens."""
    CONNECTED = "connected"
    """The gateway's sockets are connected to it."""
    ANSWERED = "answered"
    """It has answered for the first time."""
    ENDED = "ended"
    """It is over; said by clusters of kernels that run, too."""


@dataclass(frozen=True)
class State:
    """What a cluster says of one kernel now; returned by ``ClusterProcessProxy.probe``.

    Parameters
    ----------
    phase
        ``STARTED`` as long as it runs, ``ENDED`` when it is over, one of those before ``STARTED`` until it runs.
    host
        The name of where it runs, for logs and errors; empty while it is not known.
    ip
        The address at which its ports are reached; empty while it is not known.
    reason
        Why it is in this phase, in the cluster's words, without a full stop: shown to users. Empty when there is none.
    exit_code
        Of a kernel that is over; negative for a signal; None when it is not known.
    """

    phase: Phase
    host: str = ""
    ip: str = ""
    reason: str = ""
    exit_code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the kernel is over."""
        return self.phase is Phase.ENDED


@dataclass(frozen=True)
class Step:
    """A phase that a start has reached, when (seconds since 1970), and what was said of it."""

    phase: Phase
    at: float
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the step as the REST API shows it."""
        at = datetime.fromtimestamp(self.at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"phase": self.phase.value, "time": at, **({"detail": self.detail} if self.detail else {})}


class Progress:
    """The phases that one start has reached so far; written by what starts the kernel, read by its model.

    Parameters
    ----------
    clock
        Returns seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._steps: dict[Phase, Step] = {}

    @property
    def steps(self) -> tuple[Step, ...]:
        """The phases in the order in which they were reached."""
        return tuple(self._steps.values())

    def reach(self, phase: Phase, detail: str = "") -> None:
        """Note that a phase is reached; one that was reached before keeps its time and gets the new detail."""
        former = self._steps.get(phase)
        if former is None:
            self._steps[phase] = Step(phase, self._clock(), detail)
        elif detail and detail != former.detail:
            self._steps[phase] = replace(former, detail=detail)

    def to_list(self) -> list[dict[str, Any]]:
        """Return the steps as the REST API shows them, the earliest first."""
        return [step.to_dict() for step in self.steps]
