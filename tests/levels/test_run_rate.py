"""What users pay a month, by level and currency: agreed prices, not list prices, and nothing of who only tries."""

from datetime import date, timedelta
from typing import Any

import pytest

from tests.levels.change_support import Changes
from tests.levels.test_analytics import another, roll, row
from tests.tokens.support import START, Books

DAY = timedelta(days=1)


@pytest.fixture
async def changes(books: Books) -> Changes:
    """free, low (10 EUR a month), high (31 EUR a month, 310 a year, 10 days of trial), with paths every way."""
    made = Changes(books, await books.user())
    await made.level("low", 1, {"monthly": 1000})
    await made.level("high", 2, {"monthly": 3100, "yearly": 31000}, trial_days=10)
    for start in ("free", "low", "high"):
        for end in ("free", "low", "high"):
            if start != end:
                await made.path(start, end)
    return made


async def rates(changes: Changes, day: date) -> dict[str, Any]:
    """The run rates of a day that are not empty, computed when it is over."""
    await changes.books.at(START.replace(day=day.day, month=day.month) + DAY)
    await roll(changes.books, changes.user, day)
    found = {level: await row(changes.books, changes.user, level, day) for level in changes.user.levels}
    return {level: each["run_rate"] for level, each in found.items() if each["run_rate"]}


async def test_a_user_pays_what_was_agreed_and_whoever_was_put_on_a_level_pays_nothing(changes: Changes) -> None:
    await changes.change("low", currency="EUR")
    await changes.books.allocate(await another(changes.books, changes.user), "high")
    await changes.price("low", "monthly", 1500, replace=True)
    assert await rates(changes, START.date()) == {"low": {"EUR": 1000}}
    # renewed at the price of then
    await changes.books.at(START.replace(month=4) + DAY)
    assert await changes.job() == 1
    assert await rates(changes, date(2026, 4, 3)) == {"low": {"EUR": 1500}}


async def test_a_year_is_spread_and_a_discount_counts(changes: Changes) -> None:
    for end in ("free", "low"):  # no circle within a period
        await changes.path("high", end, timing="period_end")
    await changes.path("free", "high", discount=50)
    await changes.change("high", currency="EUR", cycle="yearly", trial=False)
    assert await rates(changes, START.date()) == {"high": {"EUR": 1292}}


async def test_within_a_period_the_last_level_counts(changes: Changes) -> None:
    await changes.change("low", currency="EUR")
    await changes.books.at(START + 5 * DAY)
    await changes.change("high", trial=False)
    assert await rates(changes, (START + 5 * DAY).date()) == {"high": {"EUR": 3100}}
    await changes.change("free")
    assert await rates(changes, (START + 6 * DAY).date()) == {}
    # the lines still say what was paid then
    assert await rates(changes, (START + 5 * DAY).date()) == {"high": {"EUR": 3100}}


async def test_a_trial_pays_nothing_until_it_is_over(changes: Changes) -> None:
    await changes.change("high", currency="EUR", trial=True)
    assert await rates(changes, START.date()) == {}
    await changes.books.at(START + 10 * DAY)
    assert await changes.job() == 1
    assert await rates(changes, (START + 10 * DAY).date()) == {"high": {"EUR": 3100}}


async def test_a_downgrade_at_the_end_counts_from_then_on(changes: Changes) -> None:
    await changes.change("high", currency="EUR", trial=False)
    await changes.change("low", "period_end")
    assert await rates(changes, date(2026, 3, 31)) == {"high": {"EUR": 3100}}
    await changes.books.at(START.replace(month=4))
    assert await changes.job() == 1
    assert await rates(changes, date(2026, 4, 1)) == {"low": {"EUR": 1000}}
