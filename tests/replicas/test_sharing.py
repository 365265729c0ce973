"""Two replicas, one set of kernels: whatever one can do, the other can, and both show the same."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
import uuid

import psycopg
import pytest
from tornado.simple_httpclient import HTTPTimeoutError
from tornado.websocket import WebSocketClosedError

from tests.support.kernelspecs import write_kernelspec
from tests.support.proxies import write_fussy_kernelspec

from .conftest import connected, eventually, processes_of

pytestmark = [pytest.mark.slow]

SLOW = {"class_name": "tests.support.proxies.SlowProxy", "config": {"seconds": 1.5}}


async def restart(client, kernel_id):
    return await client.call(f"/api/kernels/{kernel_id}/restart", "POST")


async def test_a_kernel_of_one_replica_is_used_through_the_other(replicas):
    """A kernel started on one is shown, used, interrupted, restarted and deleted through the other; both agree."""
    one, two = await replicas.start()
    kernel_id = await one.start_kernel()
    assert [kernel["id"] for kernel in await two.call("/api/kernels")] == [kernel_id]
    assert (await two.call(f"/api/kernels/{kernel_id}"))["name"] == "python3"
    here, there = await one.websocket(kernel_id), await two.websocket(kernel_id)
    await here.execute("x = 41")
    assert (await there.execute("x + 1"))[0] == "42"
    running = asyncio.create_task(here.execute("import time; time.sleep(60)"))
    await eventually(lambda: _has_state(two, kernel_id, "busy"))
    await two.call(f"/api/kernels/{kernel_id}/interrupt", "POST", status=204)
    assert (await running)[1]["ename"] == "KeyboardInterrupt"

    async def both_count_both_websockets():
        models = [model for client in (one, two) for model in await client.call("/api/kernels")]
        return [model["connections"] for model in models] == [2, 2]

    await eventually(both_count_both_websockets)
    pid = int((await here.execute("import os; os.getpid()"))[0])
    others = [await one.websocket(kernel_id), await two.websocket(kernel_id)]
    await restart(two, kernel_id)
    texts = [(await socket.execute("'x' in globals()"))[0] for socket in (here, there)]
    assert texts == ["False", "False"]
    for other in others:  # nothing looks like a death
        heard = await other.receive_until("execute_input")
        assert "restarting" not in {message["content"].get("execution_state") for message in heard}
        other.close()
    new_pid = int((await here.execute("import os; os.getpid()"))[0])
    assert new_pid != pid
    assert not os.path.exists(f"/proc/{pid}")
    await restart(one, kernel_id)
    assert (await there.execute("1 + 1"))[0] == "2"
    await one.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)
    await two.call(f"/api/kernels/{kernel_id}", status=404)
    assert await one.call("/api/kernels") == await two.call("/api/kernels") == []
    assert await _closed(there)
    assert not list(replicas.directory.glob("runtime*/kernel-*"))


async def _has_state(client, kernel_id, state):
    return (await client.call(f"/api/kernels/{kernel_id}"))["execution_state"] == state


async def _closed(socket):
    while await socket.receive(5) is not None:
        pass
    return True


async def test_a_session_is_shared_by_all_replicas(replicas):
    """A notebook's session made on one replica is listed, shown, changed and ended on the other."""
    one, two = await replicas.start()
    body = {"path": "a.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3"}}
    session = await one.call("/api/sessions", "POST", body, status=201)
    again = await two.call("/api/sessions", "POST", body, status=201)
    assert (again["id"], again["kernel"]["id"]) == (session["id"], session["kernel"]["id"])
    assert [entry["id"] for entry in await two.call("/api/sessions")] == [session["id"]]
    path = f"/api/sessions/{session['id']}"
    changed = await two.call(path, "PATCH", {"path": "b.ipynb", "kernel": {"name": "python3"}})
    assert changed["notebook"]["path"] == "b.ipynb"
    assert changed["kernel"]["id"] != session["kernel"]["id"]
    assert (await one.call(path))["kernel"]["id"] == changed["kernel"]["id"]
    assert [kernel["id"] for kernel in await one.call("/api/kernels")] == [changed["kernel"]["id"]]
    await one.call(path, "DELETE", status=204)
    await two.call(path, status=404)
    assert await two.call("/api/sessions") == await two.call("/api/kernels") == []


