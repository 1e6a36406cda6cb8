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


async def test_tokens_of_the_rest_of_the_token_period_come_and_go_with_the_level(changes: Changes) -> None:
    """The token period is the calendar month, from March 1 at midnight; at noon of the 16th half of it is left."""
    at = START.replace(day=16, hour=12)
    await changes.books.at(at)
    first = await changes.change("low", currency="EUR")
    assert (first["tokens"]["granted"], first["tokens"]["taken"]) == (1550, 0)
    await changes.books.adjust(changes.user, 50, "debit")
    second = await changes.change("high")
    assert (second["tokens"]["granted"], second["available_tokens"]) == (13950, 15450)
    third = await changes.change("low")
    assert (third["tokens"]["taken"], third["tokens"]["short"], third["available_tokens"]) == (13950, 0, 1500)
    kinds = [(direction, amount) for direction, amount, _ in await changes.books.entries(changes.user)]
    assert kinds == [("credit", 1550), ("debit", -50), ("credit", 13950), ("void", -13950)]
    # by hand, on the level already: its plan of this period was given
    again = await changes.books.allocate(changes.user, "low")
    assert (again["period_granted"], again["restored"]) == (0, 0)
    await changes.books.at(START.replace(month=4))
    await changes.books.reset()
    assert (await changes.books.figures(changes.user))[0] == 3100


async def test_a_level_come_down_to_grants_no_plan_again_by_hand(changes: Changes) -> None:
    await changes.change("high", currency="EUR")
    await changes.books.adjust(changes.user, 30000, "debit")
    await changes.change("low")
    before = await changes.books.figures(changes.user)
    again = await changes.books.allocate(changes.user, "low")
    assert (again["period_granted"], again["restored"]) == (0, 0)
    assert await changes.books.figures(changes.user) == before


async def test_tokens_spent_ahead_keep_a_user_on_the_level_and_are_owed_when_an_admin_insists(changes: Changes) -> None:
    await changes.change("high", currency="EUR")
    await changes.books.adjust(changes.user, 30000, "debit")
    looked = await changes.preview("free")
    assert looked["tokens"]["short"] > 20000
    done = await changes.change("free")
    assert done["tokens"]["short"] == looked["tokens"]["short"]
    available, _, borrowed = await changes.books.figures(changes.user)
    assert (available, borrowed) == (0, looked["tokens"]["short"])


async def test_tokens_of_a_call_under_way_come_back_after_a_change(changes: Changes) -> None:
    await changes.change("low", currency="EUR")
    before = (await changes.books.figures(changes.user))[0]
    hold = (await changes.books.adjust(changes.user, 1000, "reserve"))["hold_id"]
    changed = await changes.change("high")
    await changes.books.settle(hold, 400)
    assert (await changes.books.figures(changes.user))[0] == before + changed["tokens"]["granted"] - 400


async def test_a_change_at_the_end_of_the_period_happens_then_once_also_after_downtime(changes: Changes) -> None:
    await changes.change("high", currency="EUR")
    asked = await changes.change("low", "period_end")
    assert (asked["state"], asked["due"], asked["effective_at"]) == ("scheduled", 1000, "2026-04-01T12:00:00+00:00")
    assert await changes.slug() == "high"
    await changes.books.at(MONTH_END - DAY / 24)
    assert await changes.job() == 0
    await changes.books.at(MONTH_END + 70 * DAY)
    assert await changes.job() == 3  # the change and two renewals
    assert await changes.job() == 0
    assert await changes.slug() == "low"
    # nobody looked for two periods and more: each has its line
    assert await changes.lines() == [
        ("charge", "high", 3100), ("charge", "low", 1000), ("renewal", "low", 1000), ("renewal", "low", 1000),
    ]  # fmt: skip
    assert list((await changes.totals()).values()) == [3100, 1000, 1000, 1000]
    assert (await changes.held())["period_end"] == START.replace(month=7)


