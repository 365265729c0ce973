"""Leases, fencing and limits across replicas, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

from enterprise_gateway.core.errors import LeaseLostError, LimitReachedError, StoreUnavailableError
from enterprise_gateway.drivers.sql_store import parse_url
from tests.support.foreignfiles import ANOTHER, MADE_FIRST, needs_root
from tests.support.processes import gateway_process
from tests.support.tcpproxy import TcpProxy

from .conftest import a_kernel_id, a_start, eventually

KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.mark.parametrize("kind", KINDS)
async def test_one_replica_holds_a_lease_at_a_time(kind, make):
    """A held lease is refused to others; a released or expired one is not; tokens only rise."""
    one, two, kernel_id = make(kind), make(kind), a_kernel_id()
    first = await one.acquire_lease(kernel_id, "one", 60)
    assert await two.acquire_lease(kernel_id, "two", 60) is None
    assert await two.fetch_lease_owners() == {kernel_id: "one"}
    assert await one.release_lease(kernel_id, "one")
    second = await two.acquire_lease(kernel_id, "two", 0.05)
    await asyncio.sleep(0.1)
    assert await two.fetch_lease_owners() == {}
    third = await one.acquire_lease(kernel_id, "one", 60)
    again = await one.acquire_lease(kernel_id, "one", 60)
    other = await two.acquire_lease(a_kernel_id(), "two", 60)
    assert first < second < third < again < other


@pytest.mark.parametrize("kind", KINDS)
async def test_leases_of_starts_by_replicas_that_are_gone_do_not_stay(kind, make):
    """What expired a minute ago is removed if nothing was recorded; leases of recorded kernels and new ones stay.

    Several replicas may find it at the same time.
    """
    gone, others = make(kind), [make(kind) for _ in range(3)]
    lost, recorded, recent = (a_kernel_id() for _ in range(3))
    for kernel_id, seconds in {lost: -61, recorded: 60, recent: -1}.items():
        await gone.acquire_lease(kernel_id, "gone", seconds)
    await gone.record_phase(recorded, "starting", **a_start())
    await gone.renew_lease(recorded, "gone", -61)
    await asyncio.gather(*(other.beat(f"other {number}", {}, {}) for number, other in enumerate(others)))
    beat = await gone.beat("gone", {}, {})
    assert beat.tokens.keys() == {recorded, recent}


@pytest.mark.parametrize("kind", KINDS)
async def test_of_many_that_ask_one_gets_the_lease(kind, make):
    """Ten replicas ask for three free leases at the same time: each goes to exactly one."""
    managers = [make(kind, store_timeout=30.0) for _ in range(10)]
    kernel_ids = [a_kernel_id() for _ in range(3)]
    await managers[0].count_kernels()
    asked = [m.acquire_lease(kernel_id, f"replica-{n}", 60) for n, m in enumerate(managers) for kernel_id in kernel_ids]
    tokens = [token for token in await asyncio.gather(*asked) if token is not None]
    assert len(tokens) == len(set(tokens)) == 3


@pytest.mark.parametrize("kind", KINDS)
async def test_websockets_of_a_kernel_that_is_gone_are_not_counted(kind, make):
    """What a replica tells of a kernel after another one has removed it does not stay, not even a count of none."""
    one, two, kernel_id = make(kind), make(kind), a_kernel_id()
    await two.acquire_lease(kernel_id, "two", 60)
    await two.record_phase(kernel_id, "starting", **a_start())
    await one.beat("one", {}, {kernel_id: 3})
    assert (await two.fetch_kernels("two"))[kernel_id].connections == 3
    await two.forget_session(kernel_id)
    await one.beat("one", {}, {kernel_id: 1})
    await two.acquire_lease(kernel_id, "two", 60)
    await two.record_phase(kernel_id, "starting", **a_start())
    assert (await two.fetch_kernels("two"))[kernel_id].connections == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_renewal_tells_which_leases_are_left(kind, make):
    """Renewing prolongs leases, also expired ones nobody took; what another has taken over is not among the result."""
    one, two = make(kind), make(kind)
    kept, expired, lost = a_kernel_id(), a_kernel_id(), a_kernel_id()
    for kernel_id, seconds in ((kept, 60), (expired, 0), (lost, 0)):
        await one.acquire_lease(kernel_id, "one", seconds)
    assert await two.acquire_lease(lost, "two", 60)
    assert (await one.beat("one", {}, {})).tokens.keys() == {kept, expired}
    assert await one.renew_lease(kept, "one", 60)
    assert not await one.renew_lease(lost, "one", 60)
    assert not await one.renew_lease(a_kernel_id(), "one", 60)
    assert not await one.release_lease(lost, "one")
    assert not await one.release_lease(lost, "one")
    assert await one.fetch_lease_owners() == {kept: "one", expired: "one", lost: "two"}
    assert await two.acquire_lease(a_kernel_id(), "two", -100_000)  # of a kernel that never came to be
    assert (await one.beat("one", {}, {})).tokens.keys() == {kept, expired}
    assert (await two.beat("two", {}, {})).tokens.keys() == {lost}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_old_token_writes_nothing(kind, make):
    """A replica that was frozen and lost its lease can neither overwrite nor remove what its successor wrote."""
    frozen, successor, kernel_id = make(kind), make(kind), a_kernel_id()
    await frozen.acquire_lease(kernel_id, "frozen", 0)
    await frozen.record_phase(kernel_id, "running", **a_start())
    assert await successor.acquire_lease(kernel_id, "successor", 60)
    await successor.fetch_session(kernel_id)
    await successor.record_phase(kernel_id, "running", process_info={"pid": 99})
    with pytest.raises(LeaseLostError, match="managed by another replica") as raised:
        await frozen.record_phase(kernel_id, "restarting", required=False)
    assert raised.value.status == 409
    with pytest.raises(LeaseLostError):
        await frozen.forget_session(kernel_id)
    assert (await frozen.fetch_session(kernel_id))["process_info"] == {"pid": 99}
    assert await frozen.flush() == set()
    with pytest.raises(LeaseLostError):  # nor one that has no lease at all
        await make(kind).record_phase(kernel_id, "running")
    await successor.forget_session(kernel_id)
    with pytest.raises(LeaseLostError):  # nor is what was removed made again
        await frozen.record_phase(kernel_id, "running")
    assert await make(kind).fetch_sessions() == {}
    assert await make(kind).fetch_lease_owners() == {}


@pytest.mark.parametrize("kind", KINDS)
async def test_limits_count_kernels_and_reservations_of_all_replicas(kind, make):
    """A place is refused when recorded kernels and places held by others reach the limit; sentences name the limit."""
    one, two = make(kind), make(kind)
    first = await one.reserve("one", "alice", 3, 2, 60)
    kernel_id = a_kernel_id()
    second = await two.reserve("two", "alice", 3, 2, 60, kernel_id=kernel_id)
    await two.record_phase(kernel_id, "starting", **a_start("alice"))
    assert (await one.count_kernels(), await one.count_kernels("alice"), await one.count_kernels("bob")) == (2, 2, 0)
    with pytest.raises(LimitReachedError, match="set to 2 and user 'alice' currently has 2 active"):
        await one.reserve("one", "alice", 3, 2, 60)
    await one.reserve("one", "bob", 3, 2, 60)
    with pytest.raises(LimitReachedError, match="Resource Limit"):
        await two.reserve("two", "carol", 3, 2, 60)
    assert await two.commit(second)
    assert await two.count_kernels() == 3
    assert await one.cancel(first)
    assert not await one.cancel(first)
    await two.reserve("two", "carol", 3, -1, 60)
    with pytest.raises(LimitReachedError):
        await two.reserve("two", "dora", None, 0, 60)
    await two.reserve("two", "dora", None, None, 60)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_start_counts_at_every_moment(kind, make):
    """Others who count while a place becomes a recorded kernel always count one, never none or two."""
    one, two = make(kind), make(kind)
    for _ in range(60):
        kernel_id = a_kernel_id()
        await one.acquire_lease(kernel_id, "one", 60)
        place = await one.reserve("one", "alice", 1, None, 60, kernel_id=kernel_id)
        counts = [asyncio.create_task(two.count_kernels()) for _ in range(8)]
        await one.record_phase(kernel_id, "running", **a_start())
        assert await one.commit(place)
        assert set(await asyncio.gather(*counts)) == {1}
        await one.forget_session(kernel_id)


@pytest.mark.parametrize("kind", KINDS)
async def test_places_of_a_dead_replica_fall_away(kind, make):
    """A reservation that nobody ended does not count after its time."""
    one, two = make(kind), make(kind)
    reservation = await one.reserve("one", "alice", 1, None, 1.0)
    with pytest.raises(LimitReachedError):
        await two.reserve("two", "alice", 1, None, 60)
    await asyncio.sleep(1.05)
    assert await two.count_kernels() == 0
    await two.reserve("two", "alice", 1, None, 60)
    assert not await one.commit(reservation)


RESERVER = """
import asyncio, json, sys
from enterprise_gateway.core.errors import LimitReachedError
from enterprise_gateway.services.sessions.kernelsessionmanager import SQLKernelSessionManager
async def main():
    options = json.loads(sys.argv[1])
    manager = SQLKernelSessionManager(None, enable_persistence=True, store_timeout=60.0, **options)
    sys.stdin.readline()
    places = [manager.reserve(sys.argv[2], f"user-{n % 4}", 17, 5, 60) for n in range(20)]
    results = await asyncio.gather(*places, return_exceptions=True)
    errors = [r for r in results if isinstance(r, Exception) and not isinstance(r, LimitReachedError)]
    print(sum(isinstance(r, str) for r in results), *errors)
    await manager.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", KINDS)
