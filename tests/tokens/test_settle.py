"""Holds: settled, released, expired, and what comes back when the grants have changed since."""

import uuid
from datetime import timedelta

import asyncpg
import pytest

from tests.tokens.support import START, Books

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("mode", "balance", "held", "actual", "figures", "entries"),
    [
        # the rest comes back
        ("hard", 100, 60, 20, (80, 0, 0), [("settle", 40, -60)]),
        # nothing was used
        ("hard", 100, 60, 0, (100, 0, 0), [("settle", 60, -60)]),
        # exactly what was held
        ("hard", 100, 60, 60, (40, 0, 0), [("settle", 0, -60)]),
        # above the hold: paid from what is available
        ("hard", 100, 60, 90, (10, 0, 0), [("settle", -30, -60)]),
        ("hard", 100, 60, 100, (0, 0, 0), [("settle", -40, -60)]),
        # above everything: an entry of its own says what is owed, under every policy
        ("hard", 100, 60, 130, (0, 0, 30), [("settle", -40, -60), ("debt", -30, 0)]),
        ("warn", 100, 160, 160, (0, 0, 60), [("settle", 0, -100), ("debt", -60, 0)]),
        ("monitor", 0, 50, 50, (0, 0, 50), [("settle", 0, 0), ("debt", -50, 0)]),
    ],
)
async def test_a_settlement_charges_the_actual(
    books: Books,
    mode: str,
    balance: int,
    held: int,
    actual: int,
    figures: tuple[int, int, int],
    entries: list[tuple[str, int, int]],
) -> None:
    user = await books.user(mode, balance=balance)
    hold = (await books.adjust(user, held, "reserve"))["hold_id"]
    await books.settle(hold, actual)
    assert await books.figures(user) == figures
    assert (await books.entries(user))[-len(entries) :] == entries
    assert (await books.wallet(user))["spent_tokens"] == actual


@pytest.mark.parametrize(
    ("prepare", "actual", "sqlstate"),
    [
        ("open", -1, "VS400"),
        ("open", None, "VS400"),
        ("open", 10**15 + 1, "VS400"),
        ("unknown", 5, "VS404"),
        ("settled", 5, "VS409"),  # a call is charged once
        ("released", 5, "VS409"),
        ("expired", 5, "VS409"),
    ],
)
async def test_a_settlement_that_is_refused_changes_nothing(
    books: Books, prepare: str, actual: int | None, sqlstate: str
) -> None:
    user = await books.user(balance=100)
    hold = (await books.adjust(user, 60, "reserve"))["hold_id"]
    match prepare:
        case "settled":
            await books.settle(hold, 10)
        case "released":
            await books.adjust(user, 60, "release", reference_id=hold)
        case "expired":
            await books.at(START + HOUR)
            await books.reap()
        case "unknown":
            hold = uuid.uuid4()
    before = await books.wallet(user)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.settle(hold, actual)
    assert refused.value.sqlstate == sqlstate
    assert await books.wallet(user) == before


async def test_settling_does_not_need_an_open_wallet(books: Books) -> None:
    user = await books.user(balance=100)
    hold = (await books.adjust(user, 60, "reserve"))["hold_id"]
    await books.connection.execute("select set_wallet_status($1, 'locked', 'test')", user.id)
    await books.settle(hold, 50)
    assert await books.figures(user) == (50, 0, 0)


# release ----------------------------------------------------------------------------------------------------------
async def test_a_hold_is_released_by_its_id_or_by_its_reference(books: Books) -> None:
    user = await books.user(balance=100)
    step = uuid.uuid4()
    by_id = (await books.adjust(user, 10, "reserve"))["hold_id"]
    await books.adjust(user, 20, "reserve", reference_id=step)
    await books.adjust(user, 20, "release", reference_id=step)
    assert await books.figures(user) == (90, 10, 0)
    await books.adjust(user, 10, "release", reference_id=by_id)
    assert await books.figures(user) == (100, 0, 0)


@pytest.mark.parametrize("amount", [59, 61])
async def test_a_hold_is_released_whole(books: Books, amount: int) -> None:
    user = await books.user(balance=100)
    hold = (await books.adjust(user, 60, "reserve"))["hold_id"]
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.adjust(user, amount, "release", reference_id=hold)
    assert refused.value.sqlstate == "VS409"


