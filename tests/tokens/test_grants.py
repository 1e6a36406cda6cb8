"""Grants given by hand: kinds, times, order of burning, voiding, idempotency, and what is refused."""

import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.tokens.support import START, Books, User

DAY = timedelta(days=1)
MOST = 10**15


async def give(books: Books, user: User, amount: int | None, **more: Any) -> dict[str, Any]:
    named = "".join(f", p_{name} => ${n}" for n, name in enumerate(more, 3))
    return await books.connection.fetchval(f"select grant_user_tokens($1, $2{named})", user.id, amount, *more.values())


async def void(books: Books, grant: dict[str, Any], reason: str | None = "wrong", key: str | None = None) -> Any:
    return await books.connection.fetchval(
        "select void_token_grant($1, $2, p_idempotency_key => $3)", grant["id"], reason, key
    )


async def everything(books: Books, user: User) -> list[Any]:
    """Every row that an operation on the wallet could write."""
    tables = (
        "user_token_wallets",
        "user_token_grants",
        "user_token_holds",
        "user_token_ledger",
        "audit_logs",
        "events",
    )
    return [
        await books.connection.fetch(f"select t.* from {table} t where tenant_id = $1 order by t::text", user.tenant_id)
        for table in tables
    ]


async def refusal(books: Books, call: Any) -> str:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await call
    return str(refused.value.sqlstate)


@pytest.mark.parametrize(
    ("kind", "priority"), [("trial", 15), ("promo", 30), ("refund", 50), ("adjustment", 50), ("purchase", 60)]
)
async def test_a_grant_of_every_kind_is_credited_with_its_priority(books: Books, kind: str, priority: int) -> None:
    user = await books.user()
    grant = await give(books, user, 100, kind=kind, reason="invoice 7", metadata={"invoice": 7})
    assert (grant["kind"], grant["priority"], grant["state"], grant["remaining"]) == (kind, priority, "active", 100)
    assert (grant["reason"], grant["metadata"], grant["expires_at"]) == ("invoice 7", {"invoice": 7}, "infinity")
    assert await books.figures(user) == (100, 0, 0)
    entry = await books.connection.fetchrow("select * from user_token_ledger where user_id = $1", user.id)
    assert (entry["direction"], entry["amount"], entry["reason"]) == ("credit", 100, "invoice 7")
    assert str(entry["grant_id"]) == grant["id"]
    events = await books.connection.fetch("select type from events where user_id = $1 and type like 'token%'", user.id)
    assert [row["type"] for row in events] == ["token.granted"]


async def test_grants_are_burned_by_priority_then_by_expiry_then_by_age(books: Books) -> None:
    user = await books.user()
    for kind, more in (
        ("purchase", {}),
        ("promo", {}),
        ("trial", {"expires_at": START + 9 * DAY}),
        ("trial", {"expires_at": START + 3 * DAY}),
        ("refund", {"priority": 0}),  # told apart from its kind's own place
    ):
        await give(books, user, 10, kind=kind, **more)
    order = []
    for _ in range(5):
        order.append((await books.grants(user))[0][0])
        await books.adjust(user, 10, "debit")
    assert order == ["refund", "trial", "trial", "promo", "purchase"]


async def test_of_two_trials_the_one_that_lapses_first_is_burned_first(books: Books) -> None:
    user = await books.user()
    await give(books, user, 10, kind="trial", expires_at=START + 9 * DAY)
    await give(books, user, 10, kind="trial", expires_at=START + 3 * DAY)
    await books.adjust(user, 10, "debit")
    await books.at(START + 4 * DAY)
    await books.reset_due_grants()
    assert await books.figures(user) == (10, 0, 0)


async def test_a_scheduled_grant_counts_from_its_moment_on_and_says_why(books: Books) -> None:
    user = await books.user()
    grant = await give(
        books, user, 50, effective_at=START + DAY, expires_at=START + 3 * DAY, reason="campaign", metadata={"n": 1}
    )
    assert grant["state"] == "scheduled"
    assert await books.figures(user) == (0, 0, 0)
    assert await books.entries(user) == []
    await books.at(START + DAY - timedelta(microseconds=1))
    assert await refusal(books, books.adjust(user, 1, "debit")) == "VS402"
    await books.at(START + DAY)
    await books.adjust(user, 20, "debit")
    assert await books.figures(user) == (30, 0, 0)
    entry = await books.connection.fetchrow("select * from user_token_ledger where user_id = $1 and seq = 1", user.id)
    assert (entry["reason"], entry["metadata"], str(entry["grant_id"])) == ("campaign", {"n": 1}, grant["id"])
    told = await books.connection.fetchval(
        "select payload ->> 'amount' from events where user_id = $1 and type = 'token.granted'", user.id
    )
    assert told == "50"
    await books.at(START + 3 * DAY)
    await books.reset_due_grants()
    assert (await books.entries(user))[-1] == ("expire", -30, 0)


