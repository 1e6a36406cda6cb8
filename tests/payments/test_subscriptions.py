"""Subscriptions as Stripe tells of them, in any order and more than once, and the level that each gives."""

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import asyncpg
import orjson
import pytest

from tests.payments.support import Shop, event, subscription
from tests.tokens.support import START

CREATED, UPDATED, DELETED = (f"customer.subscription.{what}" for what in ("created", "updated", "deleted"))


def later(seconds: float) -> Any:
    return START + timedelta(seconds=seconds)


async def test_a_subscription_gives_its_level_and_its_end_takes_it_back(shop: Shop) -> None:
    begun = subscription(shop.customer, "price_premium")
    assert await shop.send(CREATED, begun) == "applied"
    assert await shop.level() == "premium"
    changed = subscription(shop.customer, "price_basic")
    assert await shop.send(UPDATED, changed, at=later(10)) == "applied"
    assert await shop.level() == "basic"
    ended = subscription(shop.customer, "price_basic", "canceled")
    assert await shop.send(DELETED, ended, at=later(20)) == "applied"
    assert await shop.level() == "free"
    assert [told["state"] for told in await shop.told("payment.subscription")] == ["active", "active", "canceled"]


async def test_what_was_begun_without_a_provider_does_not_renew_beside_it(shop: Shop) -> None:
    connection, user = shop.books.connection, shop.user
    path = "select set_upgrade_path($1, $2, p_tenant_id => $3)"
    for start, end in (("free", "premium"), ("premium", "free")):
        await connection.fetchval(path, user.levels[start], user.levels[end], user.tenant_id)
    await connection.fetchval(
        "select change_user_level($1, $2, 'now', p_currency => 'EUR', p_trial => false)",
        user.id,
        user.levels["premium"],
    )
    await connection.fetchval("select change_user_level($1, $2, 'period_end')", user.id, user.levels["free"])
    assert await shop.send(CREATED, subscription(shop.customer, "price_premium")) == "applied"
    await shop.books.at(START + timedelta(days=40))
    await connection.fetchval("select vanilla.job_level_changes(100)")
    lines = await connection.fetch("select kind from level_invoice_lines where user_id = $1", user.id)
    states = await connection.fetch(
        "select state, reason from level_changes where user_id = $1 order by requested_at, id", user.id
    )
    assert await shop.level() == "premium"
    assert [line["kind"] for line in lines] == ["charge"]
    assert [tuple(row) for row in states] == [("applied", None), ("lapsed", "the payment provider bills")]


def priced(shop: Shop, status: str = "active", quantity: int = 1, subscription_id: str = "sub_1", **price: Any) -> Any:
    """A subscription of the level premium whose item says what it costs."""
    begun = subscription(shop.customer, "price_premium", status, subscription_id)
    item = begun["items"]["data"][0]
    item["price"] |= {"unit_amount": 1200, "currency": "usd", "recurring": {"interval": "month", "interval_count": 1}}
    item["price"] |= price
    item["quantity"] = quantity
    return begun


async def paid(shop: Shop, at: float = 3600) -> Any:
    """The run rate of the level premium, today so far."""
    connection, user = shop.books.connection, shop.user
    await shop.books.at(later(at))
    await connection.fetchval("select roll_up_level_analytics($1, $1, $2)", START.date(), user.tenant_id)
    return await connection.fetchval(
        "select run_rate from level_analytics where tenant_id = $1 and level = 'premium'", user.tenant_id
    )


@pytest.mark.parametrize(
    ("what", "rate"),
    [
        ({}, {"USD": 1200}),
        ({"quantity": 3}, {"USD": 3600}),
        ({"recurring": {"interval": "year", "interval_count": 1}, "currency": "eur"}, {"EUR": 100}),
        ({"recurring": {"interval": "month", "interval_count": 3}}, {"USD": 400}),
        ({"recurring": {"interval": "week"}}, {"USD": 5200}),
        ({"status": "past_due"}, {"USD": 1200}),
        ({"status": "trialing"}, {}),
        ({"unit_amount": None}, {}),
        ({"unit_amount": "many"}, {}),
        ({"recurring": None}, {}),
        ({"recurring": {"interval": "month", "interval_count": 0}}, {}),
        ({"currency": "us"}, {}),
    ],
)
async def test_the_run_rate_is_what_stripe_says_is_paid_a_month(
    shop: Shop, what: dict[str, Any], rate: dict[str, int]
) -> None:
    assert await shop.send(CREATED, priced(shop, **what)) == "applied"
    assert await shop.level() == "premium"
    assert await paid(shop) == rate


