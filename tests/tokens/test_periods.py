"""Levels, allocations and what happens when a period ends."""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from tests.tokens.support import START, Books, User

APRIL, MAY, JUNE = (datetime(2026, month, 1, tzinfo=UTC) for month in (4, 5, 6))


async def test_joining_a_level_brings_base_once_and_the_plan_of_the_period(books: Books) -> None:
    user = await books.user(base_allocation=500, monthly_allocation=1000)
    assert await books.grants(user) == [("plan", 1000), ("base", 500)]
    wallet = await books.wallet(user)
    assert (wallet["period_start"], wallet["next_reset_at"]) == (datetime(2026, 3, 1, tzinfo=UTC), APRIL)


async def test_allocating_again_grants_nothing(books: Books) -> None:
    user = await books.user(base_allocation=500, monthly_allocation=1000)
    await books.adjust(user, 300, "debit")
    for _ in range(3):
        granted = await books.allocate(user, "free")
        assert (granted["base_granted"], granted["period_granted"], granted["restored"]) == (0, 0, 0)
    assert await books.figures(user) == (1200, 0, 0)


async def test_switching_levels_to_and_fro_never_mints(books: Books) -> None:
    user = await books.user(base_allocation=500, monthly_allocation=1000)
    await books.policy(user.tenant_id, user.levels["basic"], base_allocation=50, monthly_allocation=2000)
    await books.adjust(user, 400, "debit")
    granted = await books.allocate(user, "basic")
    assert (granted["base_granted"], granted["period_granted"]) == (50, 2000)
    assert await books.grants(user) == [("plan", 2000), ("base", 500), ("base", 50)]
    await books.adjust(user, 100, "debit")
    for _ in range(3):
        assert (await books.allocate(user, "free"))["restored"] == 600
        assert await books.grants(user) == [("plan", 600), ("base", 500), ("base", 50)]
        assert (await books.allocate(user, "basic"))["restored"] == 1900
    assert await books.grants(user) == [("plan", 1900), ("base", 500), ("base", 50)]


async def test_a_plan_that_was_spent_stays_spent_when_the_user_comes_back(books: Books) -> None:
    user = await books.user(monthly_allocation=1000)
    await books.policy(user.tenant_id, user.levels["basic"])
    await books.adjust(user, 1000, "debit")
    await books.allocate(user, "basic")
    granted = await books.allocate(user, "free")
    assert (granted["period_granted"], granted["restored"]) == (0, 0)
    assert await books.figures(user) == (0, 0, 0)


async def test_what_is_restored_repays_debt(books: Books) -> None:
    user = await books.user("warn", monthly_allocation=1000)
    await books.policy(user.tenant_id, user.levels["basic"], enforcement_mode="warn")
    await books.allocate(user, "basic")
    await books.adjust(user, 300, "debit")
    assert await books.figures(user) == (0, 0, 300)
    await books.allocate(user, "free")
    assert await books.figures(user) == (700, 0, 0)
    assert await books.grants(user) == [("plan", 700)]


@pytest.mark.parametrize("change", ["period", "time zone", "anchor"])
async def test_a_plan_is_granted_once_a_period_though_its_borders_were_moved(books: Books, change: str) -> None:
    user = await books.user(monthly_allocation=1000)
    await books.policy(user.tenant_id, user.levels["basic"])
    await books.adjust(user, 400, "debit")
    match change:
        case "period":
            await books.policy(user.tenant_id, user.levels["free"], monthly_allocation=1000, period="day")
        case "anchor":
            await books.policy(
                user.tenant_id, user.levels["free"], monthly_allocation=1000, period_anchor="anniversary"
            )
        case "time zone":
            await books.connection.execute(
                "update tenants set time_zone = 'America/Los_Angeles' where id = $1", user.tenant_id
            )
    assert (await books.allocate(user, "free"))["period_granted"] == 0
    assert await books.figures(user) == (600, 0, 0)
    await books.allocate(user, "basic")
    assert (await books.allocate(user, "free"))["restored"] == 600
    assert await books.figures(user) == (600, 0, 0)
    # the new borders hold from the next period on, which begins when the granted one ends
    assert (await books.wallet(user))["next_reset_at"] == APRIL


