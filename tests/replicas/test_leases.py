"""How long a replica may consider a kernel its own."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from enterprise_gateway.services.kernels.replicas import Replicas
from tests.support.gateway import running_gateway

from .conftest import STORE, eventually

LEASE_SECONDS = 1.0


async def held_after(replicas: Replicas, kernel_id: str) -> tuple[bool, bool]:
    """Claim a kernel; return whether its lease was granted, and whether it is valid at that moment."""
    return await replicas.claim(kernel_id), replicas.holds(kernel_id)


async def test_a_lease_counts_from_when_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have expired when the answer is read: the replica, or the store, may have been suspended."""
    database = tmp_path / "store.sqlite"
    monkeypatch.setenv("EG_SESSION_DATABASE_URL", f"sqlite:///{database}")
    config = {
        "EnterpriseGatewayApp": {
            "availability_mode": "replication",
            "keep_kernels_on_stop": False,
            "kernel_session_manager_class": STORE,
        },
        "SQLKernelSessionManager": {"lease_seconds": LEASE_SECONDS},
    }
    async with running_gateway(config=config) as gateway:
        replicas = gateway.app.kernel_manager.replicas
        kernel_id = await gateway.app.kernel_manager.start_kernel(kernel_name="python3")

        async def is_held() -> bool:
            return bool(replicas.holds(kernel_id))

        await eventually(is_held)
        with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as other:
            await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
            claim = asyncio.create_task(held_after(replicas, kernel_id))
            await asyncio.sleep(1.5 * LEASE_SECONDS)
            await asyncio.to_thread(other.execute, "ROLLBACK")
        assert await claim == (True, False)
        await eventually(is_held)
