"""Who may open a websocket, and what the others are told."""

from __future__ import annotations

import json

import pytest
from tornado.httpclient import AsyncHTTPClient

from enterprise_gateway.services.kernels.keepalive import Keepalive
from tests.support.wsclient import HandshakeError, random_id


async def refused(relay, kernel_id, session_id="s", **options):
    with pytest.raises(HandshakeError) as caught:
        await relay.open(kernel_id, session_id, **options)
    return caught.value


async def test_unknown_kernel(relay, expect_log):
    """A websocket to a kernel that does not exist is refused with 404 and JSON."""
    with expect_log("Kernel does not exist", required=False):
        refusal = await refused(relay, random_id())
    assert refusal.status == 404
    assert json.loads(refusal.body)["message"].startswith("Kernel does not exist: ")


@pytest.mark.parametrize(
    ("origin", "allow_origin", "status"),
    [
        ("http://evil.example", "", 403),
        ("http://evil.example", "http://evil.example.org", 403),
        ("http://evil.example", "http://evil.exampl", 403),
        ("null", "", 403),
        ("http://good.example", "http://good.example", 101),
        ("http://any.example", "*", 101),
        ("", "", 101),
    ],
)
async def test_origin(relay, origin, allow_origin, status):
    """A page of another origin is refused unless that very origin, or all, are allowed."""
    kernel_id, _ = await relay.add()
    relay.configure(allow_origin=allow_origin)
    headers = {"Origin": origin}
    if status == 101:
        await (await relay.open(kernel_id, headers=headers)).close()
    else:
        refusal = await refused(relay, kernel_id, headers=headers)
        assert (refusal.status, refusal.body) == (403, b"Cross origin websockets not allowed")


async def test_own_origin(relay):
    """A page that the gateway's own address served may connect."""
    kernel_id, _ = await relay.add()
    await (await relay.open(kernel_id, headers={"Origin": f"http://127.0.0.1:{relay.port}"})).close()


async def test_token(relay):
    """The token is asked for before anything is told about kernels, and frees nobody of the check of the origin."""
    kernel_id, _ = await relay.add()
    relay.configure(eg_auth_token="secret")
    assert (await refused(relay, kernel_id)).status == 401
    assert (await refused(relay, random_id())).status == 401
    right = {"Authorization": "token secret"}
    await (await relay.open(kernel_id, headers=right)).close()
    assert (await refused(relay, kernel_id, headers={**right, "Origin": "http://evil.example"})).status == 403


async def test_plain_get(relay):
    """A request that asks for no upgrade is answered 400 and the sentence of tornado."""
    kernel_id, _ = await relay.add()
    url = f"http://127.0.0.1:{relay.port}/api/kernels/{kernel_id}/channels"
    client = AsyncHTTPClient(force_instance=True)
    response = await client.fetch(url, raise_error=False)
    client.close()
    assert (response.code, response.body) == (400, b'Can "Upgrade" only to "WebSocket".')


async def test_pings(relay):
    """A client that answers pings stays; one that does not is closed."""
    kernel_id, channels = await relay.add()
    keepalive = Keepalive(0.05)
    keepalive.timeout = 1.0
    relay.configure(eg_keepalive=keepalive, ws_ping_interval=50)
    async with await relay.open(kernel_id, "lives") as lives:
        dead = await relay.open(kernel_id, "dead")
        await lives.pending(0.25)
        assert channels.connections == 2
        while channels.connections == 2:
            await lives.pending(0.1)
        assert await dead.receive() is None
        assert dead.closed == (1001, "no answer to pings")
        assert "execute_result" in [m["header"]["msg_type"] for m in await lives.run("hello")]
    dead.cut()
