"""Turns of steps that hold the event loop."""

from __future__ import annotations

import asyncio

from enterprise_gateway.core.turns import ROUNDS, Turns


async def test_other_work_comes_between_two_steps() -> None:
    """However many tasks wait for a turn, everything else gets several rounds of the loop between two of them."""
    turns, events = Turns(), list[str]()

    async def step() -> None:
        await turns.wait()
        events.append("step")

    async def others() -> None:
        while events.count("step") < 5:
            events.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(*(step() for _ in range(5)), others())
    between = "".join(event[0] for event in events).split("s")[1:-1]
    assert all(len(rounds) >= ROUNDS for rounds in between)


async def test_a_cancelled_task_gives_its_turn_up() -> None:
    """A start that is cancelled while it waits does not keep the next from its turn."""
    turns = Turns()
    first = asyncio.ensure_future(turns.wait())
    second = asyncio.ensure_future(turns.wait())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 1)
    assert first.cancelled()
