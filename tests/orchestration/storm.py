"""Clients that do anything with trees of a few wallets; as a process of its own: python -m tests.orchestration.storm.

Arguments: the URL of the database, a seed, then pairs of tenant and user. It goes on until it is killed.
"""

import asyncio
import json
import random
import sys
import uuid
from collections import Counter
from datetime import timedelta
from typing import Any

import asyncpg

GONE = ("57P01", "08", "57P02", "57P03")
"""The connection was ended under us."""

OPEN = "select vanilla.allocation_open($1, $2, $3, $4, null, null, $5)"
CARVE = "select vanilla.allocation_carve($1, $2, $3, $4, null, null, $5)"
HOLD = "select vanilla.allocation_hold($1, $2, $3, $4, $5, p_wrap_up => $6)"
SETTLE = "select vanilla.allocation_settle($1, $2, $3)"
RELEASE = "select vanilla.allocation_release($1, $2)"
COUNT = "select vanilla.allocation_count_tool_call($1, $2)"
CLOSE = "select vanilla.allocation_close($1, $2)"
END = "select vanilla.allocation_end($1, $2)"
TOP_UP = "select vanilla.allocation_top_up($1, $2, $3, $4)"
REAP = "select vanilla.allocation_reap(20)"
TAKE_BACK = (
    "select release_token_hold(hold_id) from resource_allocations"
    " where tenant_id = $1 and id = $2 and state = 'open' and hold_id is not null"
)
WALLETS = "select vanilla.reap_holds(20)"
DEBIT = "select adjust_user_tokens($1, 1, 'debit')"

WEIGHTS = {
    "open": 4, "carve": 9, "hold": 34, "settle": 26, "release": 5, "count": 3, "close": 8, "end": 1, "top_up": 4,
    "reap": 2, "take_back": 0.3, "wallets": 1, "debit": 3,
}  # fmt: skip
NAMES, SHARES = list(WEIGHTS), list(WEIGHTS.values())


class Storm:
    """What clients share: whom they spend for, the trees and steps they know, what they were told."""

    def __init__(self, url: str, payers: list[tuple[uuid.UUID, uuid.UUID]], seed: int, operations: int | None):
        self.url, self.payers, self.dice, self.left = url, payers, random.Random(seed), operations
        self.nodes: list[tuple[uuid.UUID, uuid.UUID]] = []
        self.steps: list[tuple[uuid.UUID, uuid.UUID]] = []
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.settled: dict[str, int] = {}
        self.sent = 0
        self.last: list[tuple[str, tuple[Any, ...]]] = []

    @property
    def going(self) -> bool:
        return self.left is None or self.left > 0

    def take(self, operations: int) -> None:
        """So many more have been done."""
        self.sent += operations
        if self.left is not None:
            self.left -= operations

    def next(self) -> tuple[str, tuple[Any, ...]]:
        """An operation; one of five is one that was sent before, word for word."""
        dice = self.dice
        if self.last and dice.random() < 0.2:
            return dice.choice(self.last)
        name = dice.choices(NAMES, SHARES)[0]
        if name in ("open", "debit", "reap", "wallets") or not self.nodes:
            tenant, user = dice.choice(self.payers)
            if name in ("debit", "reap", "wallets"):
                return {"debit": (DEBIT, (user,)), "reap": (REAP, ()), "wallets": (WALLETS, ())}[name]
            limits = self.limits() | {"wall_ms": dice.choice([300, 2000, 60_000])}
            return OPEN, (tenant, user, dice.randint(100, 2000), limits, self.key())
        tenant, node = dice.choice(self.nodes[-60:])
        if name in ("settle", "release") and self.steps:
            tenant, step = dice.choice(self.steps[-40:])
            return (SETTLE, (tenant, step, dice.randint(0, 45))) if name == "settle" else (RELEASE, (tenant, step))
        if name == "carve":
            return CARVE, (tenant, node, dice.choice([None, 20, 100, 300]), self.limits(), self.key())
        if name == "top_up":
            return TOP_UP, (tenant, node, dice.randint(1, 200), self.key())
        if name in ("count", "close", "end", "take_back"):
            statement = {"count": COUNT, "close": CLOSE, "end": END, "take_back": TAKE_BACK}[name]
            return statement, (tenant, node)
        span = timedelta(seconds=dice.choice([0.01, 0.2, 30]))
        return HOLD, (tenant, node, f"s{dice.randint(0, 400)}", dice.randint(0, 40), span, dice.random() < 0.02)

    def limits(self) -> dict[str, int]:
        some = {"requests": 60, "tool_calls": 10, "concurrency": 6, "wrap_up_tokens": 10}
        return {name: value for name, value in some.items() if self.dice.random() < 0.25}

    def key(self) -> str | None:
        return uuid.UUID(int=self.dice.getrandbits(128)).hex if self.dice.random() < 0.5 else None

    def learn(self, statement: str, values: tuple[Any, ...], answer: Any) -> None:
        if statement in (OPEN, CARVE):
            self.nodes.append((values[0], uuid.UUID(answer["allocation_id"])))
        elif statement == HOLD and answer["state"] == "open":
            self.steps.append((values[0], uuid.UUID(answer["hold_id"])))
        elif statement == SETTLE and answer["state"] == "settled":
            kept = self.settled.setdefault(answer["hold_id"], answer["settled"])
            if kept != answer["settled"]:
                self.failures["a step was settled twice"] += 1
        if len(self.last) < 50:
            self.last.append((statement, values))
        else:
            self.last[self.dice.randrange(50)] = (statement, values)

    async def client(self) -> None:
        connection = await self.connect()
        while self.going:
            self.take(1)
            statement, values = self.next()
            name = statement.split("(")[0].rsplit(".", 1)[-1].removeprefix("select ").removeprefix("allocation_")
            try:
                answer = await connection.fetchval(statement, *values)
            except asyncpg.PostgresError as error:
                if str(error.sqlstate).startswith("VS"):
                    told = json.loads(error.detail or "{}")  # type: ignore[attr-defined]
                    self.refused[f"{name} {told.get('reason', error.sqlstate)}"] += 1
                elif str(error.sqlstate).startswith(GONE):
                    connection = await self.again(connection)
                else:
                    self.failures[f"{name} {error.sqlstate} {error.args[0]}"] += 1
            except (asyncpg.InterfaceError, asyncpg.InternalClientError, ConnectionError):
                connection = await self.again(connection)
            else:
                self.done[name] += 1
                self.learn(statement, values, answer)
        await connection.close()

    async def connect(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(self.url)
        await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        return connection

    async def again(self, connection: asyncpg.Connection) -> asyncpg.Connection:
        self.done["connected again"] += 1
        connection.terminate()
        return await self.connect()


async def main(url: str, seed: str, *payers: str) -> None:
    pairs = list(zip(map(uuid.UUID, payers[::2]), map(uuid.UUID, payers[1::2]), strict=True))
    storm = Storm(url, pairs, int(seed), None)
    print("ready", flush=True)

    async def tell() -> None:
        told = 0
        while True:
            await asyncio.sleep(0.05)
            print(storm.sent - told - 4, flush=True)  # what each client has begun is not done
            told = storm.sent - 4

    await asyncio.gather(tell(), *(storm.client() for _ in range(4)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