async def test_a_session_can_use_a_kernel_that_another_replica_started(replicas):
    """POST with the id of a kernel of one replica is answered by the other with that kernel, in the same model."""
    one, two = await replicas.start()
    kernel_id = await one.start_kernel()
    body = {"path": "a", "type": "console", "name": "A", "kernel": {"id": kernel_id}}
    session = await two.call("/api/sessions", "POST", body, status=201)
    assert session["kernel"]["id"] == kernel_id
    seen = await one.call(f"/api/sessions/{session['id']}")
    assert [{**model, "kernel": None} for model in (session, seen)] == [
        {"id": session["id"], "path": "a", "name": "A", "type": "console", "kernel": None}
    ] * 2
    assert [kernel["id"] for kernel in await one.call("/api/kernels")] == [kernel_id]
    await two.call("/api/sessions", "POST", {**body, "path": "b", "kernel": {"id": "1-2-3-4-5"}}, status=404)
    await one.call(f"/api/sessions/{session['id']}", "DELETE", status=204)
    assert await two.call("/api/sessions") == await two.call("/api/kernels") == []


async def test_a_path_has_one_session_when_all_replicas_are_asked_at_once(replicas):
    """Requests for the same new path on both replicas at the same instant are answered with one session and kernel."""
    one, two = await replicas.start()
    for path in ("a.ipynb", "b.ipynb", "c.ipynb"):
        body = {"path": path, "type": "notebook", "name": "", "kernel": {"name": "python3"}}
        opened = await asyncio.gather(
            *(client.call("/api/sessions", "POST", body, status=201) for client in (one, two) * 2)
        )
        assert len({(session["id"], session["kernel"]["id"]) for session in opened}) == 1
    assert len(await one.call("/api/kernels")) == len(await two.call("/api/sessions")) == 3
    failing = {"path": "d.ipynb", "type": "notebook", "name": "", "kernel": {"name": "unknown"}}
    answers = await asyncio.gather(*(client.fetch("/api/sessions", "POST", failing) for client in (one, two)))
    assert [answer.code for answer in answers] == [404, 404]


async def test_limits_hold_for_all_replicas_together(replicas):
    """Of eight simultaneous starts on two replicas as many succeed as the limit allows; a delete frees a place."""
    one, two = await replicas.start(2, "--EnterpriseGatewayApp.max_kernels=3")
    starts = [client.fetch("/api/kernels", "POST", {"name": "python3"}) for client in (one, two) * 4]
    answers = await asyncio.gather(*starts)
    assert sorted(answer.code for answer in answers) == [201] * 3 + [403] * 5
    for client in (one, two):
        kernels = await client.call("/api/kernels")
        assert len(kernels) == 3
    await two.call(f"/api/kernels/{kernels[0]['id']}", "DELETE", status=204)
    await one.start_kernel()
    await two.call("/api/kernels", "POST", {"name": "python3"}, status=403)


async def test_an_id_is_given_to_one_kernel(replicas):
    """Of four starts with the same id at once, two on each replica, one succeeds."""
    clients = await replicas.start()
    kernel_id = str(uuid.uuid4())
    body = {"name": "python3", "env": {"KERNEL_ID": kernel_id}}
    answers = await asyncio.gather(*(client.fetch("/api/kernels", "POST", body) for client in clients * 2))
    assert sorted(answer.code for answer in answers) == [201, 409, 409, 409]
    for client in clients:
        assert [kernel["id"] for kernel in await client.call("/api/kernels")] == [kernel_id]


