"""The response server, with the Python launcher's own messages on real sockets."""

from __future__ import annotations

import asyncio
import runpy
import secrets
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest

from enterprise_gateway.core.deadline import Deadline
from enterprise_gateway.core.errors import KernelLaunchError, LaunchTimeoutError, PayloadError
from enterprise_gateway.core.offload import offload
from enterprise_gateway.core.payload import parse
from enterprise_gateway.services.processproxies.launchers import Origins
from enterprise_gateway.transport import response
from enterprise_gateway.transport.localip import local_ips
from enterprise_gateway.transport.response import ResponseServer
from tests.core.test_payload import INFO, LAUNCHER, VECTORS, changed, legacy
from tests.support.launchers import eventually
from tests.support.loops import loop_may_be_held

_launcher = runpy.run_path(str(LAUNCHER))
_launcher["encode_payload"](INFO, VECTORS["public_key"], b"secret")  # imports what it needs, off any test's loop
SECRET = secrets.token_urlsafe(32)
REFUSED = "Refused a response"


@pytest.fixture
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ResponseServer]:
    """A server that listens, with the default limits or those that the test is parametrised with."""
    server = ResponseServer(ip="127.0.0.1", port=0, **getattr(request, "param", {}))
    await server.start()
    yield server
    await server.stop()


def message(server: ResponseServer, kernel_id: str, secret: str | None = SECRET, /, **entries) -> bytes:
    info = {**INFO, "kernel_id": kernel_id, **entries}
    return _launcher["encode_payload"](info, server.public_key, secret.encode() if secret else None)


