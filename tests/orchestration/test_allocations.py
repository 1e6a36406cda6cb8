"""Budgets of agents: a tree is held in the wallet once, no node spends more than it has, a step is charged once."""

import json
import uuid
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.orchestration.support import Trees
from tests.tokens.support import START


async def refused(work: Awaitable[Any], code: str) -> dict[str, Any]:
    """The details of a refusal with this SQLSTATE."""
    with pytest.raises(asyncpg.PostgresError) as error:
        await work
    assert error.value.sqlstate == code, error.value
    return json.loads(error.value.detail)  # type: ignore[attr-defined]


async def test_a_tree_holds_its_budget_in_the_wallet_once_and_gives_back_what_it_did_not_spend(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 600)
    child = await trees.carve(root, 400)
    assert await trees.figures(user) == (400, 600, 0)
    step = await trees.hold(child, "one", 150)
    assert await trees.tokens(child) == (400, 0, 150, 0)
    paid = await trees.pay(step, 100, usage={"input": 100})
    assert (paid["settled"], paid["overrun"], paid["left"]) == (100, 0, 300)
    assert await trees.figures(user) == (400, 500, 0)
    await trees.close(child)
    assert await trees.tokens(root) == (600, 0, 0, 100)
    await trees.close(root)
    assert await trees.figures(user) == (900, 0, 0)
    assert (await trees.entries(user))[1:] == [("reserve", -600, 600), ("settle", 0, -100), ("release", 500, -500)]


async def test_a_step_is_charged_once_and_again_answers_the_same(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 600)
    first = await trees.hold(root, "one", 100)
    again = await trees.hold(root, "one", 250)
    assert (again["hold_id"], again["amount"], again["replayed"]) == (first["hold_id"], 100, True)
    paid = await trees.pay(first, 60, usage={"output": 3})
    for repeated in (await trees.pay(first, 99), await trees.hold(root, "one", 5)):
        assert repeated | {"replayed": False} == paid
    assert (await trees.tokens(root), len(await trees.entries(user))) == ((600, 0, 0, 60), 3)


async def test_the_ledger_row_of_a_step_names_it(trees: Trees) -> None:
    user, execution = await trees.user(balance=1000), uuid.uuid4()
    root = await trees.open(user, 600)
    held = await trees.connection.fetchval(
        "select vanilla.allocation_hold($1, $2, 'one', 50, p_execution_id => $3)",
        user.tenant_id,
        root["allocation_id"],
        execution,
    )
    await trees.pay(held, 40)
    row = await trees.connection.fetchrow(
        "select * from user_token_ledger where user_id = $1 and direction = 'settle'", user.id
    )
    assert (row["execution_id"], row["reference_type"]) == (execution, "resource_allocation")
    assert str(row["reference_id"]) == root["allocation_id"]
    assert row["metadata"] == {
        "held": 50, "actual": 40, "final": False, "step": "one", "allocation_hold": held["hold_id"],
    }  # fmt: skip


