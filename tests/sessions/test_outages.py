"""A store that fails, recovers or hangs: no session is lost, and nobody is kept waiting."""

from __future__ import annotations

import asyncio
import threading

import pytest

from enterprise_gateway.core.errors import StoreUnavailableError

from .conftest import a_kernel_id, a_start, eventually


async def test_a_failed_write_is_made_up_for(make, service, expect_log, caplog):
    """A record that could not be saved is saved when the store answers again, and the log says both once."""
    caplog.set_level("INFO")
    manager, kernel_id = make("webhook"), a_kernel_id()
    service.status = 500
    with expect_log("not available") as records:
        for pid in (5, 6, 7):
            with pytest.raises(StoreUnavailableError):
                await manager.record_phase(kernel_id, "running", **{**a_start(), "process_info": {"pid": pid}})
    assert len(records) == 1
    assert manager.active_sessions("alice") == 1
    service.status = None
    await eventually(lambda: kernel_id in service.sessions)
    assert service.sessions[kernel_id][kernel_id]["process_info"] == {"pid": 7}
    await eventually(lambda: "available again" in caplog.text)


async def test_an_unwritten_record_is_what_counts(make, service, expect_log):
    """While a record waits to be saved, this gateway finds what it recorded, not what the store still has."""
    manager, kernel_id = make("webhook"), a_kernel_id()
    await manager.record_phase(kernel_id, "starting", **a_start())
    service.status = 500
    with expect_log("not available"):
        await manager.record_phase(kernel_id, "running", required=False)
    assert (await manager.fetch_session(kernel_id))["state"] == "running"
    service.status = None
    assert (await manager.fetch_sessions())[kernel_id]["state"] == "running"
    assert await manager.flush() == set()
    assert service.sessions[kernel_id][kernel_id]["state"] == "running"


async def test_a_failed_removal_is_made_up_for(make, service, expect_log):
    """A kernel that was forgotten during an outage does not come back from the store."""
    manager, kernel_id = make("webhook"), a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start())
    service.status = 500
    with expect_log("not available"):
        await manager.forget_session(kernel_id, required=False)
    service.status = None
    assert await manager.fetch_session(kernel_id) is None
    assert await manager.fetch_sessions() == {}
    assert await manager.flush() == set()
    assert service.sessions == {}


async def test_closing_says_what_could_not_be_saved(make, service, expect_log):
    """At the end of the gateway, kernels whose records could not be written are named in the log."""
    manager, kernel_id = make("webhook"), a_kernel_id()
    service.status = 500
    with expect_log("not available"):
        await manager.record_phase(kernel_id, "running", required=False)
    with expect_log(f"could not be written to the store: {kernel_id}"):
        await manager.close()


async def test_a_store_that_hangs_delays_only_its_callers(make, service, expect_log):
    """Forty requests to a store that hangs all end in time, with few threads, and writes keep their order."""
    manager, kernel_id = make("webhook", store_timeout=0.5, store_concurrency=4), a_kernel_id()
    service.delay = 0.7
    loop = asyncio.get_running_loop()
    started, others = loop.time(), set(threading.enumerate())
    requests = [manager.fetch_session(a_kernel_id()) for _ in range(38)]
    requests += [manager.record_phase(kernel_id, phase) for phase in ("starting", "running")]
    with expect_log("not available"):
        results = await asyncio.gather(*requests, return_exceptions=True)
    assert loop.time() - started < 1.5
    assert {type(result) for result in results} == {StoreUnavailableError}
    assert sum(thread.name.startswith("Thread") for thread in set(threading.enumerate()) - others) <= 4
    service.delay = 0
    with expect_log("not available", required=False):
        await eventually(lambda: service.sessions.get(kernel_id, {}).get(kernel_id, {}).get("state") == "running")


async def test_a_cancelled_caller_does_not_cancel_the_write(make, service):
    """A client that goes away in the middle does not leave the store behind the table."""
    manager, kernel_id = make("webhook"), a_kernel_id()
    service.delay = 0.2
    caller = asyncio.create_task(manager.record_phase(kernel_id, "running"))
    await asyncio.sleep(0.05)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (await manager.fetch_session(kernel_id))["state"] == "running"
    assert kernel_id in service.sessions
