"""Port ranges, and the ports that are handed to kernels on this machine."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .errors import PortRangeError

LOWEST, HIGHEST = 1024, 65535


@dataclass(frozen=True)
class PortRange:
    """An inclusive range ``lower..upper``; ``0..0`` (size 0) means any port."""

    lower: int = 0
    upper: int = 0

    @classmethod
    def parse(cls, text: str, minimum_size: int) -> PortRange:
        """Read ``L..U``; a range of size 0 is unrestricted.

        Raises
        ------
        PortRangeError
            The text is malformed, the range smaller than ``minimum_size``, or a bound outside 1024..65535.
        """
        match = re.fullmatch(r"\s*(\d{1,9})\s*\.\.\s*(\d{1,9})\s*", text)
        if match is None:
            raise PortRangeError(f"Port range {text!r} must be of the form <lower>..<upper>.")
        lower, upper = int(match[1]), int(match[2])
        size = upper - lower
        if size == 0:
            return cls()
        if size < minimum_size:
            raise PortRangeError(
                f"Port range {text!r} has a size of {size}, less than the minimum of {minimum_size} "
                "(EG_MIN_PORT_RANGE_SIZE)."
            )
        if not (LOWEST <= lower <= HIGHEST and LOWEST <= upper <= HIGHEST):
            raise PortRangeError(f"Port range {text!r} must lie within {LOWEST}..{HIGHEST}.")
        return cls(lower, upper)

    def __bool__(self) -> bool:
        """Whether ports are restricted at all."""
        return self.upper > self.lower

    def __str__(self) -> str:
        """Return the form that launchers are given."""
        return f"{self.lower}..{self.upper}"

    def candidates(self, count: int, random_source: random.Random | None = None) -> Iterator[int]:
        """Yield ``count`` random ports of the range."""
        source = random_source or random
        for _ in range(count):
            yield source.randint(self.lower, self.upper)


class PortPool:
    """Hands out ports of this machine so that no two living kernels are given the same one.

    A kernel binds its ports some time after they were chosen. Until then nothing must take them: so they are kept
    in a table until the kernel is gone, and are chosen outside of the range from which the system picks the ports
    of outgoing connections. Another gateway on this machine does not know of the table. So each begins at some port and
    goes on from there, which seldom brings two into the same region; ports that each chose at random would often meet.

    Parameters
    ----------
    is_free
        Tells whether a port can be bound now; the transport layer supplies it.
    default
        Where to choose from when a kernel's range is unrestricted.
    """

    def __init__(self, is_free: Callable[[int], bool], default: PortRange) -> None:
        self._is_free = is_free
        self._default = default
        self._next = 0  # of the default range
        self._taken: set[int] = set()

    def take(self, count: int, port_range: PortRange, attempts: int) -> list[int]:
        """Return ``count`` free ports; each is looked for at most ``attempts`` more times.

        Raises
        ------
        PortRangeError
            No free port was found.
        """
        ports: list[int] = []
        try:
            for _ in range(count):
                ports.append(self._take_one(port_range, attempts))
        except PortRangeError:
            self.release(ports)
            raise
        return ports

    def _take_one(self, port_range: PortRange, attempts: int) -> int:
        tries = attempts + 1 if port_range else 200
        for port in port_range.candidates(tries) if port_range else self._neighbours(tries):
            if port not in self._taken and self._is_free(port):
                self._taken.add(port)
                return port
            self._next = 0  # this region is in use: try another one
        raise PortRangeError(f"No free port found within {port_range or self._default} after {tries} attempts.")

    def _neighbours(self, count: int) -> Iterator[int]:
        """Yield ports of the default range: the next one, as long as each is free, else one anywhere."""
        for _ in range(count):
            if not self._default.lower <= self._next <= self._default.upper:
                [self._next] = self._default.candidates(1)
            self._next += 1
            yield self._next - 1

    def claim(self, ports: list[int]) -> None:
        """Keep ports from being handed out: a kernel that was taken over uses them."""
        self._taken.update(ports)

    def release(self, ports: list[int]) -> None:
        """Give ports back; called when their kernel is gone."""
        self._taken.difference_update(ports)
