"""adjust_user_tokens: every direction, every refusal, replays, debt."""

import uuid
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.tokens.support import START, Books

MOST = 1_000_000_000_000_000


@pytest.mark.parametrize(
    ("mode", "steps", "figures"),
    [
        # a credit is spendable at once
        ("hard", [(100, "credit")], (100, 0, 0)),
        # a debit takes the magnitude, whatever the sign
        ("hard", [(100, "credit"), (30, "debit")], (70, 0, 0)),
        ("hard", [(100, "credit"), (-30, "debit")], (70, 0, 0)),
        # to the last token
        ("hard", [(100, "credit"), (100, "debit")], (0, 0, 0)),
        # a reservation moves tokens aside
        ("hard", [(100, "credit"), (40, "reserve")], (60, 40, 0)),
        ("hard", [(100, "credit"), (-40, "reserve")], (60, 40, 0)),
        # an adjustment is signed
        ("hard", [(100, "adjustment"), (-25, "adjustment")], (75, 0, 0)),
        # warn and monitor let debt stand; the next credit repays it first
        ("warn", [(50, "credit"), (80, "debit")], (0, 0, 30)),
        ("monitor", [(50, "credit"), (80, "debit")], (0, 0, 30)),
        ("warn", [(80, "debit"), (30, "credit")], (0, 0, 50)),
        ("warn", [(80, "debit"), (100, "credit")], (20, 0, 0)),
        ("warn", [(80, "debit"), (100, "adjustment")], (20, 0, 0)),
        ("warn", [(10, "credit"), (-30, "adjustment")], (0, 0, 20)),
        # where debt is allowed a reservation holds what there is
        ("warn", [(50, "credit"), (80, "reserve")], (0, 50, 0)),
        ("monitor", [(80, "reserve")], (0, 0, 0)),
        # the largest amount
        ("hard", [(MOST, "credit"), (MOST, "debit")], (0, 0, 0)),
    ],
)
async def test_a_direction_changes_the_wallet_as_it_says(
    books: Books, mode: str, steps: list[tuple[int, str]], figures: tuple[int, int, int]
) -> None:
    user = await books.user(mode)
    for amount, direction in steps:
        entry = await books.adjust(user, amount, direction)
        assert entry["direction"] == direction
    assert await books.figures(user) == figures
    last = (entry["available_tokens"], entry["reserved_tokens"], entry["borrowed_tokens"])
    assert last == figures


async def test_only_debits_count_as_spent(books: Books) -> None:
    user = await books.user(balance=100)
    await books.adjust(user, 30, "debit")
    await books.adjust(user, -20, "adjustment")
    assert (await books.wallet(user))["spent_tokens"] == 30


@pytest.mark.parametrize(
    ("arguments", "sqlstate"),
    [
        ({"amount": 0, "direction": "credit"}, "VS400"),  # nothing to do
        ({"amount": None, "direction": "credit"}, "VS400"),
        ({"amount": MOST + 1, "direction": "credit"}, "VS400"),  # above the largest amount
        ({"amount": -(2**63), "direction": "debit"}, "VS400"),  # has no magnitude in 64 bits
        ({"amount": -5, "direction": "credit"}, "VS400"),  # a credit is positive
        ({"amount": 5, "direction": "gift"}, "VS400"),  # unknown direction
        ({"amount": 5, "direction": None}, "VS400"),
        ({"amount": 5, "direction": "settle"}, "VS400"),  # in the ledger, but not to ask for
        ({"amount": 5, "direction": "credit", "expires_at": START}, "VS400"),  # lapsed before it began
        ({"amount": 5, "direction": "credit", "expires_at": None}, "VS400"),
        ({"amount": 101, "direction": "debit"}, "VS402"),  # one more than there is
        ({"amount": 101, "direction": "reserve"}, "VS402"),
        ({"amount": -101, "direction": "adjustment"}, "VS402"),
        ({"amount": 5, "direction": "release"}, "VS404"),  # names no hold
        ({"amount": 5, "direction": "release", "reference_id": uuid.uuid4()}, "VS404"),
    ],
)
async def test_a_refusal_names_its_code_and_writes_nothing(
    books: Books, arguments: dict[str, Any], sqlstate: str
) -> None:
    user = await books.user(balance=100)
    before = await books.wallet(user)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.adjust(user, **arguments)
    assert refused.value.sqlstate == sqlstate
    assert await books.wallet(user) == before


@pytest.mark.parametrize(
    ("status", "direction", "sqlstate"),
    [
        ("locked", "debit", "VS415"),
        ("locked", "reserve", "VS415"),
        ("suspended", "debit", "VS415"),
        ("suspended", "reserve", "VS415"),
        ("locked", "credit", None),  # tokens may come in
        ("locked", "adjustment", None),
        ("closed", "credit", "VS415"),  # of somebody who left
        ("closed", "adjustment", "VS415"),
    ],
)
async def test_a_wallet_that_is_not_active_spends_nothing(
    books: Books, status: str, direction: str, sqlstate: str | None
) -> None:
    user = await books.user(balance=100)
    await books.connection.execute("update user_token_wallets set status = $2 where user_id = $1", user.id, status)
    if sqlstate is None:
        await books.adjust(user, 5, direction)
        return
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.adjust(user, 5, direction)
    assert refused.value.sqlstate == sqlstate


async def test_an_unknown_user_is_not_found(books: Books) -> None:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.connection.fetchval("select adjust_user_tokens($1, 5, 'credit')", uuid.uuid4())
    assert refused.value.sqlstate == "VS404"