async def test_a_grant_repays_debt_first(books: Books) -> None:
    user = await books.user("warn")
    await books.adjust(user, 30, "debit")
    grant = await give(books, user, 100)
    assert grant["remaining"] == 70
    assert await books.figures(user) == (70, 0, 0)


@pytest.mark.parametrize(
    ("change", "sqlstate"),
    [
        ({"amount": None}, "VS400"),
        ({"amount": 0}, "VS400"),
        ({"amount": -5}, "VS400"),
        ({"amount": MOST + 1}, "VS400"),
        ({"kind": None}, "VS400"),
        ({"kind": "plan"}, "VS400"),  # only a level gives it
        ({"kind": "gift"}, "VS400"),
        ({"priority": -1}, "VS400"),
        ({"priority": 101}, "VS400"),
        ({"expires_at": None}, "VS400"),
        ({"expires_at": START}, "VS400"),
        ({"effective_at": START + DAY, "expires_at": START + DAY}, "VS400"),
        ({"user_id": uuid.uuid4()}, "VS404"),
        ({"user_id": None}, "VS404"),
    ],
)
async def test_a_grant_that_is_refused_writes_nothing(books: Books, change: dict[str, Any], sqlstate: str) -> None:
    user = await books.user(balance=5)
    before = await everything(books, user)
    amount = change.pop("amount", 5)
    target = User(user.tenant_id, change.pop("user_id"), {}) if "user_id" in change else user
    assert await refusal(books, give(books, target, amount, **change)) == sqlstate
    assert await everything(books, user) == before


async def test_a_wallet_holds_no_more_than_its_limit_with_what_is_scheduled(books: Books) -> None:
    user = await books.user()
    for _ in range(100):
        await give(books, user, MOST, effective_at=START + DAY)
    assert await refusal(books, give(books, user, 1, effective_at=START + DAY)) == "VS400"
    assert await refusal(books, give(books, user, 1)) == "VS400"
    await books.at(START + DAY)
    await books.reset_due_grants()
    assert await books.figures(user) == (100 * MOST, 0, 0)


async def test_the_same_key_gives_once_and_another_body_is_refused(books: Books) -> None:
    user = await books.user()
    given = {"kind": "promo", "expires_at": START + DAY, "idempotency_key": "k"}
    first = await give(books, user, 10, **given)
    await books.at(START + 2 * DAY)  # when it has lapsed, the answer is still that grant
    again = await give(books, user, 10, **given)
    assert (again["id"], again["replayed"]) == (first["id"], True)
    for amount, change in ((11, {}), (10, {"kind": "refund"}), (10, {"reason": "x"}), (10, {"metadata": {"a": 1}})):
        assert await refusal(books, give(books, user, amount, **given | change)) == "VS410"
    other = await books.user()
    assert (await give(books, other, 99, **given | {"expires_at": START + 3 * DAY}))["replayed"] is False


@pytest.mark.parametrize("status", ["locked", "suspended"])
async def test_tokens_come_into_a_wallet_that_may_not_spend(books: Books, status: str) -> None:
    user = await books.user()
    await books.connection.execute("select set_wallet_status($1, $2, 'x')", user.id, status)
    await give(books, user, 10)
    assert await books.figures(user) == (10, 0, 0)


# voiding ----------------------------------------------------------------------------------------------------------
async def test_voiding_takes_what_is_left_and_no_more(books: Books) -> None:
    user = await books.user(balance=5)  # an adjustment burns after a promo
    grant = await give(books, user, 100)
    await books.adjust(user, 30, "debit")
    hold = (await books.adjust(user, 20, "reserve"))["hold_id"]
    voided = await void(books, grant, "chargeback")
    assert (voided["state"], voided["remaining"], voided["void_reason"]) == ("voided", 0, "chargeback")
    assert (await books.entries(user))[-1] == ("void", -50, 0)
    assert await books.figures(user) == (5, 20, 0)
    # what was held comes back to nothing: its grant is gone
    await books.adjust(user, 20, "release", reference_id=hold)
    assert await books.figures(user) == (5, 0, 0)


