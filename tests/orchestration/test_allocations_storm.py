"""Everybody at the same trees at once, with repetitions and violence: no token too many or lost."""

import asyncio
import sys
import time
from datetime import timedelta

import asyncpg

from tests.conftest import LONG, Cluster
from tests.orchestration.storm import Storm
from tests.orchestration.support import Trees

OPERATIONS, CLIENTS = (1_000_000, 64) if LONG else (50_000, 16)
"""Operations with those of the processes that are killed, of which what they had told counts."""
TWICE = """
    select metadata ->> 'allocation_hold' from user_token_ledger
    where reference_type = 'resource_allocation' and direction = 'settle' and user_id = any ($1)
    group by 1 having count(*) > 1
"""
CONSTANT = """
    select user_id, available_tokens + reserved_tokens + spent_tokens - borrowed_tokens as total
    from user_token_wallets where user_id = any ($1)
"""
BACKENDS = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and query like '%vanilla.allocation_%'
    order by md5(pid::text || $1) limit 2
"""


async def strike(storm: Storm, operator: asyncpg.Connection, process: list[str]) -> int:
    """Ends connections and kills a process of clients again and again; returns how many processes."""
    killed = 0
    while storm.going:
        client = await asyncio.create_subprocess_exec(
            *process, str(killed), *storm_payers(storm), stdout=asyncio.subprocess.PIPE
        )
        assert client.stdout is not None
        await client.stdout.readline()
        for beat in range(4):
            await asyncio.sleep(0.5)
            await operator.execute(BACKENDS, f"{killed}.{beat}")
        client.kill()
        told, _ = await client.communicate()
        storm.take(sum(map(int, told.split())))
        killed += 1
    return killed


def storm_payers(storm: Storm) -> list[str]:
    return [str(id_) for payer in storm.payers for id_ in payer]


async def test_in_a_storm_no_node_overspends_no_step_is_charged_twice_and_nothing_leaks(
    cluster: Cluster, forest_name: str, trees: Trees
) -> None:
    balances = [10_000_000, 200_000, 5_000, 10_000_000, 300]
    users = [await trees.user(balance=balance) for balance in balances]
    url = cluster.url(database=forest_name)
    await trees.connection.execute(f"alter database \"{forest_name}\" set deadlock_timeout = '50 ms'")
    storm = Storm(url, [(user.tenant_id, user.id) for user in users], 1, OPERATIONS)
    began = time.monotonic()
    process = [sys.executable, "-m", "tests.orchestration.storm", url]
    *_, killed = await asyncio.gather(
        *(storm.client() for _ in range(CLIENTS)), strike(storm, trees.connection, process)
    )
    print(f"{OPERATIONS / (time.monotonic() - began):.0f} operations/s, {killed} processes killed")
    print(sorted(storm.done.items()), sorted(storm.refused.items()), sep="\n")
    assert storm.failures == {}
    assert storm.sent >= OPERATIONS
    ids = [user.id for user in users]
    assert await trees.broken() == []
    kept = dict(
        await trees.connection.fetch("select id::text, settled from allocation_holds where user_id = any ($1)", ids)
    )
    assert {hold: kept[hold] for hold in storm.settled} == storm.settled
    assert await trees.connection.fetch(TWICE, ids) == []
    # when all time is over, and the jobs have been
    await trees.connection.execute(
        "select set_config('vanilla_test.now', (clock_timestamp() + $1)::text, false)", timedelta(days=60)
    )
    while (await trees.reap_trees())["more"]:
        pass
    await trees.reap()
    assert await trees.connection.fetchval("select count(*) from allocation_holds where state = 'open'") == 0
    totals = dict(await trees.connection.fetch(CONSTANT, ids))
    assert [totals[user] for user in ids] == balances
    assert sum([(await trees.figures(user))[1] for user in users]) == 0
    assert {"hold", "settle", "carve", "close", "top_up", "end", "connected again"} <= set(storm.done)
    assert killed
