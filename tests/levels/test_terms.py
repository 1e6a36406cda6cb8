"""Levels and their prices: no two at once, what users hold stays, the list that anybody may read."""

from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.tokens.support import START, Books, User


async def price(books: Books, user: User, amount: int = 100, **more: Any) -> Any:
    given = {"cycle": "monthly", "currency": "CHF"} | more
    named = "".join(f", p_{name} => ${n}" for n, name in enumerate(given, 4))
    return await books.connection.fetchval(
        f"select set_level_price($1, p_amount => $2, p_tenant_id => $3{named})",
        user.levels["basic"],
        amount,
        user.tenant_id,
        *given.values(),
    )


async def in_force(books: Books, user: User) -> list[int]:
    slug = await books.connection.fetchval("select slug from tenants where id = $1", user.tenant_id)
    found = await books.connection.fetchval("select vanilla.public_pricing($1)", slug)
    basic = next(level for level in found["levels"] if level["slug"] == "basic")
    return [p["amount"] for p in basic["prices"] if p["currency"] == "CHF"]


async def refuses(work: Any, code: str) -> str:
    with pytest.raises(asyncpg.PostgresError) as error:
        await work
    assert error.value.sqlstate == code, error.value
    return str(error.value)


async def test_prices_that_overlap_are_refused_and_those_that_follow_are_not(books: Books) -> None:
    user = await books.user()
    await price(books, user, valid_until=START + timedelta(days=10))
    for first, last in ((0, 1), (9, 20), (-5, 1), (-5, 20), (9, None)):
        until = {} if last is None else {"valid_until": START + timedelta(days=last)}
        await refuses(price(books, user, 7, valid_from=START + timedelta(days=first), **until), "VS409")
    await price(books, user, 200, valid_from=START + timedelta(days=10))
    # another cycle and another currency are other prices
    await price(books, user, 300, cycle="yearly")
    await price(books, user, 400, currency="jpy")
    assert await in_force(books, user) == [100, 300]
    await books.at(START + timedelta(days=10))
    assert await in_force(books, user) == [200, 300]


async def test_a_price_that_replaces_another_ends_it(books: Books) -> None:
    user = await books.user()
    first = await price(books, user)
    await books.at(START + timedelta(days=1))
    await price(books, user, 150, replace=True)
    assert await in_force(books, user) == [150]
    ended = await books.connection.fetchval("select valid_until from level_pricing where id = $1", first)
    assert ended == START + timedelta(days=1)
    # at the same moment again: the one that never held is gone
    await price(books, user, 160, replace=True)
    assert await in_force(books, user) == [160]
    coming = await price(books, user, 170, valid_from=START + timedelta(days=5), replace=True)
    await books.connection.fetchval("select end_level_price($1, p_tenant_id => $2)", coming, user.tenant_id)
    assert await books.connection.fetchval("select count(*) from level_pricing where id = $1", coming) == 0


@pytest.mark.parametrize(
    ("amount", "more"),
    [
        (100, {"currency": "XXX"}),
        (100, {"currency": "EURO"}),
        (100, {"currency": None}),
        (100, {"cycle": "daily"}),
        (-1, {}),
        (10**15 + 1, {}),
        (100, {"trial_days": -1}),
        (100, {"trial_days": 3661}),
        (100, {"trial_credits": -1}),
        (100, {"valid_until": START}),
        (100, {"valid_until": None}),
    ],
)
async def test_a_price_that_is_none_is_refused(books: Books, amount: int, more: dict[str, Any]) -> None:
    user = await books.user()
    await refuses(price(books, user, amount, **more), "VS400")
    assert await in_force(books, user) == []


async def test_two_who_set_a_price_at_once_do_not_both(books: Books, cluster: Any, clocked_name: str) -> None:
    user = await books.user()
    other = await asyncpg.connect(cluster.url(database=clocked_name))
    try:
        transaction = books.connection.transaction()
        await transaction.start()
        await price(books, user)
        await other.execute("set lock_timeout = '200ms'")
        statement = "select set_level_price($1, 'monthly', 'CHF', 5, p_tenant_id => $2)"
        with pytest.raises(asyncpg.LockNotAvailableError):
            await other.fetchval(statement, user.levels["basic"], user.tenant_id)
        await transaction.commit()
        with pytest.raises(asyncpg.PostgresError) as error:
            await other.fetchval(statement, user.levels["basic"], user.tenant_id)
        assert error.value.sqlstate == "VS409"
    finally:
        await other.close()