@pytest.mark.parametrize("database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
async def test_a_client_that_disconnects_at_the_very_end_of_a_start_leaves_no_kernel(replicas, database_url):
    """Its kernel runs, and only its place under the limits is still to be released: the kernel is stopped again."""
    write_kernelspec("slow", metadata={"process_proxy": SLOW})
    one, two = await replicas.start()
    await two.start_kernel()

    async def is_listed():
        return len(await two.call("/api/kernels")) == 2

    async def is_gone():
        return len(await two.call("/api/kernels")) == 1

    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        start = asyncio.create_task(one.fetch("/api/kernels", "POST", {"name": "slow"}, request_timeout=4))
        await asyncio.sleep(0.5)
        await connection.execute("LOCK TABLE eg_reservations")
        await eventually(is_listed)
        with pytest.raises(HTTPTimeoutError):
            await start
    await eventually(is_gone)


async def test_a_kernel_that_dies_is_restarted_once(replicas):
    """One replica restarts a kernel whose process was killed; clients of both are told and find the new one."""
    one, two = await replicas.start()
    kernel_id = await one.start_kernel()
    sockets = [await one.websocket(kernel_id), await two.websocket(kernel_id)]
    pid = int((await sockets[0].execute("import os; os.getpid()"))[0])
    await sockets[1].execute("pass")
    content = {"code": "import time; time.sleep(60)", "silent": False}
    asked = [await sockets[0].send("execute_request", content)]
    await sockets[0].receive_until("execute_input", parent=asked[0])
    asked.append(await sockets[1].send("execute_request", content))
    await asyncio.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    for socket, request in zip(sockets, asked, strict=True):
        heard = await socket.receive_until("execute_reply", parent=request)
        assert heard[-1]["content"]["ename"] == "KernelDied"
        while heard[-1]["content"].get("execution_state") != "restarting":
            heard = await socket.receive_until("status")
    pids = [int((await socket.execute("import os; os.getpid()"))[0]) for socket in sockets]
    assert pids[0] == pids[1] != pid
    assert replicas.output.count("has died") == 1


async def test_a_replica_ends_while_it_forgets_a_kernel(replicas, tmp_path):
    """A stop during a disconnect from a kernel that another replica restarted and deleted ends cleanly."""
    stanza = {"class_name": "tests.support.proxies.SteppingProxy", "config": {"steps": "$JUPYTER_RUNTIME_DIR"}}
    write_kernelspec("stepping", metadata={"process_proxy": stanza})
    one, two = await replicas.start()
    hold = tmp_path / "runtime1" / "hold-ended"
    kernel_id = await one.start_kernel("stepping")
    socket = await two.websocket(kernel_id)
    await one.call(f"/api/kernels/{kernel_id}/restart", "POST")
    await socket.execute("pass")
    hold.touch()
    await one.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)

    async def has_arrived():
        return hold.with_name("at-ended").exists()

    await eventually(has_arrived)
    assert await _closed(socket)
    replicas.processes[1].process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    hold.unlink()
    assert await asyncio.to_thread(replicas.processes[1].stop) == 0


async def test_idle_kernels_are_culled_once_and_not_while_in_use_elsewhere(replicas):
    """A kernel is culled by one replica; one with a websocket on another replica is not idle."""
    culling = ("--RemoteMappingKernelManager.cull_idle_timeout=2", "--RemoteMappingKernelManager.cull_interval=1")
    one, two = await replicas.start(2, *culling)
    used, idle = await asyncio.gather(one.start_kernel(), one.start_kernel())
    socket = await two.websocket(used)
    await socket.execute("pass")
    await two.call(f"/api/kernels/{idle}")

    async def only_one_is_left():
        return [kernel["id"] for kernel in await two.call("/api/kernels")] == [used]

    await eventually(only_one_is_left, 15)
    await asyncio.sleep(3)
    assert (await socket.execute("2 + 2"))[0] == "4"
    assert replicas.output.count(f"Culling kernel {idle}") == 1
    assert f"Culling kernel {used}" not in replicas.output
    await one.call(f"/api/kernels/{idle}", status=404)


