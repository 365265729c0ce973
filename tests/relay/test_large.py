"""The largest messages."""

from __future__ import annotations

import asyncio

import pytest

from tests.relay.conftest import Relay
from tests.support.wsclient import texts

SIZE = 100_000_000


@pytest.mark.slow
@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
async def test_a_message_of_a_hundred_megabytes_passes(zmq_context, v1):
    """A message of 100 MB passes in each direction, as text and as buffer."""

    async def scenario():
        relay = Relay(zmq_context)
        relay.listen()
        kernel = relay.tiny_kernel()
        kernel_id, _ = await relay.add(kernel)
        async with await relay.open(kernel_id, v1=v1, buffer=1 << 24) as client:
            # Compared before the assertion: pytest would print what differs.
            same = texts(await client.run(f"write {SIZE}", timeout=60)) == "x" * SIZE
            assert same
            client.send("shell", "comm_msg", {"comm_id": "1", "data": {}}, [b"y" * SIZE])
            same = (await client.until("comm_msg", timeout=60))[-1]["buffers"] == [b"y" * SIZE]
            assert same
            client.execute("z" * (SIZE - 1000))
            result = (await client.until("execute_result", timeout=60))[-1]
            length = len(result["content"]["data"]["text/plain"])
            assert length == SIZE - 1000
        await relay.close()

    # Copying so much takes longer than a loop may be blocked: this runs on a loop that is not watched.
    await asyncio.to_thread(asyncio.run, scenario())