async def test_two_processes_reserve_at_the_same_time(kind, make, tmp_path, request):
    """Of forty places asked for by two processes at once exactly as many are given as the limit allows.

    The processes also make the tables, at the same time.
    """
    options = {"persistence_root": str(tmp_path)}
    if kind == "postgresql":
        options["database_url"] = request.getfixturevalue("database_url")
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RESERVER, json.dumps(options), name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    given = [answer[0].decode().strip() for answer in answers]
    assert sum(map(int, given)) == 17, given
    manager = make(kind)
    assert await manager.count_kernels() == 17
    assert max([await manager.count_kernels(f"user-{n}") for n in range(4)]) <= 5


@pytest.mark.postgres
async def test_a_server_that_restarts_is_used_again(make, postgres, database_url, expect_log):
    """A database that goes away is an outage; what was to be written then is in it after its return."""
    manager, kernel_id = make("postgresql", database_url=database_url), a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start())
    async with postgres.away():
        with expect_log("not available") as records:
            with pytest.raises(StoreUnavailableError):
                await manager.fetch_session(kernel_id)
            await manager.record_phase(kernel_id, "stopping", required=False)
        assert "connection-key" not in records[0].getMessage()
    assert await manager.flush() == set()
    assert (await make("postgresql", database_url=database_url).fetch_session(kernel_id))["state"] == "stopping"


