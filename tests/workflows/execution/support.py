"""Steps in one line, admissions without a database, and what came of a step."""

import asyncio
import uuid
from itertools import pairwise
from typing import Any

import orjson

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.workflows.definition import Definition
from vanilla_saas.workflows.execution.plan import Plan
from vanilla_saas.workflows.execution.steps import Step

TENANT = "00000000-0000-7000-8000-000000000001"
EXECUTION = "00000000-0000-7000-8000-0000000000e1"
WORKER = "00000000-0000-7000-8000-0000000000ee"


def plan(*nodes: dict[str, Any], connections: list[dict[str, Any]] | None = None, **fields: Any) -> Plan:
    """A definition of these nodes, in a line when no connections are given."""
    if connections is None:
        ids = [node["id"] for node in nodes]
        connections = [{"from": a, "to": b} for a, b in pairwise(ids)]
    return Plan.of(Definition.model_validate({"name": "W", "nodes": list(nodes), "connections": connections, **fields}))


def step(node: str = "a", **fields: Any) -> Step:
    given = {
        "lease": 7,
        "attempt": 2,
        "tenant_id": TENANT,
        "execution_id": EXECUTION,
        "workflow_id": "00000000-0000-7000-8000-0000000000f1",
        "version": 1,
        "user_id": "00000000-0000-7000-8000-0000000000d1",
        "node": node,
        "item": None,
        "timeout_s": 10,
        "input": {},
        "steps": {},
        "execution": {"id": "e1", "user_id": "d1", "started_at": "2026-01-01T00:00:00Z"},
    }
    return Step.from_json(given | fields)


def done(output: Any, **fields: Any) -> dict[str, Any]:
    return {"output": output, "status": "succeeded", "branch": None, "error": None, **fields}


def script(**fields: Any) -> str:
    """What makes the sandbox answer so."""
    return f"sandbox: {orjson.dumps(fields).decode()}"


class Admissions:
    """Answers `vanilla.admit_call` as the database does."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.statements: list[str] = []
        self.refusal: VanillaError | None = None
        self.kind, self.base_url = "sandbox", None
        self.delay: asyncio.Event | None = None
        """Set: it answers once this is."""

    async def call(self, statement: str, *arguments: Any) -> dict[str, Any]:
        self.statements.append(statement)
        self.asked.append(arguments)
        if self.delay is not None:
            await self.delay.wait()
        if self.refusal is not None:
            raise self.refusal
        return {
            "tenant_id": TENANT,
            "user_id": TENANT,
            "hold_id": str(uuid.uuid4()),
            "reserved": 100,
            "available": 1000,
            "output_limit": 4096 if arguments[6] is None else arguments[6],
            "provider_tenant_id": TENANT,
            "provider_id": TENANT,
            "provider": self.kind,
            "kind": self.kind,
            "base_url": self.base_url,
            "secret": None,
            "upstream_model": arguments[3],
            "rate": None,
        }
