"""Ports that are handed to kernels."""

from __future__ import annotations

from itertools import pairwise

import pytest

from enterprise_gateway.core.errors import PortRangeError
from enterprise_gateway.core.ports import PortPool, PortRange

ANY = PortRange()


def _free(_port: int) -> bool:
    return True


def test_ports_lie_side_by_side() -> None:
    """So two gateways on one machine, which do not know of each other's kernels that start, seldom meet."""
    pool = PortPool(_free, PortRange(10_000, 60_000))
    ports = pool.take(100, ANY, 0)
    gaps = [after - before for before, after in pairwise(ports)]
    assert gaps.count(1) >= 98  # the end of the range may lie in between
    assert len(set(pool.take(100, ANY, 0) + ports)) == 200


def test_where_somebody_is_ports_are_looked_for_elsewhere() -> None:
    """A region that others have taken is left at once; one port that is free among many is found."""
    asked: list[int] = []

    def is_free(port: int) -> bool:
        asked.append(port)
        return port >= 20_000

    pool = PortPool(is_free, PortRange(10_000, 29_999))
    assert min(pool.take(50, ANY, 0)) >= 20_000
    assert sum(port < 20_000 for port in asked) < 30
    with pytest.raises(PortRangeError, match=r"No free port found within 10000..29999 after 200 attempts"):
        PortPool(lambda _: False, PortRange(10_000, 29_999)).take(1, ANY, 0)


def test_all_ports_of_a_small_range_are_handed_out_once() -> None:
    """Released ones come back."""
    pool = PortPool(_free, PortRange(10_000, 10_009))
    ports = pool.take(10, ANY, 0)
    assert sorted(ports) == list(range(10_000, 10_010))
    with pytest.raises(PortRangeError):
        pool.take(1, ANY, 0)
    pool.release(ports[:1])
    assert pool.take(1, ANY, 0) == ports[:1]