async def test_no_more_is_carved_or_held_than_is_left(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root, beside = await trees.open(user, 100), await trees.open(user, 100)
    await trees.carve(root, 60)
    await trees.hold(root, "one", 30)
    before = await trees.tokens(root), await trees.figures(user)
    told = await refused(trees.hold(root, "two", 11), "VS429")
    assert (told["reason"], told["needed"], told["left"], told["limit"]) == ("budget_exhausted", 11, 10, 100)
    assert (await refused(trees.carve(root, 11), "VS429"))["reason"] == "budget_exhausted"
    assert (await trees.tokens(root), await trees.figures(user)) == before
    children = "select count(*) from resource_allocations where parent_id = $1"
    assert await trees.connection.fetchval(children, uuid.UUID(root["allocation_id"])) == 1
    assert (await trees.carve(beside, 100))["budget"] == 100
    assert (await trees.carve(root, None))["budget"] == 10


async def test_what_a_step_used_above_its_hold_is_paid_from_what_the_node_has_left(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 100)
    paid = await trees.pay(await trees.hold(root, "one", 30), 90)
    assert (paid["settled"], paid["overrun"]) == (90, 0)
    assert (await trees.tokens(root), await trees.figures(user)) == ((100, 0, 0, 90), (900, 10, 0))
    await trees.hold(root, "two", 10)


@pytest.mark.parametrize(("balance", "figures"), [(1000, (860, 0, 0)), (120, (0, 0, 20))])
async def test_beyond_that_the_wallet_pays_and_the_node_takes_no_further_hold(
    trees: Trees, balance: int, figures: tuple[int, int, int]
) -> None:
    user = await trees.user(balance=balance)
    root = await trees.open(user, 100)
    paid = await trees.pay(await trees.hold(root, "one", 30), 140)
    assert (paid["settled"], paid["overrun"], await trees.figures(user)) == (140, 40, figures)
    assert (await refused(trees.hold(root, "two", 0), "VS429"))["overrun"] == 40
    assert await events(trees, user) == ["allocation.overrun", "allocation.warning"]
    await trees.close(root)


async def test_a_released_step_gives_back_what_it_held_and_may_hold_again(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 100)
    first = await trees.hold(root, "one", 80)
    assert (await trees.release(first))["state"] == "released"
    assert (await trees.release(first))["replayed"]
    second = await trees.hold(root, "one", 90)
    assert second["hold_id"] != first["hold_id"]
    assert (await trees.pay(first, 50))["state"] == "released"  # the other attempt stands in its place
    await trees.pay(second, 70)
    assert await trees.tokens(root) == (100, 0, 0, 70)


async def test_what_a_released_step_used_after_all_is_charged(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 100)
    step = await trees.hold(root, "one", 80)
    await trees.release(step)
    assert (await trees.pay(step, 0))["state"] == "released"
    assert (await trees.pay(step, 30))["settled"] == 30
    assert await trees.tokens(root) == (100, 0, 0, 30)


async def test_requests_and_steps_under_way_count_on_every_ancestor_that_has_a_limit(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 500, {"requests": 3, "concurrency": 2})
    one, two = await trees.carve(root, 100), await trees.carve(root, 100, limits={"requests": 9, "concurrency": 1})
    assert [(await trees.node(two))[name] for name in ("max_requests", "max_concurrent")] == [3, 1]
    first = await trees.hold(one, "a", 5)
    await trees.hold(two, "a", 5)
    told = await refused(trees.hold(two, "b", 5), "VS429")
    assert (told["reason"], told["allocation_id"], told["limit"]) == ("max_concurrent", root["allocation_id"], 2)
    await trees.pay(first, 5)
    assert (await refused(trees.hold(two, "b", 5), "VS429"))["allocation_id"] == two["allocation_id"]
    await trees.release(await trees.hold(one, "b", 5))
    assert (await refused(trees.hold(one, "c", 5), "VS429"))["reason"] == "max_requests"
    row = await trees.node(root)
    assert (row["requests"], row["open_holds"]) == (3, 1)


async def test_an_allocation_without_limits_is_not_touched_by_its_children(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 500)
    child = await trees.carve(root, 100)
    before = await trees.node(root)
    await trees.pay(await trees.hold(child, "a", 5), 5)
    await trees.count(child)
    assert await trees.node(root) == before


async def test_tool_calls_are_counted_or_refused_together(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 500, {"tool_calls": 5})
    child = await trees.carve(root, 100)
    assert (await trees.count(child, 4))["tool_calls"] == 4
    assert (await refused(trees.count(child, 2), "VS429"))["reason"] == "max_tool_calls"
    await trees.count(root)
    assert (await trees.node(root))["tool_calls"] == 5


async def test_a_child_gets_the_lesser_of_its_limits_and_its_parents_and_ends_no_later(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 500, {"requests": 3, "wall_ms": 60_000})
    limits = {"requests": 7, "tool_calls": 2, "wall_ms": 90_000}
    child = await trees.node(await trees.carve(root, 100, limits=limits))
    assert (child["max_requests"], child["max_tool_calls"], child["max_concurrent"]) == (3, 2, None)
    assert child["expires_at"] == START + timedelta(minutes=1)


async def test_at_80_percent_it_is_told_once_and_again_after_a_top_up(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 100)
    assert not (await trees.hold(root, "a", 79))["notified"]
    assert (await trees.hold(root, "b", 1))["notified"]
    await trees.hold(root, "c", 1)
    assert await events(trees, user) == ["allocation.warning"]
    await trees.top_up(root, 100)
    assert not (await trees.hold(root, "d", 1))["notified"]
    await trees.hold(root, "e", 100)
    assert await events(trees, user) == ["allocation.warning"] * 2


async def test_one_last_turn_takes_what_is_kept_for_it_and_nothing_begins_after_it(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 100, {"wrap_up_tokens": 20})
    await trees.pay(await trees.hold(root, "a", 80), 80)
    assert (await refused(trees.hold(root, "b", 1), "VS429"))["reason"] == "budget_exhausted"
    last = await trees.hold(root, "last", 20, wrap_up=True)
    assert (await trees.hold(root, "last", 20, wrap_up=True))["hold_id"] == last["hold_id"]
    await refused(trees.hold(root, "another", 0, wrap_up=True), "VS429")
    await trees.release(last)  # it was not had
    await trees.pay(await trees.hold(root, "last", 20, wrap_up=True), 15)
    await refused(trees.hold(root, "b", 1), "VS429")
    await refused(trees.carve(root, 1), "VS429")
    await trees.close(root)


async def test_an_allocation_with_something_open_is_not_closed(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 100)
    child = await trees.carve(root, 50)
    step = await trees.hold(child, "a", 5)
    assert (await refused(trees.close(child), "VS409"))["open_holds"] == 1
    assert (await refused(trees.close(root), "VS409"))["carved"] == 50
    await trees.pay(step, 5)
    await trees.close(child)
    assert (await trees.close(child))["replayed"]
    assert (await refused(trees.hold(child, "b", 5), "VS409"))["reason"] == "closed"
    await trees.close(root)


async def test_a_run_that_ends_takes_its_whole_subtree_with_it(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 500, {"concurrency": 9})
    run = await trees.carve(root, 300)
    child = await trees.carve(run, 200)
    step = await trees.hold(child, "a", 50)
    await trees.pay(await trees.hold(child, "b", 50), 20)
    assert await trees.end(run)
    assert not await trees.end(run)
    assert await trees.tokens(root) == (500, 0, 0, 20)
    assert (await trees.node(root))["open_holds"] == 0
    paid = await trees.pay(step, 30)  # it had been sent: the wallet pays, as for a call whose hold was released
    assert (paid["settled"], paid["overrun"]) == (30, 30)
    assert await trees.figures(user) == (470, 480, 0)
    await trees.close(root)
    assert await trees.figures(user) == (950, 0, 0)


async def test_a_top_up_holds_more_in_the_wallet_or_carves_more_of_the_parent(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 100)
    child = await trees.carve(root, 60)
    await trees.top_up(child, 40)
    assert (await refused(trees.top_up(child, 1), "VS429"))["reason"] == "budget_exhausted"
    assert (await trees.top_up(root, 50, idempotency_key="k"))["budget"] == 150
    assert (await trees.top_up(root, 50, idempotency_key="k"))["replayed"]
    await refused(trees.top_up(root, 51, idempotency_key="k"), "VS410")
    assert await trees.figures(user) == (850, 150, 0)
    await refused(trees.top_up(root, 851), "VS402")
    assert (
        await trees.connection.fetchval(
            "select count(*) from audit_logs where action = 'allocation.topped_up' and tenant_id = $1", user.tenant_id
        )
        == 2
    )


async def test_a_key_opens_and_carves_once(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 100, idempotency_key="k")
    assert await trees.open(user, 100, idempotency_key="k") == root | {"replayed": True}
    await refused(trees.open(user, 101, idempotency_key="k"), "VS410")
    child = await trees.carve(root, 10, idempotency_key="k")
    assert await trees.carve(root, 10, idempotency_key="k") == child | {"replayed": True}
    await refused(trees.carve(root, 11, idempotency_key="k"), "VS410")
    assert (await trees.figures(user), await trees.tokens(root)) == ((900, 100, 0), (100, 10, 0, 0))


async def test_what_the_wallet_does_not_have_is_not_opened(trees: Trees) -> None:
    await refused(trees.open(await trees.user(balance=99), 100), "VS402")
    assert (await trees.open(await trees.user("monitor", balance=40), 100))["budget"] == 40
    await refused(trees.open(await trees.user("monitor"), 100), "VS402")


async def test_when_its_time_is_over_nothing_begins_and_the_job_returns_everything(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 500, {"wall_ms": 60_000})
    child = await trees.carve(root, 200, limits={"wall_ms": 30_000})
    await trees.pay(await trees.hold(child, "a", 50), 20)
    await trees.hold(child, "b", 50)
    await trees.later(seconds=40)
    assert (await refused(trees.hold(child, "c", 5), "VS409"))["reason"] == "deadline"
    assert (await trees.reap_trees())["allocations"] == 1
    assert (await trees.node(child))["state"] == "expired"
    assert await trees.tokens(root) == (500, 0, 0, 20)
    await trees.later(seconds=40)
    assert (await trees.reap_trees())["allocations"] == 1
    assert await trees.figures(user) == (980, 0, 0)


async def test_a_step_that_is_not_settled_in_time_gives_back_what_it_held(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 100, {"concurrency": 1})
    await trees.hold(root, "a", 60, ttl=timedelta(seconds=30))
    await trees.later(seconds=31)
    await trees.hold(root, "b", 60, ttl=timedelta(seconds=30))  # at the first touch that needs it
    assert await trees.tokens(root) == (100, 0, 60, 0)
    await trees.later(seconds=31)
    assert (await trees.reap_trees())["steps"] == 1
    assert await trees.tokens(root) == (100, 0, 0, 0)


async def test_a_step_that_is_begun_again_has_more_time(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 100)
    for _ in range(3):
        step = await trees.hold(root, "a", 60, ttl=timedelta(seconds=30))
        await trees.later(seconds=20)
    assert (await trees.reap_trees())["steps"] == 0
    assert (await trees.pay(step, 60))["settled"] == 60


@pytest.mark.parametrize("how", ["release_token_hold", "adjust_user_tokens", "the wallet's own expiry"])
async def test_whoever_takes_the_hold_of_a_tree_back_ends_it_and_what_settles_later_is_charged(
    trees: Trees, how: str
) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 500)
    child = await trees.carve(root, 200)
    await trees.pay(await trees.hold(child, "a", 50), 20)
    step = await trees.hold(child, "b", 50)
    hold = (await trees.node(root))["hold_id"]
    if how == "release_token_hold":
        await trees.connection.fetchval("select release_token_hold($1)", hold)
    elif how == "adjust_user_tokens":
        await trees.adjust(user, 480, "release", reference_id=hold)
    else:
        await trees.later(hours=2)
        await trees.reap()
    assert await trees.figures(user) == (980, 0, 0)
    reason = "deadline" if how == "the wallet's own expiry" else "closed"
    assert (await refused(trees.hold(child, "c", 5), "VS409"))["reason"] == reason
    assert (await refused(trees.carve(root, 5), "VS409"))["reason"] == reason
    assert (await trees.pay(step, 30))["overrun"] == 30
    assert await trees.figures(user) == (950, 0, 0)
    assert (await trees.reap_trees())["allocations"] >= 1
    assert {(await trees.node(node))["state"] for node in (root, child)} == {
        "expired" if reason == "deadline" else "closed"
    }


