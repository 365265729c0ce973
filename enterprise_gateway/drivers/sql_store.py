"""Kernel sessions, leases and reservations in a SQL database: SQLite or PostgreSQL.

Every public method is one transaction. Times are the database's seconds since the epoch: the clocks of replicas need
not agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from enterprise_gateway.core.errors import LeaseLostError, LimitReachedError
from enterprise_gateway.core.ownfiles import check_directory_link, check_own, open_own

SCHEMA_VERSION = 1
# A replica that stands still, or whose line is dead, in the middle of a transaction keeps its locks for so long. We do
# nothing else between two statements.
_IDLE_SECONDS = 2.0
# Serializes, on PostgreSQL, what must see all rows: making the tables, and reserving.
_ADVISORY_LOCK = 0x4547_5345

_metadata = sa.MetaData()
_meta = sa.Table(
    "eg_meta",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_sessions = sa.Table(
    "eg_kernel_sessions",
    _metadata,
    sa.Column("kernel_id", sa.String(128), primary_key=True),
    sa.Column("username", sa.Text, nullable=False, index=True),
    sa.Column("kernel_name", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("saved_at", sa.Double, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
_leases = sa.Table(
    "eg_kernel_leases",
    _metadata,
    sa.Column("kernel_id", sa.String(128), primary_key=True),
    sa.Column("lease_owner", sa.Text, nullable=False, index=True),
    sa.Column("lease_expires", sa.Double, nullable=False),
    sa.Column("fencing_token", sa.BigInteger, nullable=False),
    sa.Column("execution_state", sa.String(32)),
    sa.Column("last_activity", sa.Double),
)
_reservations = sa.Table(
    "eg_reservations",
    _metadata,
    sa.Column("reservation_id", sa.String(36), primary_key=True),
    sa.Column("kernel_id", sa.String(128)),
    sa.Column("lease_owner", sa.Text, nullable=False),
    sa.Column("username", sa.Text, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
)

DatabaseURL: TypeAlias = sa.URL
"""Where a database is, for those who do not import its library."""


def parse_url(text: str) -> DatabaseURL:
    """Return the URL of a supported database, with the driver that we use.

    Raises
    ------
    ValueError
        It is no URL, or of another database. The text, which may hold a password, is not repeated.
    """
    try:
        url = sa.make_url(text.strip())
    except sa.exc.ArgumentError:
        raise ValueError("the database URL is not of the form <dialect>://<user>@<host>/<database>") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("postgresql+psycopg", "sqlite", "sqlite+pysqlite"):
        raise ValueError(f"sessions can be kept in sqlite and postgresql databases, not in {url.drivername}")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("a SQLite database of sessions must be a file")
    return url


def sqlite_url(path: Path) -> sa.URL:
    """Return the URL of a SQLite file."""
    return sa.URL.create("sqlite", database=str(path.absolute()))


class SqlStore:
    """One database; safe to use from several threads.

    Methods raise ``sqlalchemy.exc.SQLAlchemyError`` when the database fails, within about ``timeout`` seconds.
    """

    def __init__(self, url: sa.URL, *, timeout: float, pool_size: int) -> None:
        self._is_sqlite = url.get_backend_name() == "sqlite"
        self._timeout = timeout
        self._busy: dict[int, tuple[float, Any]] = {}
        self._prepared = False
        self._preparing = threading.Lock()
        if self._is_sqlite:
            _create_private_file(str(url.database))
        # Parameters are hidden: records must not appear in error messages.
        self._engine = sa.create_engine(
            url,
            connect_args=self._connect_arguments(),
            hide_parameters=True,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=timeout,
        )
        sa.event.listen(self._engine, "connect", self._on_connect)
        sa.event.listen(self._engine, "begin", self._on_begin)
        sa.event.listen(self._engine, "checkout", self._on_checkout)
        sa.event.listen(self._engine, "checkin", self._on_checkin)
        self._insert: Any = sqlite.insert if self._is_sqlite else postgresql.insert

    # -- sessions -----------------------------------------------------------------------------------------------------

    def load_all(self) -> list[tuple[str, str]]:
        """Return kernel id and record text of every session."""
        with self._transaction(write=False) as connection:
            rows = connection.execute(sa.select(_sessions.c.kernel_id, _sessions.c.record))
            return [(row.kernel_id, row.record) for row in rows]

    def load(self, kernel_id: str) -> str | None:
        """Return the record text of one session, None when there is none."""
        with self._transaction(write=False) as connection:
            query = sa.select(_sessions.c.record).where(_sessions.c.kernel_id == kernel_id)
            text: str | None = connection.execute(query).scalar()
            return text

    def save(self, kernel_id: str, record: Mapping[str, Any], token: int | None) -> None:
        """Insert or replace one session; ``token`` is that of the lease under which this is written, if any.

        Raises
        ------
        LeaseLostError
            The kernel's lease has another token, or there is a lease and no token, or a token and no lease.
        """
        values = {
            "username": str(record.get("username") or ""),
            "kernel_name": str(record.get("kernel_name") or ""),
            "state": str(record.get("state") or "running"),
            "record": json.dumps(record),
            "saved_at": self._now(),
        }
        insert = self._insert(_sessions).values(kernel_id=kernel_id, created_at=self._now(), **values)
        with self._transaction() as connection:
            self._check_token(connection, kernel_id, token)
            connection.execute(insert.on_conflict_do_update(index_elements=["kernel_id"], set_=values))

    def delete(self, kernel_id: str, token: int | None) -> None:
        """Remove one session with its lease; errors as in :meth:`save`."""
        with self._transaction() as connection:
            if not self._is_known(connection, kernel_id):
                return  # it was removed, and the answer was lost
            self._check_token(connection, kernel_id, token)
            self._delete(connection, kernel_id)

    def _is_known(self, connection: sa.Connection, kernel_id: str) -> bool:
        tables = (_sessions, _leases)
        queries = [sa.select(table.c.kernel_id).where(table.c.kernel_id == kernel_id) for table in tables]
        return connection.execute(sa.union_all(*queries)).first() is not None

    def _delete(self, connection: sa.Connection, kernel_id: str) -> None:
        for table in (_leases, _sessions, _reservations):
            connection.execute(table.delete().where(table.c.kernel_id == kernel_id))

    # -- leases -------------------------------------------------------------------------------------------------------

    def acquire_lease(self, kernel_id: str, owner: str, seconds: float) -> int | None:
        """Take a lease that is free, expired or one's own; return its fencing token, None when another holds it.

        Tokens only rise, over all kernels.
        """
        with self._transaction() as connection:
            mine = sa.or_(_leases.c.lease_expires <= self._now(), _leases.c.lease_owner == owner)
            held = sa.select(_leases.c.kernel_id).where(_leases.c.kernel_id == kernel_id, ~mine)
            if connection.execute(held).scalar() is not None:
                return None
            counter = _meta.update().where(_meta.c.name == "fencing_token").values(value=_meta.c.value + 1)
            token: int = connection.execute(counter.returning(_meta.c.value)).scalar_one()
            values = new_lease(owner, self._now() + seconds, token)
            insert = self._insert(_leases).values(kernel_id=kernel_id, **values)
            upsert = insert.on_conflict_do_update(index_elements=["kernel_id"], set_=values, where=mine)
            taken: int | None = connection.execute(upsert.returning(_leases.c.fencing_token)).scalar()
            return taken

    def renew_lease(self, kernel_id: str, owner: str, token: int, seconds: float) -> bool:
        """Prolong a lease; False when it is not the owner's any more."""
        mine = sa.and_(
            _leases.c.kernel_id == kernel_id, _leases.c.lease_owner == owner, _leases.c.fencing_token == token
        )
        with self._transaction() as connection:
            renewal = _leases.update().where(mine).values(lease_expires=self._now() + seconds)
            return connection.execute(renewal).rowcount == 1

    def release_lease(self, kernel_id: str, owner: str, token: int) -> bool:
        """Give a lease up; False when it was not the owner's any more."""
        mine = sa.and_(
            _leases.c.kernel_id == kernel_id, _leases.c.lease_owner == owner, _leases.c.fencing_token == token
        )
        with self._transaction() as connection:
            return connection.execute(_leases.delete().where(mine)).rowcount == 1

    def lease_owners(self) -> dict[str, str]:
        """Return the owners of all leases that have not expired, by kernel id."""
        query = sa.select(_leases.c.kernel_id, _leases.c.lease_owner).where(_leases.c.lease_expires > self._now())
        with self._transaction(write=False) as connection:
            return {row.kernel_id: row.lease_owner for row in connection.execute(query)}

    # -- counting -----------------------------------------------------------------------------------------------------

    def reserve(
        self,
        owner: str,
        username: str,
        *,
        max_total: int | None,
        max_per_user: int | None,
        seconds: float,
        kernel_id: str | None,
    ) -> str:
        """Hold a place for one more kernel; see ``SQLKernelSessionManager.reserve``."""
        reservation_id = str(uuid.uuid4())
        with self._transaction(exclusive=True) as connection:
            connection.execute(_reservations.delete().where(_reservations.c.expires <= self._now()))
            if max_total is not None and self._count(connection, None) >= max_total:
                raise LimitReachedError(f"Resource Limit: {max_total} kernels may run at a time (max_kernels).")
            if max_per_user is not None and max_per_user >= 0:
                count = self._count(connection, username)
                if count >= max_per_user:
                    raise LimitReachedError(
                        f"A max kernels per user limit has been set to {max_per_user} and user '{username}' "
                        f"currently has {count} active kernel(s)."
                    )
            connection.execute(
                _reservations.insert().values(
                    reservation_id=reservation_id,
                    kernel_id=kernel_id,
                    lease_owner=owner,
                    username=username,
                    expires=self._now() + seconds,
                )
            )
        return reservation_id

    def end_reservation(self, reservation_id: str) -> bool:
        """Give a reserved place up; False when it had expired."""
        with self._transaction() as connection:
            ended = _reservations.delete().where(_reservations.c.reservation_id == reservation_id)
            return connection.execute(ended).rowcount == 1

    def count(self, username: str | None) -> int:
        """Return the number of kernels and reserved places, of one user or (None) of all."""
        with self._transaction(write=False) as connection:
            return self._count(connection, username)

    def _count(self, connection: sa.Connection, username: str | None) -> int:
        """Count in one statement: between two, a kernel could be recorded and be in neither number."""
        kernels = sa.select(sa.func.count()).select_from(_sessions)
        recorded = sa.exists().where(_sessions.c.kernel_id == _reservations.c.kernel_id)
        places = (
            sa.select(sa.func.count())
            .select_from(_reservations)
            .where(_reservations.c.expires > self._now(), ~recorded)
        )
        if username is not None:
            kernels = kernels.where(_sessions.c.username == username)
            places = places.where(_reservations.c.username == username)
        both = sa.select(kernels.scalar_subquery() + places.scalar_subquery())
        return int(connection.execute(both).scalar_one())

    # -- the database -------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Cut connections on which a transaction has lasted longer than the time-out.

        The server's own time-out ends statements; this is for servers that do not answer at all, on which a thread
        would wait for ever.
        """
        limit = time.monotonic() - self._timeout
        for since, connection in list(self._busy.values()):
            if since <= limit and not self._is_sqlite:
                with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as wire:
                    wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _transaction(self, *, write: bool = True, exclusive: bool = False) -> Iterator[sa.Connection]:
        self._prepare()
        with self._engine.connect() as connection:
            connection = connection.execution_options(eg_write=write)
            with connection.begin():
                if exclusive:
                    self._lock_all(connection)
                yield connection

    def _prepare(self) -> None:
        """Make the tables before the first use."""
        with self._preparing:
            if self._prepared:
                return
            with self._engine.connect() as connection:
                connection = connection.execution_options(eg_write=True)
                with connection.begin():
                    self._lock_all(connection)
                    _metadata.create_all(connection)
                    self._insert_if_absent(connection, [("schema_version", SCHEMA_VERSION), ("fencing_token", 0)])
                    query = sa.select(_meta.c.value).where(_meta.c.name == "schema_version")
                    if connection.execute(query).scalar_one() > SCHEMA_VERSION:
                        raise ValueError("the database was made by a newer version of the gateway")
            self._prepared = True

    def _insert_if_absent(self, connection: sa.Connection, entries: Iterable[tuple[str, int]]) -> None:
        for name, value in entries:
            connection.execute(self._insert(_meta).values(name=name, value=value).on_conflict_do_nothing())

    def _lock_all(self, connection: sa.Connection) -> None:
        if not self._is_sqlite:  # there, a writing transaction is alone from its begin
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))

    def _check_token(self, connection: sa.Connection, kernel_id: str, token: int | None) -> None:
        # The row stays locked until our commit: the replica that takes over the lease reads what we wrote.
        query = sa.select(_leases.c.fencing_token).where(_leases.c.kernel_id == kernel_id).with_for_update()
        if connection.execute(query).scalar() != token:
            raise LeaseLostError(f"Kernel {kernel_id} is managed by another replica of the gateway.")

    def _now(self) -> sa.ColumnElement[float]:
        if self._is_sqlite:  # one machine, one clock
            return sa.literal(time.time(), sa.Double)
        return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    def _connect_arguments(self) -> dict[str, Any]:
        if self._is_sqlite:
            return {"timeout": self._timeout}
        return {
            "connect_timeout": max(2, round(self._timeout)),
            "application_name": "enterprise-gateway",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": round(self._timeout * 1000),
            "prepare_threshold": None,  # connection poolers hand statements to other sessions
        }

    def _on_connect(self, connection: Any, _: Any) -> None:
        if self._is_sqlite:
            connection.isolation_level = None  # transactions begin where we say
            self._use_wal(connection)
            connection.execute("PRAGMA synchronous=FULL")
            return
        idle_seconds = min(self._timeout, _IDLE_SECONDS)
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {round(self._timeout * 1000)}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {round(idle_seconds * 1000)}")
        connection.commit()

    def _use_wal(self, connection: Any) -> None:
        """Switch to the write-ahead log; SQLite does not wait by itself for another process that does the same."""
        end = time.monotonic() + self._timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= end:
                    raise
                time.sleep(0.02)
            else:
                return

    def _on_begin(self, connection: sa.Connection) -> None:
        if self._is_sqlite:
            write = connection.get_execution_options().get("eg_write", True)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    def _on_checkout(self, connection: Any, record: Any, _: Any) -> None:
        self._busy[id(record)] = (time.monotonic(), connection)
        if self._is_sqlite:
            return
        try:  # what the pool's own pre-ping does, but where interrupt() sees it
            connection.execute("SELECT 1")
            connection.rollback()
        except Exception as error:
            raise sa.exc.DisconnectionError("the server has closed the connection") from error

    def _on_checkin(self, _: Any, record: Any) -> None:
        self._busy.pop(id(record), None)


def new_lease(owner: str, expires: sa.ColumnElement[float], token: int) -> dict[str, Any]:
    """Return the columns of a lease that is taken; what the kernel does is to be told anew."""
    return {
        "lease_owner": owner,
        "lease_expires": expires,
        "fencing_token": token,
        "execution_state": None,
    }


def _create_private_file(path: str) -> None:
    """Make the database file with mode 0600, or see to it that it is one of ours.

    SQLite gives its companions the same mode, but takes whatever has their names.
    """
    directory = os.path.dirname(path) or "."
    os.makedirs(directory, mode=0o700, exist_ok=True)
    check_directory_link(directory)
    if os.path.islink(path):
        raise PermissionError(
            f"{path} is a symbolic link, which is not followed: configure the path of the database itself, or make its "
            "directory the link"
        )
    os.close(open_own(path, os.O_RDWR | os.O_CREAT))
    for companion in ("-wal", "-shm", "-journal"):
        # Not opened: with the descriptor would go the locks of another store of this process.
        with contextlib.suppress(FileNotFoundError):
            check_own(path + companion)