async def test_an_undone_change_leaves_everything_as_if_it_had_not_been_asked_for(changes: Changes) -> None:
    await changes.change("high", currency="EUR")
    held, lines, wallet = await changes.held(), await changes.lines(), await changes.books.wallet(changes.user)
    await changes.change("low", "period_end")
    assert (await changes.undo())["state"] == "undone"
    assert (await changes.held(), await changes.lines(), await changes.books.wallet(changes.user)) == (
        held,
        lines,
        wallet,
    )
    await changes.books.at(MONTH_END + DAY)
    await changes.job()
    assert await changes.lines() == [("charge", "high", 3100), ("renewal", "high", 3100)]
    error = await refused(changes.undo(), "VS409")
    assert '"state": "undone"' in error.detail


async def test_a_change_that_took_effect_is_not_undone(changes: Changes) -> None:
    await changes.change("high", currency="EUR")
    await changes.change("low", "period_end")
    await changes.books.at(MONTH_END)  # due, though no job has run
    error = await refused(changes.undo(), "VS409")
    assert '"state": "scheduled"' in error.detail or '"state": "applied"' in error.detail
    assert await changes.slug() == "high"  # the refusal undid what it had brought up to date
    await changes.job()
    assert await changes.slug() == "low"
    assert '"state": "applied"' in (await refused(changes.undo(), "VS409")).detail


async def test_a_trial_costs_nothing_until_its_end_and_has_tokens_of_its_own(changes: Changes) -> None:
    trial = {"trial_days": 14, "trial_credits": 500}
    await changes.level("tried", 3, {"monthly": 2000, "one_time": 700}, plan=31000, **trial)
    await changes.path("free", "tried", own=True)
    begun = await changes.change("tried")
    end = START + 14 * DAY
    assert (begun["trial"], begun["due"], begun["lines"]) == (True, 0, [])
    assert begun["period_end"] == end.strftime("%Y-%m-%dT%H:%M:%S+00:00")
    assert await changes.books.grants(changes.user) == [("trial", 500)]
    await changes.books.adjust(changes.user, 100, "debit")
    await changes.books.at(end)
    assert await changes.job() == 1
    assert await changes.lines() == [("charge", "tried", 2000), ("fee", "tried", 700)]
    held = await changes.held()
    assert (held["trial"], held["period_start"], held["period_end"]) == (False, end, end.replace(month=4))
    # the plan's tokens are of the rest of the calendar month: from the 15th at noon 16.5 of 31 days
    assert await changes.books.grants(changes.user) == [("plan", 16500)]
    await changes.books.at(START.replace(month=4, day=2))
    await changes.books.reset()
    assert await changes.books.grants(changes.user) == [("plan", 31000)]


async def test_a_month_that_begins_within_a_trial_grants_what_the_level_before_would_have(changes: Changes) -> None:
    await changes.level("tried", 3, {"monthly": 2000}, plan=31000, trial_days=40, trial_credits=500)
    await changes.path("low", "tried")
    await changes.path("free", "tried")
    await changes.change("tried")
    await changes.books.at(START.replace(month=4))
    await changes.books.reset()
    assert await changes.books.grants(changes.user) == [("trial", 500)]
    await changes.books.at(START + 40 * DAY)
    await changes.job()
    granted = sum(amount for kind, amount in await changes.books.grants(changes.user) if kind == "plan")
    assert granted == 31000 * 20.5 // 30  # of April, from the 10th at noon


async def test_who_leaves_a_trial_pays_nothing_and_has_no_second_one(changes: Changes) -> None:
    await changes.level("tried", 3, {"monthly": 2000}, plan=0, trial_days=14, trial_credits=500)
    await changes.path("free", "tried")
    await changes.path("tried", "free")
    await changes.change("tried")
    await changes.books.at(START + DAY)
    left = await changes.change("free")
    assert (left["due"], await changes.lines(), await changes.books.grants(changes.user)) == (0, [], [])
    assert (await changes.preview("tried"))["trial"] is False
    again = await changes.change("tried")
    assert (again["trial"], again["due"]) == (False, 2000)


async def test_a_trial_is_called_off_by_a_change_at_its_end(changes: Changes) -> None:
    await changes.level("tried", 3, {"monthly": 2000}, plan=100, trial_days=14, trial_credits=500)
    await changes.path("free", "tried")
    await changes.path("tried", "free", timing="period_end", own=True)
    await changes.change("tried")
    asked = await changes.change("free", "period_end")
    assert asked["effective_at"].startswith("2026-03-15T12:00")
    await changes.books.at(START + 20 * DAY)
    await changes.job()
    assert (await changes.slug(), await changes.lines()) == ("free", [])
    assert await changes.job() == 0