async def test_nobody_settles_the_hold_of_a_tree_by_hand(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 500)
    hold = (await trees.node(root))["hold_id"]
    for final in (True, False):
        settle = trees.connection.fetchval("select settle_user_tokens($1, 5, p_final => $2)", hold, final)
        assert (await refused(settle, "VS409"))["allocation_id"] == root["allocation_id"]


async def test_a_metered_step_is_not_settled_by_hand(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 500)
    held = await trees.connection.fetchval(
        "select vanilla.allocation_hold($1, $2, 'a', 50, p_call => '{}')", user.tenant_id, root["allocation_id"]
    )
    await refused(trees.pay(held, 0), "VS409")
    await trees.release(held)


@pytest.mark.parametrize("status", ["locked", "suspended"])
async def test_a_wallet_that_is_not_active_begins_nothing_and_settles_what_was_begun(trees: Trees, status: str) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 500)
    step = await trees.hold(root, "a", 50)
    await trees.connection.execute("select set_wallet_status($1, $2, 'test')", user.id, status)
    for begun in (trees.hold(root, "b", 5), trees.carve(root, 5), trees.top_up(root, 5), trees.open(user, 5)):
        await refused(begun, "VS415")
    await trees.pay(step, 40)
    await trees.close(root)
    assert await trees.figures(user) == (960, 0, 0)


