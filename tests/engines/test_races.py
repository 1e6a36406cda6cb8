"""Copies of one user that are made at the same time: all are made, and one of them is the default."""

import asyncio

import asyncpg

from tests.engines.shop import SIGNER, Shop
from vanilla_saas.database.pool import _prepare

AT_ONCE, ROUNDS = 6, 15


async def test_copies_made_at_once_meet_at_the_user_and_none_is_refused(floor: Shop) -> None:
    engine, user = await floor.deploy(), await floor.person()
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

    async with asyncio.TaskGroup() as group:
        for place in range(AT_ONCE):
            group.create_task(fork(place))
    for connection in connections:
        await connection.close()
    told = "select count(*), count(*) filter (where is_default) from user_engines where user_id = $1"
    assert tuple(await floor.operator.fetchrow(told, user.identity.user_id)) in ((AT_ONCE, 1), (AT_ONCE, 0))
