"""A worker whose steps are done by hand: it claims as the real one does and says what comes of them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from tests.conftest import Cluster, People, Person, migrated_database
from vanilla_saas.database.pool import _prepare

Outcome = dict[str, Any]


@dataclass
class Step:
    """A claimed step."""

    claim: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.claim[name]

    def done(self, outcome: str = "succeeded", **fields: Any) -> Outcome:
        keys = ("lease", "attempt", "tenant_id", "execution_id", "n", "item", "node")
        return {key: self.claim[key] for key in keys} | {"outcome": outcome} | fields

    def failed(self, code: str = "tool_failed", *, retryable: bool = False) -> Outcome:
        return self.done("failed", error={"code": code, "message": "It failed.", "retryable": retryable})


@dataclass
class Hands:
    """One registered worker on its own connection of the runtime login."""

    connection: asyncpg.Connection
    worker: uuid.UUID
    state: dict[str, Any] = field(default_factory=dict)
    stale: list[int] = field(default_factory=list)

    async def tick(self, *done: Outcome, n: int = 10) -> list[Step]:
        """Tells outcomes and claims; leases that were lost are in `stale`."""
        answer = await self.connection.fetchval(
            "select vanilla.tick_worker($1, $2, $3, $4)", self.worker, list(done), n, self.state
        )
        self.state, self.stale = answer["state"], answer["stale"]
        return [Step(step) for step in answer["steps"]]

    async def one(self, *done: Outcome) -> Step:
        """The only step that can run now."""
        (step,) = await self.tick(*done)
        return step

    async def run(self, answer: Callable[[Step], Outcome], *done: Outcome, most: int = 1000) -> list[str]:
        """Answers until nothing is left to run; the names of what ran, in order."""
        ran: list[str] = []
        steps = await self.tick(*done)
        while steps:
            ran += [step.node for step in steps]
            assert len(ran) < most
            steps = await self.tick(*(answer(step) for step in steps))
        return ran


@dataclass
class Room:
    """A database of its own, so that no other test's steps are claimed."""

    cluster: Cluster
    name: str
    people: People
    owner: Person
    _turns: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def operator_turn(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """One after the other on the operator's connection, for workers side by side."""
        async with self._turns:
            return await act()

    @property
    def operator(self) -> asyncpg.Connection:
        return self.people.operator

    @asynccontextmanager
    async def worker(self, *pools: str, region: str = "", **labels: str) -> AsyncIterator[Hands]:
        connection = await asyncpg.connect(self.cluster.url("vanilla_runtime", self.name))
        await _prepare(connection)
        registered = "select vanilla.register_worker('hands', $1, 100, $2, $3, 'test')"
        yield Hands(connection, await connection.fetchval(registered, list(pools or ["default"]), labels, region))
        await connection.close()

    async def publish(self, definition: dict[str, Any], owner: Person | None = None) -> uuid.UUID:
        """The id of a new workflow, published as it stands."""
        owner = owner or self.owner
        saved = await self.operator.fetchval(
            "select save_workflow($1, $2, p_user_id => $3)",
            f"w{uuid.uuid4().hex[:12]}",
            {"name": "Test", **definition},
            owner.identity.user_id,
        )
        await self.operator.fetchval("select publish_workflow($1)", uuid.UUID(saved["id"]))
        return uuid.UUID(saved["id"])

    async def publish_next(self, workflow: uuid.UUID, definition: dict[str, Any]) -> int:
        """The number of the version that a definition becomes."""
        published = await self.operator.fetchval(
            "select publish_workflow($1, p_definition => $2)", workflow, {"name": "Test", **definition}
        )
        return int(published["version"])

    async def restart(self, execution_id: uuid.UUID, node: str | None = None, version: int | None = None) -> str:
        """The status it has then."""
        told = await self.operator.fetchval(
            "select restart_execution($1, $2, p_version => $3)", execution_id, node, version
        )
        return str(told["status"])

    async def start(self, workflow: uuid.UUID, *, person: Person | None = None, **values: Any) -> uuid.UUID:
        started = await self.operator.fetchval(
            "select start_workflow($1, $2, p_user_id => $3)", workflow, values, person and person.identity.user_id
        )
        return uuid.UUID(started["execution_id"])

    async def execution(self, execution_id: uuid.UUID) -> dict[str, Any]:
        """What execution_progress says, its steps by node."""
        found: dict[str, Any] = await self.operator.fetchval("select execution_progress($1)", execution_id)
        found["steps"] = {step["node"]: step for step in found["steps"]}
        return found

    async def tend(self) -> int:
        count: int = await self.operator.fetchval("select vanilla.tend_workflows()")
        return count

    async def pass_time(self, execution_id: uuid.UUID) -> int:
        """Lets every timer of an execution be due."""
        await self.operator.execute(
            "update workflow_timers set due_at = vanilla.clock() - interval '1 ms' where execution_id = $1",
            execution_id,
        )
        return await self.tend()


@asynccontextmanager
async def room(cluster: Cluster) -> AsyncIterator[Room]:
    async with migrated_database(cluster, "runner") as name:
        operator = await asyncpg.connect(cluster.url(database=name))
        await _prepare(operator)
        people = People(operator)
        yield Room(cluster, name, people, await people.user(balance=100_000))
        await operator.close()


def workflow(nodes: str, connections: str = "", **more: Any) -> dict[str, Any]:
    """`a b` are transform nodes, `c=gate` another kind; `a>b b>c:failed` connects them; `more`: fields by node."""
    made = []
    for name in nodes.split():
        id_, _, kind = name.partition("=")
        fields = more.pop(id_, {})
        made.append({"id": id_, "kind": kind or "transform"} | ({} if kind else {"value": "1"}) | fields)
    links = [link.partition(":") for link in connections.split()]
    ends = [(*link.split(">"), branch) for link, _, branch in links]
    edges = [{"from": a, "to": b} | ({"on": on} if on else {}) for a, b, on in ends]
    return {"nodes": made, "connections": edges, **more}
