"""Session managers written for Enterprise Gateway 3.x by others."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from enterprise_gateway.core.errors import StoreUnavailableError
from enterprise_gateway.services.sessions.kernelsessionmanager import KernelSessionManager
from enterprise_gateway.services.sessions.sharingstore import SharingStore

from .conftest import LOG, a_kernel_id, a_start


class Cupboard(KernelSessionManager):
    """Keeps sessions as text in a dictionary: four blocking verbs, as the documentation of 3.x asks for."""

    shelf: dict[str, str]
    broken = False
    pause = 0.0

    def __init__(self, kernel_manager: Any, **kwargs: Any) -> None:
        super().__init__(kernel_manager, **kwargs)
        self.shelf = {}

    def load_sessions(self) -> None:
        self._wait()
        self._sessions = {}
        for text in self.shelf.values():
            self._sessions.update(self.post_load_transformation(json.loads(text)))

    def load_session(self, kernel_id: str) -> None:
        self._wait()
        if kernel_id in self.shelf:
            self._sessions.update(KernelSessionManager.post_load_transformation(json.loads(self.shelf[kernel_id])))

    def save_session(self, kernel_id: str) -> None:
        self._wait()
        if self.enable_persistence and kernel_id in self._sessions:
            session = {kernel_id: self._sessions[kernel_id]}
            self.shelf[kernel_id] = json.dumps(KernelSessionManager.pre_save_transformation(session))

    def delete_sessions(self, kernel_ids: list[str]) -> None:
        self._wait()
        for kernel_id in kernel_ids:
            self.shelf.pop(kernel_id, None)

    def _wait(self) -> None:
        time.sleep(self.pause)
        if self.broken:
            raise RuntimeError("the cupboard is locked")


class StubKernel:
    """What session managers use of a kernel manager and its process proxy."""

    kernel_name = "python3"

    def __init__(self) -> None:
        self.process_proxy = self

    def get_connection_info(self) -> dict[str, Any]:
        return a_start()["connection_info"]

    def get_process_info(self) -> dict[str, Any]:
        return {"pid": 5}


class StubKernelManager:
    """Has one kernel of any id, and recovers those that are not in ``dead``."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.started: list[dict[str, Any]] = []

    def get_kernel(self, _: str) -> StubKernel:
        return StubKernel()

    async def start_kernel_from_session(self, **session: Any) -> bool:
        self.started.append(session)
        return session["kernel_id"] not in self.dead


@pytest.fixture
async def cupboard():
    manager = Cupboard(StubKernelManager(), enable_persistence=True, log=LOG, store_timeout=2.0)
    yield manager
    await manager.close()


async def test_its_blocking_verbs_are_called_in_threads(cupboard):
    """A subclass with blocking verbs works behind the gateway's coroutines and never holds the event loop."""
    cupboard.pause = 0.1
    kernel_id = a_kernel_id()
    await cupboard.record_phase(kernel_id, "starting", **a_start())
    await cupboard.record_phase(kernel_id, "running")
    record = await cupboard.fetch_session(kernel_id)
    assert (record["state"], record["connection_info"]["key"]) == ("running", b"connection-key")
    assert list(await cupboard.fetch_sessions()) == [kernel_id]
    await cupboard.forget_session(kernel_id)
    assert (cupboard.shelf, cupboard._sessions) == ({}, {})


async def test_its_errors_are_outages(cupboard, expect_log):
    """Any exception of a verb means that the store could not be asked; the sessions stay."""
    kernel_id = a_kernel_id()
    await cupboard.record_phase(kernel_id, "running", **a_start())
    cupboard.broken = True
    with expect_log("RuntimeError: the cupboard is locked"):
        for request in (cupboard.fetch_session(kernel_id), cupboard.fetch_sessions(), cupboard.start_sessions()):
            with pytest.raises(StoreUnavailableError):
                await request
    assert kernel_id in cupboard.shelf
    assert cupboard.active_sessions("alice") == 1
    cupboard.broken = False
    assert await cupboard.fetch_session(kernel_id)


async def test_the_life_cycle_of_3x(cupboard):
    """create_session, refresh_session, start_session, start_sessions and delete_session do what they did."""
    alive, dead = a_kernel_id(), a_kernel_id()

    def create() -> None:
        for kernel_id in (alive, dead):
            cupboard.create_session(kernel_id, env={"KERNEL_USERNAME": "bob"}, kernel_name="python3")
        cupboard.refresh_session(alive)

    await asyncio.to_thread(create)
    assert cupboard.active_sessions("bob") == 2
    record = json.loads(cupboard.shelf[alive])[alive]
    assert record["launch_args"] == {"env": {"KERNEL_USERNAME": "bob"}, "kernel_name": "python3"}
    assert (record["username"], record["kernel_name"], record["process_info"]) == ("bob", "python3", {"pid": 5})
    cupboard.kernel_manager.dead = {dead}
    await cupboard.start_sessions()
    assert set(cupboard.shelf) == {alive}
    started = {session["kernel_id"]: session for session in cupboard.kernel_manager.started}
    assert started[alive]["connection_info"]["key"] == b"connection-key"
    assert await cupboard.start_session(alive) is True
    assert await cupboard.start_session(dead) is False
    await asyncio.to_thread(cupboard.delete_session, alive)
    assert (cupboard.shelf, cupboard.active_sessions("bob")) == ({}, 0)


async def test_it_is_not_shared_by_replicas(cupboard, make):
    """Without leases nothing would keep gateways apart: what is shared must have all methods for it."""
    assert not isinstance(cupboard, SharingStore)
    assert isinstance(make("sqlite"), SharingStore)


def test_the_base_class_has_no_store():
    """The four verbs must be supplied."""
    manager = KernelSessionManager(None)
    for verb in (
        manager.load_sessions,
        lambda: manager.load_session("k"),
        lambda: manager.save_session("k"),
        lambda: manager.delete_sessions(["k"]),
    ):
        with pytest.raises(NotImplementedError):
            verb()
    assert manager.persistence_root == "/"
