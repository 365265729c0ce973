"""What was sent counts when it has arrived: connections that die silently, and messages that clients refuse."""

from __future__ import annotations

import asyncio
import time

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.services.kernels.keepalive import Keepalive
from enterprise_gateway.transport.receipts import Receipts
from tests.support.faraway import Faraway
from tests.support.requirements import NAMESPACES
from tests.support.tcpproxy import TcpProxy
from tests.support.wsclient import texts, types

LINES = [f"line {number}\n" for number in range(100)]
needs_faraway = pytest.mark.needs("ip", NAMESPACES)
over_tls_too = pytest.mark.parametrize("relay", ["plain", "tls"], indirect=True)


@pytest.fixture
def far():
    """Yield another machine."""
    with Faraway() as far:
        yield far


class Clock:
    """The right time, and what is added to it."""

    ahead = 0.0

    def __call__(self):
        return time.monotonic() + self.ahead


async def begin(relay, client, count=15, *, answers=True):
    """Have 15 lines printed, and the others half a second later; return the request's id when ``count`` have come.

    That is before the others are printed, and when the gateway has the answer to the ping behind those if ``answers``.
    """
    msg_id = client.execute("print 15 100")
    while len(texts(client.history).splitlines()) < count:
        await client.receive()
    while answers and relay.is_owed_receipts():
        await client.pending(0.01)
    return msg_id


async def finish(client, msg_id, seen=()):
    """Return all answers to a request, with those that another websocket has seen before."""
    client.history += seen
    messages = await client.finish(msg_id)
    return messages + [m for m in await client.pending() if m["parent_header"].get("msg_id") == msg_id]


def assert_complete(messages):
    """Check that each message is there, once and in order."""
    assert [m["content"]["text"] for m in messages if m["header"]["msg_type"] == "stream"] == LINES
    others = [kind for kind in types(messages) if kind != "stream"]
    assert sorted(others) == ["busy", "execute_input", "execute_reply", "idle"]


@over_tls_too
@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
@pytest.mark.parametrize("away", [2, 100])
async def test_nothing_is_lost_or_repeated_when_a_client_behind_a_proxy_vanishes(relay, away, v1):
    """A proxy accepts everything while its client is gone: nothing is lost, and nothing arrives twice."""
    relay.configure(eg_receipts=Receipts(clock := Clock()))
    kernel_id, _ = await relay.add()
    with TcpProxy(relay.port) as proxy:
        client = await relay.open(kernel_id, "s", port=proxy.port, v1=v1)
        msg_id = await begin(relay, client)
        proxy.freeze()
        await asyncio.sleep(2)
        clock.ahead = away - 2
        async with await relay.open(kernel_id, "s", v1=v1) as back:
            assert_complete(await finish(back, msg_id, client.history))
        client.cut()


@over_tls_too
async def test_nothing_is_lost_or_repeated_when_a_proxy_drops_its_client(relay):
    """The same when the proxy has ended the connection."""
    kernel_id, channels = await relay.add()
    with TcpProxy(relay.port) as proxy:
        client = await relay.open(kernel_id, "s", port=proxy.port)
        msg_id = await begin(relay, client)
        proxy.freeze()
        await asyncio.sleep(2)
        proxy.cut()
        while channels.connections:
            await asyncio.sleep(0.01)
        async with await relay.open(kernel_id, "s") as back:
            assert_complete(await finish(back, msg_id, client.history))
        client.cut()


async def outlive_the_line(relay, far, count, *, answers):
    """Pull out the cable when ``count`` lines have come, and reconnect.

    Returns the answers that came before and after, and the sizes of what came after.
    """
    kernel_id, _ = await relay.add()
    port = relay.listen_on(far.address)
    client = await relay.open(kernel_id, "s", port=port, sock=await offload(far.connect, port))
    msg_id = await begin(relay, client, count, answers=answers)
    await asyncio.sleep(0.1)  # systems may acknowledge 40 ms later, and what is not can only be sent again
    await offload(far.pull_out)
    await asyncio.sleep(2)
    await client.pending()  # what came in before
    client.cut()
    await offload(far.plug_in)
    async with await relay.open(kernel_id, "s", port=port, sock=await offload(far.connect, port)) as back:
        seen = client.history
        messages = await finish(back, msg_id, seen)
        before = [m for m in seen if m["parent_header"].get("msg_id") == msg_id]
        return before, messages[len(before) :], back.lengths


