"""Packs of tokens: paid, refunded, disputed, in any order; what was given and taken back is exact."""

import itertools
import random
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.payments.support import PACK_AMOUNT, PACK_TOKENS, Shop, dispute, intent, refund
from tests.tokens.support import START

PAID = "payment_intent.succeeded"


def later(seconds: float) -> Any:
    return START + timedelta(seconds=seconds)


async def test_a_payment_grants_its_pack_once_however_often_it_is_told(shop: Shop) -> None:
    made = await shop.payment()
    told = intent(shop.customer, made)
    assert await shop.send(PAID, told) == "applied"
    assert await shop.send(PAID, told) == "unchanged"
    assert await shop.send(PAID, told | {"id": "pi_2"}) == "paid_twice"
    assert await shop.books.grants(shop.user) == [("purchase", PACK_TOKENS)]
    row = await shop.row(made)
    assert (row["state"], row["intent_id"]) == ("succeeded", "pi_1")
    assert [one["tokens"] for one in await shop.told("payment.succeeded")] == [PACK_TOKENS]


async def test_what_was_bought_survives_a_monthly_reset(shop: Shop) -> None:
    await shop.books.policy(shop.user.tenant_id, shop.user.levels["basic"], monthly_allocation=50)
    await shop.books.allocate(shop.user, "basic")
    await shop.buy()
    await shop.books.at(START + timedelta(days=31))
    assert await shop.books.reset() >= 1
    assert await shop.books.grants(shop.user) == [("plan", 50), ("purchase", PACK_TOKENS)]


async def test_a_payment_of_another_amount_currency_customer_or_state_grants_nothing(shop: Shop) -> None:
    made = await shop.payment()
    good = intent(shop.customer, made)
    assert await shop.send(PAID, good | {"amount_received": PACK_AMOUNT - 1}) == "amount_mismatch"
    assert await shop.send(PAID, good | {"amount_received": None}) == "amount_mismatch"
    assert await shop.send(PAID, good | {"amount_received": "odd"}) == "not_understood"
    assert await shop.send(PAID, good | {"currency": "eur"}) == "currency_mismatch"
    assert await shop.send(PAID, good | {"customer": "cus_nobody"}) == "unknown_customer"
    assert await shop.send(PAID, good | {"status": "processing"}) == "not_understood"
    assert await shop.send(PAID, good | {"metadata": {"vanilla_payment": "x"}}) == "unknown_payment"
    assert await shop.send(PAID, good | {"metadata": {}}) == "ignored"
    assert await shop.books.entries(shop.user) == []
    assert (await shop.row(made))["state"] == "open"
    assert await shop.send(PAID, good) == "applied"


async def test_a_full_refund_takes_what_is_left_and_the_rest_as_debt(shop: Shop) -> None:
    made = await shop.buy()
    await shop.books.adjust(shop.user, 300, "debit")
    assert await shop.send("refund.created", refund(PACK_AMOUNT)) == "applied"
    assert await shop.books.figures(shop.user) == (0, 0, 300)
    assert (await shop.books.entries(shop.user))[-2:] == [("void", -700, 0), ("adjustment", -300, 0)]
    assert (await shop.row(made))["reversed_tokens"] == PACK_TOKENS
    assert [one["reversed_tokens"] for one in await shop.told("payment.reversed")] == [PACK_TOKENS]


async def test_a_refund_leaves_what_is_held_to_come_back_once(shop: Shop) -> None:
    await shop.buy()
    hold = await shop.books.adjust(shop.user, 400, "reserve")
    await shop.send("refund.created", refund(PACK_AMOUNT))
    assert await shop.books.figures(shop.user) == (0, 400, 400)
    await shop.books.settle(hold["hold_id"], 0)
    assert await shop.books.figures(shop.user) == (0, 0, 0)


