"""Trees of runs for one wallet, four workers, and people who cancel, add tokens and look for what is over: all at once.

Nobody waits for who waits for them: PostgreSQL finds no deadlock, also none that the product would try again after.
"""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from tests.concurrency.test_wallet import connections
from tests.conftest import LONG, Cluster, Person, as_person, serve, settings_for
from tests.engines.shop import shop
from tests.orchestration.recorder import recorder
from tests.orchestration.studio import Studio, agent, calls, says
from tests.processes import eventually
from tests.workflows.proof.invariants import require_invariants
from vanilla_saas.app import create_app
from vanilla_saas.checks import BOOKS, run_checks

SECONDS = 120 if LONG else 6
AT_ONCE = 25
BALANCE = 10**9
LATE_MS = 5
DEADLOCKS = "select pg_stat_force_next_flush(), (select deadlocks from pg_stat_database where datname = $1)"


OTHERS = (
    "select count(*) from pg_stat_activity where datname = $1 and backend_type = 'client backend' and pid <> all($2)"
)


@dataclass
class Crowd(Studio):
    """A studio with four workers, in a database that looks for deadlocks soon."""

    servers: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def deadlocks(self) -> int:
        """Since the database was made. A connection has told its own when it is gone, so nobody works any more."""
        await self.servers.aclose()
        operator, name = self.shop.operator, self.shop.room.name
        mine = [one.get_server_pid() for one in (operator, self.shop.app, self.shop.runtime)]

        async def alone() -> bool:
            return not await operator.fetchval(OTHERS, name, mine)

        await eventually(alone, 20, lambda: "connections are still open")
        return int((await operator.fetchrow(DEADLOCKS, name))["deadlocks"])


@pytest.fixture(scope="module")
async def crowd(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Crowd]:
    home = tmp_path_factory.mktemp("home")
    async with recorder() as sandbox, shop(cluster) as made, AsyncExitStack() as servers:
        name = made.room.name
        await made.operator.execute(f"alter database \"{name}\" set deadlock_timeout = '50 ms'")
        more: dict[str, Any] = {"run_worker": True, "worker_tools": ["tests.orchestration.hands"]}
        for _ in range(4):
            settings = settings_for(cluster, name, home, sandbox_url=sandbox.url, **more)
            address = await servers.enter_async_context(serve(create_app(settings)))
        yield Crowd(made, address, servers=servers)


class Hunt:
    """Who does what; refusals are counted by code, all else that goes wrong is in `failures`."""

    def __init__(self, desk: Studio, person: Person, slugs: list[str], seed: int) -> None:
        self.desk, self.person, self.slugs = desk, person, slugs
        self.dice = random.Random(seed)
        self.refused: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.ends = time.monotonic() + SECONDS

    async def repeat(self, name: str, act: Callable[[], Awaitable[Any]], pause: float) -> None:
        while time.monotonic() < self.ends:
            try:
                await act()
                self.done[name] += 1
            except asyncpg.PostgresError as error:
                told = self.refused if str(error.sqlstate).startswith("VS") else self.failures
                told[f"{name} {error.sqlstate} {error.args[0]}"] += 1
                if told is self.failures:
                    print(name, error.as_dict())
            await asyncio.sleep(pause * self.dice.random())

    async def start(self, connection: asyncpg.Connection) -> None:
        going = "select count(*) from agent_runs where finished_at is null and parent_run_id is null"
        if await connection.fetchval(going) < AT_ONCE:
            given = {"message": "Go"}
            async with as_person(connection, self.person):
                await connection.fetchval("select start_agent($1, $2)", self.dice.choice(self.slugs), given)

    async def cancel(self, connection: asyncpg.Connection) -> None:
        """Any execution of the tree: its root, or a child of which its parent waits to hear."""
        some = "select execution_id from agent_runs where finished_at is null order by random() limit 1"
        found = await connection.fetchval(some)
        if found is not None:
            async with as_person(connection, self.person):
                await connection.fetchval("select cancel_execution($1)", found)

    async def top_up(self, connection: asyncpg.Connection) -> None:
        some = "select id from resource_allocations where state = 'open' order by random() limit 1"
        found = await connection.fetchval(some)
        if found is not None:
            async with as_person(connection, self.person):
                await connection.fetchval("select allocation_top_up($1, 10)", found)

    async def bury(self, connection: asyncpg.Connection) -> None:
        """A worker that lives is thought dead."""
        await connection.execute(
            "update worker_registry set heartbeat_at = now() - interval '1 minute' where id in ("
            " select id from worker_registry where status in ('registered', 'active') order by random() limit 1)"
        )
        await connection.fetchval("select vanilla.bury_workers()")