@needs_faraway
@pytest.mark.parametrize(
    ("relay", "answers"),
    [("plain", False), ("plain", True), ("tls", True)],
    indirect=["relay"],
    ids=["plain-tcp", "plain-ping", "tls-ping"],
)
@pytest.mark.parametrize("count", [15, 100])
async def test_nothing_is_lost_or_repeated_when_the_line_dies(relay, far, count, answers):
    """When the cable is pulled out after some lines, or after all, a client that reconnects gets the rest, once.

    The gateway knows it from the answer to a ping and, without TLS, from what TCP has acknowledged.
    """
    before, after, _ = await outlive_the_line(relay, far, count, answers=answers)
    assert_complete(before + after)


@needs_faraway
@pytest.mark.parametrize("relay", ["tls"], indirect=True)
@pytest.mark.parametrize("count", [15, 100])
async def test_nothing_is_lost_when_the_line_dies_under_tls_before_a_ping_is_answered(relay, far, count):
    """Only the end of what came before is repeated: 16 kB of it, and no message more."""
    before, after, lengths = await outlive_the_line(relay, far, count, answers=False)
    twice = len(before + after) - len({m["header"]["msg_id"] for m in before + after})
    assert before[len(before) - twice :] == after[:twice]
    assert_complete(before + after[twice:])
    assert sum(lengths[:twice]) < (16 << 10) + 2 * max(lengths, default=0)


@needs_faraway
@over_tls_too
async def test_nothing_is_lost_or_repeated_when_a_laptop_wakes_up(relay, far):
    """The same when its old connection is still open and finally receives what was sent into it."""
    kernel_id, _ = await relay.add()
    port = relay.listen_on(far.address)
    client = await relay.open(kernel_id, "s", port=port, sock=await offload(far.connect, port))
    msg_id = await begin(relay, client)
    await offload(far.pull_out)
    await asyncio.sleep(2)
    await offload(far.plug_in)
    await asyncio.sleep(2)  # all is sent again
    async with await relay.open(kernel_id, "s", port=port, sock=await offload(far.connect, port)) as back:
        assert_complete(await finish(back, msg_id, client.history))
    client.cut()


@needs_faraway
@over_tls_too
async def test_a_dead_line_is_cut(relay, far):
    """A websocket whose peer's system has acknowledged nothing for a while is cut."""
    relay.configure(eg_keepalive=Keepalive(0.2, patience=1.0), ws_ping_interval=200)
    kernel_id, channels = await relay.add()
    port = relay.listen_on(far.address)
    client = await relay.open(kernel_id, "s", port=port, sock=await offload(far.connect, port))
    await client.run("hello")
    await offload(far.pull_out)
    while channels.connections:
        await asyncio.sleep(0.05)
    client.cut()


@over_tls_too
@pytest.mark.parametrize("through_proxy", [False, True], ids=["direct", "proxy"])
async def test_a_client_that_had_everything_when_it_vanished_sees_nothing_twice(relay, through_proxy):
    """Its network failed when it had received everything."""
    relay.configure(eg_receipts=Receipts(clock := Clock()))
    kernel_id, _ = await relay.add()
    with TcpProxy(relay.port) as proxy:
        client = await relay.open(kernel_id, "s", port=proxy.port if through_proxy else None)
        await client.run("print 100")
        await client.pending(0.3)
        proxy.freeze()
        clock.ahead = 100
        async with await relay.open(kernel_id, "s") as back:
            assert await back.pending() == []
        client.cut()


@over_tls_too
@pytest.mark.parametrize("command", ["print 3", "write 4000000"], ids=["little", "much"])
async def test_a_client_that_reads_only_while_it_waits_loses_nothing(relay, command):
    """A client that reads nothing for long is not closed, and loses nothing."""
    relay.configure(eg_keepalive=Keepalive(0.05, patience=0.5), ws_ping_interval=50)
    kernel_id, channels = await relay.add()
    client = await relay.open(kernel_id, "s", buffer=1024)
    await client.run("hello")
    msg_id = client.execute(command)
    await asyncio.sleep(2)
    assert channels.connections == 1
    messages = await client.finish(msg_id)
    assert texts(messages) in {"line 0\nline 1\nline 2\n", "x" * 4_000_000}
    await client.close()


@over_tls_too
async def test_a_client_that_answers_no_pings_gets_nothing_twice(relay):
    """What its system acknowledged counts as received."""
    kernel_id, _ = await relay.add()
    client = await relay.open(kernel_id, "s")
    client.answers_pings = False
    await client.run("print 100")
    await asyncio.sleep(1.2)
    async with await relay.open(kernel_id, "s") as back:
        assert await back.pending() == []
    client.cut()


