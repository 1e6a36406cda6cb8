"""Locks are taken in one order: the tree, its hold, the wallet. Who comes from the wallet waits for no tree."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.concurrency.test_wallet import connections
from tests.conftest import Cluster
from tests.orchestration.support import Trees
from tests.processes import eventually
from tests.tokens.support import START

NODE = "select from resource_allocations where id = $1 for no key update"
HOLD = "select from user_token_holds where reference_id = $1 and state = 'open' for update"
WALLET = "select from user_token_wallets where user_id = $1 for update"
WAITING = """
    select count(*) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock' and query like $1
"""


@pytest.fixture
async def two(cluster: Cluster, forest_name: str) -> AsyncIterator[list[asyncpg.Connection]]:
    async with connections(cluster, forest_name, 2) as opened:
        for connection in opened:
            await Trees(connection).at(START)
        yield opened


async def test_a_settlement_that_waits_for_the_wallet_has_its_node_and_the_trees_hold(
    trees: Trees, two: list[asyncpg.Connection]
) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 500)
    child = await trees.carve(root, 100)
    step = await trees.hold(child, "a", 50)
    one, other = two
    async with one.transaction():
        await one.execute(WALLET, user.id)
        settling = asyncio.create_task(Trees(other).pay(step, 10))
        await eventually(lambda: waiting(trees, "%allocation_settle%"))
        for statement, node in ((NODE, child), (HOLD, root)):
            with pytest.raises(asyncpg.LockNotAvailableError):
                await trees.connection.execute(f"{statement} nowait", uuid.UUID(node["allocation_id"]))
        await trees.connection.execute(f"{NODE} nowait", uuid.UUID(root["allocation_id"]))
    assert (await settling)["settled"] == 10


async def test_a_step_that_is_held_waits_for_nobody_at_the_wallet(trees: Trees, two: list[asyncpg.Connection]) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 500)
    async with two[0].transaction():
        await two[0].execute(WALLET, user.id)
        await two[0].execute(HOLD, uuid.UUID(root["allocation_id"]))
        child = await asyncio.wait_for(trees.carve(root, 100), 10)
        await asyncio.wait_for(trees.release(await trees.hold(child, "a", 50)), 10)
        await asyncio.wait_for(trees.close(child), 10)


async def test_taking_the_hold_of_a_tree_back_waits_for_none_of_its_nodes(
    trees: Trees, two: list[asyncpg.Connection]
) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 500)
    child = await trees.carve(root, 100)
    async with two[0].transaction():
        for node in (root, child):
            await two[0].execute(NODE, uuid.UUID(node["allocation_id"]))
        hold = (await trees.node(root))["hold_id"]
        await asyncio.wait_for(trees.connection.fetchval("select release_token_hold($1)", hold), 10)
    assert await trees.figures(user) == (1000, 0, 0)


@pytest.mark.parametrize("what", ["the root", "a child", "the hold"])
async def test_the_job_passes_by_a_tree_that_somebody_is_at(
    trees: Trees, two: list[asyncpg.Connection], what: str
) -> None:
    root = await trees.open(await trees.user(balance=1000), 500, {"wall_ms": 60_000})
    child = await trees.carve(root, 100, limits={"wall_ms": 120_000})
    await trees.hold(child, "a", 50)
    await trees.later(seconds=90)
    statement, node = {"the root": (NODE, root), "a child": (NODE, child), "the hold": (HOLD, root)}[what]
    async with two[0].transaction():
        await two[0].execute(statement, uuid.UUID(node["allocation_id"]))
        await asyncio.wait_for(trees.reap_trees(), 10)
        assert (await trees.node(root))["state"] == "open"
        assert await trees.broken() == []
    await trees.reap_trees()
    assert [(await trees.node(node))["state"] for node in (root, child)] == ["expired"] * 2


async def waiting(trees: Trees, query: str) -> bool:
    return bool(await trees.connection.fetchval(WAITING, query))
