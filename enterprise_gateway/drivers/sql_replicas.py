"""What replicas of the gateway share through the database: which replicas exist, and which owns which kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from enterprise_gateway.core.sessionrecords import Activity, Beat, StoredKernel

from .sql_store import SqlStore, _leases, _meta, _metadata, _reservations, _sessions, new_lease

_FORGOTTEN_AFTER_SECONDS = 60.0

_replicas = sa.Table(
    "eg_replicas",
    _metadata,
    sa.Column("owner", sa.String(256), primary_key=True),
    sa.Column("expires", sa.Double, nullable=False),
)
_connections = sa.Table(
    "eg_kernel_connections",
    _metadata,
    sa.Column("kernel_id", sa.String(128), primary_key=True),
    sa.Column("owner", sa.String(256), primary_key=True),
    sa.Column("connections", sa.Integer, nullable=False),
)
_notebooks = sa.Table(
    "eg_notebook_sessions",
    _metadata,
    sa.Column("session_id", sa.String(36), primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("name", sa.Text),
    sa.Column("type", sa.Text),
    sa.Column("kernel_id", sa.String(128), nullable=False, index=True),
    sa.Column("created_at", sa.Double, nullable=False),
)


class ReplicatedSqlStore(SqlStore):
    """A :class:`SqlStore` that replicas share.

    Transactions lock in one order, so that they never wait for each other in a circle: the counter of fencing tokens,
    then rows of leases, then all others.
    """

    # -- replicas -----------------------------------------------------------------------------------------------------

    def beat(
        self, owner: str, seconds: float, activity: Mapping[str, Activity], connections: Mapping[str, int]
    ) -> Beat:
        """Say that ``owner`` is there for ``seconds`` more; the one transaction of a replica's heartbeat.

        Parameters
        ----------
        activity
            What its kernels do, where that has changed.
        connections
            How many websockets it has for each kernel, where that has changed.
        """
        renewal = _leases.update().where(_leases.c.lease_owner == owner).values(lease_expires=self._now() + seconds)
        with self._transaction() as connection:
            renewed = connection.execute(renewal.returning(_leases.c.kernel_id, _leases.c.fencing_token))
            tokens = {row.kernel_id: row.fencing_token for row in renewed}
            for kernel_id, entry in activity.items():
                mine = sa.and_(_leases.c.kernel_id == kernel_id, _leases.c.lease_owner == owner)
                connection.execute(_leases.update().where(mine).values(entry._asdict()))
            self._forget_leases(connection)
            self._write_presence(connection, owner, seconds, connections)
            kernels = self._kernels(connection, owner)
            return Beat(tokens, kernels, {name: token for name, token in tokens.items() if name not in kernels})

    def _forget_leases(self, connection: sa.Connection) -> None:
        """Remove the leases of starts that replicas now gone never recorded."""
        recorded = sa.exists().where(_sessions.c.kernel_id == _leases.c.kernel_id)
        is_old = _leases.c.lease_expires < self._now() - _FORGOTTEN_AFTER_SECONDS
        # Another replica may be at the same: none waits for the other.
        old = sa.select(_leases.c.kernel_id).where(is_old, ~recorded).with_for_update(skip_locked=True)
        connection.execute(_leases.delete().where(_leases.c.kernel_id.in_(old)))

    def _write_presence(
        self, connection: sa.Connection, owner: str, seconds: float, connections: Mapping[str, int]
    ) -> None:
        values = {"expires": self._now() + seconds}
        presence = self._insert(_replicas).values(owner=owner, **values)
        connection.execute(presence.on_conflict_do_update(index_elements=["owner"], set_=values))
        for kernel_id, count in connections.items():
            row = self._insert(_connections).values(kernel_id=kernel_id, owner=owner, connections=count)
            key = ["kernel_id", "owner"]
            connection.execute(row.on_conflict_do_update(index_elements=key, set_={"connections": count}))
        forgotten = _replicas.c.expires < self._now() - _FORGOTTEN_AFTER_SECONDS
        connection.execute(_replicas.delete().where(forgotten))
        there = sa.exists().where(_replicas.c.owner == _connections.c.owner)
        connection.execute(_connections.delete().where(~there))
        # A count may have been told after another replica had removed the kernel.
        recorded = sa.exists().where(_sessions.c.kernel_id == _connections.c.kernel_id)
        connection.execute(_connections.delete().where(_connections.c.owner == owner, ~recorded))

    def leave(self, owner: str) -> None:
        """Give up everything that ``owner`` holds, so that others may take it at once."""
        with self._transaction() as connection:
            connection.execute(_leases.delete().where(_leases.c.lease_owner == owner))
            for table in (_replicas, _connections):
                connection.execute(table.delete().where(table.c.owner == owner))
            connection.execute(_reservations.delete().where(_reservations.c.lease_owner == owner))

    def clear_leases(self) -> None:
        """Give up all leases; for a gateway that is the only one."""
        with self._transaction() as connection:
            for table in (_leases, _replicas, _connections):
                connection.execute(table.delete())

    def kernels(self, owner: str, kernel_id: str | None = None) -> dict[str, StoredKernel]:
        """Return what ``owner`` has to know of all kernels, or of one."""
        with self._transaction(write=False) as connection:
            return self._kernels(connection, owner, kernel_id)

    def _kernels(self, connection: sa.Connection, owner: str, kernel_id: str | None = None) -> dict[str, StoredKernel]:
        now = self._now()
        elsewhere = (
            sa.select(_connections.c.kernel_id, sa.func.sum(_connections.c.connections).label("connections"))
            .join(_replicas, sa.and_(_replicas.c.owner == _connections.c.owner, _replicas.c.expires > now))
            .where(_connections.c.owner != owner)
            .group_by(_connections.c.kernel_id)
            .subquery()
        )
        session = _sessions.c
        query = (
            sa.select(
                session.kernel_id,
                session.kernel_name,
                session.state,
                session.saved_at,
                sa.case((_leases.c.lease_expires > now, _leases.c.lease_owner)).label("owner"),
                _leases.c.execution_state,
                _leases.c.last_activity,
                sa.func.coalesce(elsewhere.c.connections, 0).label("connections"),
            )
            .select_from(_sessions)
            .outerjoin(_leases, _leases.c.kernel_id == session.kernel_id)
            .outerjoin(elsewhere, elsewhere.c.kernel_id == session.kernel_id)
            .order_by(session.created_at)
        )
        if kernel_id is not None:
            query = query.where(session.kernel_id == kernel_id)
        return {row.kernel_id: StoredKernel(*row) for row in connection.execute(query)}

    def seize_lease(self, kernel_id: str, owner: str, seconds: float, *, by_force: bool) -> int | None:
        """Take the lease of a recorded kernel; return the fencing token, or None when it is not available.

        Parameters
        ----------
        by_force
            Take it also from a replica that holds it, unless that one is about to start, restart or stop the kernel.
        """
        with self._transaction() as connection:
            counter = _meta.update().where(_meta.c.name == "fencing_token").values(value=_meta.c.value + 1)
            token: int = connection.execute(counter.returning(_meta.c.value)).scalar_one()
            is_running = (_leases.c.lease_expires > self._now()).label("is_held")
            held = sa.select(_leases.c.lease_owner, _leases.c.execution_state, is_running)
            lease = connection.execute(held.where(_leases.c.kernel_id == kernel_id).with_for_update()).first()
            # Whoever writes the record locks the lease first: the state cannot change until our commit.
            state = connection.execute(sa.select(_sessions.c.state).where(_sessions.c.kernel_id == kernel_id)).scalar()
            is_held = lease is not None and lease.is_held and lease.lease_owner != owner
            is_at_rest = state == "running" or (lease is not None and lease.execution_state == "dead")
            if state is None or (is_held and not (by_force and is_at_rest)):
                return None
            values = new_lease(owner, self._now() + seconds, token)
            insert = self._insert(_leases).values(kernel_id=kernel_id, **values)
            connection.execute(insert.on_conflict_do_update(index_elements=["kernel_id"], set_=values))
            return token

    def _delete(self, connection: sa.Connection, kernel_id: str) -> None:
        super()._delete(connection, kernel_id)
        for table in (_connections, _notebooks):
            connection.execute(table.delete().where(table.c.kernel_id == kernel_id))

    # -- notebooks' sessions ------------------------------------------------------------------------------------------

    def load_notebooks(self) -> list[dict[str, Any]]:
        """Return the notebooks' sessions whose kernels are recorded, oldest first."""
        columns = [column for column in _notebooks.c if column.name != "created_at"]
        recorded = sa.exists().where(_sessions.c.kernel_id == _notebooks.c.kernel_id)
        with self._transaction(write=False) as connection:
            rows = connection.execute(sa.select(*columns).where(recorded).order_by(_notebooks.c.created_at))
            return [dict(row._mapping) for row in rows]

    def save_notebook(self, entry: Mapping[str, Any]) -> None:
        """Insert or replace a notebook's session."""
        insert = self._insert(_notebooks).values(**entry, created_at=self._now())
        with self._transaction() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["session_id"], set_=dict(entry)))

    def delete_notebook(self, session_id: str) -> None:
        """Remove a notebook's session."""
        with self._transaction() as connection:
            connection.execute(_notebooks.delete().where(_notebooks.c.session_id == session_id))
