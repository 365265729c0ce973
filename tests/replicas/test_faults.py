"""Replicas whose store goes away, or that are suspended, in the middle of a change: the next one completes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from urllib.parse import urlsplit

import psycopg
import pytest
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError

from tests.support.kernelspecs import write_kernelspec
from tests.support.tcpproxy import TcpProxy

from .conftest import connected, eventually, processes_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
]

PID = "import os; os.getpid()"
# An interpreter starts in a second, but has been seen to take twenty on processors that ten others wanted, too.
KERNEL_SECONDS = 60
STEPS = {"class_name": "tests.support.proxies.SteppingProxy", "config": {"steps": "$JUPYTER_RUNTIME_DIR"}}


class Step:
    """A step of a kernel's life at which the replica ``number`` stops."""

    def __init__(self, replicas, number, name):
        self._hold = replicas.directory / f"runtime{number}" / f"hold-{name}"
        self._hold.touch()

    async def reached(self):
        async def is_there():
            return self._hold.with_name(self._hold.name.replace("hold", "at")).exists()

        await eventually(is_there, 20)

    def go_on(self):
        self._hold.unlink()


@pytest.fixture
def line(database_url):
    """Return the line to the database, which can be cut; replicas that use it are set up after it."""
    port = urlsplit(database_url).port
    with TcpProxy(port) as proxy:
        proxy.database_url = database_url.replace(f":{port}/", f":{proxy.port}/")
        yield proxy


async def used_kernel(replicas, name="stepping"):
    """Start a kernel on the first replica; return its id, its process and a websocket on each replica."""
    kernel_id = await replicas.clients[0].start_kernel(name)
    sockets = [await client.websocket(kernel_id) for client in replicas.clients]
    pids = {int((await socket.execute(PID))[0]) for socket in sockets}
    assert len(pids) == 1
    return kernel_id, pids.pop(), sockets


def begin_restart(cause, client, kernel_id, pid):
    """Have a kernel restarted: by a client, whose answer is returned, or because it has died."""
    if cause == "client":
        return asyncio.create_task(client.fetch(f"/api/kernels/{kernel_id}/restart", "POST", request_timeout=40))
    os.kill(pid, signal.SIGKILL)
    return None


async def held_restart(replicas, cause, step):
    """Have the first replica stop at a step of a restart; return the used kernel, the restart, and the step."""
    write_kernelspec("stepping", metadata={"process_proxy": STEPS})
    await replicas.start()
    used = await used_kernel(replicas)
    kernel_id, pid, _ = used
    held = Step(replicas, 0, step)
    restart = begin_restart(cause, replicas.clients[0], kernel_id, pid)
    await held.reached()
    return used, restart, held


async def all_idle(replicas, kernel_id):
    answers = await asyncio.gather(*(client.fetch(f"/api/kernels/{kernel_id}") for client in replicas.clients))
    return [answer.code == 200 and b'"idle"' in answer.body for answer in answers] == [True] * len(answers)


async def pid_told_to(socket):
    """Return a kernel's process; a request that was sent before its replica knew of the restart fails: once more."""

    async def answer():
        text, error = await socket.execute(PID)
        assert text or error["ename"].startswith("Kernel")
        return text

    return int(await eventually(answer))


async def check_that_it_lives(replicas, kernel_id, former, sockets):
    """Check that a kernel has one process, other than ``former``, and is used, and deleted, on all replicas."""
    await eventually(lambda: all_idle(replicas, kernel_id), KERNEL_SECONDS)
    pids = {await pid_told_to(socket) for socket in sockets}
    assert len(pids) == 1
    assert former not in pids

    async def there_is_no_other():
        return processes_of(kernel_id) == list(pids)

    await eventually(there_is_no_other)
    await replicas.clients[-1].call(f"/api/kernels/{kernel_id}", "DELETE", status=204)

    async def is_gone_everywhere():  # a replica that has not noticed yet that the store is back uses what it knows
        answers = [await client.fetch(f"/api/kernels/{kernel_id}") for client in replicas.clients]
        return [answer.code for answer in answers] == [404] * len(answers)

    await eventually(is_gone_everywhere)

    async def nothing_is_left():
        return processes_of(kernel_id) == [] and not list(replicas.directory.glob("runtime*/kernel-*"))

    await eventually(nothing_is_left)
    assert "Traceback" not in replicas.output


