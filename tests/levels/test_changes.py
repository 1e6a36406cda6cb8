"""Changes of level: paths, proration of price and tokens, trials, what is scheduled and undone, what is refused."""

from datetime import timedelta
from typing import Any

import pytest

from tests.levels.change_support import Changes, refused
from tests.tokens.support import START, Books

DAY = timedelta(days=1)
MONTH_END = START.replace(month=4)
"""A month from START, which is 2026-03-01 12:00 UTC: 31 days."""


@pytest.fixture
async def changes(books: Books) -> Changes:
    """free, low (10 EUR, 3,100 tokens), high (31 EUR, 31,000 tokens), with paths every way."""
    made = Changes(books, await books.user())
    await made.level("low", 1, {"monthly": 1000, "yearly": 10000}, plan=3100)
    await made.level("high", 2, {"monthly": 3100, "yearly": 31000}, plan=31000)
    for start in ("free", "low", "high"):
        for end in ("free", "low", "high"):
            if start != end:
                await made.path(start, end)
    return made


async def test_a_change_at_once_charges_the_rest_of_the_period_and_gives_back_the_rest_of_the_other(
    changes: Changes,
) -> None:
    first = await changes.change("low", currency="EUR")
    assert (first["due"], first["cycle"], first["period_end"]) == (1000, "monthly", "2026-04-01T12:00:00+00:00")
    await changes.books.at(START + 15 * DAY + DAY / 2)  # half of 31 days
    looked = await changes.preview("high")
    second = await changes.change("high")
    assert {**looked, "state": 0} == {k: v for k, v in second.items() if k in looked} | {"state": 0}
    assert second["due"] == 1550 - 500
    assert await changes.lines() == [("charge", "low", 1000), ("credit", "low", -500), ("charge", "high", 1550)]
    assert await changes.totals() == {START: 2050}
    back = await changes.change("low")
    assert back["due"] == -1050
    assert await changes.totals() == {START: 1000}
    assert await changes.slug() == "low"