@pytest.mark.postgres
async def test_a_server_that_freezes_does_not_block_others(make, postgres, database_url, expect_log):
    """With a server that never answers, callers get 503 in time and threads end; then it goes on."""
    manager = make("postgresql", database_url=database_url, store_timeout=1.0, store_concurrency=2)
    kernel_id = a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start())
    loop = asyncio.get_running_loop()
    with postgres.frozen(), expect_log("no answer within|not available"):
        started = loop.time()
        reads = [manager.fetch_session(kernel_id) for _ in range(4)]
        results = await asyncio.gather(*reads, return_exceptions=True)
        assert {type(result) for result in results} == {StoreUnavailableError}
        assert loop.time() - started < 1.8  # not one after the other
        await manager.record_phase(kernel_id, "stopping", required=False)
        await asyncio.wait_for(manager._calls.drain(), 5)
    with expect_log("not available", required=False):
        while await manager.flush():
            await asyncio.sleep(0.2)
    assert (await manager.fetch_session(kernel_id))["state"] == "stopping"


@pytest.mark.postgres
async def test_a_replica_suspended_in_a_transaction_blocks_others_only_briefly(make, database_url, expect_log):
    """What it has locked, among it the counter that all leases need, others have after two seconds."""
    port, kernel_id = urlsplit(database_url).port, a_kernel_id()
    with TcpProxy(port) as line:
        url = database_url.replace(f":{port}/", f":{line.port}/")
        one, two = (make("postgresql", database_url=each, store_timeout=10.0) for each in (url, database_url))
        await one.acquire_lease(kernel_id, "one", 0)
        await two.count_kernels()
        line.freeze_at(b"COMMIT")
        still = asyncio.create_task(one.acquire_lease(kernel_id, "one", 60))
        await eventually(lambda: line.refuse)
        assert await asyncio.wait_for(two.acquire_lease(kernel_id, "two", 60), 4)
        with expect_log("not available"):
            line.cut()
            with pytest.raises(StoreUnavailableError):
                await still
        line.refuse = False