async def test_a_subscription_that_ended_pays_no_more_and_nobody_pays_twice(shop: Shop) -> None:
    connection, user = shop.books.connection, shop.user
    await connection.fetchval(
        "select set_upgrade_path($1, $2, p_tenant_id => $3)",
        user.levels["free"], user.levels["premium"], user.tenant_id,
    )  # fmt: skip
    await connection.fetchval(
        "select change_user_level($1, $2, 'now', p_currency => 'EUR', p_trial => false)",
        user.id, user.levels["premium"],
    )  # fmt: skip
    assert list(await paid(shop)) == ["EUR"]
    assert await shop.send(CREATED, priced(shop)) == "applied"
    assert await paid(shop, 3601) == {"USD": 1200}
    assert await shop.send(DELETED, priced(shop, "canceled"), at=later(20)) == "applied"
    assert await paid(shop, 3602) == {}


async def test_a_day_that_is_final_keeps_what_was_paid_then(shop: Shop) -> None:
    assert await shop.send(CREATED, priced(shop)) == "applied"
    assert await paid(shop, 2 * 86400) == {"USD": 1200}
    assert await shop.send(DELETED, priced(shop, "canceled"), at=later(20)) == "applied"
    assert await paid(shop, 2 * 86400 + 1) == {"USD": 1200}


async def test_what_ended_does_not_come_back_whatever_arrives_late(shop: Shop) -> None:
    ended = subscription(shop.customer, "price_premium", "canceled")
    assert await shop.send(DELETED, ended, at=later(20)) == "applied"
    assert await shop.send(CREATED, subscription(shop.customer, "price_premium"), at=START) == "stale"
    assert await shop.send(UPDATED, subscription(shop.customer, "price_premium"), at=later(30)) == "stale"
    assert await shop.level() == "free"


async def test_every_order_of_arrival_ends_in_the_same_level(shop: Shop) -> None:
    """What Stripe cannot order by its whole seconds is asked for: here the answer is the last step."""
    steps = [
        (CREATED, subscription(shop.customer, "price_basic", "incomplete"), 0),
        (UPDATED, subscription(shop.customer, "price_basic", "active"), 0),
        (UPDATED, subscription(shop.customer, "price_basic", "past_due"), 5),
        (UPDATED, subscription(shop.customer, "price_premium", "active"), 5),
    ]
    connection, asked = shop.books.connection, 0
    for order in itertools.permutations(range(4)):
        await connection.execute("delete from payment_subscriptions where tenant_id = $1", shop.user.tenant_id)
        await shop.books.allocate(shop.user, "free")
        for n in order:
            kind, thing, seconds = steps[n]
            told = event(kind, thing, at=later(seconds))
            if (await shop.apply(told))["outcome"] == "unknown_order":
                asked += 1
                now = told | {"data": {"object": steps[3][1]}}
                assert (await shop.apply(now, asked=True))["outcome"] == "applied"
        found = await connection.fetchrow(
            "select state, price_id from payment_subscriptions where tenant_id = $1", shop.user.tenant_id
        )
        assert (tuple(found), await shop.level()) == (("active", "price_premium"), "premium"), order
    assert asked == 24


async def test_the_same_event_sixteen_times_at_once_counts_once(shop: Shop, cluster: Any, clocked_name: str) -> None:
    told = event(CREATED, subscription(shop.customer, "price_premium"))
    connections = [await asyncpg.connect(cluster.url(database=clocked_name)) for _ in range(16)]
    try:
        for connection in connections:
            await connection.execute("select set_config('vanilla_test.now', $1, false)", START.isoformat())
        answers = await asyncio.gather(
            *(
                connection.fetchval(
                    "select vanilla.apply_payment_event($1, $2::jsonb)", shop.endpoint, orjson.dumps(told).decode()
                )
                for connection in connections
            )
        )
    finally:
        for connection in connections:
            await connection.close()
    assert sorted('"replayed": true' in answer for answer in answers) == [False, *[True] * 15]
    assert all('"outcome": "applied"' in answer for answer in answers)
    assert len(await shop.told("token.level_changed")) == 1