async def test_leaving_a_level_keeps_what_was_bought(books: Books) -> None:
    user = await books.user(monthly_allocation=1000)
    await books.policy(user.tenant_id, user.levels["basic"], monthly_allocation=10)
    await books.adjust(user, 70, "credit", source="purchase")
    await books.allocate(user, "basic")
    assert await books.grants(user) == [("plan", 10), ("purchase", 70)]


async def test_a_level_of_another_tenant_is_not_found(books: Books) -> None:
    user, other = await books.user(), await books.user()
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.connection.execute("select auto_allocate_tokens_for_level($1, $2)", user.id, other.levels["free"])
    assert refused.value.sqlstate == "VS404"


# the end of a period ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("policy", "spent", "april"),
    [
        # without rollover the unused lapses
        ({}, 300, [("plan", 1000)]),
        # a percentage of the unused, not of the allocation; rounded down
        ({"rollover_percent": 50}, 300, [("rollover", 350), ("plan", 1000)]),
        ({"rollover_percent": 33}, 999, [("plan", 1000)]),
        ({"rollover_percent": 100}, 1000, [("plan", 1000)]),
        # the rollover's own cap
        ({"rollover_percent": 100, "rollover_cap": 200}, 0, [("rollover", 200), ("plan", 1000)]),
        # plan and rollover together stay under the monthly cap
        ({"rollover_percent": 100, "monthly_cap": 1300}, 0, [("rollover", 300), ("plan", 1000)]),
        ({"rollover_percent": 100, "monthly_cap": 800}, 0, [("plan", 800)]),
        ({"rollover_percent": 100, "rollover_cap": 200, "monthly_cap": 1100}, 0, [("rollover", 100), ("plan", 1000)]),
    ],
)
async def test_a_period_closes_by_its_policy(
    books: Books, policy: dict[str, int], spent: int, april: list[tuple[str, int]]
) -> None:
    user = await books.user(monthly_allocation=1000, **policy)
    if spent:
        await books.adjust(user, spent, "debit")
    await books.at(APRIL)
    assert await books.reset() >= 1
    assert await books.grants(user) == april
    assert (await books.wallet(user))["next_reset_at"] == MAY


async def test_what_rolled_over_does_not_roll_over_again(books: Books) -> None:
    user = await books.user(monthly_allocation=1000, rollover_percent=100)
    await books.at(APRIL)
    await books.reset()
    assert await books.grants(user) == [("rollover", 1000), ("plan", 1000)]
    await books.at(MAY)
    await books.reset()
    assert await books.grants(user) == [("rollover", 1000), ("plan", 1000)]


async def test_missed_periods_are_caught_up_one_by_one(books: Books) -> None:
    user = await books.user(monthly_allocation=1000, rollover_percent=50)
    await books.adjust(user, 1000, "debit")
    await books.at(JUNE + timedelta(days=3))
    await books.reset()
    # April brought 1000 unused, so May had 500 over; June has 500 of May's 1000
    assert await books.grants(user) == [("rollover", 500), ("plan", 1000)]
    assert [amount for direction, amount, _ in await books.entries(user) if direction == "credit"] == [
        1000,
        1000,
        500,
        1000,
        500,
        1000,
    ]


async def test_the_first_touch_closes_the_period_when_nobody_ran_the_reset(books: Books) -> None:
    user = await books.user(monthly_allocation=1000)
    await books.adjust(user, 900, "debit")
    await books.at(APRIL)
    await books.adjust(user, 1000, "debit")
    assert await books.figures(user) == (0, 0, 0)


async def test_a_second_reset_resets_nothing(books: Books) -> None:
    await books.user(monthly_allocation=1000)
    await books.at(APRIL)
    assert await books.reset() >= 1
    assert await books.reset() == 0


