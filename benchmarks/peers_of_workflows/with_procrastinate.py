"""Jobs that do nothing in Procrastinate: `python with_procrastinate.py <database URL> <jobs> <concurrency>`.

In its own environment. Jobs are deferred beforehand; the worker ends when it has caught up.
"""

import asyncio
import json
import sys
import time

from procrastinate import App, PsycopgConnector


async def main(url: str, jobs: int, concurrency: int) -> None:
    app = App(connector=PsycopgConnector(conninfo=url, min_size=5, max_size=10))
    done = 0

    @app.task(name="job")
    async def job(n: int) -> None:
        nonlocal done
        done += 1

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for first in range(0, jobs, 1000):
            await job.batch_defer_async(*({"n": n} for n in range(first, min(first + 1000, jobs))))
        await app.connector.execute_query_async("analyze procrastinate_jobs")
        began = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=concurrency, install_signal_handlers=False)
        seconds = time.perf_counter() - began
        left = await app.connector.execute_query_one_async(
            "select count(*) as n from procrastinate_jobs where status <> 'succeeded'"
        )
    assert (done, left["n"]) == (jobs, 0), f"{done} of {jobs} jobs ran, {left['n']} have not succeeded"
    print(json.dumps({"done": done, "seconds": seconds}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
