"""What goes wrong, and when: a list without end that a seed determines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

REPLICAS = 3
LONGEST_FREEZE_SECONDS = 15.0

ACTIONS = {"restart": 4, "death": 4, "start": 2, "delete": 2, "nothing": 1}
"""What a fault is aimed at, with weights: a client's restart, start or delete; a death, which restarts by itself."""

FAULTS = {"store stops": 5, "store is cut off": 2, "replica is killed": 3, "replica stops": 2, "freeze": 3, "death": 2}


@dataclass(frozen=True)
class Episode:
    """One thing that begins, and the fault that hits it."""

    number: int
    action: str
    kernel: int
    """Which of the kernels that live through the run, for a restart or a death."""
    replica: int
    """Which replica is asked for the action."""
    aim_seconds: float
    """How long after the beginning of the action the fault comes."""
    fault: str
    target: int
    """Which replica the fault hits, if it is one of replicas."""
    lasts_seconds: float
    pause_seconds: float
    """How long everything is left alone afterwards."""

    def __str__(self) -> str:
        about = {"restart": f" of kernel {self.kernel} by replica {self.replica}", "death": f" of kernel {self.kernel}"}
        by = f" by replica {self.replica}"
        target = f" {self.target}" if self.fault in {"replica is killed", "replica stops", "freeze"} else ""
        return (
            f"episode {self.number}: {self.action}{about.get(self.action, '' if self.action == 'nothing' else by)}, "
            f"{self.aim_seconds:.2f} s later {self.fault}{target}, for {self.lasts_seconds:.1f} s"
        )


def episodes(seed: int, kernels: int) -> Iterator[Episode]:
    """Yield what happens; the same for the same seed and number of kernels."""
    random = Random(seed)
    number = 0
    while True:
        number += 1
        fault = _choose(random, FAULTS)
        replica = random.randrange(REPLICAS)
        yield Episode(
            number=number,
            action=_choose(random, ACTIONS),
            kernel=random.randrange(kernels),
            replica=replica,
            aim_seconds=random.uniform(0.03, 1.4),
            fault=fault,
            target=replica if random.random() < 0.6 else random.randrange(REPLICAS),
            lasts_seconds=_duration(random, fault),
            pause_seconds=random.uniform(0.5, 3),
        )


def _choose(random: Random, weights: dict[str, int]) -> str:
    return random.choices(list(weights), list(weights.values()))[0]


def _duration(random: Random, fault: str) -> float:
    """Return for how long a fault lasts; short freezes are as likely as all longer ones."""
    if fault == "freeze":
        return random.uniform(1, 4) if random.random() < 0.5 else random.uniform(4, LONGEST_FREEZE_SECONDS)
    if fault.startswith("store"):
        return random.uniform(1, 6)
    return 0.0 if fault == "death" else random.uniform(0, 2)