@pytest.mark.parametrize(
    ("away", "ended"),
    [(None, (14, 1)), ("free", (3, 0)), ("high", (3, 1)), ("by hand", (14, 0)), ("erased", (3, 0))],
)
async def test_the_day_on_which_a_trial_ends_says_whether_it_was_paid_for(
    changes: Changes, away: str | None, ended: tuple[int, int]
) -> None:
    await changes.level("tried", 3, {"monthly": 2000}, plan=100, trial_days=14, trial_credits=500)
    await changes.path("free", "tried")
    await changes.change("tried")
    await changes.books.at(START + 3 * DAY)
    if away in ("free", "high"):
        await changes.path("tried", away)
        await changes.change(away)
    elif away == "by hand":
        await changes.books.allocate(changes.user, "free")
    elif away == "erased":
        await changes.connection.fetchval("select erase_user($1, 'test', $2)", changes.user.id, changes.user.tenant_id)
    await changes.books.at(START + 14 * DAY)
    await changes.job()
    await changes.connection.fetchval(
        "select roll_up_level_analytics($1, $2, $3)", START.date(), (START + 14 * DAY).date(), changes.user.tenant_id
    )
    days = await changes.connection.fetch(
        "select day, level, trials_ended, trials_converted from level_analytics"
        " where tenant_id = $1 and trials_ended + trials_converted > 0",
        changes.user.tenant_id,
    )
    day, converted = ended
    assert [tuple(row) for row in days] == [((START + day * DAY).date(), "tried", 1, converted)]


async def test_a_discount_holds_for_the_first_period_and_is_given_once(changes: Changes) -> None:
    for start in ("free", "low"):
        await changes.path("high", start, timing="period_end")
    await changes.path("free", "high", discount=33)
    first = await changes.change("high", currency="EUR")
    assert (first["due"], first["rate"], first["amount"]) == (3100 - 1023, 2077, 3100)
    await changes.change("free", "period_end")
    await changes.books.at(MONTH_END)
    await changes.job()
    assert (await changes.change("high", currency="EUR"))["due"] == 3100
    await changes.books.at(MONTH_END.replace(month=5))
    await changes.job()
    assert [line for line in await changes.lines() if line[0] == "renewal"] == [("renewal", "high", 3100)]


async def test_a_fee_on_joining_is_paid_once_and_goes_back_with_the_rest_of_its_period(changes: Changes) -> None:
    await changes.level("fee", 3, {"monthly": 3100, "one_time": 1000})
    for start, end in (("free", "fee"), ("low", "fee"), ("fee", "low")):
        await changes.path(start, end)
    await changes.change("fee")
    await changes.books.at(START + 31 * DAY / 4)
    assert (await changes.change("low"))["due"] == -2325 - 750 + 750
    assert (await changes.change("fee"))["due"] == 2325 + 750 - 750
    await changes.books.at(MONTH_END)
    await changes.job()
    await changes.change("low")
    await changes.books.at(MONTH_END + DAY)
    assert [line["kind"] for line in (await changes.change("fee"))["lines"]] == ["credit", "charge"]


async def test_another_cycle_begins_when_the_one_that_is_paid_ends(changes: Changes) -> None:
    await changes.change("low", currency="EUR")
    error = await refused(changes.change("high", cycle="yearly"), "VS409")
    assert '"param": "cycle"' in error.detail
    asked = await changes.change("high", "period_end", cycle="yearly")
    assert (asked["due"], asked["period_end"]) == (31000, "2027-04-01T12:00:00+00:00")


async def test_a_level_without_a_price_keeps_the_period_that_was_paid(changes: Changes) -> None:
    await changes.level("house", 9, {})
    for start, end in (("low", "house"), ("house", "low")):
        await changes.path(start, end)
    await changes.change("low", currency="EUR")
    assert (await changes.change("house"))["due"] == -1000
    assert (await changes.change("low"))["due"] == 1000
    assert await changes.totals() == {START: 1000}
    await changes.change("house")
    await changes.books.at(MONTH_END + DAY)
    assert await changes.job() == 1
    assert await changes.job() == 0


