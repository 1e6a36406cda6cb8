"""Open holds: charged in parts, moved in time, given back, each once for an idempotency key."""

import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.tokens.support import START, Books, User

HOUR = timedelta(hours=1)


async def reserved(books: Books, amount: int = 60, **user: Any) -> tuple[User, str]:
    owner = await books.user(**{"balance": 100} | user)
    return owner, (await books.adjust(owner, amount, "reserve"))["hold_id"]


async def part(books: Books, hold: str, tokens: int | None, final: bool = False, key: str | None = None) -> Any:
    return await books.connection.fetchval(
        "select settle_user_tokens($1, $2, p_final => $3, p_idempotency_key => $4)", hold, tokens, final, key
    )


async def release(books: Books, hold: str | uuid.UUID, key: str | None = None, reason: str = "release") -> Any:
    return await books.connection.fetchval(
        "select release_token_hold($1, $2, p_idempotency_key => $3)", hold, reason, key
    )


async def extend(books: Books, hold: str | uuid.UUID, until: Any) -> Any:
    return await books.connection.fetchval("select extend_token_hold($1, $2)", hold, until)


async def state(books: Books, hold: str) -> tuple[str, int, int | None]:
    row = await books.connection.fetchrow("select * from user_token_holds where id = $1", uuid.UUID(hold))
    return row["state"], row["amount"], row["settled"]


async def refused(books: Books, user: User, call: Any) -> str:
    """The SQLSTATE, when neither the wallet nor its holds nor its ledger changed."""
    before = await _rows(books, user)
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await call
    assert await _rows(books, user) == before
    return str(refusal.value.sqlstate)


async def _rows(books: Books, user: User) -> list[Any]:
    return [
        await books.connection.fetch(f"select t.* from {table} t where user_id = $1 order by t::text", user.id)
        for table in ("user_token_wallets", "user_token_holds", "user_token_ledger")
    ]


async def test_a_hold_is_charged_in_parts_and_then_finally(books: Books) -> None:
    user, hold = await reserved(books)
    await part(books, hold, 10)
    await part(books, hold, 20)
    assert await state(books, hold) == ("open", 30, 30)
    assert await books.figures(user) == (40, 30, 0)
    await part(books, hold, 5, final=True)
    assert await state(books, hold) == ("settled", 30, 35)
    assert await books.figures(user) == (65, 0, 0)
    assert (await books.entries(user))[-3:] == [("settle", 0, -10), ("settle", 0, -20), ("settle", 25, -30)]
    assert (await books.wallet(user))["spent_tokens"] == 35


async def test_the_last_part_may_leave_a_hold_of_nothing_which_then_settles(books: Books) -> None:
    user, hold = await reserved(books)
    await part(books, hold, 60)
    assert await state(books, hold) == ("open", 0, 60)
    await part(books, hold, 0, final=True)
    assert await state(books, hold) == ("settled", 0, 60)
    assert await books.figures(user) == (40, 0, 0)


async def test_a_final_settlement_above_what_is_left_is_charged_in_full(books: Books) -> None:
    user, hold = await reserved(books)
    await part(books, hold, 50)
    await part(books, hold, 70, final=True)  # 10 were left, 40 were available
    assert await books.figures(user) == (0, 0, 20)
    assert (await books.wallet(user))["spent_tokens"] == 120


async def test_after_a_part_the_rest_is_released_or_expires(books: Books) -> None:
    user, hold = await reserved(books)
    await part(books, hold, 10)
    await release(books, hold)
    assert await books.figures(user) == (90, 0, 0)
    assert await state(books, hold) == ("released", 50, 10)
    user, hold = await reserved(books)
    await part(books, hold, 10)
    await books.at(START + HOUR)
    await books.reap()
    assert await books.figures(user) == (90, 0, 0)
    assert await state(books, hold) == ("expired", 50, 10)


@pytest.mark.parametrize(
    ("tokens", "final", "sqlstate"),
    [
        (61, False, "VS409"),
        (0, False, "VS400"),
        (-1, False, "VS400"),
        (None, False, "VS400"),
        (10**15 + 1, False, "VS400"),
        (5, None, "VS400"),
    ],
)
async def test_a_part_that_is_not_one_is_refused(books: Books, tokens: int, final: bool, sqlstate: str) -> None:
    user, hold = await reserved(books)
    assert await refused(books, user, part(books, hold, tokens, final)) == sqlstate