@pytest.mark.parametrize("role", ["vanilla_app", "vanilla_readonly", "vanilla_runtime"])
async def test_nobody_adjusts_without_a_context(books: Books, role: str) -> None:
    user = await books.user(balance=100)
    await books.connection.execute(f"set role {role}")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.adjust(user, 5, "credit")
    await books.connection.execute("reset role")
    assert refused.value.sqlstate in ("VS401", "42501")


# replays ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "body",
    [
        {"amount": 40, "direction": "debit", "reason": "a call", "metadata": {"n": [1, 2]}},
        {"amount": 40, "direction": "credit", "source": "purchase", "expires_at": START + timedelta(days=1)},
        {"amount": 40, "direction": "reserve", "reference_type": "step", "reference_id": uuid.uuid4()},
        {"amount": -40, "direction": "adjustment", "execution_id": uuid.uuid4()},
    ],
)
async def test_the_same_key_and_body_replay_the_first_answer(books: Books, body: dict[str, Any]) -> None:
    user = await books.user(balance=100)
    first = await books.adjust(user, **body, idempotency_key="k")
    after = await books.figures(user)
    await books.adjust(user, 7, "debit")
    # after the expiry that the body names, and from a client in another time zone, it is still the same body
    await books.at(START + timedelta(days=2))
    await books.connection.execute("set timezone = 'Asia/Tokyo'")
    again = await books.adjust(user, **body, idempotency_key="k")
    assert again.pop("replayed") is True
    assert first.pop("replayed") is False
    assert datetime.fromisoformat(again.pop("created_at")) == datetime.fromisoformat(first.pop("created_at"))
    assert again == first
    assert (await books.wallet(user))["spent_tokens"] == 7 + (40 if body["direction"] == "debit" else 0)
    assert after != (100, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 41},
        {"direction": "reserve"},
        {"reason": "another"},
        {"source": "elsewhere"},
        {"reference_type": "step"},
        {"reference_id": uuid.uuid4()},
        {"execution_id": uuid.uuid4()},
        {"metadata": {"n": 1}},
        {"expires_at": START + timedelta(days=9)},
    ],
)
async def test_the_same_key_with_another_body_is_refused(books: Books, change: dict[str, Any]) -> None:
    user = await books.user(balance=100)
    body = {"amount": 40, "direction": "debit"}
    await books.adjust(user, **body, idempotency_key="k")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.adjust(user, **(body | change), idempotency_key="k")
    assert refused.value.sqlstate == "VS410"
    assert await books.figures(user) == (60, 0, 0)


async def test_a_key_belongs_to_one_wallet(books: Books) -> None:
    for _ in range(2):
        user = await books.user(balance=100)
        entry = await books.adjust(user, 40, "debit", idempotency_key="shared")
        assert entry["replayed"] is False


async def test_a_refused_operation_does_not_use_up_its_key(books: Books) -> None:
    user = await books.user(balance=10)
    with pytest.raises(asyncpg.PostgresError):
        await books.adjust(user, 40, "debit", idempotency_key="k")
    await books.adjust(user, 90, "credit")
    assert (await books.adjust(user, 40, "debit", idempotency_key="k"))["replayed"] is False


# debt -------------------------------------------------------------------------------------------------------------
async def test_a_hard_wallet_in_debt_pays_nothing_until_it_is_repaid(books: Books) -> None:
    user = await books.user(balance=100)
    hold = (await books.adjust(user, 100, "reserve"))["hold_id"]
    await books.settle(hold, 130)
    assert await books.figures(user) == (0, 0, 30)
    await books.adjust(user, 30, "credit")
    assert await books.figures(user) == (0, 0, 0)
    await books.adjust(user, 5, "credit")
    await books.adjust(user, 5, "debit")


async def test_a_wallet_that_warns_says_so_and_one_that_only_monitors_does_not(books: Books) -> None:
    warned = await books.adjust(await books.user("warn"), 5, "debit")
    assert "debt" in warned["warning"]
    assert "warning" not in await books.adjust(await books.user("monitor"), 5, "debit")
    assert "warning" not in await books.adjust(await books.user("warn", balance=9), 5, "debit")


async def test_wallets_cannot_be_credited_beyond_what_the_next_period_can_add_to(books: Books) -> None:
    user = await books.user()
    for _ in range(100):
        await books.adjust(user, MOST, "credit")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.adjust(user, MOST, "credit")
    assert refused.value.sqlstate == "VS400"


@pytest.mark.parametrize(
    "amounts",
    [
        {"monthly_allocation": 2**63 - 1},
        {"monthly_allocation": 2**63 - 1, "warning_percent": 0},
        {"base_allocation": MOST + 1},
        {"rollover_cap": MOST + 1},
        {"monthly_cap": MOST + 1},
    ],
)
async def test_a_policy_cannot_grant_so_much_that_a_period_could_not_be_closed(
    books: Books, amounts: dict[str, int]
) -> None:
    user = await books.user()
    with pytest.raises(asyncpg.PostgresError) as refused:
        await books.policy(user.tenant_id, user.levels["free"], **amounts)
    assert refused.value.sqlstate == "VS400"


async def test_a_new_policy_of_a_level_leaves_the_exceptions_of_its_users(books: Books) -> None:
    user = await books.user(monthly_allocation=1000)
    await books.connection.execute(
        "insert into user_token_policies (tenant_id, user_id, enforcement_mode, monthly_allocation, warning_percent)"
        " values ($1, $2, 'warn', 5000, 50)",
        user.tenant_id,
        user.id,
    )
    await books.policy(user.tenant_id, user.levels["free"], monthly_allocation=3000, warning_percent=10)
    wallet = await books.wallet(user)
    assert (wallet["enforcement_mode"], wallet["warn_below"]) == ("warn", 2500)
