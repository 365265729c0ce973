"""Everything fails, again and again, and no work is lost.

Three replicas on one PostgreSQL serve kernels that count while replicas, database and kernels are killed, stopped and
frozen. A seed determines what fails when (``plan.py``); how the processes' steps fall together is never quite the same
twice. ``make chaos SECONDS=600 SEED=7`` runs it for longer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from random import Random

import psycopg
import pytest

from tests.clusters.postgres import PostgresServer, running_postgres
from tests.support.tcpproxy import TcpProxy

from .counting_kernel import write_counting_kernelspec
from .installation import Installation
from .journal import Journal
from .plan import REPLICAS, Episode, Fault, episodes
from .process_table import LOOK_SECONDS, ProcessTable
from .users import Kernel, Notebook, Users

# By itself, `make test` only sees that all of it works.
SECONDS = float(os.environ.get("CHAOS_SECONDS") or (180 if os.environ.get("CI") else 20))
SEED = int(os.environ.get("CHAOS_SEED") or 8)
SETTLE_SECONDS = 30.0
FORGIVEN_SECONDS = 70.0  # what a killed replica held, a place under the limits, say, is given back after a minute
MAX_KERNELS, MAX_PER_USER = 8, 2
ALL_REPLICAS = range(REPLICAS)

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.chaos, pytest.mark.timeout(SECONDS + 420)]


class Chaos:
    """One run: what lives through it, what fails, and the watch over both."""

    def __init__(self, installation: Installation, journal: Journal) -> None:
        self.there, self.journal = installation, journal
        self.table = ProcessTable(installation.directory)
        self.users = Users(installation)
        names = {"ada": ("python3", "counting"), "bob": ("python3", "counting"), "eve": ("counting",)}
        self.lasting = [Kernel(user, name) for user, its in names.items() for name in its]
        self.passing: Kernel | None = None
        self.known: dict[str, Kernel] = {kernel.kernel_id: kernel for kernel in self.lasting}
        self.notebooks = [Notebook(installation, kernel, Random(kernel.user + kernel.name)) for kernel in self.lasting]
        self.episodes = 0
        self._called_dead: dict[tuple[int, str], int] = {}

    async def run(self) -> None:
        """Let things fail until the time is over, then see that all is well."""
        over = asyncio.Event()
        watches = [asyncio.create_task(work) for work in (self._watch_processes(), self._watch_models())]
        started = await asyncio.gather(*(self.users.start(kernel, 0) for kernel in self.lasting))
        assert all(started), self.journal.report()
        work = [asyncio.create_task(notebook.run(over)) for notebook in self.notebooks]
        work += [asyncio.create_task(self.users.come_and_go(user, over)) for user in ("mob", "mob", "mob", "sue")]
        try:
            await self._let_fail(work, time.monotonic() + SECONDS)
            over.set()
            await asyncio.gather(*work)
            await self._check_end()
            for watch in watches:
                watch.cancel()
            await self._stop_replicas()
        finally:
            for task in (*watches, *work):
                task.cancel()
            results = await asyncio.gather(*watches, *work, return_exceptions=True)
            errors = [each for each in results if isinstance(each, Exception)]
        assert not errors, errors

    # -- what fails ---------------------------------------------------------------------------------------------------

    async def _let_fail(self, work: list[asyncio.Task[None]], end: float) -> None:
        for episode in episodes(self.journal.seed, len(self.lasting)):
            if time.monotonic() > end or any(task.done() for task in work):
                return
            await self._play(episode)
            self.episodes += 1

    async def _play(self, episode: Episode) -> None:
        target = await self._prepare(episode)
        self.journal.note(f"{episode} ({target.kernel_id})")
        action = asyncio.create_task(self._act(episode, target))
        await asyncio.gather(*(self._fail(fault, episode, target) for fault in episode.faults))
        await action
        await asyncio.sleep(episode.pause_seconds)

    async def _fail(self, fault: Fault, episode: Episode, target: Kernel) -> None:
        await asyncio.sleep(fault.begins_seconds)
        if fault.kind == "death":
            self._kill(target if episode.action in {"start", "delete"} else self.lasting[episode.kernel])
        else:
            await self.there.fail(fault)

    async def _prepare(self, episode: Episode) -> Kernel:
        """Return the kernel that an action is about: one that is there for a delete, and none for a start."""
        if episode.action not in {"start", "delete"}:
            return self.lasting[episode.kernel]
        if self.passing is not None and episode.action == "start":
            await self.users.delete(self.passing, episode.replica)
            self.passing = None
        if self.passing is None:
            self.passing = Kernel("guest", "counting")
            self.known[self.passing.kernel_id] = self.passing
            if episode.action == "delete":
                await self.users.start(self.passing, episode.replica)
        return self.passing

    async def _act(self, episode: Episode, kernel: Kernel) -> None:
        succeeded: bool | None = None
        if episode.action == "restart":
            succeeded = await self.users.restart(kernel, episode.replica)
        elif episode.action == "death":
            self._kill(kernel)
        elif episode.action == "start":
            succeeded = await self.users.start(kernel, episode.replica)
            if not succeeded:  # its state is not known: it must be deleted in any case
                await self.users.delete(kernel, self.there.choose(Random(episode.number)))
                self.passing = None
        elif episode.action == "delete":
            await self.users.delete(kernel, episode.replica)
            self.passing, succeeded = None, True
        if succeeded is not None:
            self.journal.note(f"the {episode.action} {'was granted' if succeeded else 'was not granted'}")

    def _kill(self, kernel: Kernel) -> None:
        self.journal.note(f"killed processes {self.table.kill(kernel.kernel_id)} of kernel {kernel.kernel_id}")

    # -- what is watched ----------------------------------------------------------------------------------------------

    async def _watch_processes(self) -> None:
        while True:
            await asyncio.to_thread(self.table.look)
            total, users, kernels = self.table.count()
            if total > MAX_KERNELS:
                self.journal.violation(f"{total} kernels run, {MAX_KERNELS} may", kind="max_kernels")
            for user, count in users.items():
                if count > MAX_PER_USER:
                    self.journal.violation(f"{count} kernels of {user} run, {MAX_PER_USER} may", kind="max per user")
            for kernel_id, count in kernels.items():
                if count > 1:
                    pids = [life.pid for life in self.table.at_once if life.kernel_id == kernel_id]
                    self.journal.violation(f"has the processes {pids} at once", kernel_id, kind="two processes")
            while self.table.ended:
                life = self.table.ended.pop()
                kernel = self.known.get(life.kernel_id)
                if kernel is None or not kernel.is_wanted or life.was_killed:
                    continue
                if self.there.may_be_unrecorded(life.replica, life.began):
                    continue
                if life.ended is not None and life.ended > kernel.may_be_replaced_until:
                    self.journal.violation(f"its process {life.pid} lived, and was ended", life.kernel_id)
            await asyncio.sleep(LOOK_SECONDS)

    async def _watch_models(self) -> None:
        """Ask each replica in turn what there is."""
        while True:
            for number in ALL_REPLICAS:
                if self.there.is_in_trouble(number):
                    continue
                wanted = [kernel for kernel in self.known.values() if kernel.is_wanted]
                answer = await self.there.ask(number, "GET", "/api/kernels", allowed={200, 503})
                if answer.status == 200:
                    self._check_models(number, wanted, {model["id"]: model for model in answer.body})
                await asyncio.sleep(0.4)

    def _check_models(self, number: int, wanted: list[Kernel], models: dict[str, dict]) -> None:
        for kernel in wanted:
            model, key = models.get(kernel.kernel_id), (number, kernel.kernel_id)
            if not kernel.is_wanted:
                continue  # since it was asked
            if model is None:
                self.journal.violation("is missing in the listing", kernel.kernel_id)
            elif model["execution_state"] == "dead":
                self._called_dead[key] = self._called_dead.get(key, 0) + 1
                if self._called_dead[key] > 1:
                    pids = [life.pid for life in self.table.of(kernel.kernel_id)]
                    text = f"replica {number} calls it dead ({model.get('reason')}); its processes are {pids}"
                    self.journal.violation(text, kernel.kernel_id, kind="called dead")
            else:
                self._called_dead.pop(key, None)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _check_end(self) -> None:
        """Check that every kernel works for all clients, that the limits are right, and that nothing is left."""
        self.journal.note("the end: nothing fails any more")
        await asyncio.gather(
            *(self._eventually(partial(self._is_whole, kernel), SETTLE_SECONDS) for kernel in self.lasting)
        )
        await self._eventually(self._has_no_websockets, SETTLE_SECONDS)
        if self.passing is not None:
            await self.users.delete(self.passing, 0)
        more = [Kernel(user, "counting") for user in ("sue", "mob", "mob")]
        await self._eventually(lambda: self._fits_exactly(more), FORGIVEN_SECONDS)
        await asyncio.gather(
            *(self.users.delete(each, number % REPLICAS) for number, each in enumerate([*self.lasting, *more]))
        )
        await self._eventually(self._processes_left, SETTLE_SECONDS)
        await self._eventually(self._rows_left, FORGIVEN_SECONDS)
        await self._eventually(self._files_left, SETTLE_SECONDS)

    async def _stop_replicas(self) -> None:
        for number, process in enumerate(self.there.processes):
            code = await asyncio.to_thread(process.stop, 40)
            if code:
                self.journal.violation(f"replica {number} ended with {code}")
        _, *tracebacks = self.there.output.split("Traceback (most recent call last)")
        for text in tracebacks:
            self.journal.violation(f"a replica has logged a traceback:{text[:3000]}", kind="traceback")

    async def _eventually(self, problem: Callable[[], Awaitable[str]], seconds: float) -> None:
        end = time.monotonic() + seconds
        while text := await problem():
            if time.monotonic() > end:
                self.journal.violation(f"{text}, for {seconds:g} s after the last fault", kind=text)
                return
            await asyncio.sleep(0.5)

    async def _is_whole(self, kernel: Kernel) -> str:
        """Return what is wrong with a kernel, seen through any of the replicas."""
        for number in ALL_REPLICAS:
            path, what = (
                f"/api/kernels/{kernel.kernel_id}",
                f"kernel {kernel.kernel_id} ({kernel.name}) of replica {number}",
            )
            answer = await self.there.ask(number, "GET", path, allowed={200}, kernel_id=kernel.kernel_id)
            if answer.status != 200:
                return f"{what} is lost"
            state = answer.body["execution_state"]
            if state != "idle":
                return f"{what} is {state}"
            if not await Notebook(self.there, kernel, Random(0)).count_once(number):
                return f"{what} does not execute"
            pids = [life.pid for life in self.table.of(kernel.kernel_id)]
            if pids != [kernel.pid]:
                return f"{what} is process {kernel.pid}, but there are {pids}"
        return ""

    async def _has_no_websockets(self) -> str:
        for number in ALL_REPLICAS:
            models = (await self.there.ask(number, "GET", "/api/kernels", allowed={200})).body
            for model in models:
                if model["connections"]:
                    return f"replica {number} counts {model['connections']} websockets of kernel {model['id']}"
        return ""

    async def _fits_exactly(self, more: list[Kernel]) -> str:
        """Fill both limits up; one more kernel exceeds them."""
        for kernel in more:
            if not kernel.is_wanted and not await self.users.start(kernel, 1):
                return f"user {kernel.user} cannot start as many kernels as the limits allow"
        for user in ("mob", "sue"):
            kernel = Kernel(user, "counting")
            if await self.users.start(kernel, 2):
                await self.users.delete(kernel, 2)
                return f"user {user} can start more kernels than the limits allow"
        return ""

    async def _processes_left(self) -> str:
        return f"processes are left: {left}" if (left := sorted(self.table.lives)) else ""

    async def _files_left(self) -> str:
        return f"files are left: {left}" if (left := self.there.files()) else ""

    async def _rows_left(self) -> str:
        """Return what the database has of kernels."""
        async with await psycopg.AsyncConnection.connect(self.there.server.url) as connection:
            for table in (
                "kernel_sessions",
                "kernel_leases",
                "reservations",
                "kernel_connections",
                "notebook_sessions",
            ):
                rows = await (await connection.execute(f"SELECT * FROM eg_{table}")).fetchall()
                if rows:
                    return f"rows are left in eg_{table}: {rows}"
        return ""


@pytest.fixture
def store() -> Iterator[tuple[PostgresServer, TcpProxy]]:
    with running_postgres() as server, TcpProxy(server.port) as proxy:
        yield server, proxy


@pytest.fixture
async def chaos(tmp_path, store) -> AsyncIterator[Chaos]:
    write_counting_kernelspec("counting")
    journal = Journal(SEED, tmp_path)
    installation = Installation(tmp_path, *store, journal)
    try:
        await installation.start_all(
            f"--EnterpriseGatewayApp.max_kernels={MAX_KERNELS}",
            f"--EnterpriseGatewayApp.max_kernels_per_user={MAX_PER_USER}",
        )
        yield Chaos(installation, journal)
    finally:
        await asyncio.to_thread(installation.end)
        for client in installation.clients:
            client.close()


async def test_no_work_is_lost_whatever_fails(chaos):
    """No kernel is lost, has two processes, or is called dead while it lives, and no counter goes back untold.

    Every request has a clean answer in time, the limits are neither exceeded nor stuck, and nothing is left.
    """
    print(f"CHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:g}")
    await chaos.run()
    cells = [notebook.cells for notebook in chaos.notebooks]
    print(f"{chaos.episodes} episodes, cells executed: {cells}")
    assert not chaos.journal.has_violations, chaos.journal.report()
    assert min(cells) > SECONDS / 4, "the notebooks have hardly worked"
