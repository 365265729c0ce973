"""Session records: a store may hold anything, and an invalid record does not prevent the recovery of other kernels."""

from __future__ import annotations

import json
import logging
import tempfile
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from enterprise_gateway.core.connection import ConnectionInfo
from enterprise_gateway.core.errors import PayloadError, StoreUnavailableError
from enterprise_gateway.core.sealing import Sealer
from enterprise_gateway.services.sessions.kernelsessionmanager import FileKernelSessionManager
from enterprise_gateway.transport.openrequests import OpenRequests
from enterprise_gateway.transport.resumption import Memory

from .strategies import deep, encoded, json_values, numbers, objects_like, scalars, text

LOG = logging.getLogger("fuzz")
LOG.disabled = True
KERNEL_ID = str(uuid.UUID(int=0xABCDEF, version=4))
SEALER = Sealer([b"k" * 32])

connections = objects_like(
    transport=text,
    ip=text,
    signature_scheme=st.sampled_from(["hmac-sha256", "hmac-md5", "none"]),
    key=text,
    curve_publickey=st.text(min_size=40, max_size=40),
    curve_secretkey=st.text(min_size=40, max_size=40),
    kernel_name=text,
    pid=st.one_of(numbers, text),
    **{f"{name}_port": numbers for name in ("shell", "iopub", "stdin", "control", "hb", "comm")},
)
relays = objects_like(**{name: st.lists(json_values(), max_size=4) for name in vars(Memory())})
sealed_texts = st.builds(lambda rest: f"eg-sealed:1:{rest}", st.one_of(text, st.just("x:y:AAAA")))
records = objects_like(
    kernel_id=st.one_of(st.just(KERNEL_ID), text),
    username=text,
    kernel_name=text,
    connection_info=connections,
    launch_args=objects_like(env=st.dictionaries(text, st.one_of(text, sealed_texts), max_size=3), kernel_name=text),
    process_info=objects_like(pid=numbers, pgid=numbers, ip=text, comm_port=numbers, tunneled_connect_info=connections),
    state=st.one_of(st.sampled_from(["starting", "running", "restarting", "stopping"]), text),
    saved_at=numbers,
    relay=relays,
    sealed=st.lists(st.one_of(st.lists(st.one_of(text, st.just("launch_args"), st.just("env"))), scalars), max_size=3),
)
sessions = st.one_of(st.builds(lambda record: {KERNEL_ID: record}, records), json_values())


@given(content=encoded(sessions), is_sealing=st.booleans())
def test_a_file_that_is_no_session_costs_no_other_its_kernel(content: bytes, is_sealing: bool) -> None:
    """It is set aside, or left where it is when a key is missing; the other one is read."""
    good = str(uuid.uuid4())
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root, "kernel_sessions")
        directory.mkdir()
        (directory / f"{KERNEL_ID}.json").write_bytes(content)
        (directory / f"{good}.json").write_text(json.dumps({good: {"kernel_id": good, "username": "alice"}}))
        manager = FileKernelSessionManager(None, enable_persistence=True, persistence_root=root, log=LOG)
        if is_sealing:
            manager._sealer = SEALER
        manager.load_sessions()
        assert manager.active_sessions("alice") >= 1
        assert good in manager._sessions
        assert set(manager._sessions) <= {good, KERNEL_ID}
        assert KERNEL_ID in manager._sessions or KERNEL_ID in manager.unusable


@given(session=sessions, is_sealing=st.booleans())
def test_a_record_is_decoded_or_refused(session: Any, is_sealing: bool) -> None:
    """Whatever its entries are, it is refused with one of two errors, or can be encoded again."""
    with tempfile.TemporaryDirectory() as root:
        manager = FileKernelSessionManager(None, enable_persistence=True, persistence_root=root, log=LOG)
        if is_sealing:
            manager._sealer = SEALER
        try:
            decoded = manager.decode_session(session)
        except (ValueError, StoreUnavailableError):
            return
        manager._sessions.update(decoded)
        for kernel_id in decoded:
            json.dumps(manager.encode_session(kernel_id))


@given(info=connections)
def test_connection_information_is_usable_or_refused(info: dict[str, Any]) -> None:
    """What is accepted can be written to a connection file."""
    try:
        connection = ConnectionInfo.from_dict(info)
    except PayloadError:
        return
    json.dumps(connection.to_dict())
    assert connection.pid >= 0
    assert connection.key.decode() not in repr(connection) or len(connection.key) < 4


@given(value=st.one_of(relays, json_values(), deep))
def test_what_the_relay_remembers_can_be_anything(value: Any) -> None:
    """Entries of another type are left out, and what is left can be recorded again."""
    memory = Memory.from_record(value)
    assert Memory.from_record(json.loads(json.dumps(memory.to_record()))) == memory
    texts = (memory.execution_state, memory.last_cell, *memory.requests, *memory.identities, *sum(memory.sessions, ()))
    assert all(part.encode().decode() == part for part in texts)
    assert all(memory.sessions)
    OpenRequests().restore((*memory.requests, *texts))
    for seconds in (memory.last_activity, memory.busy_since):
        datetime.fromtimestamp(seconds, tz=timezone.utc)
