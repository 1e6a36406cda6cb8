"""Packs that are bought by themselves: when they are due, at most how many, and what stops them."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from tests.conftest import Cluster
from tests.payments.support import PACK_TOKENS, Shop, intent
from tests.tokens.support import START
from vanilla_saas.database.pool import _prepare

PAID = "payment_intent.succeeded"


def answer(claimed: dict, **more: object) -> dict:
    return intent(claimed["customer_id"], claimed["payment_id"], f"pi_{claimed['payment_id']}", **more)


async def test_a_pack_is_bought_below_the_threshold_and_never_two_at_a_time(shop: Shop) -> None:
    await shop.books.adjust(shop.user, 500, "credit")
    await shop.top_up(threshold=500)
    assert await shop.claim() == []
    await shop.books.adjust(shop.user, 1, "debit")
    [due] = await shop.claim()
    assert (due["amount"], due["currency"], due["payment_method"]) == (900, "USD", "pm_1")
    assert await shop.claim() == []
    assert await shop.finish(due, answer(due)) == "succeeded"
    assert await shop.finish(due, answer(due)) is None
    assert (await shop.books.figures(shop.user))[0] == 499 + PACK_TOKENS
    assert await shop.claim() == []


async def test_the_webhook_and_the_answer_grant_once_between_them(shop: Shop) -> None:
    await shop.top_up()
    [due] = await shop.claim()
    assert await shop.send(PAID, answer(due)) == "applied"
    assert await shop.finish(due, answer(due)) is None
    assert await shop.books.grants(shop.user) == [("purchase", PACK_TOKENS)]


async def test_the_ceiling_of_a_month_is_never_passed_and_told_once(shop: Shop) -> None:
    await shop.top_up(threshold=10**6, ceiling=1800)
    for _ in range(2):
        [due] = await shop.claim()
        await shop.finish(due, answer(due))
    assert await shop.claim() == []
    assert await shop.claim() == []
    assert [(told["spent"], told["monthly_ceiling"]) for told in await shop.told("payment.top_up_ceiling")] == [
        (1800, 1800)
    ]
    # months are the tenant's: here UTC
    await shop.books.at(datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC))
    assert await shop.claim() == []
    await shop.books.at(datetime(2026, 4, 1, tzinfo=UTC))
    assert len(await shop.claim()) == 1


async def test_sixteen_servers_at_once_buy_one_pack_at_a_time_up_to_the_ceiling(
    shop: Shop, cluster: Cluster, clocked_name: str
) -> None:
    await shop.top_up(threshold=10**6, ceiling=900 * 5)
    spent = "select sum(amount) from payments where tenant_id = $1 and state = 'succeeded'"
    connections = [await asyncpg.connect(cluster.url(database=clocked_name)) for _ in range(16)]
    try:
        for connection in connections:
            await _prepare(connection)
            await connection.execute("select set_config('vanilla_test.now', $1, false)", START.isoformat())

        all_bought, deadline = asyncio.Event(), time.monotonic() + 60

        async def serve(connection: asyncpg.Connection) -> int:
            bought = 0
            # who finds the user taken by another comes again
            while not (all_bought.is_set() or time.monotonic() > deadline):
                for due in await shop.claim(connection):
                    state = await connection.fetchval(
                        "select vanilla.finish_top_up($1::text::uuid, $2::text::uuid, $3::text::uuid, $4)",
                        due["tenant_id"], due["payment_id"], due["lease_id"], answer(due),
                    )  # fmt: skip
                    bought += state == "succeeded"
                    if state == "succeeded" and await connection.fetchval(spent, shop.user.tenant_id) == 900 * 5:
                        all_bought.set()
            return bought + len(await shop.claim(connection))

        assert sum(await asyncio.gather(*(serve(connection) for connection in connections))) == 5
    finally:
        for connection in connections:
            await connection.close()
    assert await shop.books.connection.fetchval(spent, shop.user.tenant_id) == 900 * 5


async def test_a_failure_pauses_it_and_tells_until_the_user_goes_on(shop: Shop) -> None:
    await shop.top_up()
    [due] = await shop.claim()
    assert await shop.finish(due, None, "card_declined") == "failed"
    assert await shop.claim() == []
    assert [told["reason"] for told in await shop.told("payment.top_up_paused")] == ["card_declined"]
    await shop.top_up()
    assert len(await shop.claim()) == 1


async def test_a_charge_that_fails_later_is_told_by_a_webhook(shop: Shop) -> None:
    await shop.top_up()
    [due] = await shop.claim()
    assert await shop.finish(due, answer(due, status="processing", amount_received=0)) == "pending"
    await shop.books.at(START + timedelta(hours=30))
    assert await shop.claim() == []
    declined = answer(due, status="requires_payment_method", last_payment_error={"code": "insufficient_funds"})
    assert await shop.send("payment_intent.payment_failed", declined) == "applied"
    assert [told["reason"] for told in await shop.told("payment.top_up_paused")] == ["insufficient_funds"]


async def test_no_answer_is_asked_for_again_as_the_same_charge_and_given_up_after_a_day(shop: Shop) -> None:
    await shop.top_up()
    [due] = await shop.claim()
    assert await shop.finish(due, None) == "pending"
    assert await shop.claim() == []
    await shop.books.at(START + timedelta(minutes=6))
    [again] = await shop.claim()
    assert again["payment_id"] == due["payment_id"]
    # that server dies: its lease runs out
    await shop.books.at(START + timedelta(minutes=9))
    [third] = await shop.claim()
    assert third["payment_id"] == due["payment_id"]
    assert await shop.finish(again, answer(again)) is None
    await shop.books.at(START + timedelta(hours=21))
    assert await shop.claim() == []
    assert [told["reason"] for told in await shop.told("payment.top_up_paused")] == ["no answer from Stripe"]
    # it was paid after all
    assert await shop.send(PAID, answer(due), at=START) == "applied"
    assert await shop.books.grants(shop.user) == [("purchase", PACK_TOKENS)]


async def test_an_answer_of_another_amount_grants_nothing_and_pauses(shop: Shop) -> None:
    await shop.top_up()
    [due] = await shop.claim()
    assert await shop.finish(due, answer(due, amount_received=1)) == "failed"
    assert await shop.books.grants(shop.user) == []
    assert [told["reason"] for told in await shop.told("payment.top_up_paused")] == ["amount_mismatch"]


@pytest.mark.parametrize(
    "given",
    [
        "update tenants set status = 'suspended' where id = $1",
        "update payment_accounts set status = 'disabled' where tenant_id = $1",
        "update payment_prices set status = 'hidden' where tenant_id = $1",
        "update payment_customers set payment_method = null where tenant_id = $1",
        "update user_token_wallets set status = 'locked' where tenant_id = $1",
        "update payment_top_ups set enabled = false where tenant_id = $1",
    ],
)
async def test_nothing_is_bought_where_nothing_may_be(shop: Shop, given: str) -> None:
    await shop.top_up()
    await shop.books.connection.execute(given, shop.user.tenant_id)
    assert await shop.claim() == []


async def test_a_setting_that_cannot_work_is_refused(shop: Shop) -> None:
    for state, code in (
        (shop.top_up(kept=False), "VS409"),
        (shop.top_up(ceiling=899), "VS400"),
        (shop.top_up(0), "VS400"),
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await state
        assert refused.value.sqlstate == code
    shop.pack = shop.user.tenant_id
    with pytest.raises(asyncpg.PostgresError, match="no such pack"):
        await shop.top_up()