async def test_what_is_paid_for_good_is_charged_once(changes: Changes) -> None:
    await changes.level("ever", 3, {"lifetime": 50000})
    for start, end in (("free", "ever"), ("ever", "free")):
        await changes.path(start, end)
    assert (await changes.change("ever"))["due"] == 50000
    assert (await changes.change("free"))["due"] == 0
    await changes.books.at(START + 400 * DAY)
    assert await changes.job() == 0
    assert (await changes.change("ever"))["due"] == 0


async def test_a_key_changes_once_and_answers_the_same_again(changes: Changes) -> None:
    first = await changes.change("low", currency="EUR", idempotency_key="k")
    await changes.change("high")
    again = await changes.change("low", currency="EUR", idempotency_key="k")
    assert again == first | {"replayed": True}
    assert await changes.slug() == "high"
    await refused(changes.change("high", currency="EUR", idempotency_key="k"), "VS410")


async def test_what_a_provider_has_billed_is_recorded_as_it_says_and_asks_for_no_path(changes: Changes) -> None:
    await changes.connection.fetchval(
        "select delete_upgrade_path($1, $2, $3)",
        changes.user.levels["free"], changes.user.levels["high"], changes.user.tenant_id,
    )  # fmt: skip
    await refused(changes.change("high", currency="EUR"), "VS409")
    await changes.change("high", currency="EUR", payment_reference="in_1", billed_amount=3099)
    await changes.change("low", "period_end")
    await changes.change("free", payment_reference="re_1", billed_amount=-3099)
    rows = await changes.connection.fetch(
        "select kind, amount, currency, payment_reference from level_invoice_lines where user_id = $1 order by id",
        changes.user.id,
    )
    assert [tuple(row) for row in rows] == [("billed", 3099, "EUR", "in_1"), ("billed", -3099, "EUR", "re_1")]
    states = await changes.connection.fetch(
        "select state from level_changes where user_id = $1 order by id", changes.user.id
    )
    assert [row["state"] for row in states] == ["applied", "lapsed", "applied"]
    await refused(changes.change("low", "period_end", payment_reference="x"), "VS400")
    await refused(changes.change("low", currency="EUR", payment_reference=""), "VS400")
    await refused(changes.change("low", currency="EUR", billed_amount=5), "VS400")


async def test_what_a_provider_has_billed_is_bound_by_no_timing_and_begins_another_cycle_at_once(
    changes: Changes,
) -> None:
    await changes.change("low", currency="EUR")
    await changes.path("low", "high", timing="period_end")
    await changes.books.at(START + 31 * DAY / 4)
    done = await changes.change("high", cycle="yearly", payment_reference="in_2")
    assert done["period_end"] == "2027-03-09T06:00:00+00:00"
    assert await changes.totals() == {START: 250, START + 31 * DAY / 4: 31000}
    references = await changes.connection.fetch(
        "select distinct payment_reference from level_invoice_lines where change_id is not null and user_id = $1"
        " and payment_reference is not null",
        changes.user.id,
    )
    assert [row[0] for row in references] == ["in_2"]


async def test_who_was_moved_by_hand_keeps_what_was_paid_until_it_ends_and_nothing_renews(changes: Changes) -> None:
    await changes.change("low", currency="EUR")
    await changes.change("high", "period_end")
    await changes.books.allocate(changes.user, "free")
    await changes.books.at(MONTH_END)
    await changes.job()
    assert (await changes.slug(), await changes.held()) == ("free", None)
    state = await changes.connection.fetchrow(
        "select state, reason from level_changes where user_id = $1 and timing = 'period_end'", changes.user.id
    )
    assert tuple(state) == ("lapsed", "the user is on another level by now")
    assert await changes.lines() == [("charge", "low", 1000)]


async def test_an_erased_person_renews_nothing_and_their_lines_stay(changes: Changes) -> None:
    await changes.change("low", currency="EUR", idempotency_key="k")
    await changes.change("high", "period_end")
    await changes.connection.fetchval("select erase_user($1, 'asked')", changes.user.id)
    await changes.books.at(MONTH_END + DAY)
    assert await changes.job() == 0
    assert await changes.lines() == [("charge", "low", 1000)]
    assert await changes.held() is None