@pytest.mark.parametrize(("step", "outage"), [("ended", 6), ("launch", 0.3), ("launched", 0.3), ("launched", 6)])
@pytest.mark.parametrize("cause", ["client", "death"])
async def test_a_restart_is_completed_when_the_store_goes_away_in_the_middle(replicas, postgres, cause, step, outage):
    """PostgreSQL stops when the old process has ended, before or after the new one is launched.

    It returns before or after the leases have expired.
    """
    (kernel_id, pid, sockets), restart, held = await held_restart(replicas, cause, step)
    async with postgres.away():
        held.go_on()
        await asyncio.sleep(outage)
    if restart is not None:
        assert (await restart).code == 200
    await check_that_it_lives(replicas, kernel_id, pid, sockets)
    assert "is dead" not in replicas.output


@pytest.mark.parametrize("is_new", [False, True])
async def test_the_first_request_after_an_outage_finds_the_new_process(replicas, postgres, is_new):
    """A restart was done while PostgreSQL was away, and leases have expired: no replica takes it for cut short.

    Neither the one that did not know the kernel before, nor one that has just been started.
    """
    write_kernelspec("stepping", metadata={"process_proxy": STEPS})
    first, second = await replicas.start()
    kernel_id = await first.start_kernel("stepping")
    held = Step(replicas, 0, "launched")
    restart = begin_restart("client", first, kernel_id, 0)
    await held.reached()
    async with postgres.away():
        held.go_on()
        assert (await restart).code == 200
        [pid] = processes_of(kernel_id)
        if is_new:
            await asyncio.to_thread(replicas.kill, 1)
        await asyncio.sleep(4)
    if is_new:
        await asyncio.to_thread(replicas.start_again, 1)
    socket = await connected(second, kernel_id)
    assert await pid_told_to(socket) == pid
    assert "left behind" not in replicas.output


async def test_clients_that_may_have_used_an_unreachable_process_are_told_of_its_end(replicas, postgres):
    """A replica has restarted a kernel while PostgreSQL was away, and is killed before it could say how it is reached.

    Another replica replaces the process; clients of a third one are told, too.
    """
    write_kernelspec("stepping", metadata={"process_proxy": STEPS})
    await replicas.start(3)
    kernel_id, pid, sockets = await used_kernel(replicas)
    held = Step(replicas, 0, "launched")
    restart = begin_restart("client", replicas.clients[0], kernel_id, pid)
    await held.reached()
    async with postgres.away():
        held.go_on()
        assert (await restart).code == 200
        lost = await pid_told_to(sockets[0])
        await asyncio.to_thread(replicas.kill, 0)
    for socket in sockets[1:]:
        state = ""
        while state != "restarting":
            state = (await socket.receive_until("status"))[-1]["content"]["execution_state"]
        assert await pid_told_to(socket) not in {pid, lost}
    assert "left behind" in replicas.output


async def test_kernels_that_die_with_their_replica_are_restarted(replicas):
    """Whichever replica takes them over, with and without a websocket on another one."""
    one, two, three = await replicas.start(3)
    sockets = {}
    for _ in range(3):
        kernel_id = await one.start_kernel()
        sockets[kernel_id] = await two.websocket(kernel_id)
    unused = await one.start_kernel()
    await asyncio.to_thread(replicas.kill, 0)
    former = {pid for kernel_id in [*sockets, unused] for pid in processes_of(kernel_id)}
    for pid in former:
        os.kill(pid, signal.SIGKILL)
    for socket in sockets.values():
        assert await pid_told_to(socket) not in former
    assert await pid_told_to(await connected(three, unused)) not in former
    assert "is removed" not in replicas.output


@pytest.mark.parametrize("cause", ["client", "death"])
async def test_a_delete_that_fails_leaves_no_restart_half_done(replicas, postgres, cause):
    """A delete cancels the restart in progress, and is refused because PostgreSQL is away: the restart is completed."""
    (kernel_id, pid, sockets), restart, held = await held_restart(replicas, cause, "launch")
    async with postgres.away():
        assert (await replicas.clients[0].fetch(f"/api/kernels/{kernel_id}", "DELETE")).code == 503
        held.go_on()
    if restart is not None:
        assert (await restart).code == 409
    await check_that_it_lives(replicas, kernel_id, pid, sockets)


@pytest.mark.parametrize("step", ["ended", "launch", "launched"])
@pytest.mark.parametrize("cause", ["client", "death"])
async def test_another_replica_completes_the_restart_of_a_suspended_one(replicas, cause, step):
    """The one that wakes up starts no second process, and connects to the new one."""
    (kernel_id, pid, sockets), restart, held = await held_restart(replicas, cause, step)
    with replicas.frozen(0):
        held.go_on()
        new = await pid_when_another_has_finished(replicas, kernel_id, sockets)
    if restart is not None:
        assert (await restart).code in {200, 409}
    assert (await sockets[1].execute(PID))[0] == new
    await check_that_it_lives(replicas, kernel_id, pid, sockets)
    assert "is dead" not in replicas.output