async def test_a_tree_lives_through_the_end_of_a_period(trees: Trees) -> None:
    user = await trees.user(monthly_allocation=1000)
    await trees.allocate(user, "free")
    root = await trees.open(user, 600, expires_at=START + timedelta(days=29))
    step = await trees.hold(root, "a", 200, ttl=timedelta(days=29))
    await trees.later(days=28)
    await trees.reset()
    await trees.pay(step, 150)
    await trees.top_up(root, 100)
    await trees.pay(await trees.hold(root, "b", 100), 100)
    await trees.close(root)
    assert (await trees.figures(user))[1] == 0


async def test_an_erased_persons_trees_end_and_what_is_settled_later_is_debt(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    roots = [await trees.open(user, 300, idempotency_key=str(n)) for n in range(2)]
    step = await trees.hold(await trees.carve(roots[0], 100), "a", 50)
    await trees.connection.fetchval("select erase_user($1, 'asked')", user.id)
    assert [(await trees.node(root))["state"] for root in roots] == ["closed"] * 2
    assert (await trees.wallet(user))["status"] == "closed"
    await trees.pay(step, 30)
    assert await trees.figures(user) == (0, 0, 30)


async def test_the_tree_is_shown_each_node_before_its_children(trees: Trees) -> None:
    root = await trees.open(await trees.user(balance=1000), 500, {"estimated_tokens": 70})
    one, two = await trees.carve(root, 100), await trees.carve(root, 50)
    deep = await trees.carve(one, 10)
    rows = await trees.connection.fetch("select * from allocation_tree($1)", root["allocation_id"])
    assert [str(row["id"]) for row in rows] == [node["allocation_id"] for node in (root, one, deep, two)]
    assert [row["left_tokens"] for row in rows] == [350, 90, 10, 50]
    assert rows[0]["estimated_tokens"] == 70


@pytest.mark.parametrize(
    "limits",
    [{"requests": 0}, {"requests": -1}, {"odd": 1}, {"requests": "3"}, {"requests": 1.5}, {"wrap_up_tokens": 101}, []],
)
async def test_limits_that_are_none_are_refused(trees: Trees, limits: Any) -> None:
    await refused(trees.open(await trees.user(balance=1000), 100, limits), "VS400")


async def events(trees: Trees, user: Any) -> list[str]:
    rows = await trees.connection.fetch(
        "select type from events where user_id = $1 and type like 'allocation.%' order by id", user.id
    )
    return [row["type"] for row in rows]
