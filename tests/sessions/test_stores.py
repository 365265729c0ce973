"""What every store does: the same tests over files, the web service, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from enterprise_gateway.core.sessionrecords import SCHEMA_VERSION

from .conftest import STORES, a_kernel_id, a_start

pytestmark = pytest.mark.parametrize("kind", STORES)


async def test_another_gateway_reads_what_one_has_recorded(kind, make):
    """A record comes back as it was given, with phase, time and schema version."""
    kernel_id = a_kernel_id()
    await make(kind).record_phase(kernel_id, "running", **a_start(), extra={"activity": {"last": "2026-01-01"}})
    record = await make(kind).fetch_session(kernel_id)
    assert {name: record[name] for name in a_start()} == a_start()
    assert (record["kernel_id"], record["username"], record["state"]) == (kernel_id, "alice", "running")
    assert (record["schema_version"], record["activity"]) == (SCHEMA_VERSION, {"last": "2026-01-01"})
    assert time.time() - record["saved_at"] < 30


async def test_none_means_that_there_is_none(kind, make):
    """A kernel that was never recorded is not found, without an error."""
    manager = make(kind)
    assert await manager.fetch_session(a_kernel_id()) is None
    assert await manager.fetch_sessions() == {}


@pytest.mark.parametrize("kernel_id", ["../../etc/passwd", "a/b", "", "%2e%2e"])
async def test_an_odd_id_is_only_unknown(kind, make, kernel_id):
    """Ids that could be paths are not found, and cannot be recorded."""
    manager = make(kind)
    assert await manager.fetch_session(kernel_id) is None
    await manager.forget_session(kernel_id)
    with pytest.raises(ValueError, match="cannot be the id"):
        await manager.record_phase(kernel_id, "starting")


async def test_forgotten_kernels_are_gone_from_the_store(kind, make):
    """A forgotten kernel is not found by any gateway; others stay; to forget it twice is no error."""
    manager, one, other = make(kind), a_kernel_id(), a_kernel_id()
    for kernel_id in (one, other):
        await manager.record_phase(kernel_id, "running", **a_start())
    await manager.forget_session(one)
    await manager.forget_session(one)
    assert await manager.fetch_session(one) is None
    assert set(await make(kind).fetch_sessions()) == {other}


async def test_phases_keep_what_was_recorded_before(kind, make):
    """Each phase changes what it is given and leaves the rest."""
    manager, kernel_id, start = make(kind), a_kernel_id(), a_start()
    await manager.record_phase(
        kernel_id, "starting", kernel_name="python3", launch_args=start["launch_args"], process_info={"pid": 5}
    )
    first = await make(kind).fetch_session(kernel_id)
    assert (first["state"], first["connection_info"], first["process_info"]) == ("starting", {}, {"pid": 5})
    await manager.record_phase(kernel_id, "running", connection_info=start["connection_info"])
    await manager.record_phase(kernel_id, "restarting")
    record = await make(kind).fetch_session(kernel_id)
    assert (record["state"], record["process_info"]) == ("restarting", {"pid": 5})
    assert record["connection_info"] == start["connection_info"]
    assert record["launch_args"] == start["launch_args"]
    with pytest.raises(ValueError, match="cannot be 'dancing'"):
        await manager.record_phase(kernel_id, "dancing")


async def test_writes_of_one_kernel_end_with_the_last(kind, make):
    """Of forty writes at the same time the last one stands in the store; a removal among them is not overtaken."""
    manager, kernel_id, gone = make(kind, store_timeout=30.0), a_kernel_id(), a_kernel_id()
    writes = [manager.record_phase(kernel_id, "running", process_info={"pid": n}) for n in range(2, 42)]
    writes += [manager.record_phase(gone, "running"), manager.forget_session(gone)]
    await asyncio.gather(*writes)
    assert (await make(kind).fetch_session(kernel_id))["process_info"] == {"pid": 41}
    assert await make(kind).fetch_session(gone) is None


async def test_many_kernels_are_written_and_read_at_the_same_time(kind, make):
    """Sixty kernels recorded at once are all there."""
    manager, kernel_ids = make(kind, store_timeout=30.0), {a_kernel_id() for _ in range(60)}
    await asyncio.gather(*(manager.record_phase(kernel_id, "running", **a_start()) for kernel_id in kernel_ids))
    assert set(await make(kind).fetch_sessions()) == kernel_ids


async def test_without_persistence_only_the_table_knows(kind, make, request):
    """With persistence off nothing reaches the store, and kernels are counted all the same."""
    manager, kernel_id = make(kind, enable_persistence=False), a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start("alice"))
    assert (manager.active_sessions("alice"), manager.active_sessions("ali")) == (1, 0)
    assert (await manager.fetch_session(kernel_id))["username"] == "alice"
    assert set(await manager.fetch_sessions()) == {kernel_id}
    assert await make(kind).fetch_sessions() == {}
    await manager.forget_session(kernel_id)
    assert manager.active_sessions("alice") == 0


@pytest.mark.parametrize("ticks", range(4))
async def test_a_read_does_not_undo_a_later_change(kind, make, ticks):
    """What is recorded before or while the store is being read wins over what was read."""
    manager, kernel_id = make(kind), a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start())
    reading = asyncio.create_task(manager.fetch_sessions())
    for _ in range(ticks):
        await asyncio.sleep(0)
    await manager.record_phase(kernel_id, "stopping")
    assert (await reading)[kernel_id]["state"] in ("running", "stopping")
    assert manager._sessions[kernel_id]["state"] == "stopping"
    assert (await make(kind).fetch_session(kernel_id))["state"] == "stopping"


async def test_another_gateways_changes_are_seen(kind, make):
    """A gateway that knows a kernel from the store sees what its owner records later, and that it is gone."""
    owner, reader, kernel_id = make(kind), make(kind), a_kernel_id()
    await owner.record_phase(kernel_id, "running", **a_start())
    await reader.fetch_session(kernel_id)
    await owner.record_phase(kernel_id, "restarting")
    assert (await reader.fetch_session(kernel_id))["state"] == "restarting"
    await owner.forget_session(kernel_id)
    assert await reader.fetch_session(kernel_id) is None
    assert reader._sessions == {}


async def test_the_blocking_verbs_of_3x_work(kind, make):
    """save_session, load_session, load_sessions and delete_sessions act on _sessions, as in Enterprise Gateway 3.x."""

    def use() -> None:
        writer, reader, kernel_id = make(kind), make(kind), a_kernel_id()
        writer._sessions[kernel_id] = {"kernel_id": kernel_id, "username": "alice", **a_start()}
        writer.save_session(kernel_id)
        reader.load_session(kernel_id)
        assert reader._sessions == writer._sessions
        reader._sessions = {}
        reader.load_sessions()
        assert reader._sessions == writer._sessions
        assert json.dumps(reader.pre_save_transformation(reader._sessions))
        writer.delete_session(kernel_id)
        assert writer._sessions == {}
        reader._sessions = {}
        reader.load_sessions()
        assert reader._sessions == {}

    await asyncio.to_thread(use)
