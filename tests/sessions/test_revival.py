"""Taking kernels up again: who lives, who is removed and why, and who is kept because nobody knows."""

from __future__ import annotations

import asyncio
import time

import pytest

from enterprise_gateway.core.errors import KernelLaunchError, NotFoundError, StoreUnavailableError
from enterprise_gateway.services.sessions.revival import Revival

from .conftest import STORES, a_kernel_id, a_start, eventually


class Kernels:
    """Stands for the kernels behind the records, and for how the kernel manager finds and removes them."""

    def __init__(self) -> None:
        self.fate: dict[str, object] = {}
        self.removed: list[str] = []
        self.relaunched: list[str] = []
        self.seen: list[str] = []
        self.at_once = self.most_at_once = 0
        self.pause = 0.0

    async def revive(self, record) -> bool:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.seen.append(record["kernel_id"])
        await asyncio.sleep(self.pause)
        self.at_once -= 1
        fate = self.fate.get(record["kernel_id"], True)
        if isinstance(fate, Exception):
            raise fate
        return bool(fate)

    async def relaunch(self, record) -> None:
        self.relaunched.append(record["kernel_id"])

    async def remove(self, record) -> None:
        if self.fate.get(record["kernel_id"]) == "stuck":
            raise KernelLaunchError("The pod could not be deleted.")
        self.removed.append(record["kernel_id"])


async def recorded(make, *phases, kind="file"):
    manager = make(kind)
    kernel_ids = [a_kernel_id() for _ in phases]
    for kernel_id, phase in zip(kernel_ids, phases, strict=True):
        await manager.record_phase(kernel_id, phase, **a_start())
    return kernel_ids


@pytest.mark.parametrize("kind", STORES)
async def test_two_hundred_kernels_are_recovered_in_three_seconds(kind, make):
    """A store of 200 kernels, each of which takes 50 ms to connect to, is revived within 3 s, 50 at a time."""
    writer = make(kind, store_timeout=30.0)
    await asyncio.gather(*(writer.record_phase(a_kernel_id(), "running", **a_start()) for _ in range(200)))
    manager, kernels = make(kind), Kernels()
    kernels.pause = 0.05
    started = time.monotonic()
    report = await Revival(manager, revive_one=kernels.revive, concurrency=50).run()
    assert time.monotonic() - started < 3
    assert len(report.revived) == 200
    assert kernels.most_at_once == 50
    assert manager.active_sessions("alice") == 200


async def test_the_dead_are_removed_and_the_log_says_why(make, caplog):
    """A kernel that is not alive loses its record and what is left of it; one log line each has the reason."""
    caplog.set_level("INFO")
    alive, dead, gone = await recorded(make, "running", "running", "restarting")
    kernels, manager = Kernels(), make("file")
    kernels.fate = {dead: False, gone: NotFoundError("its container was deleted.")}
    report = await Revival(manager, revive_one=kernels.revive, remove_one=kernels.remove).run()
    assert report.revived == [alive]
    assert report.removed == {dead: "it is no longer alive", gone: "its container was deleted"}
    assert f"Removed kernel {dead}: it is no longer alive." in caplog.text
    assert f"Removed kernel {gone}: its container was deleted." in caplog.text
    assert set(kernels.removed) == {dead, gone}
    assert set(await make("file").fetch_sessions()) == {alive}
    assert "Recovered 1 of 3 recorded kernels (2 removed, 0 kept" in caplog.text


async def test_interrupted_starts_and_stops_are_completed(make):
    """After a kill in the middle of a start or a stop, what the kernel owns is removed without trying to connect."""
    starting, stopping = await recorded(make, "starting", "stopping")
    kernels = Kernels()
    report = await Revival(make("file"), revive_one=kernels.revive, remove_one=kernels.remove).run()
    assert kernels.seen == []
    assert set(kernels.removed) == {starting, stopping}
    assert "ended while it was starting" in report.removed[starting]
    assert await make("file").fetch_sessions() == {}


