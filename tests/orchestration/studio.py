"""A tenant with agents that the sandbox plays by scripts, and an API with a worker beside it that runs them."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cluster, Person, serve, settings_for
from tests.engines.shop import Shop, shop
from vanilla_saas.app import create_app
from vanilla_saas.orchestration.definition import AgentDefinition
from vanilla_saas.workflows import working

BOTH_LOOPS = ("builtin", "pydantic_ai")
"""As `LOOPS` of a module: its desk's agents are driven by each of the two; without it by the built-in one."""


def calls(*wanted: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A turn in which the model calls tools: `calls(("refund", {"amount": 5}))`."""
    return {"tool_calls": [{"name": name, "arguments": arguments} for name, arguments in wanted], **more}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"reply": text, **more}


def agent(*turns: dict[str, Any], instructions: str = "You help.", **more: Any) -> dict[str, Any]:
    """A definition whose model does the given turns, counted over the whole conversation."""
    text = instructions + ("\nsandbox: " + json.dumps({"turns": turns}) if turns else "")
    # a template would read the braces
    return {"instructions": "{% raw %}" + text + "{% endraw %}", "model": "sandbox-small", **more}


@dataclass
class Studio:
    shop: Shop
    address: str
    loop: str = "builtin"
    """Who drives the agents that are saved here."""

    async def save(
        self, definition: dict[str, Any], slug: str | None = None, who: Person | None = None, **more: Any
    ) -> str:
        slug = slug or f"a{uuid.uuid4().hex[:10]}"
        document = AgentDefinition.model_validate({"loop": self.loop, **definition}).document()
        await self.shop.ask(who or self.shop.admin, "save_agent", slug, document, **{"p_shared": True} | more)
        return slug

    async def start(self, who: Person, ref: str, message: str = "Hello", **more: Any) -> uuid.UUID:
        found = await self.shop.ask(who, "start_agent", ref, {"message": message}, **more)
        return uuid.UUID(found["run_id"])

    async def run(self, run_id: uuid.UUID) -> dict[str, Any]:
        return dict(await self.shop.operator.fetchrow("select * from agent_runs where id = $1", run_id))

    async def ended(self, run_id: uuid.UUID, seconds: float = 20) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while (found := await self.run(run_id))["finished_at"] is None:
                await asyncio.sleep(0.02)
        return found

    async def steps(self, run_id: uuid.UUID) -> list[dict[str, Any]]:
        rows = await self.shop.operator.fetch("select * from agent_run_steps where run_id = $1 order by n", run_id)
        return [dict(row) for row in rows]

    async def charged(self, run_id: uuid.UUID) -> int:
        """What the ledger says that the tree of a run was charged."""
        return int(
            await self.shop.operator.fetchval(
                """
                select coalesce(sum((l.metadata ->> 'actual')::bigint), 0) from agent_runs r
                join user_token_ledger l on l.tenant_id = r.tenant_id and l.reference_id = r.execution_id
                where r.root_run_id = $1 and l.direction = 'settle' and l.reference_type = 'workflow_execution'
                """,
                run_id,
            )
        )


@asynccontextmanager
async def studio(cluster: Cluster, home: Path, loop: str = "builtin", **more: Any) -> AsyncIterator[Studio]:
    """`more` are settings."""
    async with shop(cluster) as made:
        more = {"run_worker": True, "worker_tools": ["tests.orchestration.hands"]} | more
        settings = settings_for(cluster, made.room.name, home, **more)
        with pytest.MonkeyPatch.context() as patch:
            # nobody waits for the answers that are still to come when a module ends
            patch.setattr(working, "BESIDE_DRAIN_S", 0.2)
            async with serve(create_app(settings)) as address:
                yield Studio(made, address, loop)