async def test_a_level_that_users_hold_or_new_ones_get_is_not_deleted(books: Books) -> None:
    user = await books.user()
    await books.allocate(user, "basic")
    delete = "select delete_level($1, $2)"
    said = await refuses(books.connection.fetchval(delete, user.levels["basic"], user.tenant_id), "VS409")
    assert "1 users are on the level basic" in said
    await refuses(books.connection.fetchval(delete, user.levels["free"], user.tenant_id), "VS409")
    await books.allocate(user, "free")
    await books.connection.fetchval(delete, user.levels["basic"], user.tenant_id)
    left = await books.connection.fetch("select slug from levels where tenant_id = $1 order by tier", user.tenant_id)
    assert [row["slug"] for row in left] == ["free", "premium", "enterprise"]
    for table in ("level_features", "level_pricing", "level_benefits", "level_token_policies"):
        statement = f"select count(*) from {table} where level_id = $1"
        assert await books.connection.fetchval(statement, user.levels["basic"]) == 0, table
    await refuses(books.connection.fetchval(delete, user.levels["basic"], user.tenant_id), "VS404")


async def test_a_tenant_keeps_one_default_level(books: Books) -> None:
    user = await books.user()
    make = "select set_level($1, $2, p_is_default => $3, p_tenant_id => $4)"
    made = await books.connection.fetchval(make, "trial", "Trial", True, user.tenant_id)
    defaults = "select slug from levels where tenant_id = $1 and is_default"
    assert [r["slug"] for r in await books.connection.fetch(defaults, user.tenant_id)] == ["trial"]
    # saying no of the only one leaves it: a tenant without could register nobody
    assert await books.connection.fetchval(make, "trial", "Trial 2", False, user.tenant_id) == made
    assert [r["slug"] for r in await books.connection.fetch(defaults, user.tenant_id)] == ["trial"]
    for slug, name in (("Not A Slug", "x"), (None, "x"), ("x", None)):
        await refuses(books.connection.fetchval(make, slug, name, False, user.tenant_id), "VS400")
    # a user can be put on it, which needs a policy
    await books.connection.fetchval("select create_user('new@example.test', p_tenant_id => $1)", user.tenant_id)


@pytest.mark.parametrize("benefits", [{}, [1], [{"text": 1}], [{"text": ""}], [{"text": "x" * 501}], [{}],
                                      [{"text": "x", "highlighted": "yes"}]])  # fmt: skip
async def test_benefits_that_are_none_are_refused_and_the_former_stay(books: Books, benefits: Any) -> None:
    user = await books.user()
    call = "select set_level_benefits($1, $2, $3)"
    level = user.levels["basic"]
    assert await books.connection.fetchval(call, level, [{"text": "b"}, {"text": "a", "highlighted": True}],
                                           user.tenant_id) == 2  # fmt: skip
    await refuses(books.connection.fetchval(call, level, benefits, user.tenant_id), "VS400")
    rows = await books.connection.fetch(
        "select text, highlighted from level_benefits where level_id = $1 order by position", level
    )
    assert [tuple(row) for row in rows] == [("b", False), ("a", True)]


async def test_a_price_list_is_closed_with_its_tenant_and_when_the_tenant_says_so(books: Books) -> None:
    user = await books.user()
    slug = await books.connection.fetchval("select slug from tenants where id = $1", user.tenant_id)
    read = "select vanilla.public_pricing($1)"
    found = await books.connection.fetchval(read, slug.upper())
    assert [level["slug"] for level in found["levels"]] == ["free", "basic", "premium", "enterprise"]
    assert found["levels"][2]["tokens"] == {"base": 0, "amount": 2_000_000, "period": "month"}
    nobody = await refuses(books.connection.fetchval(read, "nobody"), "VS404")
    await books.connection.execute(
        "insert into system_configurations (tenant_id, key, value) values ($1, 'pricing.public', 'false')",
        user.tenant_id,
    )
    assert await refuses(books.connection.fetchval(read, slug), "VS404") == nobody
    await books.connection.execute("delete from system_configurations where tenant_id = $1", user.tenant_id)
    await books.connection.fetchval("select set_tenant_status($1, 'suspended')", user.tenant_id)
    assert await refuses(books.connection.fetchval(read, slug), "VS404") == nobody