async def send(server: ResponseServer, data: bytes, pieces: int = 1) -> None:
    """Send like a launcher, and wait until the server has closed its side."""
    reader, writer = await asyncio.open_connection(server.ip, server.port)
    step = -(-len(data) // pieces) or 1
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
        await writer.drain()
        await asyncio.sleep(0.02 if pieces > 1 else 0)
    writer.write_eof()
    assert await reader.read() == b"", "nothing is ever answered"
    writer.close()
    await writer.wait_closed()


async def never(expectation: response.Expectation, seconds: float = 0.2) -> str:
    """Wait in vain, and return the message."""
    with pytest.raises(LaunchTimeoutError) as caught:
        await expectation.wait(Deadline(seconds))
    return str(caught.value)


@pytest.mark.parametrize("secret", [None, SECRET], ids=["no-secret", "secret"])
async def test_a_report_reaches_the_waiting_launch(server, secret):
    """A message of either version, in one piece or in several, ends the wait of its kernel and of no other."""
    with server.expect("one", secret=secret) as one, server.expect("two", secret=secret) as two:
        waiting = asyncio.ensure_future(one.wait(Deadline(5)))
        await send(server, message(server, "one", secret, shell_port=41111), pieces=5)
        assert (await waiting).shell_port == 41111
        assert (await one.wait(Deadline(0))).shell_port == 41111, "it can be asked again"
        assert one.payload_version == (2 if secret else 1)
        assert not two.done
        await send(server, message(server, "two", secret))
        await two.wait(Deadline(5))


async def test_many_launchers_report_at_once(server):
    """A hundred kernels launched together all get their own report."""
    with loop_may_be_held("a hundred messages are made"):
        ids = [str(uuid.uuid4()) for _ in range(100)]
        wires = [message(server, kernel_id, shell_port=20000 + i) for i, kernel_id in enumerate(ids)]
    async with AsyncExitStack() as stack:
        expectations = [stack.enter_context(server.expect(kernel_id, secret=SECRET)) for kernel_id in ids]
        await asyncio.gather(*(send(server, wire) for wire in reversed(wires)))
        infos = [await expectation.wait(Deadline(5)) for expectation in expectations]
    assert [info.shell_port for info in infos] == list(range(20000, 20100))


async def test_report_before_the_wait_is_kept(server):
    """A launcher that is faster than the gateway's next step loses nothing."""
    with server.expect("fast", secret=SECRET, minimum_version=2) as expectation:
        await send(server, message(server, "fast"))
        assert (await expectation.wait(Deadline(1))).pid == INFO["pid"]


async def test_replay_is_refused(server, expect_log):
    """A recorded message is good neither for the same launch again nor for the next launch of the same kernel."""
    wire = message(server, "again", shell_port=41111)
    with server.expect("again", secret=SECRET) as expectation, expect_log("has already reported"):
        await send(server, wire)
        await send(server, message(server, "again", shell_port=42222))
        assert (await expectation.wait(Deadline(1))).shell_port == 41111
    with server.expect("again", secret=secrets.token_urlsafe(32)) as expectation, expect_log("this launch's secret"):
        await send(server, wire)
        assert "this launch's secret" in await never(expectation)
    with expect_log("no kernel of this id"):
        await send(server, wire)


async def test_version_1_is_refused_where_2_is_demanded(server, expect_log):
    """A kernelspec that demands version 2 gets no version 1; the time-out says what was refused, and from where."""
    with server.expect("strict", secret=SECRET, minimum_version=2) as expectation:
        with expect_log("payload version 1 is refused"):
            await send(server, message(server, "strict", None))
        text = await never(expectation)
        assert "KernelID: 'strict' launch timeout due to: Waited too long (0.2s) to get connection file" in text
        assert "127.0.0.1: payload version 1 is refused: this kernel must use 2" in text
        await send(server, message(server, "strict"))
        await expectation.wait(Deadline(1))


async def test_forgeries_do_not_end_a_launch(server, expect_log):
    """Messages that name a kernel but are not of its launcher are remembered, a few, and the true one still counts."""
    wire = message(server, "mine")
    with server.expect("mine", secret=SECRET, minimum_version=2) as expectation, expect_log(REFUSED):
        for i in range(20):
            await send(server, message(server, "mine", f"guess {i}"))
            await send(server, message(server, "mine", f"guess {i}", shell_port=i))
            await send(server, changed(wire, nonce=f"{i:016d}"))
        await send(server, message(server, "mine", None))
        assert 1 <= len(expectation.rejections) <= response.MAX_REMEMBERED_REJECTIONS
        assert not expectation.done
        await send(server, wire)
        await expectation.wait(Deadline(1))


async def test_version_2_needs_a_kernel_with_a_secret(server, expect_log):
    """A launch without a secret takes no version 2, whatever secret was used."""
    with server.expect("plain") as expectation:
        with expect_log("no secret"):
            await send(server, message(server, "plain", "x"))
        await send(server, message(server, "plain", None))
        await expectation.wait(Deadline(1))


@pytest.mark.parametrize(
    ("first", "second", "doubt", "verdict"),
    [
        (SECRET, SECRET, False, "another party tries to take over the kernel"),
        (SECRET, None, False, "another party tries to take over the kernel"),
        (None, None, True, "may have been taken over"),
        (None, SECRET, True, "Only the second one had the secret"),
    ],
    ids=["2-2", "2-1", "1-1", "1-2"],
)
async def test_a_second_report_is_logged_with_both_addresses(server, first, second, doubt, verdict, expect_log):
    """Once, however often it comes; the first one stays, and is in doubt unless the launch's secret vouches for it."""
    with server.expect("mine", secret=SECRET) as expectation:
        await send(server, message(server, "mine", first, shell_port=41111))
        with expect_log(REFUSED), expect_log(verdict) as told:
            for port in (42222, 43333):
                await send(server, message(server, "mine", second, shell_port=port))
            await eventually(lambda: not any(server._queues))
            await asyncio.sleep(0.05)
        assert len(told) == len(expectation.conflicts) == 1
        assert "from 127.0.0.1; another report for it from 127.0.0.1 was refused" in told[0].getMessage()
        assert (await expectation.wait(Deadline(1))).shell_port == 41111
        assert (expectation.doubt is not None) == doubt
        assert expectation.conflicts[0].is_forged == (first is None and second is not None)


async def test_forgeries_do_not_hide_the_launchers_own_report(server, expect_log):
    """However many others say that they are the kernel, from wherever, the one that has the secret is heard."""
    with server.expect("mine", secret=SECRET) as expectation, expect_log("", required=True):
        await send(server, message(server, "mine", None))
        await expectation.wait(Deadline(1))
        for i in range(2 * response.MAX_CONFLICTS):
            forged = server._keys.open(parse(message(server, "mine", None, shell_port=40000 + i)))
            with suppress(PayloadError):
                expectation.accept(forged, f"192.0.2.{i}")
        assert len(expectation.conflicts) == response.MAX_CONFLICTS
        await send(server, message(server, "mine", shell_port=42222))
        await eventually(lambda: expectation.doubt.is_forged)


async def test_who_does_not_hold_the_secret_makes_no_conflict_by_version_2(server, expect_log):
    """Anybody could send a message that names the kernel: it counts when it was authentic, and once the same."""
    wire = message(server, "mine")
    with server.expect("mine", secret=SECRET) as expectation, expect_log(REFUSED):
        for each in (wire, wire, message(server, "mine", "a guess", shell_port=42222)):
            await send(server, each)
        await eventually(lambda: not any(server._queues))
        await expectation.wait(Deadline(1))
    assert expectation.conflicts == []


@pytest.mark.parametrize("server", [{"conflict_seconds": 0.1}], indirect=True, ids=["soon"])
async def test_second_reports_are_looked_at_for_some_time_only(server, expect_log):
    """Later ones are refused before anything is decrypted, as when no kernel is being launched."""
    with server.expect("mine", secret=SECRET) as expectation:
        await send(server, message(server, "mine"))
        await expectation.wait(Deadline(1))
        await asyncio.sleep(0.15)
        with expect_log("the kernel has already reported"):
            await send(server, message(server, "mine", shell_port=42222))
        with expect_log("no kernel is being launched"):
            await send(server, message(server, "mine", None, shell_port=42222))
            await eventually(lambda: not any(server._queues))
            await asyncio.sleep(0.05)
    assert expectation.conflicts == []


async def test_version_1_is_taken_from_the_kernels_host_only(server, expect_log):
    """It proves nothing about its sender, so its address has to be the host's; version 2 comes from anywhere."""
    with server.expect("far", secret=SECRET) as expectation:
        expectation.restrict(Origins(["192.0.2.7"]), "host7")
        with expect_log("taken from host7 only; if 127.0.0.1 is an address of it"):
            await send(server, message(server, "far", None))
            assert "add it to payload_v1_from" in await never(expectation)
        await send(server, message(server, "far"))
        await expectation.wait(Deadline(1))
    with server.expect("near", secret=SECRET) as expectation:
        expectation.restrict(Origins(["127.0.0.1"]), "host1")
        await send(server, message(server, "near", None))
        await expectation.wait(Deadline(1))


def test_origins_are_the_hosts_addresses_and_what_the_kernelspec_adds():
    """One of this machine's addresses stands for all of them; nothing stands for everybody."""
    origins = Origins(["192.0.2.7", "2001:db8::7%eth0"], "10.1.0.0/16, 2001:db8:1::/48 ,198.51.100.9,")
    for peer in ("192.0.2.7", "2001:db8::7", "2001:DB8::0:7", "10.1.255.3", "2001:db8:1::5", "198.51.100.9"):
        assert peer in origins
    for peer in ("192.0.2.8", "127.0.0.1", "10.2.0.1", "?", ""):
        assert peer not in origins
        assert peer not in Origins()
    assert "127.0.0.3" in Origins([local_ips()[0]])
    assert "192.0.2.8" not in Origins([local_ips()[0]])
    assert "10.1.2.3" in Origins([], ["10.1.2.3"])
    for wrong in ("host7", "10.1.0.0/77", ["x"]):
        with pytest.raises(KernelLaunchError, match="payload_v1_from"):
            Origins([], wrong)


def test_addresses_are_compared_in_their_plain_form():
    """An IPv4 peer of a socket for both families is the same host, and a zone is no part of an address."""
    assert [response._plain(text) for text in ("::ffff:192.0.2.7", "fe80::1%eth0", "192.0.2.7", "?")] == [
        "192.0.2.7",
        "fe80::1",
        "192.0.2.7",
        "?",
    ]


@pytest.mark.parametrize("allowed", [False, True])
async def test_version_0_is_an_option(allowed, expect_log):
    """Version 0 is refused unless it was allowed, and then only where no later version is demanded."""
    server = ResponseServer(ip="127.0.0.1", port=0, allow_v0=allowed)
    await server.start()
    try:
        kernel_id = str(uuid.uuid4())
        with server.expect(kernel_id) as expectation, expect_log("payload version 0"):
            await send(server, legacy(INFO, kernel_id))
            if allowed:
                await expectation.wait(Deadline(1))
                assert expectation.payload_version == 0
            else:
                await never(expectation)
        demanding = server.expect(kernel_id, secret=SECRET, minimum_version=2)
        with demanding as expectation, expect_log(REFUSED), expect_log("insecure", required=allowed):
            await send(server, legacy(INFO, kernel_id))
            await never(expectation)
    finally:
        await server.stop()


async def test_expectation_is_removed_whatever_happens(server, expect_log):
    """A failed launch leaves no entry: the kernel id can be used again, and its late report is refused."""
    with pytest.raises(ZeroDivisionError), server.expect("failing", secret=SECRET) as expectation:
        raise ZeroDivisionError
    with expect_log("no kernel of this id"):
        await send(server, message(server, "failing"))
    with pytest.raises(KernelLaunchError, match="was cancelled"):
        await expectation.wait(Deadline(1))
    with server.expect("failing") as again:
        with pytest.raises(PayloadError, match="already"):
            server.expect("failing")
        expectation.close()  # a second time, late: it is not the new one's
        await send(server, message(server, "failing", None))
        await again.wait(Deadline(1))


async def test_stop_ends_everything(server):
    """Stopping closes connections that are open and wakes those who wait."""
    reader, writer = await asyncio.open_connection(server.ip, server.port)
    writer.write(b"half a mess")
    await writer.drain()
    waiting = asyncio.ensure_future(server.expect("waiting").wait(Deadline(30)))
    await asyncio.sleep(0.05)
    await asyncio.wait_for(server.stop(), 2)
    with pytest.raises(KernelLaunchError, match="was cancelled"):
        await waiting
    with pytest.raises(ConnectionError):
        await reader.read()
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(server.ip, server.port)


@pytest.mark.parametrize("kind", ["silent", "slow", "garbage", "oversized", "forged"])
async def test_thousand_bad_connections_do_not_delay_a_launch(server, kind, expect_log):
    """With 1,000 silent, slow, garbage, oversized or forged connections at it, the server takes a report at once."""
    with loop_may_be_held("messages are made and sockets opened"):
        wire = message(server, "real")
        forged = message(server, "unreal", None)
    data = {
        "silent": b"",
        "slow": b"x",
        "garbage": b"\xff" * 3000,
        "oversized": b"x" * (response.MAX_PAYLOAD_BYTES + 1),
        "forged": forged,
    }[kind]

    def flood() -> list[socket.socket]:
        opened = []
        for _ in range(1000):
            try:
                connection = socket.create_connection((server.ip, server.port), 5)
                opened.append(connection)
                connection.sendall(data)
                if kind in ("garbage", "forged"):
                    connection.shutdown(socket.SHUT_WR)
            except ConnectionError:
                pass  # closed by the server already
        return opened

    refusals = expect_log(REFUSED, required=kind in ("garbage", "oversized", "forged"))
    with server.expect("real", secret=SECRET, minimum_version=2) as expectation, refusals:
        opened: list[socket.socket] = []
        try:
            flooding = asyncio.ensure_future(offload(flood))
            await asyncio.sleep(0.1)
            await offload(_launcher["send_report"], (server.ip, server.port), wire)
            await expectation.wait(Deadline(response.CONNECTION_SECONDS / 2))  # before any of them is out of time
            opened = await flooding
            with server.expect("late", secret=SECRET) as late:
                await send(server, message(server, "late"))
                await late.wait(Deadline(response.CONNECTION_SECONDS / 2))
            assert len(server._connections) <= response.MAX_CONNECTIONS
        finally:
            for connection in opened:
                connection.close()
            await eventually(lambda: not server._connections and not any(server._queues))


@pytest.mark.parametrize(
    "entries",
    [
        {"pid": float("inf")},
        {"pid": float("nan")},
        {"pid": -1e400},
        {"pgid": 10**4000},
        {"pgid": "9" * 4000},
        {"key": "\ud800"},
        {"curve_publickey": "\udfff" * 40, "curve_secretkey": "x" * 40},
        {"ip": "\ud800"},
        {"ip": {"a": [1]}},
        {"kernel_name": "\ud800\n"},
        {"transport": "\ud800"},
        {"signature_scheme": "hmac-\ud800"},
        {"signature_scheme": "hmac-none"},
        {"shell_port": float("inf")},
        {"kernel_id": "line\nERROR forged \ud800"},
    ],
    ids="-".join,
)
async def test_whatever_a_payload_holds_ends_that_payload_only(server, entries, expect_log):
    """After two invalid ones at once, the launch in progress and the next one get their reports."""
    wire = message(server, "pending", None, **entries)
    with server.expect("pending", secret=SECRET) as pending:
        with expect_log(REFUSED, required=False) as records:
            await asyncio.gather(*(send(server, wire) for _ in range(2)))
            await eventually(lambda: not any(server._queues))
            await asyncio.sleep(0.05)
        assert all("\n" not in record.getMessage() for record in records)
        if not pending.done:  # what is of no use to the gateway may be left out
            await send(server, message(server, "pending"))
        info = await pending.wait(Deadline(5))
        assert 0 <= info.pid < 2**31
        info.to_dict()
    with server.expect("later", secret=SECRET) as later:
        await send(server, message(server, "later"))
        await later.wait(Deadline(5))


async def test_a_mistake_of_ours_ends_one_message_only(server, expect_log):
    """An error that nobody thought of is logged, at the bounded rate, and the queue goes on."""

    class Odd(response.Expectation):
        def accept(self, *_args):
            raise ZeroDivisionError

    odd = Odd(server, "odd", secret=SECRET.encode())
    server._expected["odd"] = odd
    with odd, server.expect("even", secret=SECRET) as even:
        with expect_log(f"{REFUSED}.*ZeroDivisionError"):
            await asyncio.gather(*(send(server, message(server, "odd", secret)) for secret in (SECRET, None, SECRET)))
            await eventually(lambda: not any(server._queues))
        assert "ZeroDivisionError" in odd.rejections[0]
        await send(server, message(server, "even"))
        await even.wait(Deadline(5))


@pytest.mark.parametrize("server", [{"max_connections": 3}], indirect=True, ids=["three"])
async def test_connection_just_made_is_not_the_one_to_go(server, expect_log):
    """With too many connections the oldest go, not the newest, which has had no time to say anything."""
    wire = message(server, "real")
    opened = []

    async def connect(data: bytes) -> None:
        reader, writer = await asyncio.open_connection(server.ip, server.port)
        opened.append((reader, writer))
        writer.write(data)
        await asyncio.sleep(0.05)  # the server takes it before the next one

    with server.expect("real", secret=SECRET, minimum_version=2) as expectation:
        for data in (b"x", b"x", b"x", b"", b"x"):
            await connect(data)
        for reader, _ in opened[:2]:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 5)
        opened[3][1].write(wire)
        opened[3][1].write_eof()
        await expectation.wait(Deadline(5))
    with expect_log(REFUSED):  # a byte is no message
        for _, writer in opened:
            writer.close()
        await eventually(lambda: not server._connections)


