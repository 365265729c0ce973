"""Kernel sessions in a SQL database, shared by replicas."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jupyter_core.paths import jupyter_data_dir
from traitlets import Float, Unicode, default

from enterprise_gateway.core import envvars
from enterprise_gateway.core.errors import LeaseLostError
from enterprise_gateway.core.sessionrecords import Record

from .secretfiles import read_secret_file
from .sessionstore import Unreadable
from .storemanager import StoreKernelSessionManager

if TYPE_CHECKING:
    from enterprise_gateway.core.sessionrecords import Activity, Beat, StoredKernel
    from enterprise_gateway.drivers.sql_replicas import ReplicatedSqlStore
    from enterprise_gateway.drivers.sql_store import DatabaseURL

T = TypeVar("T")


class SQLKernelSessionManager(StoreKernelSessionManager):
    """Keeps sessions in SQLite (one machine) or PostgreSQL (replicas), with leases and reservations.

    A *lease* says which replica looks after a kernel: culls it, restarts it when it dies, writes its record. It comes
    with a fencing token. A record that was ever written under a lease is only written with the token of the present
    one: a replica that was frozen and has lost its leases cannot overwrite what its successor wrote.

    A *reservation* holds a place under the limits while a kernel starts, counted by all replicas.
    """

    database_url = Unicode(
        config=True,
        help="""SQLAlchemy URL of a SQLite or PostgreSQL database, such as postgresql://user@host/database; by
        default the file kernel_sessions.sqlite in persistence_root. (EG_SESSION_DATABASE_URL env var)""",
    )
    database_url_file = Unicode(
        config=True,
        help="""File that holds the URL, not readable by other users; use it when the URL contains a password.
        (EG_SESSION_DATABASE_URL_FILE env var)""",
    )

    leases_required = False
    """Whether writing a record requires its lease, so that a kernel another replica has removed does not come back."""

    lease_seconds = Float(
        3.0,
        min=0.5,
        config=True,
        help="""Seconds after which another replica takes over the kernels of one that is dead or cannot reach the
        database. Each replica sends the database three heartbeats in this period.""",
    )

    @default("persistence_root")
    def _default_persistence_root(self) -> str:
        return envvars.EG_PERSISTENCE_ROOT() or jupyter_data_dir()

    @default("database_url")
    def _default_database_url(self) -> str:
        return envvars.EG_SESSION_DATABASE_URL()

    @default("database_url_file")
    def _default_database_url_file(self) -> str:
        return envvars.EG_SESSION_DATABASE_URL_FILE()

    def __init__(self, kernel_manager: Any, **kwargs: Any) -> None:
        self._tokens: dict[str, int] = {}
        self._opened: ReplicatedSqlStore | None = None
        self._opening = threading.Lock()
        super().__init__(kernel_manager, **kwargs)
        self._url = self._read_url()

    def make_store(self) -> SQLRecordStore:
        """Return the table of records, written with the fencing tokens that this manager has."""
        return SQLRecordStore(self._store, self._tokens, lambda: self.leases_required)

    @property
    def store_identity(self) -> str:
        """The database's address without the credentials."""
        url = self._url
        return f"{url.drivername.partition('+')[0]}://{url.host}:{url.port}/{url.database}"

    def interrupt_store(self) -> None:
        """Cut connections on which the database has not answered in time."""
        if self._opened:
            self._opened.interrupt()

    async def close(self) -> None:
        """Write what is not written yet and close the connections."""
        await super().close()
        if self._opened:
            await self._calls.in_time(self._calls.run(self._opened.close))

    # -- leases -------------------------------------------------------------------------------------------------------

    async def acquire_lease(self, kernel_id: str, owner: str, seconds: float) -> int | None:
        """Take the lease of a kernel that is free, expired or one's own.

        Parameters
        ----------
        owner
            Names this run of this replica: another one after each start.
        seconds
            How long the lease lasts unless it is renewed.

        Returns
        -------
        The fencing token, under which this manager writes the kernel's record from now on; None when another holds
        the lease.
        """
        token = await self._ask(lambda store: store.acquire_lease(kernel_id, owner, seconds))
        if token is not None:
            self._tokens[kernel_id] = token
        return token

    async def renew_lease(self, kernel_id: str, owner: str, seconds: float) -> bool:
        """Prolong a lease, also an expired one that nobody took; False when it is lost: let go of the kernel then."""
        token = self._tokens.get(kernel_id)
        if token is None:
            return False
        return await self._ask(lambda store: store.renew_lease(kernel_id, owner, token, seconds))

    async def release_lease(self, kernel_id: str, owner: str) -> bool:
        """Give a lease up, so that another replica may take it at once; False when it was lost before."""
        token = self._tokens.pop(kernel_id, None)
        if token is None:
            return False
        return await self._ask(lambda store: store.release_lease(kernel_id, owner, token))

    async def release_stray_lease(self, name: str, owner: str, token: int) -> None:
        """Give up a lease that nobody here stands for, if it still is the one with this token."""
        if self._tokens.get(name) == token:
            del self._tokens[name]
        await self._ask(lambda store: store.release_lease(name, owner, token))

    async def fetch_lease_owners(self) -> dict[str, str]:
        """Return who holds the leases that have not expired, by kernel id."""
        return await self._ask(lambda store: store.lease_owners())

    # -- replicas -----------------------------------------------------------------------------------------------------

    async def beat(self, owner: str, activity: Mapping[str, Activity], connections: Mapping[str, int]) -> Beat:
        """Prolong this replica's leases, tell what has changed here, and learn what has changed elsewhere."""
        beat = await self._ask(lambda store: store.beat(owner, self.lease_seconds, activity, connections))
        held = {kernel_id: token for kernel_id, token in beat.tokens.items() if self._tokens.get(kernel_id) == token}
        return beat._replace(tokens=held)

    async def seize_lease(self, kernel_id: str, owner: str, *, by_force: bool = False) -> bool:
        """Take the lease of a kernel on record; False when it is held, or the kernel is not on record.

        Parameters
        ----------
        by_force
            Take it also from a replica that holds it, unless that one is about to start, restart or stop the kernel.
        """
        seconds = self.lease_seconds
        token = await self._ask(lambda store: store.seize_lease(kernel_id, owner, seconds, by_force=by_force))
        if token is not None:
            self._tokens[kernel_id] = token
        return token is not None

    async def fetch_kernels(self, owner: str, kernel_id: str | None = None) -> dict[str, StoredKernel]:
        """Return what the store knows of all kernels, oldest first, or of one."""
        return await self._ask(lambda store: store.kernels(owner, kernel_id))

    async def leave(self, owner: str) -> None:
        """Give up all leases and places of this replica, so that others may take them at once."""
        self._tokens.clear()
        await self._ask(lambda store: store.leave(owner))

    async def clear_leases(self) -> None:
        """Give up the leases of all replicas; for a gateway that is the only one."""
        await self._ask(lambda store: store.clear_leases())

    def disown(self, kernel_id: str) -> None:
        """Forget a kernel that another replica has removed."""
        self._tokens.pop(kernel_id, None)
        self._table.drop(kernel_id)

    # -- notebooks' sessions ------------------------------------------------------------------------------------------

    async def fetch_notebooks(self) -> list[dict[str, Any]]:
        """Return the notebooks' sessions of all replicas whose kernels are on record."""
        return await self._ask(lambda store: store.load_notebooks())

    async def save_notebook(self, entry: Mapping[str, Any]) -> None:
        """Insert or replace a notebook's session: ``session_id``, ``path``, ``name``, ``type``, ``kernel_id``."""
        await self._ask(lambda store: store.save_notebook(entry))

    async def delete_notebook(self, session_id: str) -> None:
        """Remove a notebook's session."""
        await self._ask(lambda store: store.delete_notebook(session_id))

    # -- limits -------------------------------------------------------------------------------------------------------

    async def reserve(
        self,
        owner: str,
        username: str,
        max_total: int | None,
        max_per_user: int | None,
        ttl: float,
        *,
        kernel_id: str | None = None,
    ) -> str:
        """Hold a place for a kernel that is about to start; kernels and places of all replicas count.

        Parameters
        ----------
        max_total, max_per_user
            The limits; None (and, per user, a negative number) for no limit.
        ttl
            Seconds after which the place falls away, should this replica die.
        kernel_id
            The kernel for which it is: once that is recorded, the place does not count any more.

        Returns
        -------
        The id for :meth:`commit` or :meth:`cancel`.

        Raises
        ------
        LimitReachedError
            One more kernel would exceed a limit.
        """
        return await self._ask(
            lambda store: store.reserve(
                owner, username, max_total=max_total, max_per_user=max_per_user, seconds=ttl, kernel_id=kernel_id
            )
        )

    async def commit(self, reservation_id: str) -> bool:
        """Turn a reserved place into a kernel, which is on record by now; False when the place had expired."""
        return await self._ask(lambda store: store.end_reservation(reservation_id))

    async def cancel(self, reservation_id: str) -> bool:
        """Give a reserved place up, because the start failed; False when it had expired."""
        return await self._ask(lambda store: store.end_reservation(reservation_id))

    async def count_kernels(self, username: str | None = None) -> int:
        """Return how many kernels and reserved places all replicas have, in total or of one user."""
        return await self._ask(lambda store: store.count(username))

    async def _ask(self, question: Callable[[ReplicatedSqlStore], T]) -> T:
        return await self._calls.in_time(self._calls.run(lambda: question(self._store())))

    def _store(self) -> ReplicatedSqlStore:
        """Return the database, opened at the first call; called in threads."""
        with self._opening:
            if self._opened is None:
                from enterprise_gateway.drivers.sql_replicas import ReplicatedSqlStore

                self._opened = ReplicatedSqlStore(
                    self._url, timeout=self.store_timeout, pool_size=self.store_concurrency
                )
            return self._opened

    def _read_url(self) -> DatabaseURL:
        from enterprise_gateway.drivers.sql_store import parse_url, sqlite_url

        text = read_secret_file(self.database_url_file) if self.database_url_file else self.database_url
        return parse_url(text) if text else sqlite_url(Path(self.persistence_root) / "kernel_sessions.sqlite")