@pytest.mark.parametrize("step", ["ended", "launch"])
@pytest.mark.parametrize("cause", ["client", "death"])
async def test_a_replica_that_wakes_up_in_an_outage_serves_no_client_with_its_own_process(
    replicas, postgres, cause, step
):
    """It was in the middle of a restart, which another replica completed: its clients wait until the store is back."""
    (kernel_id, pid, sockets), restart, held = await held_restart(replicas, cause, step)
    async with contextlib.AsyncExitStack() as outage:
        with replicas.frozen(0):
            held.go_on()
            new = await pid_when_another_has_finished(replicas, kernel_id, sockets)
            await outage.enter_async_context(postgres.away())
        answer = asyncio.create_task(pid_told_to(sockets[0]))
        assert not (await asyncio.wait([answer], timeout=4))[0]
        assert (await sockets[1].execute(PID))[0] == new
    assert await answer == int(new)
    if restart is not None:
        assert (await restart).code in {200, 409}
    await check_that_it_lives(replicas, kernel_id, pid, sockets)
    assert "is dead" not in replicas.output


async def pid_when_another_has_finished(replicas, kernel_id, sockets):
    """Wait until replica 1 has finished a restart, and return the process that its client is told."""

    async def is_finished():
        return (await replicas.clients[1].call(f"/api/kernels/{kernel_id}"))["execution_state"] == "idle"

    await eventually(is_finished, KERNEL_SECONDS)
    return (await sockets[1].execute(PID))[0]


