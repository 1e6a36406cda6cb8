"""Copies of one user that are made and moved at the same time: all are made, one of them is the default, nobody waits in a ring."""

import asyncio

import asyncpg

from tests.engines.shop import SIGNER, Shop
from vanilla_saas.database.pool import _prepare

AT_ONCE, ROUNDS = 6, 15


async def test_copies_made_at_once_meet_at_the_user_and_none_is_refused(floor: Shop) -> None:
    engine, user = await floor.deploy(), await floor.person()
    await floor.deploy_again(engine)
    connections = [
        await asyncpg.connect(floor.room.cluster.url("vanilla_app", floor.room.name)) for _ in range(AT_ONCE)
    ]
    for connection in connections:
        await _prepare(connection)

    async def fork(place: int) -> None:
        connection = connections[place]
        for n in range(ROUNDS):
            async with connection.transaction():
                await connection.execute("select vanilla.set_context($1)", SIGNER.sign(user.identity))
                await connection.fetchval("select fork_engine($1, $2, '{}', $3)", engine.slug, f"c{place}", n % 2 == 0)

    async def move() -> None:
        connection = await asyncpg.connect(floor.room.cluster.url("vanilla_app", floor.room.name))
        for n in range(ROUNDS):
            async with connection.transaction():
                await connection.execute("select vanilla.set_context($1)", SIGNER.sign(floor.admin.identity))
                await connection.fetchval("select rebase_engine_copies($1, $2)", engine.id, str(1 + n % 2))
        await connection.close()

    async with asyncio.TaskGroup() as group:
        for place in range(AT_ONCE):
            group.create_task(fork(place))
        for _ in range(2):
            group.create_task(move())
    for connection in connections:
        await connection.close()
    told = "select count(*), count(*) filter (where is_default) from user_engines where user_id = $1"
    assert tuple(await floor.operator.fetchrow(told, user.identity.user_id)) == (AT_ONCE, 1)
