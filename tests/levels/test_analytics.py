"""A day of a level in figures: computed from what is kept, the same again, and the sum of the books."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.tokens.support import START, Books, User

TODAY = START.date()
ROW = "select * from level_analytics where tenant_id = $1 and day = $2 and level = $3"
ROLL = "select roll_up_level_analytics($1, $2, $3)"
FIGURES = ["users", "active_users", "new_users", "upgraded", "downgraded", "churned"]


async def roll(books: Books, user: User, first: date = TODAY, last: date | None = None) -> int:
    return await books.connection.fetchval(ROLL, first, last or first, user.tenant_id)


async def row(books: Books, user: User, level: str, day: date = TODAY) -> dict[str, Any]:
    return dict(await books.connection.fetchrow(ROW, user.tenant_id, day, level))


async def people(books: Books, user: User, level: str, day: date = TODAY) -> dict[str, int]:
    """The figures of people that are not zero."""
    found = await row(books, user, level, day)
    return {name: found[name] for name in FIGURES if found[name]}


async def another(books: Books, user: User, level: str = "free") -> User:
    """One more user of the tenant."""
    email = f"{UUID(int=datetime.now(UTC).microsecond).hex}@{user.id.hex}.test"
    make = "select create_user($1, p_level_id => $2, p_tenant_id => $3)"
    made = await books.connection.fetchval(make, email, user.levels[level], user.tenant_id)
    return User(user.tenant_id, made, user.levels)


async def changes(books: Books, user: User) -> list[tuple[int, str, str | None, str | None]]:
    rows = await books.connection.fetch("select * from user_level_changes where user_id = $1 order by seq", user.id)
    return [(r["seq"], r["kind"], r["from_level"], r["to_level"]) for r in rows]


async def test_every_change_of_a_level_is_written_with_what_it_was(books: Books) -> None:
    user = await books.user()
    for level in ("premium", "basic", "basic", "free"):
        await books.allocate(user, level)
    await books.connection.execute("update levels set tier = 0 where id = $1", user.levels["basic"])
    await books.allocate(user, "basic")
    await books.connection.fetchval("select erase_user($1, 'test', $2)", user.id, user.tenant_id)
    assert await changes(books, user) == [
        (1, "joined", None, "free"),
        (2, "upgraded", "free", "premium"),
        (3, "downgraded", "premium", "basic"),
        (4, "churned", "basic", "free"),
        (5, "moved", "free", "basic"),
        (6, "left", "basic", None),
    ]


async def test_nobody_changes_what_was(books: Books) -> None:
    user = await books.user()
    for role in ("vanilla_definer", "vanilla_system", "vanilla_app", "vanilla_operator"):
        for statement in ("update user_level_changes set kind = 'left'", "truncate user_level_changes"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with books.connection.transaction():
                    await books.connection.execute(f"set local role {role}; {statement}")
    async with books.connection.transaction():
        await books.connection.execute("set local role vanilla_operator; delete from user_level_changes")
    assert len(await changes(books, user)) == 1


async def test_a_day_says_who_came_who_rose_who_fell_and_who_left(books: Books) -> None:
    first = await books.user()
    second, third, fourth = [await another(books, first) for _ in range(3)]
    await books.allocate(first, "basic")
    await books.allocate(second, "premium")
    await books.at(START + timedelta(days=1))
    await books.allocate(first, "free")
    await books.allocate(second, "basic")
    await books.connection.fetchval("select erase_user($1, 'test', $2)", third.id, first.tenant_id)
    await books.adjust(fourth, 10, "credit")
    await books.adjust(fourth, 4, "debit")
    tomorrow = TODAY + timedelta(days=1)
    assert await roll(books, first, TODAY, tomorrow) == 8
    assert await people(books, first, "free") == {"users": 2, "new_users": 4}
    assert await people(books, first, "basic") == {"users": 1, "upgraded": 1}
    assert await people(books, first, "premium") == {"users": 1, "upgraded": 1}
    assert await people(books, first, "free", tomorrow) == {"users": 2, "active_users": 1, "churned": 1}
    # from basic to free nothing is paid any more; from premium to basic less is
    assert await people(books, first, "basic", tomorrow) == {"users": 1, "downgraded": 1, "churned": 1}
    assert await people(books, first, "premium", tomorrow) == {}


async def test_tokens_add_up_to_what_users_have(books: Books) -> None:
    user = await books.user(mode="warn", monthly_allocation=500, rollover_percent=20)
    grant = "select grant_user_tokens($1, 100, 'promo', p_expires_at => $2)"
    await books.connection.fetchval(grant, user.id, START + timedelta(hours=1))
    await books.adjust(user, 70, "debit")
    hold = await books.adjust(user, 300, "reserve")
    await books.settle(hold["hold_id"], 180)
    await books.at(START + timedelta(hours=2))
    await books.reset_due_grants()
    await books.adjust(user, -25, "adjustment")
    await books.adjust(user, 5, "adjustment")
    await books.adjust(user, 900, "debit")  # more than there is: a debt
    over = await books.adjust(user, 10, "reserve")
    await books.settle(over["hold_id"], 60)  # above the hold: an entry of debt
    gone = await books.adjust(user, 50, "reserve")
    await books.connection.fetchval("select release_token_hold($1)", gone["hold_id"])
    await books.allocate(user, "basic")
    await books.at(START + timedelta(days=40))
    await books.reset()
    await books.allocate(user, "free")  # what is left of the month is void
    await roll(books, user, TODAY, TODAY + timedelta(days=40))
    sums = await books.connection.fetchrow(
        "select sum(tokens_granted)::bigint as granted, sum(tokens_spent)::bigint as spent,"
        " sum(tokens_lapsed)::bigint as lapsed from level_analytics where tenant_id = $1",
        user.tenant_id,
    )
    wallet = await books.wallet(user)
    available, reserved, borrowed = await books.figures(user)
    assert sums["spent"] == wallet["spent_tokens"] == 70 + 180 + 900 + 60
    assert sums["granted"] - sums["spent"] - sums["lapsed"] == available + reserved - borrowed
    day = await row(books, user, "basic")
    assert (day["tokens_spent"], day["active_users"]) == (1210, 1)
    assert day["tokens_lapsed"] >= 30 + 25


async def test_the_same_days_again_give_the_same(books: Books) -> None:
    user = await books.user(balance=100)
    await books.allocate(user, "basic")
    await books.adjust(user, 40, "debit")
    await books.at(START + timedelta(days=3))
    everything = (
        "select array_agg(to_jsonb(a) - 'computed_at' order by day, level) from level_analytics a where tenant_id = $1"
    )
    assert await roll(books, user, TODAY, TODAY + timedelta(days=2)) == 12
    before = await books.connection.fetchval(everything, user.tenant_id)
    assert {r["is_final"] for r in before} == {True}
    assert await roll(books, user, TODAY, TODAY + timedelta(days=2)) == 12
    assert await books.connection.fetchval(everything, user.tenant_id) == before
    # tiers and levels that change afterwards change nothing of what was
    await books.connection.execute("update levels set tier = 9 where id = $1", user.levels["free"])
    await books.allocate(user, "premium")
    await books.connection.fetchval("select delete_level($1, $2)", user.levels["basic"], user.tenant_id)
    assert await roll(books, user, TODAY, TODAY + timedelta(days=2)) == 9
    assert await books.connection.fetchval(everything, user.tenant_id) == before


async def test_a_day_under_way_is_counted_again_when_it_is_over(books: Books) -> None:
    user = await books.user(balance=100, time_zone="Europe/Berlin")
    await roll(books, user)
    assert (await row(books, user, "free"))["is_final"] is False
    await books.at(datetime(2026, 3, 1, 22, 59, 59, tzinfo=UTC))
    await books.adjust(user, 1, "debit")
    await books.at(datetime(2026, 3, 1, 23, 0, 0, tzinfo=UTC))  # midnight in Berlin
    await books.adjust(user, 10, "debit")
    await books.at(datetime(2026, 3, 1, 23, 9, 59, tzinfo=UTC))
    await roll(books, user)
    assert (await row(books, user, "free"))["is_final"] is False
    await books.at(datetime(2026, 3, 1, 23, 10, tzinfo=UTC))
    assert await roll(books, user, TODAY - timedelta(days=5), TODAY + timedelta(days=1)) == 8
    day = await row(books, user, "free")
    assert (day["is_final"], day["tokens_spent"]) == (True, 1)
    assert (await row(books, user, "free", TODAY + timedelta(days=1)))["tokens_spent"] == 10


async def test_limits_that_were_used_up_are_counted_by_feature_and_never_forgotten(books: Books) -> None:
    first = await books.user()
    second = await another(books, first)
    feature = "select set_level_feature($1, $2, $3, 'monthly', p_tenant_id => $4)"
    consume = "select consume_feature($1, $2, $3)"
    for name, limit in (("scan", 3), ("print", 2), ("fax", 5)):
        await books.connection.fetchval(feature, first.levels["free"], name, limit, first.tenant_id)
    for user in (first, second):
        await books.connection.fetchval(consume, user.id, "scan", 2)
        await books.connection.fetchval(consume, user.id, "scan", 1)
    await books.connection.fetchval(consume, first.id, "print", 2)
    await books.connection.fetchval(consume, first.id, "fax", 4)
    await books.at(START + timedelta(days=1))
    # a limit that is raised and used further moves nothing
    await books.connection.fetchval(feature, first.levels["free"], "scan", 9, first.tenant_id)
    await books.connection.fetchval(consume, first.id, "scan", 1)
    await roll(books, first, TODAY, TODAY + timedelta(days=1))
    assert (await row(books, first, "free"))["limit_hits"] == {"scan": 2, "print": 1}
    assert (await row(books, first, "free", TODAY + timedelta(days=1)))["limit_hits"] == {}
    await books.connection.fetchval("select erase_user($1, 'test', $2)", second.id, first.tenant_id)
    await roll(books, first)
    assert (await row(books, first, "free"))["limit_hits"] == {"scan": 2, "print": 1}


@pytest.mark.parametrize(
    ("first", "last"),
    [(None, TODAY), (TODAY, None), (TODAY, TODAY - timedelta(days=1)), (TODAY, TODAY + timedelta(days=401)),
     (date.min, TODAY), (TODAY, date.max)],
)  # fmt: skip
async def test_days_that_are_none_are_refused(books: Books, first: date | None, last: date | None) -> None:
    user = await books.user()
    with pytest.raises(asyncpg.PostgresError) as error:
        await books.connection.fetchval(ROLL, first, last, user.tenant_id)
    assert error.value.sqlstate == "VS400"
    with pytest.raises(asyncpg.PostgresError) as error:
        await books.connection.fetchval(ROLL, TODAY, TODAY, user.id)
    assert error.value.sqlstate == "VS404"
    # to come, and before the first user: no rows, no error
    assert await roll(books, user, TODAY + timedelta(days=1), TODAY + timedelta(days=9)) == 0
    assert await roll(books, user, TODAY - timedelta(days=9), TODAY - timedelta(days=1)) == 0


async def job(books: Books, name: str, limit: int = 10) -> dict[str, Any]:
    """A part of a job after another until it is done, as the tick runs it; what they came to together."""
    done: dict[str, Any] = {}
    while True:
        part = await books.connection.fetchval(f"select vanilla.job_{name}($1)", limit)
        done = await books.connection.fetchval("select vanilla.add_figures($1, $2)", done, part)
        progress = "update schedules set progress = $1 where name = $2"
        await books.connection.execute(progress, done if part["more"] else {}, name)
        if not part["more"]:
            return done


async def days(books: Books, user: User) -> list[date]:
    rows = "select distinct day from level_analytics where tenant_id = $1 and is_final order by 1"
    return [r["day"] for r in await books.connection.fetch(rows, user.tenant_id)]


async def test_the_job_rolls_up_every_day_that_is_over_once_also_after_downtime(books: Books) -> None:
    user = await books.user(time_zone="Pacific/Kiritimati")  # 14 hours ahead: the second of March already
    await job(books, "level_analytics")
    assert await days(books, user) == []
    first = date(2026, 3, 2)
    await books.at(START + timedelta(days=50))
    assert (await job(books, "level_analytics"))["days"] >= 50
    assert await days(books, user) == [first + timedelta(days=n) for n in range(50)]
    assert (await job(books, "level_analytics"))["days"] == 0
    # somebody rolls up a later day by hand: those between are not passed over
    await books.at(START + timedelta(days=55))
    await roll(books, user, first + timedelta(days=54))
    await job(books, "level_analytics")
    assert await days(books, user) == [first + timedelta(days=n) for n in range(55)]
