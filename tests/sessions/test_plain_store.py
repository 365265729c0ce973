"""Stores of others that are written against the plain protocol, and subclasses of our own session managers."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
import time
from typing import Any

import pytest

from enterprise_gateway.core.errors import StoreUnavailableError
from enterprise_gateway.services.sessions.kernelsessionmanager import (
    FileKernelSessionManager,
    SessionStore,
    StoreKernelSessionManager,
    Unreadable,
)

from .conftest import LOG, a_kernel_id, a_start


class Shelf:
    """A store in four functions: texts in a dictionary."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.threads: set[threading.Thread] = set()
        self.broken = False
        self.pause = 0.0

    def load_all(self) -> dict[str, dict[str, Any] | Unreadable]:
        self._wait()
        return {kernel_id: self._read(text) for kernel_id, text in self.texts.items()}

    def load(self, kernel_id: str) -> dict[str, Any] | Unreadable | None:
        self._wait()
        return self._read(self.texts[kernel_id]) if kernel_id in self.texts else None

    def save(self, kernel_id: str, record: dict[str, Any]) -> None:
        self._wait()
        self.texts[kernel_id] = json.dumps(record)

    def delete(self, kernel_ids: list[str]) -> None:
        self._wait()
        for kernel_id in kernel_ids:
            self.texts.pop(kernel_id, None)

    def _read(self, text: str) -> dict[str, Any] | Unreadable:
        return Unreadable("a text has faded") if text == "faded" else json.loads(text)

    def _wait(self) -> None:
        self.threads.add(threading.current_thread())
        time.sleep(self.pause)
        if self.broken:
            raise RuntimeError("the shelf has fallen down")


class ShelfSessionManager(StoreKernelSessionManager):
    """Has its store made, and supplies no verb."""

    shelf: Shelf

    def make_store(self) -> SessionStore:
        self.shelf = Shelf()
        return self.shelf


@pytest.fixture
async def make_shelf():
    """Return what makes a manager of a new shelf; all are closed after the test."""
    made: list[ShelfSessionManager] = []

    def make_one(**options: Any) -> ShelfSessionManager:
        manager = ShelfSessionManager(None, **{"enable_persistence": True, "log": LOG, "store_timeout": 5.0, **options})
        made.append(manager)
        return manager

    yield make_one
    for manager in made:
        await manager.close()


async def test_four_functions_make_a_store(make_shelf):
    """They get and return JSON types, in threads, and never hold the event loop."""
    manager, kernel_id = make_shelf(), a_kernel_id()
    manager.shelf.pause = 0.1
    await manager.record_phase(kernel_id, "starting", **a_start())
    await manager.record_phase(kernel_id, "running")
    stored = json.loads(manager.shelf.texts[kernel_id])
    assert (stored["kernel_id"], stored["connection_info"]["key"]) == (kernel_id, "connection-key")
    record = await manager.fetch_session(kernel_id)
    assert {name: record[name] for name in a_start()} == a_start()
    assert await manager.fetch_sessions() == {kernel_id: record}
    await manager.forget_session(kernel_id)
    assert manager.shelf.texts == {}
    assert await manager.fetch_session(kernel_id) is None
    assert threading.main_thread() not in manager.shelf.threads


async def test_its_errors_are_outages(make_shelf, expect_log):
    """Whatever a function raises means that the store could not be asked; what was to be written is owed to it."""
    manager, kernel_id = make_shelf(), a_kernel_id()
    manager.shelf.broken = True
    with expect_log("RuntimeError: the shelf has fallen down"):
        for request in (
            manager.fetch_session(kernel_id),
            manager.fetch_sessions(),
            manager.record_phase(kernel_id, "running", **a_start()),
        ):
            with pytest.raises(StoreUnavailableError):
                await request
    assert manager.has_unsaved(kernel_id)
    manager.shelf.broken = False
    assert await manager.flush() == set()
    assert list(manager.shelf.texts) == [kernel_id]


async def test_what_it_cannot_read_costs_no_other_its_kernel(make_shelf, expect_log):
    """It is logged, and counts as a recorded kernel; so does an invalid record."""
    manager, good, faded, odd = make_shelf(), a_kernel_id(), a_kernel_id(), a_kernel_id()
    await manager.record_phase(good, "running", **a_start())
    manager.shelf.texts.update({faded: "faded", odd: "[5]"})
    with expect_log(f"a text has faded|session of kernel {odd} cannot be used") as logged:
        assert list(await manager.fetch_sessions()) == [good]
    assert len(logged) == 2
    assert manager.unusable == {faded, odd}


async def test_what_is_no_record_any_more_makes_a_kernel_unknown(make_shelf, expect_log):
    """Asked for alone, it is no outage."""
    manager, kernel_id = make_shelf(), a_kernel_id()
    manager.shelf.texts[kernel_id] = "faded"
    with expect_log("a text has faded"):
        assert await manager.fetch_session(kernel_id) is None
    assert (manager.unusable, manager.store_available) == ({kernel_id}, True)


