"""Engines and agents that are called by another protocol, over HTTP: who calls them, and what is waited for."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from tests.conftest import Cluster, Person, serve, settings_for
from tests.engines.shop import shop
from tests.orchestration.studio import Studio
from vanilla_saas.app import create_app

INPUT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
WAITS = {"nodes": [{"id": "s", "kind": "signal", "signal": "go"}], "connections": []}
RUNS = "select count(*) from workflow_executions where user_id = $1"
_LATEST = "select id, status from workflow_executions where user_id = $1 order by id desc limit 1"


@dataclass
class Served(Studio):
    app: FastAPI | None = None

    async def latest(self, who: Person, status: str) -> uuid.UUID:
        """The last run of a user, as soon as it is in a status."""
        async with asyncio.timeout(10):
            while (row := await self.shop.operator.fetchrow(_LATEST, who.identity.user_id)) is None or row[1] != status:
                await asyncio.sleep(0.02)
        return row["id"]

    async def nobody_waits(self) -> None:
        async with asyncio.timeout(10):
            while self.app.state.streams.open:
                await asyncio.sleep(0.02)

    async def runs(self, who: Person) -> int:
        return int(await self.shop.operator.fetchval(RUNS, who.identity.user_id))


@asynccontextmanager
async def served(cluster: Cluster, home: Path, **more: Any) -> AsyncIterator[Served]:
    """`more` are settings."""
    async with shop(cluster) as made:
        tools = ["tests.orchestration.hands"]
        app = create_app(settings_for(cluster, made.room.name, home, run_worker=True, worker_tools=tools, **more))
        async with serve(app) as address:
            yield Served(made, address, app=app)
