"""A client that spends from one wallet until it is killed: python -m tests.crash.spender <url> <user id>.

Prints a line before it begins and one after every operation that the database confirmed.
"""

import asyncio
import json
import random
import sys
import uuid

import asyncpg


async def main(url: str, user_id: uuid.UUID) -> None:
    connection = await asyncpg.connect(url)
    adjust = "select adjust_user_tokens($1, $2, $3, p_idempotency_key => $4)"
    print("ready", flush=True)
    while True:
        amount, key = random.randint(1, 9), uuid.uuid4().hex
        print(f"try {key} {amount}", flush=True)
        if random.random() < 0.5:
            await connection.fetchval(adjust, user_id, amount, "debit", key)
            print(f"spent {key} {amount}", flush=True)
        else:
            # several statements in one transaction: a kill between them leaves none of it
            async with connection.transaction():
                entry = json.loads(await connection.fetchval(adjust, user_id, amount, "reserve", key))
                await connection.fetchval("select settle_user_tokens($1, $2)", uuid.UUID(entry["hold_id"]), amount)
            print(f"spent {key} {amount}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], uuid.UUID(sys.argv[2])))
