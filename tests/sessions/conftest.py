"""Session stores for tests: real directories, a real web service, real databases."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import enterprise_gateway.drivers.sql_store
import enterprise_gateway.drivers.webhook_rest  # noqa: F401 -- now: in a test the imports would hold the loop
from enterprise_gateway.services.sessions.kernelsessionmanager import (
    FileKernelSessionManager,
    KernelSessionManager,
    SQLKernelSessionManager,
    WebhookKernelSessionManager,
)
from tests.clusters.postgres import PostgresServer, running_postgres
from tests.support.loops import LoopRunner
from tests.support.requirements import skip_without

from .webservice import SessionService

LOG = logging.getLogger("enterprise_gateway.sessions")
Make = Callable[..., KernelSessionManager]

STORES = ["file", "webhook", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


def a_kernel_id() -> str:
    return str(uuid.uuid4())


def a_start(user: str = "alice", key: bytes = b"connection-key") -> dict[str, Any]:
    """Return what the kernel manager records of a kernel."""
    return {
        "kernel_name": "python3",
        "launch_args": {"env": {"KERNEL_USERNAME": user, "API": "hunter2"}, "kernel_headers": {}, "path": None},
        "connection_info": {
            "transport": "tcp",
            "ip": "127.0.0.1",
            **{f"{name}_port": 50000 + i for i, name in enumerate(("shell", "iopub", "stdin", "hb", "control"))},
            "signature_scheme": "hmac-sha256",
            "key": key,
        },
        "process_info": {"pid": 4711, "pgid": 4711, "ip": "127.0.0.1", "rest_credential": "conductor-secret"},
    }


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until ``condition`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return a server that all tests of the session share; each makes its own schema by its own database."""
    skip_without("postgres")
    with running_postgres() as server:
        yield server


@pytest.fixture
def service() -> Iterator[SessionService]:
    """Return a running web service without sessions."""
    running = SessionService()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest, _loop_runner: LoopRunner) -> Iterator[Make]:
    """Return what makes managers of the kind asked for, all of one store; they are closed after the test."""
    made: list[KernelSessionManager] = []
    kind_of_test = getattr(request.node, "callspec", None) and request.node.callspec.params.get("kind")
    for kind, fixture in (("webhook", "service"), ("postgresql", "database_url")):
        if kind == kind_of_test:
            request.getfixturevalue(fixture)  # now: in the test it would hold the loop

    def make_one(kind: str, **options: Any) -> KernelSessionManager:
        always = {"enable_persistence": True, "persistence_root": str(tmp_path), "store_timeout": 5.0, "log": LOG}
        options = {**always, **options}
        manager: KernelSessionManager
        if kind == "webhook":
            url = request.getfixturevalue("service").url
            manager = WebhookKernelSessionManager(None, **{"webhook_url": url, **options})
        elif kind == "sqlite":
            manager = SQLKernelSessionManager(None, **options)
        elif kind == "postgresql":
            url = request.getfixturevalue("database_url")
            manager = SQLKernelSessionManager(None, **{"database_url": url, **options})
        else:
            manager = FileKernelSessionManager(None, **options)
        made.append(manager)
        return manager

    yield make_one
    for manager in made:
        _loop_runner.run(manager.close())


@pytest.fixture
def database_url(postgres: PostgresServer) -> Iterator[str]:
    """Return the URL of a new database on the shared server."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield f"{postgres.url.removesuffix('postgres')}{name}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
