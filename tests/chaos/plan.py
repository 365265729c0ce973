"""What goes wrong, and when: an endless list that a seed determines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

REPLICAS = 3
LONGEST_FREEZE_SECONDS = 15.0
START_SECONDS = 1.0  # that a replica takes, about

ACTIONS = {"restart": 4, "death": 4, "start": 2, "delete": 2, "nothing": 1}
"""What a fault is aimed at, with weights: a client's restart, start or delete; a death, which restarts by itself."""

FAULTS = {"store stops": 5, "store is cut off": 2, "replica is killed": 3, "replica stops": 2, "freeze": 3, "death": 2}


OVERLAPPING = 0.2
"""In how many of the episodes a second fault begins while the first is in force."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong."""

    kind: str
    target: int
    """Which replica it hits, if it is one of replicas."""
    begins_seconds: float
    """How long after the beginning of the action it comes."""
    lasts_seconds: float

    @property
    def is_of_store(self) -> bool:
        """Whether it hits the database, of which there is one."""
        return self.kind.startswith("store")

    @property
    def is_of_replica(self) -> bool:
        """Whether it hits one of the replicas."""
        return not self.is_of_store and self.kind != "death"

    def __str__(self) -> str:
        target = f" {self.target}" if self.is_of_replica else ""
        return f"{self.begins_seconds:.2f} s later {self.kind}{target}, for {self.lasts_seconds:.1f} s"


@dataclass(frozen=True)
class Episode:
    """One thing that begins, and the fault, or two at once, that hit it."""

    number: int
    action: str
    kernel: int
    """Which of the kernels that live through the run, for a restart or a death."""
    replica: int
    """Which replica is asked for the action."""
    faults: tuple[Fault, ...]
    pause_seconds: float
    """How long everything is left alone afterwards."""

    def __str__(self) -> str:
        about = {"restart": f" of kernel {self.kernel} by replica {self.replica}", "death": f" of kernel {self.kernel}"}
        by = f" by replica {self.replica}"
        what = f"episode {self.number}: {self.action}{about.get(self.action, '' if self.action == 'nothing' else by)}"
        return "; ".join([what, *map(str, self.faults)])


def episodes(seed: int, kernels: int) -> Iterator[Episode]:
    """Yield what happens; the same for the same seed and number of kernels."""
    random, overlaps = Random(seed), Random(f"{seed} overlaps")
    number = 0
    while True:
        number += 1
        kind = _choose(random, FAULTS)
        replica = random.randrange(REPLICAS)
        action, kernel = _choose(random, ACTIONS), random.randrange(kernels)
        begins = random.uniform(0.03, 1.4)
        target = replica if random.random() < 0.6 else random.randrange(REPLICAS)
        faults = [Fault(kind, target, begins, _duration(random, kind))]
        if overlaps.random() < OVERLAPPING and kind != "death":
            faults.append(_second(overlaps, faults[0]))
        yield Episode(number, action, kernel, replica, tuple(faults), pause_seconds=random.uniform(0.5, 3))


def _choose(random: Random, weights: dict[str, int]) -> str:
    return random.choices(list(weights), list(weights.values()))[0]


def _second(random: Random, first: Fault) -> Fault:
    """Return a fault of something else that begins while the first one is in force; one replica is always well."""
    while True:
        kind = _choose(random, FAULTS)
        in_force = first.lasts_seconds + (START_SECONDS if first.kind.startswith("replica") else 0)
        begins = first.begins_seconds + random.uniform(0, in_force)
        fault = Fault(kind, random.randrange(REPLICAS), begins, _duration(random, kind))
        is_same_replica = first.is_of_replica and fault.is_of_replica and fault.target == first.target
        if not is_same_replica and not (first.is_of_store and fault.is_of_store):
            return fault


def _duration(random: Random, fault: str) -> float:
    """Return for how long a fault lasts; short freezes are as likely as all longer ones."""
    if fault == "freeze":
        return random.uniform(1, 4) if random.random() < 0.5 else random.uniform(4, LONGEST_FREEZE_SECONDS)
    if fault.startswith("store"):
        return random.uniform(1, 6)
    return 0.0 if fault == "death" else random.uniform(0, 2)
