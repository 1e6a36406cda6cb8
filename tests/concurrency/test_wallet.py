"""One wallet under many connections at once: limits hold, keys count once, nobody waits for ever."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, Cluster, People, Person
from vanilla_saas.database.pool import Database, _prepare
from vanilla_saas.tenancy.secret_tokens import token_hash

ADJUST = "select adjust_user_tokens($1, $2, $3, p_idempotency_key => $4, p_reference_id => $5)"


@asynccontextmanager
async def connections(cluster: Cluster, name: str, count: int) -> AsyncIterator[list[asyncpg.Connection]]:
    opened = await asyncio.gather(*(asyncpg.connect(cluster.url(database=name)) for _ in range(count)))
    try:
        await asyncio.gather(*(_prepare(connection) for connection in opened))
        yield list(opened)
    finally:
        await asyncio.gather(*(connection.close() for connection in opened))


@pytest.fixture
async def crowd(cluster: Cluster, database_name: str) -> AsyncIterator[list[asyncpg.Connection]]:
    async with connections(cluster, database_name, 32) as opened:
        yield opened


async def at_once(crowd: list[asyncpg.Connection], work: Callable[[asyncpg.Connection], Awaitable[Any]]) -> list[Any]:
    """Runs `work` on every connection in parallel; refusals are returned."""
    results = await asyncio.gather(*(work(connection) for connection in crowd), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and getattr(result, "sqlstate", "")[:2] != "VS":
            raise result
    return results


async def adjust(connection: asyncpg.Connection, person: Person, amount: int, direction: str, **more: Any) -> Any:
    return await connection.fetchval(
        ADJUST, person.identity.user_id, amount, direction, more.get("key"), more.get("reference")
    )


async def test_twenty_reservations_of_75_on_500_make_exactly_six_holds(
    crowd: list[asyncpg.Connection], people: People
) -> None:
    person = await people.user(balance=500)
    results = await at_once(crowd[:20], lambda connection: adjust(connection, person, 75, "reserve"))
    refused = [result for result in results if isinstance(result, BaseException)]
    assert len(results) - len(refused) == 6
    assert {error.sqlstate for error in refused} == {"VS402"}
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (50, 450)


async def test_one_key_sent_sixteen_times_at_once_has_one_effect_and_one_answer(
    crowd: list[asyncpg.Connection], people: People
) -> None:
    person = await people.user(balance=500)
    answers = await at_once(crowd[:16], lambda connection: adjust(connection, person, 75, "debit", key="once"))
    assert sorted(answer.pop("replayed") for answer in answers) == [False] + [True] * 15
    assert all(answer == answers[0] for answer in answers)
    assert (await people.wallet(person))["available_tokens"] == 425


async def test_a_mixed_crowd_never_crosses_the_limit(
    cluster: Cluster, database_name: str, crowd: list[asyncpg.Connection], people: People
) -> None:
    person = await people.user(balance=3000)
    user_id = person.identity.user_id
    lowest = []

    async def customer(connection: asyncpg.Connection) -> int:
        """Spends at random; returns what it knows it spent."""
        dice, spent = random.Random(id(connection)), 0
        for _ in range(12):
            amount = dice.randint(1, 60)
            try:
                match dice.choice(["debit", "settle", "release", "expire"]):
                    case "debit":
                        entry = await adjust(connection, person, amount, "debit")
                        spent += amount
                    case "settle":
                        entry = await adjust(connection, person, amount, "reserve")
                        used = dice.randint(0, amount)
                        entry = await connection.fetchval("select settle_user_tokens($1, $2)", entry["hold_id"], used)
                        spent += used
                    case "release":
                        entry = await adjust(connection, person, amount, "reserve")
                        hold = uuid.UUID(entry["hold_id"])
                        entry = await adjust(connection, person, amount, "release", reference=hold)
                    case _:
                        entry = await adjust(connection, person, amount, "reserve")
                        await connection.execute(
                            "update user_token_holds set expires_at = now() where id = $1", uuid.UUID(entry["hold_id"])
                        )
                        await connection.execute("select vanilla.reap_holds(100)")
            except asyncpg.PostgresError as error:
                if error.sqlstate != "VS402":
                    raise
                continue
            lowest.append(entry["available_tokens"])
            assert entry["borrowed_tokens"] == 0
        return spent

    spent = sum(await asyncio.wait_for(at_once(crowd, customer), 120))
    assert min(lowest) >= 0
    await crowd[0].execute("update user_token_holds set expires_at = now() where user_id = $1", user_id)
    await crowd[0].execute("select vanilla.reap_holds(100)")
    wallet = await people.wallet(person)
    assert (wallet["spent_tokens"], wallet["reserved_tokens"]) == (spent, 0)
    assert wallet["available_tokens"] == 3000 - spent


async def test_two_resets_at_once_reset_each_wallet_once(crowd: list[asyncpg.Connection], people: People) -> None:
    tenant = await people.tenant()
    users = [(await people.user(tenant_id=tenant)).identity.user_id for _ in range(40)]
    # the period ended a moment ago
    await crowd[0].execute(
        "update user_token_grants set expires_at = now() where user_id = any ($1) and kind = 'plan'", users
    )
    await crowd[0].execute(
        "update user_token_wallets set next_reset_at = g.expires_at, next_event_at = g.expires_at"
        " from user_token_grants g where g.user_id = user_token_wallets.user_id and g.kind = 'plan'"
        " and g.user_id = any ($1)",
        users,
    )
    counts = await at_once(crowd[:4], lambda connection: connection.fetchval("select reset_monthly_tokens()"))
    assert sum(counts) == 40
    plans = await crowd[0].fetch(
        "select count(*) as n from user_token_grants where user_id = any ($1) and kind = 'plan' and state = 'active'"
        " group by user_id",
        users,
    )
    assert [row["n"] for row in plans] == [1] * 40


async def test_two_first_calls_for_a_new_payer_make_one_user(
    crowd: list[asyncpg.Connection], people: People, database: Database
) -> None:
    owner = await people.user(role="admin", scopes=["chat", "act_as:create"])
    payer = f"customer-{uuid.uuid4().hex}"
    admit = "select vanilla.admit_call($1, null, $2, 'sandbox-small', 5, 5, 10, 1, $3, false, interval '1 minute')"

    async def call(connection: asyncpg.Connection) -> Any:
        return await connection.fetchval(admit, token_hash(owner.key), payer, uuid.uuid4())

    answers = await at_once(crowd[:8], call)
    assert len({answer["user_id"] for answer in answers}) == 1
    made = await people.operator.fetch(
        "select id from users where tenant_id = $1 and external_id = $2", DEFAULT_TENANT, payer
    )
    assert [str(row["id"]) for row in made] == [answers[0]["user_id"]]
    for answer in answers:
        await database.call(
            "select vanilla.settle_call($1, $2, 'succeeded', 5, 5, 0, 0)",
            uuid.UUID(answer["tenant_id"]),
            uuid.UUID(answer["hold_id"]),
        )


async def test_level_switches_and_debits_at_once_do_not_deadlock(
    crowd: list[asyncpg.Connection], people: People
) -> None:
    person = await people.user()
    levels = [row["id"] for row in await crowd[0].fetch("select id from levels where tenant_id = $1", DEFAULT_TENANT)]

    async def work(connection: asyncpg.Connection) -> None:
        place = crowd.index(connection)
        for n in range(5):
            if place % 2:
                level = levels[(place + n) % len(levels)]
                await connection.fetchval(
                    "select auto_allocate_tokens_for_level($1, $2)", person.identity.user_id, level
                )
            else:
                await adjust(connection, person, 3, "debit")

    await asyncio.wait_for(at_once(crowd, work), 120)
    granted = await crowd[0].fetch(
        "select level_id from user_token_grants where user_id = $1 and kind = 'plan'", person.identity.user_id
    )
    assert len(granted) == len({row["level_id"] for row in granted}) == len(levels)
