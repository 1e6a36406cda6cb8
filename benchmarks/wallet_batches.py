"""Batches of debits over a few connections: many operations share one round trip and one commit."""

import asyncio
import random
import time
import uuid
from collections.abc import Sequence

import asyncpg
import orjson

from benchmarks.frame import BenchmarkError
from benchmarks.wallet_pgbench import AMOUNT, Measured

BATCH = "select adjust_user_tokens_batch($1)"
_OK = '"ok": true'


async def spread_batches(url: str, users: Sequence[uuid.UUID], size: int, connections: int, seconds: float) -> Measured:
    """Batches of `size` debits, each of a wallet taken at random; `tps` and `count` are operations."""
    return await _run(url, users, size, connections, seconds)


async def hot_wallet_batches(url: str, user: uuid.UUID, callers: int, connections: int, seconds: float) -> Measured:
    """What `callers` waiting for one wallet come to when they leave together; `tps` and `count` are operations."""
    return await _run(url, [user], callers, connections, seconds)


async def fill(url: str, user: uuid.UUID, count: int) -> int:
    """Debits one wallet `count` times, in batches of the largest size; returns the number of operations."""
    connection = await asyncpg.connect(url)
    try:
        done = 0
        while done < count:
            size = min(1000, count - done)
            await _send(connection, [user], size)
            done += size
        return done
    finally:
        await connection.close()


async def _run(url: str, users: Sequence[uuid.UUID], size: int, connections: int, seconds: float) -> Measured:
    opened = [await asyncpg.connect(url) for _ in range(connections)]
    try:
        for connection in opened:
            await connection.fetchval("select 1")
        began = time.perf_counter()
        counts = await asyncio.gather(*(_until(connection, users, size, began + seconds) for connection in opened))
        elapsed = time.perf_counter() - began
        return Measured(sum(counts) / elapsed, sum(counts))
    finally:
        for connection in opened:
            await connection.close()


async def _until(connection: asyncpg.Connection, users: Sequence[uuid.UUID], size: int, until: float) -> int:
    done = 0
    while time.perf_counter() < until:
        await _send(connection, users, size)
        done += size
    return done


async def _send(connection: asyncpg.Connection, users: Sequence[uuid.UUID], size: int) -> None:
    operations = [
        {
            "user_id": random.choice(users),
            "amount": AMOUNT,
            "direction": "debit",
            "reason": "benchmark",
            "idempotency_key": uuid.uuid4(),
        }
        for _ in range(size)
    ]
    answer: str = await connection.fetchval(BATCH, orjson.dumps(operations).decode())
    if answer.count(_OK) != size:
        raise BenchmarkError(f"a batch was refused: {answer[:500]}")
