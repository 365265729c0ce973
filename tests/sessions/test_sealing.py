"""Secrets of records at rest."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path

import pytest

from enterprise_gateway.core.errors import StoreUnavailableError
from enterprise_gateway.core.sealing import Sealer
from enterprise_gateway.services.sessions.kernelsessionmanager import FileKernelSessionManager
from enterprise_gateway.services.sessions.secretfiles import read_secret_file

from .conftest import STORES, a_kernel_id, a_start

SECRETS = ("connection-key", "hunter2", "conductor-secret")


def a_key_file(directory: Path, *keys: bytes, mode: int = 0o600) -> str:
    path = directory / f"keys-{os.urandom(3).hex()}"
    path.write_text("# the first one seals\n" + "".join(base64.b64encode(key).decode() + "\n" for key in keys))
    path.chmod(mode)
    return str(path)


def read_rows(url: str) -> bytes:
    import psycopg

    with psycopg.connect(url) as connection:
        return str(connection.execute("SELECT * FROM eg_kernel_sessions").fetchall()).encode()


@pytest.mark.parametrize("kind", STORES)
async def test_no_secret_is_readable_in_the_store(kind, make, tmp_path, request):
    """With a sealing key, a store holds no key, environment value or credential in clear, and gives all back."""
    kernel_id, key_file = a_kernel_id(), a_key_file(tmp_path, os.urandom(32))
    await make(kind, sealing_key_file=key_file).record_phase(kernel_id, "running", **a_start())
    if kind == "webhook":
        stored = json.dumps(request.getfixturevalue("service").sessions).encode()
    elif kind == "postgresql":
        stored = await asyncio.to_thread(read_rows, request.getfixturevalue("database_url"))
    else:
        stored = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and not p.name.startswith("keys-"))
    assert kernel_id.encode() in stored
    assert not [secret for secret in SECRETS if secret.encode() in stored]
    record = await make(kind, sealing_key_file=key_file).fetch_session(kernel_id)
    assert {name: record[name] for name in a_start()} == a_start()
    assert "sealed" not in record


async def test_a_lost_key_makes_records_wait(make, tmp_path, expect_log):
    """Records that cannot be unsealed are neither lost nor missing: asking is answered 503 until the key is back."""
    kernel_id, key_file = a_kernel_id(), a_key_file(tmp_path, os.urandom(32))
    await make("file", sealing_key_file=key_file).record_phase(kernel_id, "running", **a_start())
    for options in ({}, {"sealing_key_file": a_key_file(tmp_path, os.urandom(32))}):
        manager = make("file", **options)
        with pytest.raises(StoreUnavailableError, match="sealed"):
            await manager.fetch_session(kernel_id)
        assert manager.store_available
        with expect_log("is left in place"):
            assert await manager.fetch_sessions() == {}
    assert await make("file", sealing_key_file=key_file).fetch_session(kernel_id)


async def test_keys_are_rotated_by_putting_a_new_one_first(make, tmp_path):
    """Records sealed with an old key open while it is listed; what is saved anew is sealed with the first."""
    old, new = os.urandom(32), os.urandom(32)
    kernel_id = a_kernel_id()
    await make("file", sealing_key_file=a_key_file(tmp_path, old)).record_phase(kernel_id, "running", **a_start())
    both = make("file", sealing_key_file=a_key_file(tmp_path, new, old))
    assert await both.fetch_session(kernel_id)
    await both.record_phase(kernel_id, "running")
    assert await make("file", sealing_key_file=a_key_file(tmp_path, new)).fetch_session(kernel_id)


async def test_unsealed_records_load_when_a_key_is_configured(make, tmp_path):
    """Sealing can be switched on over a store that holds records in clear."""
    kernel_id = a_kernel_id()
    await make("file").record_phase(kernel_id, "running", **a_start())
    record = await make("file", sealing_key_file=a_key_file(tmp_path, os.urandom(32))).fetch_session(kernel_id)
    assert record["connection_info"]["key"] == b"connection-key"


def test_a_sealed_value_is_of_no_use_in_another_place():
    """A value moved to another entry or another kernel does not open, nor does a changed one."""
    sealer = Sealer([os.urandom(32)])
    sealed = sealer.seal({"a": {"launch_args": {"env": {"X": "1", "Y": "2"}}}})
    values = sealed["a"]["launch_args"]["env"]
    swapped = {"a": {"launch_args": {"env": {"X": values["Y"], "Y": values["X"]}}, "sealed": sealed["a"]["sealed"]}}
    forged = {**values, "X": values["X"][:-5] + "AAAA="}
    changed = {"a": {"launch_args": {"env": forged}, "sealed": sealed["a"]["sealed"]}}
    for session in (swapped, changed, {"b": sealed["a"]}):
        with pytest.raises(StoreUnavailableError, match="unsealed"):
            sealer.open(json.loads(json.dumps(session)))


def test_a_value_that_looks_sealed_is_only_text():
    """What a user puts into the environment is never taken for something to unseal."""
    session = {"a": {"launch_args": {"env": {"X": "eg-sealed:1:00000000:AAAA", "Y": "\ud800"}}}}
    sealer = Sealer([os.urandom(32)])
    assert sealer.open(sealer.seal(json.loads(json.dumps(session)))) == session
    assert sealer.open(json.loads(json.dumps(session))) == session


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_that_others_may_read_is_refused(tmp_path, mode):
    """The gateway does not start with a key that is no secret; the sentence says what to do."""
    with pytest.raises(ValueError, match="chmod 600"):
        FileKernelSessionManager(None, sealing_key_file=a_key_file(tmp_path, os.urandom(32), mode=mode))
    assert read_secret_file(a_key_file(tmp_path, os.urandom(32), mode=0o400))


@pytest.mark.parametrize("text", ["", "# none\n", "not base64!", base64.b64encode(b"short").decode()])
def test_a_malformed_key_file_is_refused_without_repeating_it(text):
    """Keys are base64 of 32 bytes; the error does not hold the text."""
    with pytest.raises(ValueError, match="key") as raised:
        Sealer.from_text(text)
    assert not text or text not in str(raised.value)