async def test_what_could_not_be_checked_stays(make, expect_log):
    """Errors, time-outs and failed removals keep the record; trying again later settles it."""
    broken, slow, stuck = await recorded(make, "running", "running", "stopping")
    kernels, manager = Kernels(), make("file")
    kernels.fate = {broken: OSError("no route to host"), stuck: "stuck"}

    async def revive(record):
        if record["kernel_id"] == slow and kernels.fate:
            await asyncio.sleep(60)
        return await kernels.revive(record)

    revival = Revival(manager, revive_one=revive, remove_one=kernels.remove, timeout_seconds=0.2)
    with expect_log("could not be recovered and stays recorded") as records:
        report = await revival.run()
    assert len(records) == 3
    assert report.kept == {
        broken: "no route to host",
        slow: "it could not be checked within 0.2 seconds",
        stuck: "The pod could not be deleted",
    }
    assert set(await make("file").fetch_sessions()) == {broken, slow, stuck}
    kernels.fate = {}
    report = await revival.run(report.kept)
    assert (set(report.revived), list(report.removed)) == ({broken, slow}, [stuck])


async def test_kernels_that_could_not_be_checked_are_retried(make, service, expect_log):
    """When a host returns, its kernels are recovered without a restart; outages of the store do not stop retries."""
    kernel_ids = await recorded(make, "running", "running", kind="webhook")
    kernels = Kernels()
    kernels.fate = dict.fromkeys(kernel_ids, OSError("no route to host"))
    manager = make("webhook")
    revival = Revival(manager, revive_one=kernels.revive)
    with expect_log("not available|no route to host"):
        await revival.run()
        assert revival.unsettled == dict.fromkeys(kernel_ids, "no route to host")
        service.status = 503
        settling = asyncio.create_task(revival.settle(first_pause_seconds=0.05))
        await eventually(lambda: not manager.store_available)
        service.status = None
        await eventually(lambda: len(kernels.seen) >= 4)
    await manager.forget_session(kernel_ids[0])
    kernels.fate = {}
    await asyncio.wait_for(settling, 10)
    assert revival.unsettled == {}
    assert set(manager._sessions) == {kernel_ids[1]}


async def test_an_unavailable_store_is_waited_for(make, service, expect_log):
    """At start the store may come up later than the gateway; without patience the error is raised."""
    kernel_ids = await recorded(make, "running", kind="webhook")
    service.status = 503
    manager, kernels = make("webhook"), Kernels()
    revival = Revival(manager, revive_one=kernels.revive)
    with expect_log("not available"), pytest.raises(StoreUnavailableError):
        await revival.run()
    asyncio.get_running_loop().call_later(0.3, setattr, service, "status", None)
    report = await revival.run(store_patience_seconds=10)
    assert report.revived == kernel_ids


async def test_requests_for_an_unknown_kernel_share_one_revival(make):
    """On request, a kernel of the store is recovered once, however many ask; unknown ones are not found."""
    (kernel_id,) = await recorded(make, "running")
    kernels, manager = Kernels(), make("file")
    kernels.pause = 0.05
    revival = Revival(manager, revive_one=kernels.revive)
    records = await asyncio.gather(*(revival.revive(kernel_id) for _ in range(20)))
    assert {record["kernel_id"] for record in records} == {kernel_id}
    assert kernels.seen == [kernel_id]
    assert await revival.revive(a_kernel_id()) is None


async def test_on_request_a_dead_kernel_is_removed(make):
    """A request for a kernel that has died meanwhile is answered "not found", and its record goes."""
    (kernel_id,) = await recorded(make, "running")
    kernels = Kernels()
    kernels.fate = {kernel_id: False}
    assert await Revival(make("file"), revive_one=kernels.revive).revive(kernel_id) is None
    assert await make("file").fetch_sessions() == {}