@pytest.mark.postgres
async def test_the_url_may_come_from_a_file_or_the_environment(make, postgres, tmp_path, monkeypatch):
    """EG_SESSION_DATABASE_URL_FILE names a private file with the URL; unix sockets work."""
    path = tmp_path / "url"
    path.write_text(postgres.socket_url + "\n")
    path.chmod(0o644)
    monkeypatch.setenv("EG_SESSION_DATABASE_URL_FILE", str(path))
    with pytest.raises(ValueError, match="chmod 600"):
        make("sqlite")
    path.chmod(0o600)
    assert await make("sqlite").count_kernels() == 0
    monkeypatch.delenv("EG_SESSION_DATABASE_URL_FILE")
    monkeypatch.setenv("EG_SESSION_DATABASE_URL", postgres.url)
    assert await make("sqlite").count_kernels() == 0
    assert not list(tmp_path.glob("*.sqlite"))


async def test_sqlite_files_are_private(make, tmp_path):
    """The database and its companions can be read by the gateway's user only, whatever its mode was before."""
    (tmp_path / "kernel_sessions.sqlite").touch(mode=0o644)
    await make("sqlite").record_phase(a_kernel_id(), "running", **a_start())
    files = list(tmp_path.glob("kernel_sessions.sqlite*"))
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


