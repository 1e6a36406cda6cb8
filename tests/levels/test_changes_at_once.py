"""Two at once: changes of one user come one after the other, and a job that two schedulers run does its work once."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cluster
from tests.levels.change_support import Changes
from tests.tokens.support import START, Books
from vanilla_saas.database.pool import _prepare

DAY = timedelta(days=1)
WAITS = "select count(*) from pg_stat_activity where application_name = $1 and wait_event_type = 'Lock'"


@pytest.fixture
async def changes(books: Books) -> Changes:
    made = Changes(books, await books.user())
    await made.level("low", 1, {"monthly": 1000}, plan=3100)
    await made.level("high", 2, {"monthly": 3100}, plan=31000)
    for start in ("free", "low", "high"):
        for end in ("free", "low", "high"):
            if start != end:
                await made.path(start, end)
    return made


@asynccontextmanager
async def others(cluster: Cluster, name: str, count: int, at: Any = START) -> AsyncIterator[list[asyncpg.Connection]]:
    """Connections of their own at a moment, all under one application name."""
    mark = f"lc{uuid.uuid4().hex[:8]}"
    made = [
        await asyncpg.connect(cluster.url(database=name), server_settings={"application_name": mark})
        for _ in range(count)
    ]
    try:
        for connection in made:
            await _prepare(connection)
            await Books(connection).at(at)
        yield made
    finally:
        for connection in made:
            await connection.close()


async def test_of_changes_at_the_same_moment_each_finds_what_the_one_before_left(
    changes: Changes, cluster: Cluster, clocked_name: str
) -> None:
    """Eight go round between two levels at once: who finds itself there is refused, and the sum is right."""
    await changes.change("low", currency="EUR")
    call = "select change_user_level($1, $2, p_currency => 'EUR')"
    async with others(cluster, clocked_name, 8) as connections:

        async def one(n: int, connection: asyncpg.Connection) -> int:
            level = changes.user.levels["high" if n % 2 else "low"]
            try:
                done = await connection.fetchval(call, changes.user.id, level)
            except asyncpg.PostgresError as refused:
                if refused.sqlstate != "VS409":
                    raise
                return 0
            return int(done["due"])

        due = await asyncio.gather(*(one(n, connection) for n, connection in enumerate(connections)))
    ends = {"low": 1000, "high": 3100}[await changes.slug()]
    assert 1000 + sum(due) == sum((await changes.totals()).values()) == ends
    assert sum(1 for amount in due if amount) >= 1
    granted = (await changes.books.figures(changes.user))[0]
    plan = {1000: 3100, 3100: 31000}[ends]
    assert granted == plan * 61 // 62  # of the calendar month, of which half a day is over


async def test_the_second_of_two_changes_waits_and_one_key_changes_once(
    changes: Changes, cluster: Cluster, clocked_name: str
) -> None:
    call = "select change_user_level($1, $2, p_currency => 'EUR', p_idempotency_key => 'same')"
    high = changes.user.levels["high"]
    async with others(cluster, clocked_name, 2) as (first, second):
        mark = await second.fetchval("select current_setting('application_name')")
        transaction = first.transaction()
        await transaction.start()
        done = await first.fetchval(call, changes.user.id, high)
        waiting = asyncio.create_task(second.fetchval(call, changes.user.id, high))
        async with asyncio.timeout(20):
            while not await changes.connection.fetchval(WAITS, mark):
                await asyncio.sleep(0.01)
        await transaction.commit()
        assert await waiting == done | {"replayed": True}
    assert await changes.lines() == [("charge", "high", 3100)]


async def test_two_schedulers_carry_a_change_out_once_and_neither_waits_for_who_has_the_wallet(
    changes: Changes, cluster: Cluster, clocked_name: str
) -> None:
    await changes.change("high", currency="EUR")
    await changes.change("low", "period_end")
    job = "select vanilla.job_level_changes(100)"
    async with others(cluster, clocked_name, 3, START + 32 * DAY) as (first, second, third):
        transaction = first.transaction()
        await transaction.start()
        await first.fetchval(job)
        await second.execute("set lock_timeout = '5s'")
        await second.fetchval(job)  # at once: the wallet is somebody's
        await transaction.commit()
        await asyncio.gather(second.fetchval(job), third.fetchval(job))
    assert await changes.lines() == [("charge", "high", 3100), ("charge", "low", 1000)]
    assert await changes.slug() == "low"


async def test_a_change_and_a_new_policy_of_its_level_do_not_wait_for_each_other_for_good(
    changes: Changes, cluster: Cluster, clocked_name: str
) -> None:
    """Both lock the policy before the wallet: what is due at the change needs no policy it has not locked."""
    await changes.change("high", currency="EUR")
    await changes.change("low", "period_end")
    policy = "select set_level_token_policy($1, 0, $3, p_tenant_id => $2)"
    async with others(cluster, clocked_name, 4, START + 32 * DAY) as connections:
        await asyncio.gather(
            *(
                c.fetchval(policy, changes.user.levels[slug], changes.user.tenant_id, 5000)
                for c, slug in zip(connections, ("low", "high", "low"), strict=False)
            ),
            connections[3].fetchval("select vanilla.job_level_changes(100)"),
        )
    await changes.books.at(START + 32 * DAY)
    await changes.job()
    assert await changes.slug() == "low"
