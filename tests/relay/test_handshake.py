"""Who may open a websocket and when, and how others are refused."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import zmq
from tornado.httpclient import AsyncHTTPClient

from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.channels import KernelChannels
from tests.support.tinykernel import TinyKernel
from tests.support.wsclient import HandshakeError, WebSocketClient, random_id, texts, types


async def refused(relay, kernel_id, session_id="s", **options):
    with pytest.raises(HandshakeError) as caught:
        await relay.open(kernel_id, session_id, **options)
    return caught.value


async def test_an_unknown_kernel_is_not_found(relay, expect_log):
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
async def test_a_page_of_another_origin_is_refused_unless_allowed(relay, origin, allow_origin, status):
    """A page of another origin is refused unless that very origin, or all, are allowed."""
    kernel_id, _ = await relay.add()
    relay.configure(allow_origin=allow_origin)
    headers = {"Origin": origin}
    if status == 101:
        await (await relay.open(kernel_id, headers=headers)).close()
    else:
        refusal = await refused(relay, kernel_id, headers=headers)
        assert (refusal.status, refusal.body) == (403, b"Cross origin websockets not allowed")


async def test_a_client_that_is_gone_when_its_websocket_is_accepted_is_not_attached(relay):
    """A connection that breaks just then is not a failure of the gateway, and nothing of it stays attached."""
    kernel_id, channels = await relay.add()
    client = socket.create_connection(("127.0.0.1", relay.port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that closing resets
    relay.when_asked = client.close
    client.sendall(
        b"GET /api/kernels/%s/channels HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" % kernel_id.encode()
    )
    while client.fileno() >= 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert channels.connections == 0


async def test_a_page_of_the_gateways_own_origin_may_connect(relay):
    """A page that the gateway's own address served may connect."""
    kernel_id, _ = await relay.add()
    await (await relay.open(kernel_id, headers={"Origin": f"http://127.0.0.1:{relay.port}"})).close()


async def test_the_token_is_checked_before_the_kernel_and_in_addition_to_the_origin(relay):
    """The token is checked before anything is said about kernels, and does not replace the check of the origin."""
    kernel_id, _ = await relay.add()
    relay.configure(eg_auth_token="secret")
    assert (await refused(relay, kernel_id)).status == 401
    assert (await refused(relay, random_id())).status == 401
    right = {"Authorization": "token secret"}
    await (await relay.open(kernel_id, headers=right)).close()
    assert (await refused(relay, kernel_id, headers={**right, "Origin": "http://evil.example"})).status == 403


async def test_a_request_without_an_upgrade_is_refused(relay):
    """It is answered 400 with tornado's sentence."""
    kernel_id, _ = await relay.add()
    url = f"http://127.0.0.1:{relay.port}/api/kernels/{kernel_id}/channels"
    client = AsyncHTTPClient(force_instance=True)
    response = await client.fetch(url, raise_error=False)
    client.close()
    assert (response.code, response.body) == (400, b'Can "Upgrade" only to "WebSocket".')


async def test_only_clients_that_answer_pings_stay_connected(relay):
    """With a limit on silence a client that answers pings stays, and one that does not is closed."""
    kernel_id, channels = await relay.add()
    relay.configure(ws_ping_interval=50, eg_ws_ping_timeout=1)
    async with await relay.open(kernel_id, "lives") as lives:
        dead = await relay.open(kernel_id, "dead")
        await lives.pending(0.25)
        assert channels.connections == 2
        while channels.connections == 2:
            await lives.pending(0.1)
        await dead.until_closed()
        assert dead.closed == (1001, "no answer to pings")
        assert "execute_result" in [m["header"]["msg_type"] for m in await lives.run("hello")]
    dead.cut()


@pytest.fixture
async def starting(relay) -> AsyncIterator[tuple[str, KernelChannels, TinyKernel, asyncio.Task[WebSocketClient]]]:
    """A kernel that is connected to before it listens, and a websocket that is being opened to it."""
    kernel = TinyKernel()
    kernel_id, channels = await relay.add(kernel, ready=False)
    opening = asyncio.create_task(relay.open(kernel_id))
    done, _ = await asyncio.wait([opening], timeout=0.3)
    assert not done
    yield kernel_id, channels, kernel, opening
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()
    await offload(kernel.stop)