async def test_past_due_keeps_the_level_for_the_grace_and_no_longer(shop: Shop) -> None:
    await shop.send(CREATED, subscription(shop.customer, "price_premium"))
    late = subscription(shop.customer, "price_premium", "past_due")
    await shop.send(UPDATED, late, at=later(60))
    # said again a day later, the grace does not begin anew
    await shop.send(UPDATED, late, at=later(86400))
    await shop.books.at(later(60) + timedelta(days=7, seconds=-1))
    await shop.books.connection.fetchval("select vanilla.job_payments(10)")
    assert await shop.level() == "premium"
    await shop.books.at(later(60) + timedelta(days=7))
    first = await shop.books.connection.fetchval("select vanilla.job_payments(10)")
    assert (first["lapsed"], await shop.level()) == (1, "free")
    again = await shop.books.connection.fetchval("select vanilla.job_payments(10)")
    assert again["lapsed"] == 0
    # still past due: nothing comes back; paid: the level does
    await shop.send(UPDATED, late, at=later(9 * 86400))
    assert await shop.level() == "free"
    await shop.send(UPDATED, subscription(shop.customer, "price_premium"), at=later(10 * 86400))
    assert await shop.level() == "premium"


async def test_a_renewal_leaves_the_level_that_an_admin_gave(shop: Shop) -> None:
    await shop.send(CREATED, subscription(shop.customer, "price_basic"))
    await shop.books.allocate(shop.user, "enterprise")
    await shop.send(UPDATED, subscription(shop.customer, "price_basic"), at=later(100))
    assert await shop.level() == "enterprise"
    await shop.send(DELETED, subscription(shop.customer, "price_basic", "canceled"), at=later(200))
    assert await shop.level() == "enterprise"


async def test_of_two_subscriptions_the_higher_level_counts(shop: Shop) -> None:
    await shop.send(CREATED, subscription(shop.customer, "price_premium", subscription_id="sub_a"))
    await shop.send(CREATED, subscription(shop.customer, "price_basic", subscription_id="sub_b"))
    assert await shop.level() == "premium"
    await shop.send(DELETED, subscription(shop.customer, "price_premium", "canceled", "sub_a"), at=later(5))
    assert await shop.level() == "basic"


@pytest.mark.parametrize("state", ["incomplete", "unpaid", "paused", "incomplete_expired"])
async def test_a_state_in_which_nothing_is_paid_gives_no_level(shop: Shop, state: str) -> None:
    assert await shop.send(CREATED, subscription(shop.customer, "price_premium", state)) == "applied"
    assert await shop.level() == "free"


async def test_strangers_and_what_is_not_understood_change_nothing(shop: Shop) -> None:
    good = subscription(shop.customer, "price_premium")
    assert await shop.send(CREATED, good | {"customer": "cus_nobody"}) == "unknown_customer"
    assert await shop.send(CREATED, good | {"status": "odd"}) == "not_understood"
    assert await shop.send(CREATED, good | {"id": None}) == "not_understood"
    assert await shop.send(CREATED, good | {"cancel_at_period_end": "odd"}) == "not_understood"
    assert await shop.send(CREATED, good, account="acct_other") == "other_account"
    assert await shop.send(CREATED, good, livemode=True) == "other_mode"
    assert await shop.send("customer.created", good) == "ignored"
    assert await shop.level() == "free"
    count = "select count(*) from payment_subscriptions where tenant_id = $1"
    assert await shop.books.connection.fetchval(count, shop.user.tenant_id) == 0


async def test_a_price_that_is_named_later_counts_when_the_event_is_sent_again(shop: Shop) -> None:
    told = event(CREATED, subscription(shop.customer, "price_new"))
    assert (await shop.apply(told))["outcome"] == "unknown_price"
    await shop.books.connection.execute(
        "select set_payment_price('price_new', 'level', 'New', 'USD', 100, p_level_id => $1, p_tenant_id => $2)",
        shop.user.levels["basic"],
        shop.user.tenant_id,
    )
    assert (await shop.apply(told))["outcome"] == "applied"
    assert await shop.level() == "basic"
    assert await shop.apply(told) == {"event_id": told["id"], "outcome": "applied", "replayed": True}


@pytest.mark.parametrize(
    "change",
    [
        {"id": None}, {"id": "'; drop"}, {"type": "A b"}, {"created": None}, {"created": -1}, {"data": {}},
        {"data": {"object": 1}},
    ],
)  # fmt: skip
async def test_what_is_no_event_is_refused_and_not_kept(shop: Shop, change: dict[str, Any]) -> None:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await shop.apply(event(CREATED, subscription(shop.customer, "price_premium")) | change)
    assert refused.value.sqlstate == "VS400"
    count = "select count(*) from payment_events where tenant_id = $1"
    assert await shop.books.connection.fetchval(count, shop.user.tenant_id) == 0


async def test_an_event_older_than_what_is_remembered_is_refused(shop: Shop) -> None:
    with pytest.raises(asyncpg.PostgresError, match="too old"):
        await shop.send(CREATED, subscription(shop.customer, "price_premium"), at=START - timedelta(days=91))
    assert await shop.level() == "free"
