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

    A *lease* says which replica owns a kernel: culls it, restarts it when it dies, writes its record. It comes with a
    fencing token. Once a record has been written under a lease, it is only written with the token of the current
    lease, so that a replica that was frozen and lost its leases cannot overwrite what its successor wrote.

    A *reservation* holds a place under the limits while a kernel starts; all replicas count it.
    """

    database_url = Unicode(
        config=True,
        help="""SQLAlchemy URL of a SQLite or PostgreSQL database, such as postgresql://user@host/database; by
        default the file kernel_sessions.sqlite in persistence_root. (EG_SESSION_DATABASE_URL env var)""",
    )
    database_url_file = Unicode(
        config=True,
        help="""File that holds the URL, not readable by other users; use it if the URL contains a password.
        (EG_SESSION_DATABASE_URL_FILE env var)""",
    )

    leases_required = False
    """Whether records are only written under a lease, so that a record that another replica removed stays removed."""

    lease_seconds = Float(
        3.0,
        min=0.5,
        config=True,
        help="""Seconds after which another replica takes over the kernels of a replica that is dead or cannot reach the
        database. Each replica renews its leases three times in this period.""",
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
        """Return the store of records, which writes with this manager's fencing tokens."""
        return SQLRecordStore(self._store, self._tokens, lambda: self.leases_required)

    @property
    def store_identity(self) -> str:
        """The database's address without the credentials."""
        url = self._url
        return f"{url.drivername.partition('+')[0]}://{url.host}:{url.port}/{url.database}"

    def interrupt_store(self) -> None:
        """Close connections on which the database has not answered in time."""
        if self._opened:
            self._opened.interrupt()

    async def close(self) -> None:
        """Write pending records and close the connections."""
        await super().close()
        if self._opened:
            await self._calls.in_time(self._calls.run(self._opened.close))

    # -- leases -------------------------------------------------------------------------------------------------------

    async def acquire_lease(self, kernel_id: str, owner: str, seconds: float) -> int | None:
        """Acquire the lease of a kernel if it is free, expired or the owner's own.

        Parameters
        ----------
        owner
            Identifies this run of this replica; different after each start.
        seconds
            How long the lease lasts unless it is renewed.

        Returns
        -------
        The fencing token, with which this manager writes the kernel's record from now on; None if another replica
        holds the lease.
        """
        token = await self._ask(lambda store: store.acquire_lease(kernel_id, owner, seconds))
        if token is not None:
            self._tokens[kernel_id] = token
        return token

    async def renew_lease(self, kernel_id: str, owner: str, seconds: float) -> bool:
        """Renew a lease, even an expired one that no replica took; False when it is lost, and so is the kernel."""
        token = self._tokens.get(kernel_id)
        if token is None:
            return False
        return await self._ask(lambda store: store.renew_lease(kernel_id, owner, token, seconds))

    async def release_lease(self, kernel_id: str, owner: str) -> bool:
        """Release a lease, so that another replica can take it at once; False if it was already lost."""
        token = self._tokens.pop(kernel_id, None)
        if token is None:
            return False
        return await self._ask(lambda store: store.release_lease(kernel_id, owner, token))

    async def release_stray_lease(self, name: str, owner: str, token: int) -> None:
        """Release a lease that this replica no longer needs, if it still has this token."""
        if self._tokens.get(name) == token:
            del self._tokens[name]
        await self._ask(lambda store: store.release_lease(name, owner, token))

    async def fetch_lease_owners(self) -> dict[str, str]:
        """Return the owners of the unexpired leases, by kernel id."""
        return await self._ask(lambda store: store.lease_owners())

    # -- replicas -----------------------------------------------------------------------------------------------------

    async def beat(self, owner: str, activity: Mapping[str, Activity], connections: Mapping[str, int]) -> Beat:
        """Renew this replica's leases, publish the changes made here, and fetch those made elsewhere."""
        beat = await self._ask(lambda store: store.beat(owner, self.lease_seconds, activity, connections))
        held = {kernel_id: token for kernel_id, token in beat.tokens.items() if self._tokens.get(kernel_id) == token}
        return beat._replace(tokens=held)

    async def seize_lease(self, kernel_id: str, owner: str, *, by_force: bool = False) -> bool:
        """Take the lease of a recorded kernel; False if the lease is held or the kernel is not recorded.

        Parameters
        ----------
        by_force
            Take it even from a replica that holds it, unless that replica is about to start, restart or stop the
            kernel.
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
        """Release all leases and reservations of this replica, so that others can take them at once."""
        self._tokens.clear()
        await self._ask(lambda store: store.leave(owner))

    async def clear_leases(self) -> None:
        """Release the leases of all replicas; for a gateway that is the only one."""
        await self._ask(lambda store: store.clear_leases())

    def disown(self, kernel_id: str) -> None:
        """Forget a kernel that another replica has removed."""
        self._tokens.pop(kernel_id, None)
        self._table.drop(kernel_id)

    # -- notebooks' sessions ------------------------------------------------------------------------------------------

    async def fetch_notebooks(self) -> list[dict[str, Any]]:
        """Return the notebooks' sessions of all replicas whose kernels are recorded."""
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
        """Reserve a place for a kernel that is about to start; kernels and reservations of all replicas count.

        Parameters
        ----------
        max_total, max_per_user
            The limits; None (and, per user, a negative number) for no limit.
        ttl
            Seconds after which the reservation expires, in case this replica dies.
        kernel_id
            The kernel that it is for: once the kernel is recorded, the reservation no longer counts.

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
        """End the reservation of a kernel that is now recorded; False if it had expired."""
        return await self._ask(lambda store: store.end_reservation(reservation_id))

    async def cancel(self, reservation_id: str) -> bool:
        """Cancel a reservation because the start failed; False if it had expired."""
        return await self._ask(lambda store: store.end_reservation(reservation_id))

    async def count_kernels(self, username: str | None = None) -> int:
        """Return how many kernels and reservations all replicas have, in total or for one user."""
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
        The fencing tokens of this replica's leases by kernel id; deleting a record removes its token.
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
        """Write one row; raises LeaseLostError when another replica owns the kernel."""
        token = self._tokens.get(kernel_id)
        if token is None and self._requires_lease():
            raise LeaseLostError(f"Kernel {kernel_id} is not owned by this replica of the gateway.")
        self._database().save(kernel_id, record, token)

    def delete(self, kernel_ids: list[str]) -> None:
        """Remove rows, and this replica's leases with them."""
        for kernel_id in kernel_ids:
            self._database().delete(kernel_id, self._tokens.get(kernel_id))
            self._tokens.pop(kernel_id, None)


def _record(kernel_id: str, text: str) -> Record | Unreadable:
    try:
        record: Record = json.loads(text)
        return record
    except (ValueError, RecursionError) as error:
        return Unreadable.now(kernel_id, error)
