"""Chains of five steps in DBOS: `python with_dbos.py <database URL> <chains> <threads>`, in its own environment.

Threads call the workflow directly, which spares the queue and its polling; every step writes its checkpoint.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from dbos import DBOS

STEPS = 5


@DBOS.step()
def step(number: int) -> dict[str, int]:
    return {"n": number}


@DBOS.workflow()
def chain(number: int) -> int:
    for _ in range(STEPS):
        number = step(number)["n"]
    return number


def main(url: str, chains: int, threads: int) -> None:
    DBOS(config={
        "name": "bench",
        "system_database_url": url,
        "sys_db_pool_size": threads + 4,
        "log_level": "ERROR",
        "max_executor_threads": threads + 4,
    })  # fmt: skip
    DBOS.launch()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(chain, range(threads)))  # connections
        began = time.perf_counter()
        answers = list(pool.map(chain, range(chains)))
        seconds = time.perf_counter() - began
    DBOS.destroy()
    print(json.dumps({"done": STEPS * len(answers), "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