async def test_a_replica_that_wakes_up_announces_a_restart_before_it_relays(replicas):
    """A kernel dies and is restarted while another replica is suspended: its clients are told before any reply."""
    await replicas.start(2, "--KernelRestarter.stable_start_time=0")
    kernel_id, pid, sockets = await used_kernel(replicas, "python3")
    with replicas.frozen(1):
        os.kill(pid, signal.SIGKILL)

        async def is_restarted():
            model = await replicas.clients[0].call(f"/api/kernels/{kernel_id}")
            return model["execution_state"] == "idle" and processes_of(kernel_id) not in ([], [pid])

        await eventually(is_restarted, KERNEL_SECONDS)
        request = {"code": PID, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        await sockets[1].send("execute_request", request)
    while (message := await sockets[1].receive())["content"].get("execution_state") != "restarting":
        assert message["msg_type"] not in {"execute_result", "execute_input"}
    await check_that_it_lives(replicas, kernel_id, pid, sockets)


@pytest.mark.parametrize("is_answer_lost", [False, True], ids=["request", "answer"])
@pytest.mark.parametrize(
    ("cause", "write"),
    [
        ("client", b"UPDATE eg_meta"),  # for the lease
        ("client", b'"state": "restarting"'),
        ("client", b'"state": "running"'),
        ("death", b'"state": "restarting"'),
        ("death", b'"state": "running"'),
    ],
)
async def test_a_restart_does_not_get_stuck_when_a_write_is_lost(line, replicas, cause, write, is_answer_lost):
    """The line to the database breaks at one of a restart's writes, before or after it is made.

    The restart is completed, or the client is told that it failed, and the kernel is unchanged.
    """
    replicas.database_url = line.database_url
    await replicas.start(2)
    kernel_id, pid, sockets = await used_kernel(replicas, "python3")
    line.cut_at(*([write, b"COMMIT"] if is_answer_lost else [write]), is_answer_lost=is_answer_lost)
    restart = begin_restart(cause, replicas.clients[0], kernel_id, pid)
    is_done = True
    if restart is not None:
        answer = await restart
        assert answer.code in {200, 503}
        assert answer.code == 200 or b"not available" in answer.body
        is_done = answer.code == 200

    async def is_cut():
        return line.refuse

    await eventually(is_cut)
    await asyncio.sleep(1)
    line.refuse = False
    if is_done:
        await check_that_it_lives(replicas, kernel_id, pid, sockets)
    else:
        await eventually(lambda: all_idle(replicas, kernel_id), KERNEL_SECONDS)
        assert [int((await socket.execute(PID))[0]) for socket in sockets] == [pid, pid]
        assert (await replicas.clients[1].fetch(f"/api/kernels/{kernel_id}/restart", "POST")).code == 200
        await check_that_it_lives(replicas, kernel_id, pid, sockets)


@pytest.mark.parametrize("write", [b'"state": "stopping"', b"DELETE FROM eg_kernel"])
async def test_no_deleted_kernel_returns_when_its_replica_is_killed(line, replicas, write):
    """The line to the database breaks at one of a delete's writes, and is restored when the replica is gone.

    The kernel is gone if the client was told so, and otherwise unchanged.
    """
    replicas.database_url = line.database_url
    one, two = await replicas.start()
    kernel_id, pid, sockets = await used_kernel(replicas, "python3")
    line.cut_at(write)
    answer = await one.fetch(f"/api/kernels/{kernel_id}", "DELETE")
    await asyncio.to_thread(replicas.kill, 0)
    line.refuse = False
    await asyncio.sleep(5)  # by then another one has taken it over
    if answer.code == 503:
        assert int(await pid_told_to(sockets[1])) == pid
        await two.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
    else:
        assert answer.code == 204

    async def is_gone():
        return (await two.fetch(f"/api/kernels/{kernel_id}")).code == 404

    await eventually(is_gone, KERNEL_SECONDS)
    assert processes_of(kernel_id) == []


async def test_a_kernel_that_could_not_be_checked_is_checked_again(line, replicas):
    """A replica dies while it starts a kernel, and the store fails when another one wants to know what that was.

    The half-started kernel is removed all the same, and its place under the limit is free again.
    """
    write_kernelspec("stepping", metadata={"process_proxy": STEPS})
    replicas.database_url = line.database_url
    one, two = await replicas.start(2, "--EnterpriseGatewayApp.max_kernels=1")
    held = Step(replicas, 0, "launch")
    start = asyncio.create_task(one.fetch("/api/kernels", "POST", {"name": "stepping"}))
    await held.reached()
    assert (await two.fetch("/api/kernels", "POST", {"name": "python3"})).code == 403
    line.cut_at(b"eg_kernel_sessions.kernel_id, eg_kernel_sessions.record")
    await asyncio.to_thread(replicas.kill, 0)
    with pytest.raises(HTTPStreamClosedError):
        await start

    async def is_cut():
        return line.refuse

    await eventually(is_cut)
    await asyncio.sleep(0.5)
    line.refuse = False
    await eventually(lambda: _started(two), 20)


async def _started(client):
    return (await client.fetch("/api/kernels", "POST", {"name": "python3"})).code == 201


async def test_a_start_that_is_cancelled_while_its_id_is_claimed_leaves_the_id_free(replicas, database_url):
    """A client disconnects while the store is slow to grant the kernel's lease: another replica may use the id."""
    one, two = await replicas.start()
    await one.start_kernel()
    body = {"name": "python3", "env": {"KERNEL_ID": str(uuid.uuid4())}}
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("LOCK TABLE eg_meta")
        with pytest.raises(HTTPTimeoutError):
            await one.fetch("/api/kernels", "POST", body, request_timeout=1)
        await asyncio.sleep(0.5)

    async def is_free():
        return (await two.fetch("/api/kernels", "POST", body)).code == 201

    await eventually(is_free)


async def test_a_claim_whose_answer_is_lost_leaves_the_id_free(line, replicas):
    """The line breaks when a start's lease is granted, and the answer is lost: another replica may use the id."""
    replicas.database_url = line.database_url
    one, two = await replicas.start()
    body = {"name": "python3", "env": {"KERNEL_ID": str(uuid.uuid4())}}
    line.cut_at(b"INSERT INTO eg_kernel_leases", b"COMMIT", is_answer_lost=True)
    assert (await one.fetch("/api/kernels", "POST", body)).code == 503
    line.refuse = False

    async def is_free():
        return (await two.fetch("/api/kernels", "POST", body)).code == 201

    await eventually(is_free)


async def test_files_of_a_kernel_that_ended_elsewhere_are_removed(replicas):
    """A replica that was killed and started again removes its files of a kernel that the other one deletes."""
    one, two = await replicas.start()
    kernel_id = await one.start_kernel()
    await two.call(f"/api/kernels/{kernel_id}")
    await asyncio.to_thread(replicas.kill, 0)
    await asyncio.to_thread(replicas.start_again, 0)
    files = replicas.directory / "runtime0"
    assert list(files.glob("kernel-*"))
    await two.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)

    async def nothing_is_left():
        return not list(files.glob("kernel-*"))

    await eventually(nothing_is_left)
