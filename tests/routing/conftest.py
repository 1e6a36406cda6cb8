"""A database of its own for workers: they are the platform's, and tests here bury them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cluster, migrated_database
from vanilla_saas.database.pool import _prepare

LEASES = """
create table public.test_leases (worker_id uuid not null, step text not null);
drop function if exists vanilla.reclaim_leases(uuid);
create function vanilla.reclaim_leases(p_worker uuid) returns integer language plpgsql as $f$
declare
    v_taken integer;
begin
    delete from public.test_leases where worker_id = p_worker;
    get diagnostics v_taken = row_count;
    return v_taken;
end
$f$;
grant all on public.test_leases to vanilla_definer;
grant execute on function vanilla.reclaim_leases(uuid) to vanilla_definer;
"""
"""What the queue of 006 gives back, in its place."""


@dataclass
class Workers:
    """A superuser's connection, and what tests do with workers there."""

    connection: asyncpg.Connection
    cluster: Cluster
    name: str

    async def register(self, name: str = "one", **more: Any) -> uuid.UUID:
        asked: dict[str, Any] = {
            "pools": ["default"],
            "capacity": 10,
            "labels": {},
            "region": "",
            "release": "1",
        } | more
        return await self.connection.fetchval(
            "select vanilla.register_worker($1, $2, $3, $4, $5, $6)", name, *asked.values()
        )

    async def beat(self, worker: uuid.UUID, **report: Any) -> dict[str, Any]:
        return await self.connection.fetchval("select vanilla.heartbeat_worker($1, $2)", worker, report)

    async def allowance(self, worker: uuid.UUID, n: int = 10) -> int:
        return await self.connection.fetchval("select vanilla.worker_allowance($1, $2)", worker, n)

    async def bury(self) -> list[uuid.UUID]:
        return await self.connection.fetchval("select vanilla.bury_workers()")

    async def silent(self, worker: uuid.UUID, seconds: float) -> None:
        """As if the last heartbeat were so long ago."""
        await self.connection.execute(
            "update worker_registry set heartbeat_at = vanilla.clock() - make_interval(secs => $2) where id = $1",
            worker,
            seconds,
        )

    async def row(self, worker: uuid.UUID) -> asyncpg.Record:
        return await self.connection.fetchrow("select * from worker_registry where id = $1", worker)

    async def events(self, worker: uuid.UUID) -> list[tuple[str, str | None, str]]:
        rows = await self.connection.fetch(
            "select event, from_status, to_status from worker_event_logs where worker_id = $1 order by created_at, id",
            worker,
        )
        return [tuple(row) for row in rows]

    @asynccontextmanager
    async def another(self, user: str = "postgres") -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.cluster.url(user, self.name))
        await _prepare(connection)
        try:
            yield connection
        finally:
            await connection.close()


@pytest.fixture(scope="module")
async def workers_database(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster, "workers") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await connection.execute(LEASES)
        await connection.close()
        yield name


@pytest.fixture
async def workers(cluster: Cluster, workers_database: str) -> AsyncIterator[Workers]:
    connection = await asyncpg.connect(cluster.url(database=workers_database))
    await _prepare(connection)
    await connection.execute("delete from worker_registry; delete from test_leases")
    yield Workers(connection, cluster, workers_database)
    await connection.close()
