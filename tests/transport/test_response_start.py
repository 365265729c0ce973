"""The start of the response server, when the first launches need it."""

from __future__ import annotations

import asyncio

from enterprise_gateway.transport.response import ResponseServer


async def test_launches_that_start_it_at_once_share_one_key_and_port() -> None:
    """When the first remote kernels are started together, each tells its launcher the same address and public key."""
    server = ResponseServer(ip="127.0.0.1", port=0)

    async def seen() -> tuple[str, str]:
        await server.start()
        return server.address, server.public_key

    try:
        assert len(set(await asyncio.gather(*(seen() for _ in range(8))))) == 1
    finally:
        await server.stop()
