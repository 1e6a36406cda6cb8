"""Callers that spend from wallets together until they are killed: python -m tests.crash.coalesced_spender.

Arguments: the URLs of the app and the runtime login, the API key, then user ids. Prints a line before each operation
and one after each that was confirmed.
"""

import asyncio
import random
import sys
import uuid

from tests.conftest import TEST_KEY
from vanilla_saas.database.coalescer import Coalescer
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy.secret_tokens import token_hash
from vanilla_saas.tokens.store import ADJUST_BY_KEY

CALLERS = 24


async def spend(coalescer: Coalescer, key_hash: bytes, users: list[uuid.UUID]) -> None:
    while True:
        amount, key = random.randint(1, 9), uuid.uuid4().hex
        body = (random.choice(users), amount, "debit", "test", "manual", None, None, None, {}, key, None, "", "")
        print(f"try {key} {amount}", flush=True)
        while True:
            try:
                await coalescer.call(ADJUST_BY_KEY, key_hash, *body)
            except VanillaError as error:
                if error.name != "database_unavailable":
                    raise
                print(f"again {key} {amount}", flush=True)
            else:
                print(f"spent {key} {amount}", flush=True)
                break


async def main(app_url: str, runtime_url: str, key: str, *users: str) -> None:
    database = await Database.open(app_url, runtime_url, ContextSigner(bytes.fromhex(TEST_KEY)), size=4)
    coalescer = Coalescer(database)
    ids = [uuid.UUID(user) for user in users]
    print("ready", flush=True)
    await asyncio.gather(*(spend(coalescer, token_hash(key), ids) for _ in range(CALLERS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