@pytest.mark.parametrize("closed", ["settled", "released", "expired"])
async def test_a_closed_hold_is_neither_charged_nor_released_nor_extended(books: Books, closed: str) -> None:
    user, hold = await reserved(books)
    match closed:
        case "settled":
            await part(books, hold, 5, final=True)
        case "released":
            await release(books, hold)
        case "expired":
            await books.at(START + HOUR)
            await books.reap()
    assert await refused(books, user, part(books, hold, 5)) == "VS409"
    assert await refused(books, user, release(books, hold)) == "VS409"
    assert await refused(books, user, extend(books, hold, START + 2 * HOUR)) == "VS409"


async def test_a_part_of_a_hold_past_its_time_is_charged_while_it_is_open(books: Books) -> None:
    user, hold = await reserved(books)
    await books.at(START + 2 * HOUR)
    await part(books, hold, 10)
    assert await books.figures(user) == (40, 50, 0)


@pytest.mark.parametrize("operation", [part, extend, release])
async def test_an_unknown_hold_is_not_found(books: Books, operation: Any) -> None:
    user, _ = await reserved(books)
    argument = {part: (1,), extend: (START + HOUR,), release: ()}[operation]
    assert await refused(books, user, operation(books, str(uuid.uuid4()), *argument)) == "VS404"


async def test_a_part_is_charged_once_for_a_key(books: Books) -> None:
    user, hold = await reserved(books)
    first = await part(books, hold, 10, key="k")
    again = await part(books, hold, 10, key="k")
    assert again == first | {"replayed": True}
    assert await refused(books, user, part(books, hold, 11, key="k")) == "VS410"
    assert await refused(books, user, part(books, hold, 10, final=True, key="k")) == "VS410"
    assert await books.figures(user) == (40, 50, 0)
    await part(books, hold, 10, key="k2")
    assert await books.figures(user) == (40, 40, 0)


@pytest.mark.parametrize("actual", [20, 90, 130])  # less, paid from available, and in debt: the last of two entries
async def test_a_final_settlement_is_answered_again_for_its_key(books: Books, actual: int) -> None:
    user, hold = await reserved(books)
    first = await part(books, hold, actual, final=True, key="k")
    figures = await books.figures(user)
    assert await part(books, hold, actual, final=True, key="k") == first | {"replayed": True}
    assert await books.figures(user) == figures
    assert await refused(books, user, part(books, hold, actual, final=True)) == "VS409"


async def test_a_key_of_an_adjustment_is_no_key_of_a_hold(books: Books) -> None:
    user, hold = await reserved(books)
    await books.adjust(user, 5, "credit", idempotency_key="k")
    assert await refused(books, user, part(books, hold, 10, key="k")) == "VS410"
    assert await refused(books, user, release(books, hold, key="k")) == "VS410"


async def test_a_hold_is_released_once_for_a_key(books: Books) -> None:
    user, hold = await reserved(books)
    first = await release(books, hold, "k", "given up")
    assert (first["direction"], first["amount"], first["reason"]) == ("release", 60, "given up")
    assert await release(books, hold, "k", "given up") == first | {"replayed": True}
    assert await refused(books, user, release(books, hold, "k", "other")) == "VS410"
    assert await books.figures(user) == (100, 0, 0)


async def test_the_reaper_leaves_an_extended_hold_alone(books: Books) -> None:
    user, hold = await reserved(books)
    assert await extend(books, hold, START + 3 * HOUR) == START + 3 * HOUR
    await books.at(START + 2 * HOUR)
    await books.reap()
    assert await state(books, hold) == ("open", 60, None)
    # nor does a debit that lacks tokens take it
    assert await refused(books, user, books.adjust(user, 41, "debit")) == "VS402"
    await books.at(START + 3 * HOUR)
    await books.reap()
    assert await state(books, hold) == ("expired", 60, None)


async def test_a_hold_can_be_shortened(books: Books) -> None:
    user, hold = await reserved(books)
    await extend(books, hold, START + HOUR / 2)
    await books.at(START + HOUR / 2)
    await books.reap()
    assert await books.figures(user) == (100, 0, 0)


@pytest.mark.parametrize(
    ("now", "until", "sqlstate"),
    [
        (START, START, "VS400"),
        (START, START - HOUR, "VS400"),
        (START, START + timedelta(days=30, microseconds=1), "VS400"),
        (START, None, "VS400"),
        (START + HOUR, START + 2 * HOUR, "VS409"),  # it ran out: the reaper may have it at any moment
    ],
)
async def test_an_extension_that_is_refused_leaves_the_hold(books: Books, now: Any, until: Any, sqlstate: str) -> None:
    user, hold = await reserved(books)
    await books.at(now)
    assert await refused(books, user, extend(books, hold, until)) == sqlstate