async def test_on_request_an_unreachable_kernel_is_not_lost(make, expect_log):
    """A kernel that cannot be checked now is 503, not 404, and stays recorded."""
    (kernel_id,) = await recorded(make, "running")
    kernels = Kernels()
    kernels.fate = {kernel_id: OSError("no route to host")}
    with expect_log("stays recorded"), pytest.raises(StoreUnavailableError, match="no route to host"):
        await Revival(make("file"), revive_one=kernels.revive).revive(kernel_id)
    assert set(await make("file").fetch_sessions()) == {kernel_id}


async def test_what_another_gateway_is_at_is_left_alone(make):
    """Without leases, a start or restart that was recorded just now is another gateway's; an old one is finished."""
    starting, restarting = await recorded(make, "starting", "restarting")
    kernels = Kernels()
    revival = Revival(make("file"), revive_one=kernels.revive, remove_one=kernels.remove)
    assert await revival.revive(starting) is None
    with pytest.raises(StoreUnavailableError, match="has recorded it as restarting"):
        await revival.revive(restarting)
    assert (kernels.seen, kernels.removed) == ([], [])
    assert set(await make("file").fetch_sessions()) == {starting, restarting}
    later = Revival(make("file"), revive_one=kernels.revive, remove_one=kernels.remove, settled_after_seconds=0)
    assert await later.revive(starting) is None
    assert (await later.revive(restarting))["kernel_id"] == restarting
    assert kernels.removed == [starting]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def test_replicas_remove_only_what_they_hold_the_lease_of(kind, make):
    """Another replica connects to the running kernels of a lease holder, but removes and finishes nothing of its."""
    owner, other, kernels = make(kind), make(kind), Kernels()
    running, dead, starting = (a_kernel_id() for _ in range(3))
    for kernel_id, phase in ((running, "running"), (dead, "running"), (starting, "starting")):
        await owner.acquire_lease(kernel_id, "owner", 60)
        await owner.record_phase(kernel_id, phase, **a_start())
    kernels.fate = {dead: False}

    async def claim(kernel_id: str) -> bool:
        return await other.acquire_lease(kernel_id, "other", 60) is not None

    revival = Revival(other, revive_one=kernels.revive, remove_one=kernels.remove, claim=claim)
    assert await revival.revive(running)
    assert await revival.revive(starting) is None
    with pytest.raises(StoreUnavailableError, match="another gateway owns it"):
        await revival.revive(dead)
    assert kernels.removed == []
    for kernel_id in (dead, starting):
        await owner.release_lease(kernel_id, "owner")
    report = await revival.run([dead, starting])
    assert set(report.removed) == set(kernels.removed) == {dead, starting}
    assert set(await owner.fetch_sessions()) == {running}


async def test_a_kernel_that_died_without_a_replica_is_launched_anew_for_who_uses_it(make):
    """Who is connected to it, or asks for it; what nobody wants is removed, and another replica's left alone."""
    used, unused, asked, held = await recorded(make, *["running"] * 4, kind="sqlite")
    kernels, manager = Kernels(), make("sqlite")
    kernels.fate = dict.fromkeys([used, unused, asked, held], False)

    async def claim(kernel_id: str) -> bool:
        return kernel_id != held

    revival = Revival(
        manager,
        revive_one=kernels.revive,
        remove_one=kernels.remove,
        relaunch_one=kernels.relaunch,
        is_wanted=lambda kernel_id: kernel_id in {used, held},
        claim=claim,
    )
    report = await revival.run([used, unused, held])
    assert (report.relaunched, list(report.removed), list(report.kept)) == ([used], [unused], [held])
    assert (await revival.revive(asked))["kernel_id"] == asked
    assert (kernels.relaunched, kernels.removed) == ([used, asked], [unused])
    alone = Revival(make("sqlite"), revive_one=kernels.revive, relaunch_one=kernels.relaunch)
    assert await alone.revive(asked) is None