async def test_a_level_without_tokens_is_reset_and_not_due_again(books: Books) -> None:
    await books.user()
    await books.at(APRIL)
    await books.reset()
    assert await books.reset() == 0


async def test_the_reset_repeats_in_portions(books: Books) -> None:
    await books.at(APRIL)
    await books.reset()
    await books.at(START)
    users = [await books.user(monthly_allocation=10) for _ in range(5)]
    await books.at(APRIL)
    portions = [await books.connection.fetchval("select reset_monthly_tokens(2)") for _ in range(4)]
    assert portions == [2, 2, 1, 0]
    assert [(await books.wallet(user))["next_reset_at"] for user in users] == [MAY] * 5


async def test_an_anniversary_of_the_31st_in_a_time_zone(books: Books) -> None:
    joined = datetime(2026, 1, 31, 22, tzinfo=UTC)  # 23 o'clock in Berlin
    await books.at(joined)
    user = await books.user(time_zone="Europe/Berlin", monthly_allocation=1000, period_anchor="anniversary")
    ends = []
    for _ in range(3):
        ends.append((await books.wallet(user))["next_reset_at"])
        await books.at(ends[-1])
        await books.reset()
    # the last of February, the 31st of March in summer time, the last of April
    assert ends == [
        datetime(2026, 2, 28, 22, tzinfo=UTC),
        datetime(2026, 3, 31, 21, tzinfo=UTC),
        datetime(2026, 4, 30, 21, tzinfo=UTC),
    ]


# other grants -----------------------------------------------------------------------------------------------------
async def test_a_purchase_lapses_at_its_expiry_and_what_was_used_of_it_does_not(books: Books) -> None:
    user = await books.user(monthly_allocation=100)
    await books.adjust(user, 50, "credit", source="purchase", expires_at=START + timedelta(days=2))
    await books.adjust(user, 120, "debit")
    await books.at(START + timedelta(days=2))
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.adjust(user, 1, "debit")
    assert refused.value.sqlstate == "VS402"
    await books.connection.fetchval("select vanilla.run_maintenance()")
    assert (await books.entries(user))[-1] == ("expire", -30, 0)


@pytest.mark.parametrize(
    "sources",
    [
        # free and soon to lapse is burned before what was paid for, whatever came first
        ("purchase", "refund", "promo", "trial"),
        ("trial", "promo", "refund", "purchase"),
    ],
)
async def test_grants_burn_in_order_of_their_kind(books: Books, sources: tuple[str, ...]) -> None:
    user = await books.user(monthly_allocation=10)
    for source in sources:
        await books.adjust(user, 10, "credit", source=source)
    order = ["trial", "plan", "promo", "refund", "purchase"]
    for kind in order:
        assert (await books.grants(user))[0][0] == kind
        await books.adjust(user, 10, "debit")


async def test_readers_see_the_grants_as_the_fold_will_leave_them(books: Books) -> None:
    user = await books.user(monthly_allocation=100)
    await books.adjust(user, 50, "credit", source="purchase")
    await books.adjust(user, 130, "debit")
    seen = await books.grants(user)
    await fold(books, user)
    assert seen == await books.grants(user) == [("purchase", 20)]


async def test_the_balance_of_a_moment_is_that_of_the_last_entry_until_then(books: Books) -> None:
    user = await books.user(balance=100)
    for hour in range(1, 6):
        await books.at(START + timedelta(hours=hour))
        await books.adjust(user, 10, "debit")
    at = "select token_balance_at($1, $2)"
    for hours, balance in ((-1, 0), (0, 100), (0.5, 100), (1, 90), (4.9, 60), (99, 50)):
        moment = START + timedelta(hours=hours)
        assert await books.connection.fetchval(at, user.id, moment) == balance


async def fold(books: Books, user: User) -> None:
    await books.connection.execute(
        "select vanilla.settle_burn(w) from user_token_wallets w where user_id = $1", user.id
    )
