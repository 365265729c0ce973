"""A private PostgreSQL server in a temporary directory, on a free loopback port and a unix socket."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.support.requirements import found

PASSWORD = "sessions-are-kept-here"


class PostgresServer:
    """One server; runs as the user ``postgres`` when the tests run as root, which PostgreSQL refuses."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="eg-postgres-"))
        self._user = "postgres" if os.geteuid() == 0 else None
        self._data = self.root / "data"
        self._password_file = self.root / "password"
        self._password_file.write_text(PASSWORD)
        if self._user:
            account = pwd.getpwnam(self._user)
            for path in (self.root, self._password_file):
                os.chown(path, account.pw_uid, account.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        login = ("--auth=scram-sha-256", "--username=gateway", f"--pwfile={self._password_file}")
        self._run("initdb", *login, "--no-sync")

    @property
    def url(self) -> str:
        """The URL of the server over TCP."""
        return f"postgresql://gateway:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    @property
    def socket_url(self) -> str:
        """The URL of the server over its unix socket."""
        return f"postgresql://gateway:{PASSWORD}@/postgres?host={self.root}&port={self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self.root} -F"
        self._run("pg_ctl", "--wait", f"--log={self.root / 'log'}", f"--options={options}", "start")

    def stop(self) -> None:
        """Stop the server, cutting its connections."""
        self._run("pg_ctl", "--wait", "--mode=immediate", "stop")

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Stop the server before the block and start it after that, for the tests that come next as well."""
        await asyncio.to_thread(self.stop)
        try:
            yield
        finally:
            await asyncio.to_thread(self.start)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all its processes in the block, so that it takes connections but never answers."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        pids = [postmaster, *_children(postmaster)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def remove(self) -> None:
        """Stop the server if it runs, and delete its files."""
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.root)

    def _run(self, program: str, *arguments: str) -> None:
        command = [found(program), "-D", str(self._data), *arguments]
        with (self.root / "commands.log").open("a") as log:  # a pipe would stay open as long as the server
            result = subprocess.run(
                command,
                user=self._user,
                group=self._user,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=60,
                check=False,
            )
        if result.returncode:
            raise RuntimeError(f"{program} failed:\n{(self.root / 'commands.log').read_text()}")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Start a server for the block."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