@pytest.mark.parametrize("is_said", [True, False], ids=["1009", "cut"])
@pytest.mark.parametrize("command", ["display 11000000", "reply 11000000"])
async def test_a_message_that_the_client_refuses_is_replaced_by_a_notice(relay, expect_log, command, is_said):
    """A message for which its client closes or cuts the connection is replaced by a notice, and the cell ends."""
    kernel_id, channels = await relay.add(replay=50 << 20)
    client = await relay.open(kernel_id, "s")
    client.max_size, client.says_too_big = 10 << 20, is_said
    msg_id = client.execute(command)
    with expect_log("its client does not take it"):
        await client.until_closed()
        while channels.connections:
            await asyncio.sleep(0.01)
    async with await relay.open(kernel_id, "s") as back:
        messages = await finish(back, msg_id, client.history)
    kind = "display_data" if command.startswith("display") else "execute_reply"
    (notice,) = [m for m in messages if m["header"]["msg_type"] == "stream"]
    assert notice["content"]["name"] == "stderr"
    assert notice["content"]["text"].startswith(f"[a {kind} message of 1100")
    assert notice["content"]["text"].endswith(" bytes was dropped: it is larger than the client takes]\n")
    assert sorted(set(types(messages))) == ["busy", "execute_input", "execute_reply", "idle", "stream"]
    status = next(m["content"] for m in messages if m["header"]["msg_type"] == "execute_reply")
    assert (status["status"], status.get("ename")) in {("ok", None), ("error", "MessageTooLarge")}
    assert (status["status"] == "error") == (kind == "execute_reply")


async def test_the_largest_message_is_assumed_to_be_the_refused_one(relay, expect_log):
    """A client with a lower limit says so; the largest message that it was sent is replaced by a notice."""
    kernel_id, channels = await relay.add()
    client = await relay.open(kernel_id, "s")
    client.max_size = 1 << 20
    msg_id = client.execute("display 2000000")
    with expect_log("its client does not take it"):
        await client.until_closed()
        while channels.connections:
            await asyncio.sleep(0.01)
    async with await relay.open(kernel_id, "s") as back:
        messages = await finish(back, msg_id, client.history)
    assert "display_data message" in texts(messages, "stderr")
    assert sorted(set(types(messages))) == ["busy", "execute_input", "execute_reply", "idle", "stream"]


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
async def test_large_output_is_split(relay, v1):
    """Output over the limit for one message comes as several below it, complete, each with an id of its own."""
    relay.configure(eg_ws_split_size=100_000)
    kernel_id, _ = await relay.add(kernel := relay.tiny_kernel())
    text = "".join(f'{n} ä\\"\n\x1b😀' for n in range(40_000))
    async with await relay.open(kernel_id, v1=v1, buffer=1 << 20) as client:
        kernel.publish("stream", {"name": "stdout", "text": text})
        messages = []
        while len(texts(messages)) < len(text):
            messages.append(await client.receive())
    same = texts(messages) == text
    assert same
    assert len({m["header"]["msg_id"] for m in messages}) == len(messages) > 5
    assert max(client.lengths) <= 100_000


async def test_a_reply_over_the_limit_is_replaced(relay, expect_log):
    """A reply over the gateway's own limit is replaced by one that says so: the cell ends."""
    kernel_id, _ = await relay.add(max_message=1 << 20)
    async with await relay.open(kernel_id) as client:
        with expect_log("over the limit"):
            messages = await client.run("reply 1100000")
    reply = next(m for m in messages if m["header"]["msg_type"] == "execute_reply")
    assert reply["content"]["ename"] == "MessageTooLarge"
    assert "execute_reply message" in texts(messages, "stderr")


async def test_a_reply_that_is_too_large_to_be_kept_is_replaced_by_an_error(relay):
    """A client that was disconnected when such a reply came gets an error in its place: the cell ends."""
    kernel_id, channels = await relay.add(kernel := relay.tiny_kernel(), replay=1 << 20)
    client = await relay.open(kernel_id, "s")
    msg_id = client.execute("reply 1100000 later")
    await client.until("execute_input")
    client.cut()
    while channels.connections:
        await asyncio.sleep(0.01)
    kernel.may_go_on.set()
    while channels.execution_state != "idle":
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    async with await relay.open(kernel_id, "s") as back:
        messages = await finish(back, msg_id)
    (reply,) = [m["content"] for m in messages if m["header"]["msg_type"] == "execute_reply"]
    assert reply["ename"] == "MessageTooLarge"
    assert "larger than what is kept" in texts(messages, "stderr")