@pytest.mark.parametrize("server", [{"connection_seconds": 0.2}], indirect=True, ids=["soon"])
@pytest.mark.parametrize("said", [b"", b"x"], ids=["silent", "slow"])
async def test_unfinished_connection_is_closed_in_time(server, said, expect_log):
    """A connection that is not complete in time is closed, whether it was silent or slow."""
    reader, writer = await asyncio.open_connection(server.ip, server.port)
    with expect_log("not complete after 0.2 seconds", required=bool(said)):
        writer.write(said)
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_warnings_are_bounded(server, expect_log):
    """A flood of nonsense cannot fill the log: neither with many lines nor with long or forged ones."""
    nonsense = changed(message(server, "x"), kernel_id="line\nERROR forged line " + "x" * 5000)
    with expect_log(REFUSED) as records:
        for _ in range(2 * response.MAX_WARNINGS_PER_MINUTE):
            await send(server, nonsense)
    assert len(records) == response.MAX_WARNINGS_PER_MINUTE
    assert all(len(text := record.getMessage()) < 400 and "\n" not in text for record in records)


async def test_port_retries():
    """When the port is taken the next ones are tried; with none left the error says so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = ResponseServer(ip="127.0.0.1", port=port, port_retries=20)
        await server.start()
        assert server.port != port
        assert server.address == f"127.0.0.1:{server.port}"
        await server.stop()
        with pytest.raises(OSError, match="no free port"):
            await ResponseServer(ip="127.0.0.1", port=port, port_retries=0).start()


async def test_ipv6():
    """With an IPv6 address launchers are told it in brackets, and reach the gateway there."""
    server = ResponseServer(ip="::1", port=0)
    await server.start()
    try:
        assert server.address == f"[::1]:{server.port}"
        with server.expect("six", secret=SECRET) as expectation:
            address = _launcher["parse_response_address"](server.address)
            await offload(_launcher["send_report"], address, message(server, "six"))
            await expectation.wait(Deadline(1))
    finally:
        await server.stop()


@pytest.mark.parametrize(("ip", "told"), [("192.0.2.77", "192.0.2.77:{}"), ("2001:db8::7", "[2001:db8::7]:{}")])
async def test_any_address(ip, told):
    """Bound to any address, the server tells launchers one that may be another's, as behind a load balancer."""
    server = ResponseServer(ip=ip, port=0, any_address=True)
    await server.start()
    try:
        assert server.address == told.format(server.port)
        with server.expect("any", secret=SECRET) as expectation:
            await offload(_launcher["send_report"], ("127.0.0.1", server.port), message(server, "any"))
            await expectation.wait(Deadline(1))
    finally:
        await server.stop()


async def test_starting_twice_is_starting_once(server):
    """A second start keeps port and key, which launchers have been told."""
    before = (server.address, server.public_key)
    await server.start()
    assert (server.address, server.public_key) == before


def test_keys_are_made_at_start():
    """Before its start a server has no key and holds nothing."""
    with pytest.raises(RuntimeError, match="not been started"):
        ResponseServer(ip="127.0.0.1").public_key  # noqa: B018
