"""The floors of the runner: claim and complete on a bare table with SKIP LOCKED, nothing else.

No tenant, no step, no result, no successor. `two_commits` claims in one transaction and completes in another, as a
worker does that holds no batch; `one_statement` completes what it had and claims what comes next.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from benchmarks.frame import BenchmarkError

DATABASE = "workflows_floor"
CONNECTIONS = 4
_NEXT = "select id from floor_queue where worker is null order by priority, id limit $2 for update skip locked"
# the array is filled once, before the update reads the table: a join could run the sub-select again for each row
CLAIM = f"""
update floor_queue set worker = $1, lease_until = now() + interval '30 seconds', attempt = attempt + 1
where id = any (array({_NEXT})) returning id
"""
COMPLETE = "delete from floor_queue where id = any ($2) and worker = $1"
# what is completed goes first: a claim keeps locks of rows that another has just claimed, and who deletes after it
# waits for those
COMPLETE_AND_CLAIM = f"""
with completed as (delete from floor_queue where id = any ($3::bigint[]) and worker = $1 returning id)
update floor_queue set worker = $1, lease_until = now() + interval '30 seconds', attempt = attempt + 1
where id = any (array({_NEXT})) and (select count(*) from completed) >= 0 returning id
"""
FILL = "insert into floor_queue (priority) select 0 from generate_series(1, $1::int)"


@dataclass(frozen=True, slots=True)
class Floor:
    """One way to empty the queue."""

    name: str
    batch: int
    one_statement: bool


TWO_COMMITS = Floor("two_commits", 1, False)
ONE_STATEMENT_1 = Floor("one_statement_1", 1, True)
ONE_STATEMENT_100 = Floor("one_statement_100", 100, True)
FLOORS = (TWO_COMMITS, ONE_STATEMENT_1, ONE_STATEMENT_100)


async def make(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(Path(__file__).with_name("workflows_floor.sql").read_text())
    finally:
        await connection.close()


async def drain(url: str, floor: Floor, jobs: int) -> float:
    """Jobs a second of four connections. Raises BenchmarkError when a job was not done exactly once."""
    connections = [await asyncpg.connect(url) for _ in range(CONNECTIONS)]
    try:
        await connections[0].execute("truncate floor_queue")
        await connections[0].execute(FILL, jobs)
        await connections[0].execute("vacuum analyze floor_queue")
        work = _in_one_statement if floor.one_statement else _in_two_commits
        began = time.perf_counter()
        done = await asyncio.gather(*(work(c, i, floor.batch) for i, c in enumerate(connections)))
        elapsed = time.perf_counter() - began
        left = await connections[0].fetchval("select count(*) from floor_queue")
    finally:
        for connection in connections:
            await connection.close()
    if sum(done) != jobs or left:
        raise BenchmarkError(f"the floor did {sum(done)} of {jobs} jobs, {left} are left")
    return jobs / elapsed


async def _in_two_commits(connection: asyncpg.Connection, worker: int, batch: int) -> int:
    claim, complete = await connection.prepare(CLAIM), await connection.prepare(COMPLETE)
    done = 0
    while taken := _ids(await claim.fetch(worker, batch)):
        await complete.fetch(worker, taken)
        done += len(taken)
    return done


async def _in_one_statement(connection: asyncpg.Connection, worker: int, batch: int) -> int:
    tick = await connection.prepare(COMPLETE_AND_CLAIM)
    done, taken = 0, _ids(await tick.fetch(worker, batch, []))
    while taken:
        done += len(taken)
        taken = _ids(await tick.fetch(worker, batch, taken))
    return done


def _ids(rows: Sequence[asyncpg.Record]) -> list[int]:
    return [row["id"] for row in rows]
