"""Group chats: one has the word, by the chat's floor, until something ends it."""

from typing import Any

import pytest

from tests.orchestration.studio import BOTH_LOOPS, Studio, agent, calls, says
from tests.orchestration.test_runs import settled
from vanilla_saas.database.errors import VanillaError

LOOPS = BOTH_LOOPS


async def members(desk: Studio, *words: str, **more: Any) -> list[str]:
    """An agent for each text, which it says whenever it has the word."""
    return [await desk.save(agent(says(word), **more)) for word in words]


async def talk(
    desk: Studio, chat: dict[str, Any], *turns: Any, **more: Any
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The run, and what was said by whom."""
    person = await desk.shop.person(balance=1_000_000)
    group = await desk.save(agent(*turns, chat=chat, limits={"turns": 100}, **more))
    run = await desk.ended(await desk.start(person, group))
    await settled(desk, run)
    rows = await desk.shop.operator.fetch(
        "select a.slug, s.result ->> 'text' as text from agent_run_steps s join agents a on a.id = s.agent_id"
        " where s.run_id = $1 and s.kind = 'model' and s.result ->> 'text' <> '' order by s.n",
        run["id"],
    )
    return run, [(row["slug"], row["text"]) for row in rows]


async def test_they_speak_in_turn_for_so_many_rounds(desk: Studio) -> None:
    a, b = await members(desk, "I am a.", "I am b.")
    run, said = await talk(desk, {"members": [a, b], "rounds": 2})
    assert said == [(a, "I am a."), (b, "I am b.")] * 2
    assert (run["stop_reason"], run["output"]["ended_by"], run["output"]["text"]) == ("done", "rounds", "I am b.")


async def test_words_end_it(desk: Studio) -> None:
    a, b = await members(desk, "No.", "We AGREE then.")
    run, said = await talk(desk, {"members": [a, b], "rounds": 9, "until": "agree"})
    assert [slug for slug, _ in said] == [a, b]
    assert run["output"]["ended_by"] == "said"


async def test_a_manager_says_who_speaks_and_when_it_is_over(desk: Studio) -> None:
    a, b = await members(desk, "Red.", "Blue.")
    name = [calls((f"transfer_to_{slug}", {})) for slug in (b, a, b)]
    run, said = await talk(desk, {"members": [a, b], "floor": "manager"}, *name, says("Blue it is."))
    assert [text for _, text in said] == ["Blue.", "Red.", "Blue.", "Blue it is."]
    assert (run["output"]["ended_by"], run["output"]["agent"]) == ("manager", said[-1][0])


async def test_who_bids_most_speaks(desk: Studio) -> None:
    # what they answer counts what was said before them in the conversation: nothing, then one message each
    quiet = await desk.save(agent(says("5")))
    loud = await desk.save(agent(says("90"), says("Listen."), says("1")))
    run, said = await talk(desk, {"members": [quiet, loud], "floor": "bid", "rounds": 1})
    bids = await desk.shop.operator.fetch(
        "select result ->> 'text' as bid from agent_run_steps where run_id = $1 and kind = 'bid' order by n", run["id"]
    )
    assert [row["bid"] for row in bids][:2] == ["5", "90"]
    assert said[0][0] == loud
    assert run["output"]["ended_by"] == "rounds"


async def test_a_chat_with_somebody_who_is_not_there_does_not_begin(desk: Studio) -> None:
    person = await desk.shop.person()
    (a,) = await members(desk, "Hello?")
    group = await desk.save(agent(chat={"members": [a, "nobody"]}))
    with pytest.raises(VanillaError, match="there is no agent nobody"):
        await desk.start(person, group)
    assert (
        await desk.shop.operator.fetchval(
            "select count(*) from resource_allocations where user_id = $1", person.identity.user_id
        )
        == 0
    )