async def test_what_is_held_finds_its_place_though_what_was_taken_instead_has_lapsed(shop: Shop) -> None:
    await shop.buy()
    hold = await shop.books.adjust(shop.user, 400, "reserve")
    await shop.books.adjust(shop.user, 500, "credit", source="promo", expires_at=START + timedelta(days=1))
    await shop.send("refund.created", refund(PACK_AMOUNT))
    assert await shop.books.figures(shop.user) == (100, 400, 0)
    await shop.books.at(START + timedelta(days=2))
    await shop.books.settle(hold["hold_id"], 0)
    assert await shop.books.figures(shop.user) == (400, 0, 0)


async def test_partial_refunds_take_tokens_in_proportion_and_all_of_them_take_all(shop: Shop) -> None:
    made = await shop.buy()
    taken = []
    for n, amount in enumerate((100, 333, PACK_AMOUNT - 433)):
        await shop.send("refund.created", refund(amount, f"re_{n}"), at=later(n))
        taken.append((await shop.row(made))["reversed_tokens"])
    assert taken == [111, 481, PACK_TOKENS]
    assert await shop.books.figures(shop.user) == (0, 0, 0)


async def test_a_refund_that_failed_gives_back_what_it_took(shop: Shop) -> None:
    await shop.buy()
    await shop.send("refund.created", refund(450, status="pending"))
    assert (await shop.books.figures(shop.user))[0] == 500
    await shop.send("refund.failed", refund(450, status="failed"), at=later(5))
    assert await shop.send("refund.updated", refund(450), at=later(2)) == "stale"
    assert (await shop.books.figures(shop.user))[0] == PACK_TOKENS


async def test_a_dispute_takes_all_until_it_is_won(shop: Shop) -> None:
    await shop.top_up()
    made = await shop.buy()
    await shop.books.adjust(shop.user, 1000, "debit")
    assert await shop.send("charge.dispute.created", dispute("needs_response")) == "applied"
    assert await shop.books.figures(shop.user) == (0, 0, 1000)
    assert [one["reason"] for one in await shop.told("payment.top_up_paused")] == ["a payment is disputed"]
    assert await shop.send("charge.dispute.closed", dispute("won"), at=later(9)) == "applied"
    assert await shop.books.figures(shop.user) == (0, 0, 0)
    row = await shop.row(made)
    assert (row["returned_amount"], row["reversed_tokens"]) == (0, 0)


async def test_an_inquiry_takes_nothing_and_refund_and_dispute_together_take_all_once(shop: Shop) -> None:
    made = await shop.buy()
    await shop.send("charge.dispute.created", dispute("warning_needs_response"))
    assert (await shop.row(made))["reversed_tokens"] == 0
    await shop.send("charge.dispute.updated", dispute("lost"), at=later(3))
    await shop.send("refund.created", refund(PACK_AMOUNT), at=later(4))
    row = await shop.row(made)
    assert (row["returned_amount"], row["reversed_tokens"]) == (PACK_AMOUNT, PACK_TOKENS)
    assert await shop.books.figures(shop.user) == (0, 0, 0)


async def test_a_charge_tells_of_refunds_whose_own_events_are_not_sent(shop: Shop) -> None:
    made = await shop.buy()
    charge = {"id": "ch_1", "payment_intent": "pi_1", "currency": "usd", "amount_refunded": 450, "status": "succeeded"}
    assert await shop.send("charge.refunded", charge) == "applied"
    # the refund itself adds nothing to it
    assert await shop.send("refund.created", refund(450)) == "unchanged"
    assert (await shop.row(made))["reversed_tokens"] == 500


async def test_a_refund_in_another_currency_is_left_to_people(shop: Shop) -> None:
    made = await shop.buy()
    assert await shop.send("refund.created", refund(PACK_AMOUNT, currency="eur")) == "currency_mismatch"
    assert (await shop.row(made))["reversed_tokens"] == 0


async def test_what_an_admin_voided_is_not_taken_twice(shop: Shop) -> None:
    made = await shop.buy()
    await shop.books.adjust(shop.user, 400, "debit")
    await shop.books.connection.execute("select void_token_grant($1, 'by hand')", (await shop.row(made))["grant_id"])
    await shop.send("refund.created", refund(PACK_AMOUNT))
    assert await shop.books.figures(shop.user) == (0, 0, 400)


