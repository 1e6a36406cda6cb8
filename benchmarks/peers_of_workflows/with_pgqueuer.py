"""Jobs that do nothing in PgQueuer: `python with_pgqueuer.py <database URL> <jobs> <batch>`, in its own environment.

Four managers in one process, each with a connection; jobs are enqueued beforehand. What a manager flushes when it ends
is part of it.
"""

import asyncio
import json
import sys
import time

import asyncpg
from pgqueuer import AsyncpgDriver, Queries, QueueManager
from pgqueuer.models import Job
from pgqueuer.types import QueueExecutionMode

MANAGERS = 4


async def main(url: str, jobs: int, batch: int) -> None:
    connections = [await asyncpg.connect(url) for _ in range(MANAGERS)]
    queries = Queries(AsyncpgDriver(connections[0]))
    await queries.install()
    for first in range(0, jobs, 10_000):
        number = min(10_000, jobs - first)
        await queries.enqueue(["job"] * number, [None] * number, [0] * number)
    await connections[0].execute("analyze")
    done = 0

    def manager(connection: asyncpg.Connection) -> QueueManager:
        made = QueueManager(Queries(AsyncpgDriver(connection)))

        @made.entrypoint("job")
        async def job(job: Job) -> None:
            nonlocal done
            done += 1

        return made

    managers = [manager(connection) for connection in connections]
    began = time.perf_counter()
    await asyncio.gather(*(m.run(batch_size=batch, mode=QueueExecutionMode.drain) for m in managers))
    seconds = time.perf_counter() - began
    check = await asyncpg.connect(url)
    left = await check.fetchval("select count(*) from pgqueuer")
    assert (done, left) == (jobs, 0), f"{done} of {jobs} jobs ran, {left} are left"
    print(json.dumps({"done": done, "seconds": seconds}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
