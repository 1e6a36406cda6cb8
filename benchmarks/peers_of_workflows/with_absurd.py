"""Chains of five steps in Absurd: `python with_absurd.py <database URL> <chains> <workers>`, in its own environment.

Tasks are spawned beforehand; each worker has a connection and ten tasks at the same time.
"""

import asyncio
import json
import sys
import time

import psycopg
from absurd_sdk import AsyncAbsurd, AsyncTaskContext
from absurdctl import BUNDLED_SCHEMA_SQL

STEPS, CONCURRENCY, QUEUE = 5, 10, "bench"
SPAWN = """
select count(*) from generate_series(1, %s) n, absurd.spawn_task(%s, 'chain', jsonb_build_object('n', n))
"""
COMPLETED = "select count(*) from absurd.t_bench where state = 'completed'"


class Workers:
    """All of them, in one event loop; they stop when the last chain has come to its end."""

    def __init__(self, url: str, chains: int, workers: int) -> None:
        self.left = chains
        self.clients = [AsyncAbsurd(url, queue_name=QUEUE) for _ in range(workers)]
        for client in self.clients:
            client.register_task("chain")(self.chain)

    async def chain(self, params: dict[str, int], context: AsyncTaskContext) -> int:
        async def step() -> dict[str, int]:
            return {"n": params["n"]}

        for place in range(STEPS):
            await context.step(f"step{place}", step)
        self.left -= 1
        if not self.left:
            # each finishes what it has
            for client in self.clients:
                client.stop_worker()
        return params["n"]

    async def run(self) -> None:
        # at the default of 0.25 s the workers would sleep at the end
        options = {"concurrency": CONCURRENCY, "poll_interval": 0.005}
        await asyncio.gather(*(c.start_worker(worker_id=str(i), **options) for i, c in enumerate(self.clients)))
        for client in self.clients:
            await client.close()


async def main(url: str, chains: int, workers: int) -> None:
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    await connection.execute(BUNDLED_SCHEMA_SQL)
    await connection.execute("select absurd.create_queue(%s)", (QUEUE,))
    await connection.execute(SPAWN, (chains, QUEUE))
    await connection.execute("analyze")
    load = Workers(url, chains, workers)
    began = time.perf_counter()
    await load.run()
    seconds = time.perf_counter() - began
    completed = await (await connection.execute(COMPLETED)).fetchone()
    assert completed == (chains,), f"{completed} of {chains} tasks are completed"
    await connection.close()
    print(json.dumps({"done": STEPS * chains, "seconds": seconds}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