async def test_every_order_of_payment_refund_and_dispute_ends_in_the_same_books(shop: Shop) -> None:
    outcomes = set()
    orders = list(itertools.permutations(range(5)))
    for order in random.Random(7).sample(orders, 24):
        run = "".join(map(str, order))
        made, name = await shop.payment(), f"pi_{run}"
        mine = {"payment_intent": name}
        steps = [
            (PAID, intent(shop.customer, made, name), 0),
            ("refund.created", refund(300, f"re_{run}", "pending", **mine), 1),
            ("refund.failed", refund(300, f"re_{run}", "failed", **mine), 2),
            ("charge.dispute.created", dispute("needs_response", 450, **mine) | {"id": f"dp_{run}"}, 3),
            ("refund.updated", refund(90, f"re2_{run}", **mine), 3),
        ]
        before = await shop.books.figures(shop.user)
        for n in order:
            kind, thing, seconds = steps[n]
            await shop.send(kind, thing, at=later(seconds))
        row = await shop.row(made)
        gained = (await shop.books.figures(shop.user))[0] - before[0]
        outcomes.add((row["state"], row["returned_amount"], row["reversed_tokens"], gained))
    assert outcomes == {("succeeded", 540, 600, 400)}


async def test_a_person_who_was_erased_is_given_nothing_and_keeps_no_payment_method(shop: Shop) -> None:
    await shop.top_up()
    made = await shop.payment()
    await shop.books.connection.execute("select erase_user($1, 'asked', $2)", shop.user.id, shop.user.tenant_id)
    assert await shop.send(PAID, intent(shop.customer, made)) == "wallet_closed"
    assert await shop.send("refund.created", refund(PACK_AMOUNT)) == "applied"
    left = await shop.books.connection.fetchrow(
        "select (select count(*) from payment_top_ups where tenant_id = $1), payment_method"
        " from payment_customers where tenant_id = $1",
        shop.user.tenant_id,
    )
    assert tuple(left) == (0, None)


async def test_a_checkout_that_ran_out_can_still_be_paid(shop: Shop) -> None:
    made = await shop.payment()
    session = {"customer": shop.customer, "metadata": {"vanilla_payment": str(made)}}
    assert await shop.send("checkout.session.expired", session) == "applied"
    assert (await shop.row(made))["state"] == "expired"
    assert await shop.send(PAID, intent(shop.customer, made)) == "applied"
    assert await shop.books.grants(shop.user) == [("purchase", PACK_TOKENS)]


async def test_the_payment_of_another_tenants_account_is_unknown(shop: Shop, books: Any) -> None:
    from tests.payments.support import open_shop

    other = await open_shop(books)
    made = await shop.payment()
    assert await other.send(PAID, intent(other.customer, made)) == "unknown_payment"
    assert await other.send(PAID, intent(shop.customer, made)) == "unknown_customer"
    assert await shop.books.entries(shop.user) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("'price_x', 'pack', 'X', 'USD', 0, 10", "VS400"),
        ("'price_x', 'pack', 'X', 'USD', 100, null", "VS400"),
        ("'price_x', 'pack', 'X', 'USD', 100, -1", "VS400"),
        ("'price_x', 'level', 'X', 'USD', 100, 10", "VS400"),
        ("'price_x', 'odd', 'X', 'USD', 100, 10", "VS400"),
        ("'price x', 'pack', 'X', 'USD', 100, 10", "VS400"),
        ("'price_x', 'pack', 'X', 'dollar', 100, 10", "VS400"),
        ("'price_x', 'pack', '', 'USD', 100, 10", "VS400"),
        ("'price_x', 'level', 'X', 'USD', 100, null, gen_random_uuid()", "VS404"),
    ],
)
async def test_a_price_that_is_worth_nothing_is_refused(shop: Shop, change: str, code: str) -> None:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await shop.books.connection.execute(
            f"select set_payment_price({change}, p_tenant_id => $1)", shop.user.tenant_id
        )
    assert refused.value.sqlstate == code