async def casts(desk: Studio) -> list[str]:
    """Trees of three levels, loops that run out, and handovers."""
    mark = uuid.uuid4().hex[:8]
    leaf, middle, poor = f"leaf-{mark}", f"middle-{mark}", f"poor-{mark}"
    late = {"latency_ms": LATE_MS}
    save = desk.save
    await save(agent(calls(("tick", {}), **late), says("Leaf.", **late), tools=["tick"]), leaf)
    two = calls(*((f"delegate_to_{leaf}", {"message": f"{n}"}) for n in range(2)), **late)
    await save(agent(two, says("Middle.", **late), delegates=[leaf]), middle)
    endless = calls(("tick", {}), completion_tokens=300, **late)
    await save(agent(endless, tools=["tick"], limits={"tokens": 3000, "turns": 1000}), poor)
    asked = [(f"delegate_to_{who}", {"message": f"{n}"}) for n, who in enumerate((middle, middle, leaf, poor))]
    boss = await save(agent(calls(*asked, **late), says("All.", **late), delegates=[middle, leaf, poor]))
    front = await save(agent(calls((f"transfer_to_{boss}", {}), ("tick", {})), tools=["tick"], handoffs=[boss]))
    return [boss, front, middle, poor]


async def test_nobody_waits_for_who_waits_for_them(crowd: Crowd, cluster: Cluster) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    operator, name = crowd.shop.operator, crowd.shop.room.name
    person = await crowd.shop.person(balance=BALANCE)
    hunt = Hunt(crowd, person, await casts(crowd), seed)
    async with connections(cluster, name, 8) as crew:
        starters, cancellers, (adder, reaper, burier) = crew[:3], crew[3:5], crew[5:]
        await asyncio.gather(
            *(hunt.repeat("start", lambda c=c: hunt.start(c), 0.02) for c in starters),  # type: ignore[misc]
            *(hunt.repeat("cancel", lambda c=c: hunt.cancel(c), 0.4) for c in cancellers),  # type: ignore[misc]
            hunt.repeat("top up", lambda: hunt.top_up(adder), 0.1),
            hunt.repeat("reap", lambda: reaper.fetchval("select allocation_reap()"), 0.1),
            hunt.repeat("bury", lambda: hunt.bury(burier), 2),
        )
    left = "select count(*) from agent_runs where finished_at is null"

    async def over() -> bool:
        return not await operator.fetchval(left)

    await eventually(over, 90, lambda: "runs did not end")
    print(hunt.done, hunt.refused)
    assert hunt.failures == {}
    assert await crowd.deadlocks() == 0
    ends = Counter(tuple(row) for row in await operator.fetch("select state, stop_reason from agent_runs"))
    print(ends)
    assert ends["completed", "done"] > 20
    assert ends["canceled", "canceled"] > 5
    await require_invariants(operator)
    assert [str(one) for one in await run_checks(operator, BOOKS)] == []
    held = "select count(*) from resource_allocations where state = 'open' or held_tokens + carved_tokens > 0"
    assert await operator.fetchval(held) == 0
    charged = await operator.fetchval("select sum(charged_tokens) from agent_runs")
    wallet = await crowd.shop.room.people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (BALANCE - charged, 0)
