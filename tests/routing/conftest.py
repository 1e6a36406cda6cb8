"""A database of its own for workers: they are the platform's, and tests here bury them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from tests.workflows.conftest import desk
from tests.workflows.hands import Room, workflow
from vanilla_saas.database.pool import _prepare

__all__ = ["desk"]

TICK = "select vanilla.tick_worker($1, '[]', 10, '{}')"


@dataclass
class Workers:
    """A superuser's connection, what tests do with workers there, and executions for them to have steps of."""

    connection: asyncpg.Connection
    desk: Room

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
        return await self.connection.fetchval("select (vanilla.worker_allowance($1, $2)).allowed", worker, n)

    async def bury(self) -> list[uuid.UUID]:
        return await self.connection.fetchval("select vanilla.bury_workers()")

    async def silent(self, worker: uuid.UUID, seconds: float) -> None:
        """As if the last heartbeat were so long ago."""
        await self.connection.execute(
            "update worker_registry set heartbeat_at = vanilla.clock() - make_interval(secs => $2) where id = $1",
            worker,
            seconds,
        )

    async def ready(self, *nodes: str) -> None:
        """Lets steps of these names wait for a worker."""
        await self.desk.start(await self.desk.publish(workflow(" ".join(nodes))))

    async def claim(self, worker: uuid.UUID, *nodes: str) -> None:
        """Gives a worker steps of these names."""
        await self.ready(*nodes)
        answer = await self.connection.fetchval(TICK, worker)
        assert sorted(step["node"] for step in answer["steps"]) == sorted(nodes)

    async def claimed(self) -> list[uuid.UUID]:
        """Whose the claimed steps are."""
        rows = await self.connection.fetch("select worker from workflow_queue where worker is not null")
        return [row["worker"] for row in rows]

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
        connection = await asyncpg.connect(self.desk.cluster.url(user, self.desk.name))
        await _prepare(connection)
        try:
            yield connection
        finally:
            await connection.close()


@pytest.fixture
async def workers(desk: Room) -> AsyncIterator[Workers]:
    await desk.operator.execute("delete from worker_registry")
    yield Workers(desk.operator, desk)
    await desk.operator.execute("select cancel_execution(id) from workflow_executions where finished_at is null")
