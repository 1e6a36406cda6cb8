"""Days of history of a level and of a tenant's plan: what is older is gone for everybody, and nothing else is."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.levels.test_analytics import another, job
from tests.levels.test_restrictions import rule
from tests.tokens.support import START, Books, User

INSERT = (
    "insert into ai_executions (tenant_id, user_id, provider, model, status, created_at)"
    " select $1, $2, 'sandbox', 'sandbox-small', 'succeeded', $3::timestamptz - make_interval(days => d)"
    " from unnest($4::int[]) d"
)
AGES = [0, 1, 6, 7, 8, 29, 30, 31, 60]


async def remember(books: Books, user: User) -> None:
    await books.connection.execute("select vanilla.ensure_partitions()")
    await books.connection.execute(INSERT, user.tenant_id, user.id, START, AGES)


async def left(books: Books, user: User) -> list[int]:
    """The ages, in days, of the executions that a user still has."""
    ages = "select array_agg(extract(day from $2 - created_at)::int order by created_at desc) from ai_executions"
    return await books.connection.fetchval(f"{ages} where user_id = $1", user.id, START) or []


async def subscribe(books: Books, user: User, tier: str, **rules: int) -> None:
    """The tenant on a plan that only it has, with these restrictions of tenants."""
    platform = UUID(int=0)
    make = "select set_level($1, $1, p_tenant_id => $2, p_is_template => false)"
    level = await books.connection.fetchval(make, tier, platform)
    for kind, amount in rules.items():
        statement = "select set_level_restriction($1, $2, $3, null, $4)"
        await books.connection.fetchval(statement, level, kind, amount, platform)
    await books.connection.fetchval("select set_subscription_tier($1, $2)", user.tenant_id, tier)


@pytest.mark.parametrize("part", [1, 4, 10_000])
async def test_a_level_with_fewer_days_keeps_fewer_and_its_neighbours_keep_theirs(books: Books, part: int) -> None:
    user = await books.user()
    paid, stranger = await another(books, user, "premium"), await books.user()
    await rule(books, user, "history_days", 7)
    for person in (user, paid, stranger):
        await remember(books, person)
    assert (await job(books, "history", part))["rows_deleted"] == 5
    assert await left(books, user) == [0, 1, 6, 7]
    assert await left(books, paid) == await left(books, stranger) == AGES
    # on the way down the rest goes too, on the way up nothing comes back
    await books.allocate(paid, "free")
    await books.allocate(user, "premium")
    assert (await job(books, "history", part))["rows_deleted"] == 5
    assert await left(books, user) == await left(books, paid) == [0, 1, 6, 7]


async def test_the_plan_of_a_tenant_bounds_what_its_levels_keep(books: Books) -> None:
    user = await books.user()
    paid = await another(books, user, "premium")
    await rule(books, user, "history_days", 7)
    await subscribe(books, user, f"t{uuid4().hex[:9]}", history_days_per_tenant=30)
    for person in (user, paid):
        await remember(books, person)
    await job(books, "history")
    assert await left(books, user) == [0, 1, 6, 7]
    assert await left(books, paid) == [0, 1, 6, 7, 8, 29, 30]


async def test_who_reads_finds_neither_the_rows_nor_a_way_around(books: Books) -> None:
    """Rows that are deleted are hidden from no one in particular: the admin, an export, the operator see the same."""
    user = await books.user()
    await rule(books, user, "history_days", 7)
    await remember(books, user)
    await job(books, "history")
    async with books.connection.transaction():
        await books.connection.execute("set local role vanilla_operator")
        seen = await books.connection.fetchval("select count(*) from ai_executions where user_id = $1", user.id)
        assert seen == 4
    async with books.connection.transaction():
        await books.connection.fetchval("select open_person_rows($1, $2, 'ai_executions')", user.id, user.tenant_id)
        assert len(await books.connection.fetch("fetch forward 500 from person_rows")) == 4


async def test_days_of_history_are_no_matter_of_the_metered_call(books: Books) -> None:
    user = await books.user()
    await rule(books, user, "history_days", 7)
    restrictions = "select restrictions from levels where id = $1"
    assert await books.connection.fetchval(restrictions, user.levels["free"]) is None
    await rule(books, user, "api_keys", 3)
    assert await books.connection.fetchval(restrictions, user.levels["free"]) == {"api_keys": 3}


@pytest.mark.parametrize("value", [0, -1, None, ["x"]])
async def test_a_history_of_no_days_is_refused(books: Books, value: Any) -> None:
    user = await books.user()
    with pytest.raises(asyncpg.PostgresError) as error:
        await rule(books, user, "history_days", value)
    assert error.value.sqlstate == "VS400"


@pytest.mark.parametrize("job", ["history", "level_changes"])
async def test_a_clock_that_leapt_deletes_and_renews_nothing_for_a_day(books: Books, job: str) -> None:
    gap = await books.connection.fetchval("select longest_gap from schedules where name = $1", job)
    assert gap == timedelta(days=1)
