"""Contract net: a task is put out to bids, exactly one gets it, and the next one when the work fails."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from tests.conftest import Person
from tests.orchestration.studio import Studio, agent, calls, says
from tests.orchestration.test_runs import CHILD_CALLS, journal_told, settled

TASK = calls(("contract_out", {"message": "Paint the fence."}))
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["green", "blue"]}}, "required": ["colour"]}


def bid(price: int, **script: Any) -> dict[str, Any]:
    return says(json.dumps({"price_tokens": price, "plan": "Quickly."}), **script)


async def bidder(desk: Studio, answer: dict[str, Any], work: str = '{"colour": "green"}') -> str:
    """Bids when it is asked for a bid and works when it is given the work: its first turn in either run."""
    text = "You paint.{% if input.message is mapping %}\nsandbox: %s{% else %}\nsandbox: %s{% endif %}"
    scripts = [json.dumps({"turns": [turn]}) for turn in (answer, says(work))]
    parts = text.split("%s")
    instructions = (
        "".join(a + "{% raw %}" + b + "{% endraw %}" for a, b in zip(parts, scripts, strict=False)) + parts[-1]
    )
    return await desk.save({"instructions": instructions, "model": "sandbox-small"})


async def run(desk: Studio, person: Person, bidders: list[str], *turns: Any, **contract: Any) -> dict[str, Any]:
    boss = await desk.save(agent(TASK, *turns, says("Painted."), contract={"bidders": bidders} | contract))
    found = await desk.ended(await desk.start(person, boss), seconds=40)
    await settled(desk, found)
    return found


async def bids(desk: Studio, run: dict[str, Any]) -> dict[str, tuple[str, int | None]]:
    rows = await desk.shop.operator.fetch(
        "select a.slug, b.state, b.price_tokens from contract_bids b join contract_calls c on c.id = b.call_id"
        " join agents a on a.id = b.agent_id where c.run_id = $1",
        run["id"],
    )
    return {row["slug"]: (row["state"], row["price_tokens"]) for row in rows}


async def test_of_five_bidders_one_gets_the_work(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    cheap, fair, dear, late, mute = [
        await bidder(desk, answer)
        for answer in (bid(900), bid(2000), bid(9000), bid(10, latency_ms=30_000), says("No idea."))
    ]
    found = await run(desk, person, [dear, fair, cheap, late, mute], most_tokens=5000, bid_s=3, accept=COLOUR)
    assert (found["stop_reason"], found["output"]["text"]) == ("done", "Painted.")
    assert await bids(desk, found) == {
        cheap: ("done", 900), fair: ("rejected", 2000), dear: ("refused", 9000), late: ("late", None), mute: ("refused", None),
    }  # fmt: skip
    work = await desk.shop.operator.fetchrow(
        "select r.* from agent_runs r join contract_bids b on b.work_run_id = r.id join contract_calls c on c.id = b.call_id where c.run_id = $1",
        found["id"],
    )
    budget = await desk.shop.operator.fetchval(
        "select budget_tokens from resource_allocations where id = $1", work["allocation_id"]
    )
    assert (budget, work["state"]) == (900, "completed")
    assert await journal_told(desk, found) == ["model", "contract", "model"]


async def test_work_that_does_not_fit_goes_to_the_next_bid_and_counts_the_next_time(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    bad = await bidder(desk, bid(1000), work='{"colour": "red"}')
    good = await bidder(desk, bid(1500))
    first = await run(desk, person, [bad, good], rule="score", accept=COLOUR)
    assert await bids(desk, first) == {bad: ("failed", 1000), good: ("done", 1500)}
    # of one that has failed once a third of the work is expected to end well, of the other two thirds
    second = await run(desk, person, [bad, good], rule="score", accept=COLOUR)
    assert await bids(desk, second) == {bad: ("rejected", 1000), good: ("done", 1500)}


async def test_the_next_best_works_when_the_best_fails_its_gate_and_that_counts_from_then_on(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    late = await bidder(desk, bid(10, latency_ms=30_000))
    dear = await bidder(desk, bid(9000))
    unfit = await bidder(desk, bid(1000), work='{"colour": "red"}')
    fair, fairer = await bidder(desk, bid(1600)), await bidder(desk, bid(1500))
    terms = {"rule": "score", "accept": COLOUR, "most_tokens": 5000, "bid_s": 3}
    found = await run(desk, person, [late, dear, unfit, fair, fairer], **terms)
    assert await bids(desk, found) == {
        late: ("late", None), dear: ("refused", 9000), unfit: ("failed", 1000), fair: ("rejected", 1600), fairer: ("done", 1500),
    }  # fmt: skip
    held = await desk.shop.operator.fetch(
        "select a.slug, b.state, x.state as budget, x.held_tokens, x.carved_tokens, r.finished_at is not null as over"
        " from contract_bids b join contract_calls c on c.id = b.call_id join agents a on a.id = b.agent_id"
        " join agent_runs r on r.id in (b.run_id, b.work_run_id) join resource_allocations x on x.id = r.allocation_id"
        " where c.run_id = $1",
        found["id"],
    )
    assert len(held) == 5 + 2  # all have bid, two have worked
    assert {tuple(row)[2:] for row in held} == {("closed", 0, 0, True)}
    again = await run(desk, person, [unfit, fairer], **terms)
    assert await bids(desk, again) == {unfit: ("rejected", 1000), fairer: ("done", 1500)}


async def test_a_bid_that_comes_late_changes_nothing(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    late, good = await bidder(desk, bid(10, latency_ms=1500)), await bidder(desk, bid(1500))
    found = await run(desk, person, [late, good], bid_s=1)
    before = await bids(desk, found)
    assert before == {late: ("late", None), good: ("done", 1500)}
    # it bids after all, as one whose worker was slow to notice would have it
    answer = "update agent_runs set output = '{\"json\": {\"price_tokens\": 10}}' where id = (select b.run_id from contract_bids b join contract_calls c on c.id = b.call_id where c.run_id = $1 and b.state = 'late')"
    assert await desk.shop.operator.execute(answer, found["id"]) == "UPDATE 1"
    read = "select vanilla.read_bids(c), vanilla.settle_contracts(r) from contract_calls c join agent_runs r on r.id = c.run_id where r.id = $1"
    await desk.shop.operator.execute(read, found["id"])
    assert await bids(desk, found) == before
    await settled(desk, found)


async def test_nobody_who_can_do_it_is_told_to_the_model(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    bad = await bidder(desk, bid(1000), work="no colour")
    found = await run(desk, person, [bad], accept=COLOUR)
    (row,) = [step for step in await desk.steps(found["id"]) if step["kind"] == "contract"]
    assert (row["status"], row["result"]) == ("failed", {"error": "Nobody who bid could do it."})
    assert found["stop_reason"] == "done"


async def test_a_winner_that_cannot_start_and_is_the_last_ends_the_call(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    only = await bidder(desk, bid(1000, latency_ms=1500))
    boss = await desk.save(agent(TASK, says("Painted."), contract={"bidders": [only]}))
    run_id = await desk.start(person, boss)
    async with asyncio.timeout(20):
        while not await desk.shop.operator.fetchval(CHILD_CALLS, run_id):
            await asyncio.sleep(0.02)
    lock = "update user_token_wallets set status = 'locked' where user_id = $1"
    await desk.shop.operator.execute(lock, person.identity.user_id)
    found = await desk.ended(run_id)
    assert await bids(desk, found) == {only: ("failed", 1000)}
    (row,) = [step for step in await desk.steps(run_id) if step["kind"] == "contract"]
    assert (row["status"], row["result"]) == ("failed", {"error": "Nobody who bid could do it."})
    await settled(desk, found)


async def test_a_call_is_awarded_once(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    one, other = await bidder(desk, bid(1000)), await bidder(desk, bid(1001))
    found = await run(desk, person, [one, other])
    award = "update contract_bids set state = 'accepted' where state = 'rejected' and call_id in (select id from contract_calls where run_id = $1)"
    with pytest.raises(asyncpg.UniqueViolationError, match="contract_bids_award_idx"):
        await desk.shop.operator.execute(award, found["id"])
    assert await bids(desk, found) == {one: ("done", 1000), other: ("rejected", 1001)}
    await settled(desk, found)
    another = await run(desk, person, [one, other])
    assert await bids(desk, another) == {one: ("done", 1000), other: ("rejected", 1001)}