class SQLRecordStore:
    """Keeps records in a table of the database, each written under this replica's lease if it has one.

    Parameters
    ----------
    database
        Returns the database; called in threads.
    tokens
        The fencing tokens of this replica's leases by kernel id; what is deleted here is taken out.
    requires_lease
        Returns whether records are only written under a lease.
    """

    def __init__(
        self,
        database: Callable[[], ReplicatedSqlStore],
        tokens: dict[str, int],
        requires_lease: Callable[[], bool],
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._requires_lease = requires_lease

    def load_all(self) -> dict[str, Record | Unreadable]:
        """Return every row."""
        return {kernel_id: _record(kernel_id, text) for kernel_id, text in self._database().load_all()}

    def load(self, kernel_id: str) -> Record | None:
        """Return one row, if there is one."""
        text = self._database().load(kernel_id)
        record: Record | None = None if text is None else json.loads(text)
        return record

    def save(self, kernel_id: str, record: Record) -> None:
        """Write one row; raises LeaseLostError when another replica looks after the kernel."""
        token = self._tokens.get(kernel_id)
        if token is None and self._requires_lease():
            raise LeaseLostError(f"Kernel {kernel_id} is not looked after by this replica of the gateway.")
        self._database().save(kernel_id, record, token)

    def delete(self, kernel_ids: list[str]) -> None:
        """Remove rows, and with them this replica's leases."""
        for kernel_id in kernel_ids:
            self._database().delete(kernel_id, self._tokens.get(kernel_id))
            self._tokens.pop(kernel_id, None)


def _record(kernel_id: str, text: str) -> Record | Unreadable:
    try:
        record: Record = json.loads(text)
        return record
    except (ValueError, RecursionError) as error:
        return Unreadable.now(kernel_id, error)