async def test_it_is_sealed_without_knowing(make_shelf, tmp_path, expect_log):
    """With a sealing key the store is given no secret in clear, and nothing is asked of it for that."""
    key_file, kernel_id = tmp_path / "key", a_kernel_id()
    key_file.write_text(base64.b64encode(os.urandom(32)).decode())
    key_file.chmod(0o600)
    manager, other = make_shelf(sealing_key_file=str(key_file)), make_shelf()
    await manager.record_phase(kernel_id, "running", **a_start())
    text = manager.shelf.texts[kernel_id]
    assert not [secret for secret in ("connection-key", "hunter2", "conductor-secret") if secret in text]
    record = await manager.fetch_session(kernel_id)
    assert {name: record[name] for name in a_start()} == a_start()
    other.shelf.texts[kernel_id] = text
    with pytest.raises(StoreUnavailableError, match="sealed"):
        await other.fetch_session(kernel_id)
    with expect_log("sealed"):
        assert await other.fetch_sessions() == {}


async def test_without_persistence_it_is_not_asked(make_shelf):
    """Neither by the gateway nor by the verbs of 3.x."""
    manager, kernel_id = make_shelf(enable_persistence=False), a_kernel_id()
    manager.shelf.broken = True
    await manager.record_phase(kernel_id, "running", **a_start())
    assert list(await manager.fetch_sessions()) == [kernel_id]
    manager.save_session(kernel_id)
    manager.load_session(kernel_id)
    manager.load_sessions()
    manager.delete_session(kernel_id)
    assert manager.shelf.threads == set()


def test_the_verbs_of_3x_come_with_it():
    """Scripts that call them find what they found in a store of four verbs."""
    manager, kernel_id = ShelfSessionManager(None, enable_persistence=True, log=LOG), a_kernel_id()
    manager._sessions[kernel_id] = {"kernel_id": kernel_id, "username": "alice", **a_start()}
    manager.save_session(kernel_id)
    kept, manager._sessions = manager._sessions, {}
    manager.load_session(kernel_id)
    assert manager._sessions == kept
    manager._sessions = {}
    manager.load_sessions()
    assert manager._sessions == kept
    manager.delete_session(kernel_id)
    assert (manager._sessions, manager.shelf.texts) == ({}, {})


def test_a_manager_without_a_store_is_refused():
    """The sentence says what its class lacks."""
    with pytest.raises(NotImplementedError, match=r"StoreKernelSessionManager\.make_store\(\)"):
        StoreKernelSessionManager(None)


class Archive(FileKernelSessionManager):
    """Somebody's: what is not in the files comes from an older place, and is of the user who is responsible for it."""

    archive: dict[str, dict[str, Any]]

    def load_session(self, kernel_id: str) -> None:
        super().load_session(kernel_id)
        if kernel_id not in self._sessions and kernel_id in self.archive:
            self._sessions.update(self.post_load_transformation({kernel_id: self.archive[kernel_id]}))
        for record in self._sessions.values():
            record["username"] = "archivist"


@pytest.fixture
async def archive(tmp_path):
    """Return a manager of one verb of its own over the files of ``tmp_path``."""
    manager = Archive(None, enable_persistence=True, persistence_root=str(tmp_path), log=LOG, store_timeout=5.0)
    manager.archive = {}
    yield manager
    await manager.close()


async def test_a_subclass_of_ours_may_override_one_verb(archive, make):
    """The gateway runs it; what it does not override, and what it calls by super, goes to our files."""
    filed, archived = a_kernel_id(), a_kernel_id()
    await archive.record_phase(filed, "running", **a_start())
    archive.archive[archived] = {"kernel_name": "old", "connection_info": {"key": "k"}}
    for kernel_id, name, key in ((filed, "python3", b"connection-key"), (archived, "old", b"k")):
        record = await archive.fetch_session(kernel_id)
        assert (record["username"], record["kernel_name"], record["connection_info"]["key"]) == ("archivist", name, key)
    assert await archive.fetch_session(a_kernel_id()) is None
    assert set(await archive.fetch_sessions()) == set(await make("file").fetch_sessions()) == {filed}
    await archive.forget_session(filed)
    assert await make("file").fetch_sessions() == {}


def overriding(verb: str, calls: list[tuple[list[str], list[str]]]) -> type[FileKernelSessionManager]:
    """Return a class that overrides one verb: it notes what it finds and leaves in ``_sessions``, and calls super."""

    def override(self: FileKernelSessionManager, *args: Any) -> None:
        found = list(self._sessions)
        getattr(FileKernelSessionManager, verb)(self, *args)
        calls.append((found, sorted(self._sessions)))

    return type("Overriding", (FileKernelSessionManager,), {verb: override})


@pytest.mark.parametrize("verb", ["load_sessions", "load_session", "save_session", "delete_sessions"])
async def test_whichever_verb_is_overridden_runs(tmp_path, verb):
    """Once for each call of the gateway, with a ``_sessions`` that holds what that call is about and nothing else."""
    calls: list[tuple[list[str], list[str]]] = []
    manager = overriding(verb, calls)(None, enable_persistence=True, persistence_root=str(tmp_path), log=LOG)
    one, other = a_kernel_id(), a_kernel_id()
    await asyncio.gather(*(manager.record_phase(kernel_id, "running", **a_start()) for kernel_id in (one, other)))
    assert (await manager.fetch_session(one))["username"] == "alice"
    assert set(await manager.fetch_sessions()) == {one, other}
    await manager.forget_session(one)
    assert set(await manager.fetch_sessions()) == {other}
    await manager.close()
    expected = {
        "load_sessions": [([], [one, other]), ([], [other])],
        "load_session": [([], [one])],
        "save_session": [([one], [one]), ([other], [other])],
        "delete_sessions": [([], [])],
    }
    assert sorted(calls) == sorted((found, sorted(left)) for found, left in expected[verb])
