"""`kill -9` of a client in the middle of its operations: what it was told is there, and the books are right."""

import asyncio
import random
import signal
import sys
import uuid

import asyncpg
import pytest

from tests.books import require_clean_books
from tests.conftest import Cluster, People, Person

ROUNDS, SPENDERS = 10, 2


@pytest.fixture
async def person(people: People) -> Person:
    return await people.user(balance=1_000_000)


async def test_killed_clients_leave_right_books_and_lose_nothing_they_were_told(
    cluster: Cluster, database_name: str, operator: asyncpg.Connection, person: Person
) -> None:
    url, told, tried = cluster.url(database=database_name), {}, {}
    for _ in range(ROUNDS):
        operations = random.randint(1, 60)
        outputs = await asyncio.gather(
            *(killed_after(operations, url, person.identity.user_id) for _ in range(SPENDERS))
        )
        # the last line of a killed client may be cut off
        for line in (line for output in outputs for line in output.rpartition("\n")[0].splitlines()):
            match line.split():
                case ["spent", key, amount]:
                    told[key] = int(amount)
                case ["try", key, amount]:
                    tried[key] = int(amount)
    await until_gone(operator, database_name)
    await require_clean_books(url)
    rows = await operator.fetch(
        "select idempotency_key as key, -amount as amount from user_token_ledger"
        " where user_id = $1 and idempotency_key is not null",
        person.identity.user_id,
    )
    kept = {row["key"]: row["amount"] for row in rows}
    assert told.items() <= kept.items() <= tried.items()
    # at most the operation that each killed client had in flight
    assert len(kept) - len(told) <= ROUNDS * SPENDERS
    wallet = await operator.fetchrow("select * from user_token_wallets where user_id = $1", person.identity.user_id)
    assert wallet["spent_tokens"] == sum(kept.values()) == 1_000_000 - wallet["available_tokens"]
    assert wallet["reserved_tokens"] == 0


async def killed_after(operations: int, url: str, user_id: uuid.UUID) -> str:
    """Everything a spender printed until it was killed, at a random point after so many operations."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash.spender", url, str(user_id), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    lines = [(await asyncio.wait_for(process.stdout.readline(), 30)).decode()]
    assert lines == ["ready\n"]
    while sum(line.startswith("spent") for line in lines) < operations:
        lines.append((await asyncio.wait_for(process.stdout.readline(), 30)).decode())
    process.send_signal(signal.SIGKILL)
    rest = (await process.stdout.read()).decode()
    assert await process.wait() == -signal.SIGKILL
    return "".join(lines) + rest


async def until_gone(operator: asyncpg.Connection, database_name: str) -> None:
    """Waits until the server has seen that the killed clients are gone, and undone what they had begun."""
    busy = (
        "select count(*) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()"
        " and state <> 'idle' and query like any (array['%adjust_user_tokens%', '%settle_user_tokens%', 'BEGIN%'])"
    )
    deadline = asyncio.get_running_loop().time() + 30
    while await operator.fetchval(busy, database_name):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