async def test_a_websocket_opens_with_the_first_answer_of_a_new_kernel(starting):
    """Clients that wait a second for the kernel of an open websocket do not time out while it is still starting."""
    _, channels, kernel, opening = starting
    kernel.start()
    client = await opening
    assert channels.kernel_info is not None
    assert "execute_result" in types(await client.run("hello"))


@pytest.mark.parametrize("state", ["restarting", "dead"])
async def test_a_websocket_opens_when_a_new_kernel_is_restarted_or_dead(starting, state):
    """Neither is a reason to wait: the client is to see it."""
    _, channels, _, opening = starting
    channels.announce_state(state)
    await asyncio.wait_for(opening, 10)
    assert channels.connections == 1


async def test_a_websocket_is_refused_when_a_new_kernel_is_shut_down(starting, relay):
    """The kernel that it was to be opened to does not exist any more."""
    kernel_id, channels, _, opening = starting
    del relay.kernels[kernel_id]
    channels.close()
    with pytest.raises(HandshakeError) as caught:
        await opening
    assert caught.value.status == 404


async def test_a_client_that_disconnects_while_it_waits_is_not_attached(starting):
    """Nothing goes on waiting for a client that is gone."""
    _, channels, kernel, opening = starting
    opening.cancel()
    await asyncio.sleep(0.1)
    kernel.start()
    await channels.ready(5)
    await asyncio.sleep(0.1)
    assert channels.connections == 0


async def open_two(
    relay, kernel_id: str, channels: KernelChannels, kernel: TinyKernel
) -> tuple[WebSocketClient, WebSocketClient]:
    """Open two websockets of one session, one after the other, that both wait for the kernel's first answer."""
    openings = []
    for waiting in (2, 3):  # with the fixture's
        openings.append(asyncio.create_task(relay.open(kernel_id, "s")))
        while len(channels._connection._waiters) < waiting:
            await asyncio.sleep(0.01)
    kernel.start()
    return await openings[0], await openings[1]


@pytest.mark.parametrize("kept", [0, 1], ids=["first", "second"])
async def test_of_two_waiting_websockets_the_one_that_sends_is_kept(starting, relay, kept):
    """Jupyter Server may have forgotten either of them, and may have sent its client's request through the other."""
    kernel_id, channels, kernel, _ = starting
    clients = await open_two(relay, kernel_id, channels, kernel)
    speaking, silent = clients[kept], clients[1 - kept]
    assert "execute_result" in types(await speaking.run("hello"))
    await silent.until_closed()
    assert silent.closed == (1001, "another websocket with this session_id was opened")
    silent.cut()
    messages = await speaking.run("print 2")
    assert texts(messages) == "line 0\nline 1\n"
    assert types(messages).count("execute_reply") == 1
    async with await relay.open(kernel_id, "s") as third:  # a later one takes the place, as usual
        await speaking.until_closed()
        speaking.cut()
        assert await third.pending() == []
        assert "execute_result" in types(await third.run("hello"))


class Websocket:
    """What attaches to a kernel's channels, without a connection."""

    def __init__(self, channels: KernelChannels) -> None:
        self.closed: list[tuple[int, str]] = []
        self._channels = channels

    def put(self, message, *, unlimited=False): ...

    def flush(self): ...

    def abort(self): ...

    def unsent(self):
        return []

    def close(self, code, reason):
        self.closed.append((code, reason))
        self._channels.leave(self)


async def test_a_waiting_websocket_that_opens_after_the_other_has_sent_is_closed(relay):
    """It was requested before the other was open: the client has forgotten it."""
    _, channels = await relay.add()
    kept, late = Websocket(channels), Websocket(channels)
    header = {"msg_type": "kernel_info_request", "msg_id": "1", "session": "s"}
    channels.attach(kept, "s", has_waited=True)
    channels.send(kept, "shell", [json.dumps(header).encode(), b"{}", b"{}", b"{}"])
    channels.attach(late, "s", has_waited=True)
    assert late.closed == [(1001, "another websocket with this session_id was opened")]
    assert (kept.closed, channels.connections) == ([], 1)
    channels.attach(later := Websocket(channels), "s", has_waited=False)
    assert len(kept.closed) == channels.connections == 1
    channels.detach(later)


