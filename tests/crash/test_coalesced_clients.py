"""Processes and connections that end in the middle of a batch: nobody is charged twice, nobody waits for ever."""

import asyncio
import random
import signal
import sys
from collections.abc import Callable

import asyncpg
import pytest

from tests.books import require_clean_books
from tests.concurrency.test_coalescer import Counted, adjustment, locked, outcome, waiting_in_database
from tests.conftest import LONG, Cluster, People, Person
from tests.crash.coalesced_spender import CALLERS
from tests.processes import eventually
from vanilla_saas.database.coalescer import RUN_CALLS, Coalescer
from vanilla_saas.database.pool import Database

ROUNDS = 20 if LONG else 3


@pytest.fixture
async def admin(people: People) -> Person:
    """Whose key adjusts wallets."""
    return await people.user(role="admin", scopes=["admin"])


async def test_a_connection_that_ends_in_a_batch_is_told_to_all_in_it_and_a_repetition_charges_once(
    database: Database, cluster: Cluster, database_name: str, people: People, admin: Person
) -> None:
    busy, other = await people.user(balance=10), await people.user(balance=100)
    users, counted = [await people.user(balance=100) for _ in range(5)], Counted(database)
    coalescer = Coalescer(counted, in_flight=1)
    calls = [adjustment(admin, user, 7, "debit", key=f"{user.identity.user_id}") for user in users]
    async with locked(cluster, database_name, other):
        async with locked(cluster, database_name, busy):
            first = asyncio.create_task(coalescer.call(*adjustment(admin, busy, 1, "debit")))
            await waiting_in_database(people.operator, "adjust_by_key")
            stuck = adjustment(admin, other, 5, "credit")
            tasks = [asyncio.create_task(outcome(coalescer, call)) for call in [*calls, stuck]]
            await asyncio.sleep(0)
        await first
        backend = await waiting_in_database(people.operator, "run_calls")
        await people.operator.execute("select pg_terminate_backend($1)", backend)
        assert [found[0] for found in await asyncio.gather(*tasks)] == ["database_unavailable"] * 6
        assert [(await people.wallet(user))["available_tokens"] for user in users] == [100] * 5
    assert counted.sent == ["adjust_by_key 1", "run_calls 6"]
    for _ in range(2):
        entries = await asyncio.gather(*(coalescer.call(*call) for call in calls))
    assert [entry["replayed"] for entry in entries] == [True] * 5
    assert [(await people.wallet(user))["available_tokens"] for user in users] == [93] * 5
    await require_clean_books(cluster.url(database=database_name))


@pytest.mark.parametrize("violence", ["kill -9 of the process", "pg_terminate_backend"])
async def test_callers_that_travel_together_keep_what_they_were_told_and_nothing_else(
    violence: str, cluster: Cluster, database_name: str, people: People, admin: Person
) -> None:
    users = [await people.user(balance=1_000_000) for _ in range(3)]
    told: dict[str, int] = {}
    tried: dict[str, int] = {}
    repeated, killed = 0, violence.startswith("kill")
    for _ in range(ROUNDS):
        outputs = await asyncio.gather(
            *(spender(cluster, database_name, admin, users[::turn], killed) for turn in (1, -1))
        )
        for line in "\n".join(outputs).splitlines():
            match line.split():
                case ["spent", key, amount]:
                    told[key] = int(amount)
                case ["try", key, amount]:
                    tried[key] = int(amount)
                case ["again", _, _]:
                    repeated += 1
    await until_gone(people.operator, database_name)
    await require_clean_books(cluster.url(database=database_name))
    rows = await people.operator.fetch(
        "select idempotency_key as key, -amount as amount from user_token_ledger"
        " where user_id = any ($1) and idempotency_key is not null",
        [user.identity.user_id for user in users],
    )
    kept = {row["key"]: row["amount"] for row in rows}
    assert told.items() <= kept.items() <= tried.items()
    assert len(kept) == len(rows)
    # at most what each killed process had in flight
    assert len(kept) - len(told) <= ROUNDS * 2 * CALLERS
    assert (repeated > 0) == (not killed)
    spent = [1_000_000 - (await people.wallet(user))["available_tokens"] for user in users]
    assert sum(spent) == sum(kept.values())


async def spender(cluster: Cluster, name: str, admin: Person, users: list[Person], killed: bool) -> str:
    """Everything a process of callers printed until it was killed, with its connections ended before or not."""
    urls = [cluster.url(login, name) for login in ("vanilla_app", "vanilla_runtime")]
    ids = [str(user.identity.user_id) for user in users]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash.coalesced_spender", *urls, admin.key, *ids, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    lines: list[str] = []

    async def until(enough: Callable[[], bool]) -> None:
        while not enough():
            lines.append((await asyncio.wait_for(process.stdout.readline(), 30)).decode())

    def spent() -> int:
        return sum(line.startswith("spent") for line in lines)

    await until(lambda: spent() > random.randint(50, 200))
    if not killed:
        for _ in range(3):
            async with asyncio.timeout(30):
                await end_a_batch(cluster, name)
            wanted = spent() + 2 * CALLERS
            await until(lambda wanted=wanted: spent() > wanted)  # type: ignore[misc]
    process.send_signal(signal.SIGKILL)
    rest = (await process.stdout.read()).decode()
    assert await process.wait() == -signal.SIGKILL
    return "".join(lines) + rest


async def end_a_batch(cluster: Cluster, name: str) -> None:
    """Terminates a backend that is in a batch at this moment."""
    operator = await asyncpg.connect(cluster.url(database=name))
    try:

        async def ended() -> bool:
            return await operator.fetchval(
                "select count(pg_terminate_backend(pid)) > 0 from (select pid from pg_stat_activity"
                " where datname = $1 and state = 'active' and query = $2 limit 1) s",
                name,
                RUN_CALLS,
            )

        await eventually(ended)
    finally:
        await operator.close()


async def until_gone(operator: asyncpg.Connection, name: str) -> None:
    """Waits until the server has undone what the killed processes had begun."""

    async def gone() -> bool:
        return not await operator.fetchval(
            "select count(*) from pg_stat_activity where datname = $1 and state <> 'idle' and query like '%vanilla.%'"
            " and pid <> pg_backend_pid()",
            name,
        )

    await eventually(gone, 30)