async def test_a_hold_is_released_by_what_was_asked_for_where_the_wallet_had_less(books: Books) -> None:
    user = await books.user("warn", balance=30)
    some = (await books.adjust(user, 80, "reserve"))["hold_id"]
    none = (await books.adjust(user, 80, "reserve"))["hold_id"]
    await books.adjust(user, 80, "release", reference_id=none)
    await books.adjust(user, 80, "release", reference_id=some)
    assert await books.figures(user) == (30, 0, 0)


async def test_nobody_releases_the_hold_of_another_user(books: Books) -> None:
    owner, other = await books.user(balance=100), await books.user(balance=100)
    hold = (await books.adjust(owner, 60, "reserve"))["hold_id"]
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.adjust(other, 60, "release", reference_id=hold)
    assert refused.value.sqlstate == "VS404"
    assert await books.figures(owner) == (40, 60, 0)


# expiry -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["hard", "warn", "monitor"])
async def test_an_expired_hold_comes_back_with_the_first_debit_that_needs_it(books: Books, mode: str) -> None:
    user = await books.user(mode, balance=100)
    await books.adjust(user, 100, "reserve")
    await books.at(START + HOUR)
    await books.adjust(user, 70, "debit")
    assert await books.figures(user) == (30, 0, 0)
    assert (await books.entries(user))[-2:] == [("release", 100, -100), ("debit", -70, 0)]


async def test_the_reaper_returns_expired_holds_and_leaves_the_others(books: Books) -> None:
    user = await books.user(balance=100)
    await books.adjust(user, 60, "reserve")
    await books.at(START + HOUR / 2)
    await books.adjust(user, 30, "reserve")
    await books.at(START + HOUR)
    await books.reap()
    assert await books.figures(user) == (70, 30, 0)


async def test_an_expired_hold_repays_debt_first(books: Books) -> None:
    user = await books.user("warn", balance=100)
    await books.adjust(user, 100, "reserve")
    await books.adjust(user, 40, "debit")
    await books.at(START + HOUR)
    await books.reap()
    assert await books.figures(user) == (60, 0, 0)


async def test_a_hold_one_moment_before_its_expiry_is_still_held(books: Books) -> None:
    user = await books.user(balance=100)
    await books.adjust(user, 100, "reserve")
    await books.at(START + HOUR - timedelta(microseconds=1))
    await books.reap()
    assert await books.figures(user) == (0, 100, 0)


# across grants ----------------------------------------------------------------------------------------------------
async def test_what_was_held_from_a_grant_that_lapsed_lapses_too(books: Books) -> None:
    user = await books.user()
    await books.adjust(user, 100, "credit", expires_at=START + HOUR / 2)
    hold = (await books.adjust(user, 80, "reserve"))["hold_id"]
    await books.at(START + HOUR / 2)
    await books.settle(hold, 50)
    assert await books.figures(user) == (0, 0, 0)
    # 20 lapsed with the grant; of the 80 held 50 were spent, and the other 30 found no grant to return to
    assert (await books.entries(user))[-2:] == [("expire", -20, 0), ("settle", 0, -80)]


async def test_a_release_refills_grants_that_are_still_there_the_last_burned_first(books: Books) -> None:
    user = await books.user()
    await books.adjust(user, 50, "credit", source="promo")
    await books.adjust(user, 50, "credit", source="purchase")
    hold = (await books.adjust(user, 70, "reserve"))["hold_id"]
    assert await books.grants(user) == [("purchase", 30)]
    await books.adjust(user, 10, "credit", source="trial")
    await books.adjust(user, 70, "release", reference_id=hold)
    assert await books.grants(user) == [("trial", 10), ("promo", 50), ("purchase", 50)]


async def test_a_late_charge_of_an_expired_hold_is_paid_once(books: Books) -> None:
    user = await books.user(balance=100)
    hold = (await books.adjust(user, 60, "reserve"))["hold_id"]
    await books.at(START + HOUR)
    await books.reap()
    late = "select from vanilla.settle_tokens($1, $2, 50, true, 'late', null)"
    await books.connection.execute(late, user.tenant_id, hold)
    await books.connection.execute(late, user.tenant_id, hold)
    assert await books.figures(user) == (50, 0, 0)
    assert [direction for direction, _, _ in await books.entries(user)] == ["credit", "reserve", "release", "settle"]