async def test_the_silent_one_of_two_waiting_websockets_has_no_effect(starting, relay):
    """What a client missed is not counted by a websocket that it has forgotten."""
    kernel_id, channels, kernel, _ = starting
    client, forgotten = await open_two(relay, kernel_id, channels, kernel)
    forgotten.cut()
    while channels.connections > 2:  # the fixture's, and the kept one
        await asyncio.sleep(0.01)
    kernel.publish("stream", {"name": "stdout", "text": "once"})
    messages = await client.run("print 1")
    assert texts(client.history) == "onceline 0\n"
    assert types(messages).count("execute_reply") == 1
    await client.close()


async def test_a_page_of_another_origin_does_not_wait(starting, relay):
    """It is refused at once, as it would be for a kernel that runs."""
    kernel_id, *_, opening = starting
    refusal = await asyncio.wait_for(refused(relay, kernel_id, headers={"Origin": "http://evil.example"}), 10)
    assert refusal.status == 403
    opening.cancel()


async def test_a_websocket_opens_when_a_new_kernel_takes_too_long(relay, expect_log):
    """After info_timeout messages are passed on to a kernel that has not answered, so its websocket opens."""
    kernel = TinyKernel()
    with expect_log("sent no kernel_info_reply"):
        kernel_id, channels = await relay.add(kernel, ready=False, info_timeout=0.3)
        async with await relay.open(kernel_id):
            assert channels.kernel_info is None
    await offload(kernel.stop)


async def test_a_websocket_is_refused_while_a_contested_kernel_has_not_proved_its_key(relay, expect_log):
    """Two launchers have reported for it: its first answer proves that it is the client's, and a time-out does not."""
    kernel = TinyKernel()
    kernel_id, channels = await relay.add(kernel, ready=False, info_timeout=0.3)
    channels.contest()
    for _ in range(2):
        with expect_log("has not proved", required=False):
            assert (await refused(relay, kernel_id)).status == 503
    kernel.start()
    await channels.ready(10)
    async with await relay.open(kernel_id) as client:
        assert "execute_result" in types(await client.run("hello"))
        channels.contest()
        assert "execute_result" in types(await client.run("it has proved it long since"))
    await offload(kernel.stop)


async def test_a_contested_kernel_gets_nothing_of_its_clients_before_it_has_proved_its_key(relay, zmq_context):
    """A websocket that is open when a kernel is restarted waits on every channel, longer than info_timeout."""
    kernel_id, channels = await relay.add(relay.tiny_kernel(), info_timeout=0.3)
    contested = relay.tiny_kernel()
    with ExitStack() as stack:
        deaf = {name: stack.enter_context(zmq_context.socket(zmq.ROUTER)) for name in ("shell", "control")}
        ports = {f"{name}_port": end.bind_to_random_port("tcp://127.0.0.1") for name, end in deaf.items()}
        async with await relay.open(kernel_id) as client:
            channels.connect(replace(contested.info, **ports), is_contested=True)
            client.execute("my password")
            client.send("control", "debug_request", {"command": "evaluate"})
            await asyncio.sleep(0.8)
            heard = [end.recv_multipart() for end in deaf.values() if end.poll(0)]
            assert len(heard) == 1, "the gateway's own question"
            assert b"kernel_info_request" in b"".join(heard[0])
            channels.connect(contested.info, is_contested=True)
            await client.until("execute_result")
            while "debug_request" not in {message["header"]["msg_type"] for message in contested.received}:
                await asyncio.sleep(0.01)  # control is a connection of its own


async def test_a_websocket_opens_at_once_when_a_kernel_was_restarted(relay):
    """A websocket that is opened between a restart and the first answer does not wait."""
    kernel_id, channels = await relay.add(relay.tiny_kernel())
    restarted = TinyKernel()
    channels.connect(restarted.info)
    async with await asyncio.wait_for(relay.open(kernel_id), 10):
        assert channels.kernel_info is None
    await offload(restarted.stop)
