"""A user's exceptions to the policy of the level: field by field, enforcement at once, amounts with the next period."""

from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from tests.tokens.support import Books, User

APRIL = datetime(2026, 4, 1, tzinfo=UTC)
LEVEL = {
    "monthly_allocation": 1000,
    "rollover_percent": 50,
    "rollover_cap": 300,
    "monthly_cap": 1200,
    "warning_percent": 10,
}
FIELDS = {
    "monthly_allocation": 700,
    "rollover_percent": 25,
    "rollover_cap": 90,
    "monthly_cap": 900,
    "enforcement_mode": "warn",
    "warning_percent": 40,
}


async def except_for(books: Books, user: User, **exceptions: Any) -> None:
    named = "".join(f", p_{name} => ${n}" for n, name in enumerate(exceptions, 2))
    await books.connection.execute(f"select set_user_token_policy($1{named})", user.id, *exceptions.values())


async def policy(books: Books, user: User) -> dict[str, Any]:
    return await books.connection.fetchval("select get_user_token_policy($1)", user.id)


async def on_level(books: Books, **policy: Any) -> User:
    user = await books.user(**LEVEL | policy)
    await books.allocate(user, "free")
    return user


@pytest.mark.parametrize("field", FIELDS)
async def test_one_field_is_the_users_own_and_the_others_are_the_levels(books: Books, field: str) -> None:
    user = await on_level(books)
    before = await policy(books, user)
    assert before["exceptions"] == {}
    await except_for(books, user, **{field: FIELDS[field]})
    assert await policy(books, user) == before | {field: FIELDS[field], "exceptions": {field: FIELDS[field]}}
    await except_for(books, user)  # all of them are set at once: none is left
    assert await policy(books, user) == before


async def test_enforcement_and_warning_take_effect_at_once(books: Books) -> None:
    user = await on_level(books)
    await except_for(books, user, enforcement_mode="warn", warning_percent=40)
    wallet = await books.wallet(user)
    assert (wallet["enforcement_mode"], wallet["warn_below"]) == ("warn", 400)
    await books.adjust(user, 1500, "debit")
    assert await books.figures(user) == (0, 0, 500)
    await except_for(books, user)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.adjust(user, 1, "debit")
    assert refused.value.sqlstate == "VS402"


@pytest.mark.parametrize(
    ("exceptions", "grants"),
    [
        ({}, [("rollover", 200), ("plan", 1000)]),  # 300 by percent and cap, 200 by what the month may bring
        ({"monthly_allocation": 700}, [("rollover", 300), ("plan", 700)]),
        ({"rollover_percent": 5}, [("rollover", 50), ("plan", 1000)]),
        ({"rollover_cap": 90}, [("rollover", 90), ("plan", 1000)]),
        ({"monthly_cap": 900}, [("plan", 900)]),
        ({"monthly_allocation": 0}, [("rollover", 300)]),
    ],
)
async def test_amounts_take_effect_with_the_next_period(
    books: Books, exceptions: dict[str, int], grants: list[tuple[str, int]]
) -> None:
    user = await on_level(books)
    await except_for(books, user, **exceptions)
    assert await books.grants(user) == [("plan", 1000)]
    await books.at(APRIL)
    await books.reset()
    assert await books.grants(user) == grants


async def test_exceptions_stay_when_the_level_changes(books: Books) -> None:
    user = await on_level(books)
    await except_for(books, user, monthly_allocation=70)
    await books.policy(user.tenant_id, user.levels["basic"], monthly_allocation=5000)
    await books.allocate(user, "basic")
    assert await books.grants(user) == [("plan", 70)]


async def test_the_level_changes_what_is_no_exception(books: Books) -> None:
    user = await on_level(books)
    await except_for(books, user, enforcement_mode="monitor")
    await books.policy(user.tenant_id, user.levels["free"], **LEVEL | {"enforcement_mode": "warn", "rollover_cap": 7})
    assert (await books.wallet(user))["enforcement_mode"] == "monitor"
    assert (await policy(books, user))["rollover_cap"] == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [(name, -1) for name in FIELDS if name != "enforcement_mode"]
    + [(name, 101) for name in ("rollover_percent", "warning_percent")]
    + [(name, 10**15 + 1) for name in ("monthly_allocation", "rollover_cap", "monthly_cap")]
    + [("enforcement_mode", "soft")],
)
async def test_an_exception_out_of_range_is_refused_and_nothing_is_written(
    books: Books, field: str, value: Any
) -> None:
    user = await on_level(books)
    await except_for(books, user, monthly_allocation=7)
    before = await policy(books, user), await books.wallet(user), await audited(books, user)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await except_for(books, user, **{field: value})
    assert refused.value.sqlstate == "VS400"
    assert (await policy(books, user), await books.wallet(user), await audited(books, user)) == before


async def audited(books: Books, user: User) -> int:
    return await books.connection.fetchval(
        "select count(*) from audit_logs where action = 'user.policy' and target_id = $1", user.id
    )


async def test_exceptions_are_in_the_audit_log(books: Books) -> None:
    user = await on_level(books)
    await except_for(books, user, monthly_cap=5)
    details = await books.connection.fetchval(
        "select details from audit_logs where action = 'user.policy' and target_id = $1", user.id
    )
    assert details == {"monthly_cap": 5}