async def nothing(changes: Changes, work: Any, code: str) -> None:
    """Refused with the code, and nothing of the tenant is different afterwards."""
    before = await changes.everything()
    await refused(work, code)
    assert await changes.everything() == before


async def test_what_is_no_change_is_refused_and_writes_nothing(changes: Changes) -> None:
    other = Changes(changes.books, await changes.books.user())
    await other.level("theirs", 1, {"monthly": 5})
    changes.user.levels["theirs"] = other.user.levels["theirs"]
    await changes.level("island", 4, {"monthly": 900})
    await changes.level("swiss", 4, {})
    await changes.path("low", "swiss")
    await changes.path("low", "island", timing="period_end")
    await changes.connection.fetchval(
        "select set_level_price($1, 'monthly', 'CHF', 5, p_tenant_id => $2)",
        changes.user.levels["swiss"], changes.user.tenant_id,
    )  # fmt: skip
    await nothing(changes, changes.change("island"), "VS409")  # no path
    await nothing(changes, changes.change("theirs"), "VS404")
    for when in ("then", "", None, "NOW"):
        await nothing(changes, changes.change("low", when, currency="EUR"), "VS400")
    await nothing(changes, changes.change("low", cycle="weekly"), "VS400")
    await nothing(changes, changes.change("low", currency="USD"), "VS409")
    await nothing(changes, changes.change("free"), "VS409")  # held
    await nothing(changes, changes.undo(), "VS409")
    await changes.change("low", currency="EUR")
    await nothing(changes, changes.change("swiss"), "VS409")  # another currency
    await nothing(changes, changes.change("swiss", "period_end", currency="CHF"), "VS409")
    await nothing(changes, changes.change("island"), "VS409")  # at the end of the period only
    await changes.connection.execute("update levels set status = 'retired' where id = $1", changes.user.levels["high"])
    await nothing(changes, changes.change("high"), "VS409")
    await changes.change("island", "period_end")
    for _ in range(2):
        await nothing(changes, changes.change("free"), "VS409")  # another one is scheduled
    delete = "select delete_level($1, $2)"
    for slug in ("low", "island"):
        work = changes.connection.fetchval(delete, changes.user.levels[slug], changes.user.tenant_id)
        await nothing(changes, work, "VS409")
    await changes.undo()
    await changes.connection.fetchval(delete, changes.user.levels["island"], changes.user.tenant_id)


async def test_a_circle_whose_discounts_would_pay_the_user_is_refused(changes: Changes) -> None:
    await nothing(changes, changes.path("low", "high", discount=1), "VS409")  # and back at once, by the path there is
    await changes.path("high", "low", timing="period_end")
    await nothing(changes, changes.path("low", "high", discount=1), "VS409")  # over free
    await changes.path("high", "free", timing="period_end")
    await changes.path("low", "high", discount=100)
    await nothing(changes, changes.path("high", "low", timing="now"), "VS409")
    for more in ({"discount": -1}, {"discount": 101}, {"timing": "soon"}, {"discount": None}, {"timing": None}):
        await nothing(changes, changes.path("low", "free", **more), "VS400")
    await nothing(changes, changes.path("low", "low"), "VS400")
    other = Changes(changes.books, await changes.books.user())
    changes.user.levels["theirs"] = other.user.levels["free"]
    await nothing(changes, changes.path("low", "theirs"), "VS404")


async def test_a_change_keeps_what_it_was_told_though_prices_change_before_it_happens(changes: Changes) -> None:
    await changes.change("low", currency="EUR")
    told = await changes.change("high", "period_end")
    await changes.books.at(START + DAY)
    await changes.price("high", "monthly", 9900, replace=True)
    await changes.books.at(MONTH_END.replace(month=5))
    await changes.job()
    assert (await changes.lines())[-2:] == [("charge", "high", told["due"]), ("renewal", "high", 9900)]


async def test_a_scheduled_change_to_a_level_that_is_retired_lapses_and_the_old_one_renews(changes: Changes) -> None:
    await changes.change("low", currency="EUR")
    await changes.change("high", "period_end")
    await changes.connection.execute("update levels set status = 'retired' where id = $1", changes.user.levels["high"])
    await changes.books.at(MONTH_END)
    await changes.job()
    assert await changes.lines() == [("charge", "low", 1000), ("renewal", "low", 1000)]