async def test_simultaneous_restarts_are_done_one_after_the_other(replicas):
    """Both replicas are asked to restart a kernel at once, repeatedly: it is one process at the end."""
    one, two = await replicas.start()
    kernel_id = await one.start_kernel()
    socket = await two.websocket(kernel_id)
    for _ in range(3):
        await asyncio.gather(restart(one, kernel_id), restart(two, kernel_id), one.call(f"/api/kernels/{kernel_id}"))
    pid = (await socket.execute("import os; os.getpid()"))[0]
    assert processes_of(kernel_id) == [int(pid)]
    answers = await asyncio.gather(*(client.fetch(f"/api/kernels/{kernel_id}", "DELETE") for client in (one, two)))
    assert {answer.code for answer in answers} <= {204, 404}
    assert processes_of(kernel_id) == []


@pytest.mark.parametrize("load_balancer", ["haproxy", pytest.param("nginx", marks=pytest.mark.needs("nginx"))])
async def test_one_replica_goes_on_when_the_other_is_killed(replicas, load_balancer):
    """Clients of a replica that was killed go on through the other one within 5 s, and it manages the kernels."""
    replicas.load_balancer = load_balancer
    await replicas.start()
    client = replicas.through_proxy
    kernels = [await client.start_kernel() for _ in range(4)]
    sockets = [await client.websocket(kernel_id) for kernel_id in kernels]
    for number, socket in enumerate(sockets):
        await socket.execute(f"x = {number}")
    await asyncio.to_thread(replicas.kill, 0)
    killed = time.monotonic()

    async def use(number):
        socket = sockets[number]
        while True:
            try:
                return await socket.execute("x")
            except (AssertionError, WebSocketClosedError):
                socket = await connected(client, kernels[number], socket.session_id)

    answers = await asyncio.wait_for(asyncio.gather(*map(use, range(4))), 20)
    assert [text for text, _ in answers] == ["0", "1", "2", "3"]
    assert time.monotonic() - killed < 5
    pid = int((await (await client.websocket(kernels[0])).execute("import os; os.getpid()"))[0])
    while "This replica took over" not in replicas.output:
        await asyncio.sleep(0.1)
        assert time.monotonic() - killed < 5
    os.kill(pid, signal.SIGKILL)

    async def has_new_process():
        return processes_of(kernels[0]) not in ([], [pid])

    await eventually(has_new_process)


async def test_a_kernel_that_cannot_be_checked_does_not_prevent_the_takeover_of_others(replicas, tmp_path):
    """A back end that raises while a replica takes over another's kernels is asked again; the others are used."""
    load, poll = (write_fussy_kernelspec(f"no-{verb}", tmp_path, verb)[0] for verb in ("load", "poll"))
    first, second = await replicas.start()
    fussy = [await first.start_kernel(name) for name in ("no-load", "no-poll")]
    plain = [await first.start_kernel() for _ in range(2)]
    for kernel_id in fussy + plain:
        await (await first.websocket(kernel_id)).execute("x = 42")
    load.touch()
    poll.touch()
    await asyncio.to_thread(replicas.kill, 0)

    async def all_are_taken_over():
        return sum(map(int, re.findall(r"This replica took over (\d+) kernels", replicas.output))) == 4

    await eventually(all_are_taken_over, 20)
    for kernel_id in plain:
        assert (await (await second.websocket(kernel_id)).execute("x"))[0] == "42"

    async def those_that_are_not_are_told():
        told = "Kernel {} could not be recovered and stays recorded: The cluster wants no"
        return all(told.format(kernel_id) in replicas.output for kernel_id in fussy)

    await eventually(those_that_are_not_are_told)
    for kernel_id in fussy:
        assert (await second.fetch(f"/api/kernels/{kernel_id}")).code == 503
    load.unlink()
    poll.unlink()
    for kernel_id in fussy:
        assert (await (await second.websocket(kernel_id)).execute("x"))[0] == "42"
