"""Locks by name."""

from __future__ import annotations

import asyncio

from enterprise_gateway.core.keyedlocks import KeyedLocks


async def test_a_caller_waits_until_the_name_is_released() -> None:
    """Others' names are free meanwhile."""
    locks = KeyedLocks()
    order: list[str] = []

    async def use(name: str, who: str) -> None:
        async with locks.of(name):
            order.append(f"{who} begins")
            await asyncio.sleep(0.01)
            order.append(f"{who} ends")

    await asyncio.gather(use("a", "first"), use("a", "second"), use("b", "other"))
    assert order.index("first ends") < order.index("second begins")
    assert order.index("other begins") < order.index("first ends")


def test_an_unused_lock_is_removed() -> None:
    """However many names there have been."""
    locks = KeyedLocks()
    for number in range(1000):
        locks.of(str(number))
    assert len(locks._locks) == 0