@pytest.mark.parametrize("companion", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("make_first", MADE_FIRST)
async def test_a_database_that_somebody_else_made_is_not_used(make, tmp_path, expect_log, make_first, companion):
    """It is not waited for, nothing is written to it or through it, and the error says what to do."""
    path = tmp_path / f"kernel_sessions.sqlite{companion}"
    make_first(path)
    before = {each: each.lstat().st_mode for each in tmp_path.iterdir()}
    with expect_log(f"{path} is .*: (remove it|configure the path)"), pytest.raises(StoreUnavailableError):
        await asyncio.wait_for(make("sqlite").acquire_lease(a_kernel_id(), "one", 60), 10)
    for each, mode in before.items():
        assert each.lstat().st_mode == mode
        assert not stat.S_ISREG(mode) or each.read_bytes() == b"secret"
    assert set(tmp_path.iterdir()) - set(before) <= {tmp_path / "kernel_sessions.sqlite"}


async def test_the_directory_of_a_database_may_be_a_link(make, tmp_path):
    """The administrator's, as there is where volumes are mounted."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "volume")
    await make("sqlite", persistence_root=str(tmp_path / "data")).record_phase(a_kernel_id(), "running", **a_start())
    assert (tmp_path / "volume" / "kernel_sessions.sqlite").is_file()


@needs_root
async def test_the_directory_of_a_database_is_no_link_of_another_user(make, tmp_path, expect_log):
    """It would lead where that one likes, from one start to the next."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "volume")
    os.chown(tmp_path / "data", ANOTHER, ANOTHER, follow_symlinks=False)
    with (
        expect_log("data is a symbolic link that the user with id 65534 has made"),
        pytest.raises(StoreUnavailableError),
    ):
        await make("sqlite", persistence_root=str(tmp_path / "data")).count_kernels()
    assert not list((tmp_path / "volume").iterdir())


def test_a_database_that_is_a_link_is_reported_at_start(tmp_path):
    """In one sentence, which says what to do; when that is done the gateway goes on with it."""
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "database.sqlite")
    store = "enterprise_gateway.services.sessions.kernelsessionmanager.SQLKernelSessionManager"
    argv = [
        f"--EnterpriseGatewayApp.kernel_session_manager_class={store}",
        "--EnterpriseGatewayApp.availability_mode=replication",
    ]
    env = {"EG_SESSION_DATABASE_URL": f"sqlite:///{tmp_path / 'link.sqlite'}"}
    with gateway_process(tmp_path / "log", argv, env=env) as gateway:
        for step in ("link.sqlite is a symbolic link, which is not followed: configure", "store is available again"):
            end = time.monotonic() + 20
            while step not in gateway.output:
                assert time.monotonic() < end, gateway.output
                time.sleep(0.05)
            if step.startswith("link"):
                (tmp_path / "link.sqlite").unlink()
        assert "Traceback" not in gateway.output
    assert not (tmp_path / "database.sqlite").exists()


async def test_a_bad_row_does_not_spoil_the_others(make, tmp_path, expect_log):
    """A record that is no JSON is logged and stays; asking for it alone is no "not found"."""
    import sqlite3

    manager, good, bad = make("sqlite"), a_kernel_id(), a_kernel_id()
    for kernel_id in (good, bad):
        await manager.record_phase(kernel_id, "running", **a_start())
    connection = sqlite3.connect(tmp_path / "kernel_sessions.sqlite")
    with connection:
        connection.execute("UPDATE eg_kernel_sessions SET record = 'nonsense' WHERE kernel_id = ?", (bad,))
    connection.close()
    other = make("sqlite")
    with expect_log(f"session of kernel {bad} cannot be used"):
        assert list(await other.fetch_sessions()) == [good]
    with expect_log("not available"), pytest.raises(StoreUnavailableError):
        await other.fetch_session(bad)


async def test_a_database_of_a_newer_version_is_left_alone(make, tmp_path, expect_log):
    """A gateway does not write to tables that it does not know."""
    import sqlite3

    await make("sqlite").count_kernels()
    connection = sqlite3.connect(tmp_path / "kernel_sessions.sqlite")
    with connection:
        connection.execute("UPDATE eg_meta SET value = 99 WHERE name = 'schema_version'")
    connection.close()
    with expect_log("newer version"), pytest.raises(StoreUnavailableError):
        await make("sqlite").count_kernels()


@pytest.mark.parametrize(
    "text",
    ["mysql://u:pa55word@h/d", "nonsense pa55word", "sqlite://", "sqlite:///:memory:", "postgresql+asyncpg://h/d"],
)
def test_unsupported_databases_are_refused(text):
    """Only SQLite files and PostgreSQL; the sentence does not hold the password."""
    with pytest.raises(ValueError, match="database") as raised:
        parse_url(text)
    assert "pa55word" not in str(raised.value)


def test_sqlalchemy_is_not_imported_for_other_stores():
    """Importing the session managers does not load SQLAlchemy or requests."""
    script = (
        "import sys, enterprise_gateway.services.sessions.kernelsessionmanager;"
        "sys.exit(bool({'sqlalchemy', 'requests', 'Cryptodome'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