async def test_voiding_a_scheduled_grant_calls_it_off_without_an_entry(books: Books) -> None:
    user = await books.user()
    grant = await give(books, user, 100, effective_at=START + DAY)
    await void(books, grant)
    await books.at(START + 2 * DAY)
    await books.reset_due_grants()
    assert await books.entries(user) == []
    assert await books.figures(user) == (0, 0, 0)


@pytest.mark.parametrize("state", ["voided", "expired"])
async def test_what_is_no_longer_there_cannot_be_voided(books: Books, state: str) -> None:
    user = await books.user()
    grant = await give(books, user, 10, expires_at=START + DAY)
    if state == "voided":
        await void(books, grant)
    else:
        await books.at(START + DAY)
    before = await everything(books, user)
    assert await refusal(books, void(books, grant)) == "VS409"
    assert await everything(books, user) == before


async def test_an_unknown_grant_cannot_be_voided(books: Books) -> None:
    assert await refusal(books, void(books, {"id": uuid.uuid4()})) == "VS404"


async def test_the_same_key_voids_once(books: Books) -> None:
    user = await books.user()
    grant = await give(books, user, 10)
    await void(books, grant, "x", "k")
    assert (await void(books, grant, "x", "k"))["replayed"] is True
    assert await refusal(books, void(books, grant, "y", "k")) == "VS410"
    assert await refusal(books, void(books, grant, "x", "k2")) == "VS409"
    assert (await books.entries(user))[-1] == ("void", -10, 0)


async def test_a_voiding_without_a_reason_is_repeated_like_any_other(books: Books) -> None:
    user = await books.user()
    grant = await give(books, user, 100)
    first = await void(books, grant, reason=None, key="v")
    assert first["void_reason"] == "promo voided"
    assert await void(books, grant, reason=None, key="v") == first | {"replayed": True}
    assert await refusal(books, void(books, grant, reason="another", key="v")) == "VS410"
    assert await books.figures(user) == (0, 0, 0)


async def test_a_plan_voided_by_hand_does_not_come_back_with_the_level(books: Books) -> None:
    user = await books.user(monthly_allocation=100)
    await books.allocate(user, "free")
    hold = (await books.adjust(user, 40, "reserve"))["hold_id"]
    [plan] = await books.connection.fetch(
        "select id::text from user_token_grants where user_id = $1 and kind = 'plan'", user.id
    )
    await void(books, dict(plan))
    await books.policy(user.tenant_id, user.levels["basic"])
    await books.allocate(user, "basic")
    assert (await books.allocate(user, "free"))["restored"] == 0
    assert (await books.allocate(user, "free"))["period_granted"] == 0
    # nor by what was held when it was voided
    await books.adjust(user, 40, "release", reference_id=hold)
    assert await books.figures(user) == (0, 0, 0)


async def test_leaving_a_level_is_undone_by_coming_back(books: Books) -> None:
    user = await books.user(monthly_allocation=100)
    await books.allocate(user, "free")
    await books.policy(user.tenant_id, user.levels["basic"])
    await books.allocate(user, "basic")
    assert (await books.allocate(user, "free"))["restored"] == 100


async def test_what_is_given_and_voided_is_in_the_audit_log(books: Books) -> None:
    user = await books.user()
    await void(books, await give(books, user, 10, reason="gift"), "mistake")
    rows = await books.connection.fetch(
        "select action, details ->> 'reason' as reason from audit_logs"
        " where target_id = $1 and action like 'wallet.grant%' order by id",
        user.id,
    )
    assert [tuple(row) for row in rows] == [("wallet.granted", "gift"), ("wallet.grant_voided", "mistake")]


async def test_a_user_may_neither_give_nor_void(books: Books) -> None:
    user = await books.user()
    grant = await give(books, user, 10)
    async with books.connection.transaction():
        await books.connection.execute("set local role vanilla_app")
        for statement, argument in (
            ("select grant_user_tokens($1, 5)", user.id),
            ("select void_token_grant($1, 'x')", uuid.UUID(grant["id"])),
        ):
            with pytest.raises(asyncpg.PostgresError) as refused:
                async with books.connection.transaction():
                    await books.connection.execute(statement, argument)
            assert refused.value.sqlstate == "VS401"
