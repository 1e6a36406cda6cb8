"""Group chats: one has the word, by the chat's floor, until something ends it."""

import asyncio
from typing import Any

import pytest

from tests.orchestration.studio import BOTH_LOOPS, Studio, agent, calls, says
from tests.orchestration.test_channels_http import collect, watch
from tests.orchestration.test_runs import journal_told, settled
from vanilla_saas.client import ApiError, Client
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
    said = [(row["slug"], row["text"]) for row in rows]
    await shown(desk, run, said)
    return run, said


async def shown(desk: Studio, run: dict[str, Any], said: list[tuple[str, str]]) -> None:
    """The channel of a chat that is over has all of it."""
    channel = await desk.shop.operator.fetchrow("select * from communication_channels where id = $1", run["id"])
    assert (channel["status"], channel["close_reason"], channel["floor_holder"], channel["last_seq"]) == (
        "closed",
        run["output"]["ended_by"],
        None,
        len(said),
    )
    rows = await desk.shop.operator.fetch(
        "select m.*, p.name, s.n from channel_messages m join channel_participants p on p.id = m.sender_id"
        " join agent_run_steps s on s.run_id = m.run_id and m.message_id = s.run_id || ':' || s.n"
        " where m.channel_id = $1 order by m.seq",
        run["id"],
    )
    assert [(row["name"], row["body"]["text"]) for row in rows] == said
    assert [row["n"] for row in rows] == sorted(row["n"] for row in rows)


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
    assert [kind for kind in await journal_told(desk, run) if kind == "bid"] == ["bid"] * len(bids)


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


async def test_people_who_lose_their_streams_watch_it_in_one_order(desk: Studio) -> None:
    person, admin = await desk.shop.person(), await desk.shop.room.people.user("admin", scopes=["read", "admin"])
    slugs = [await desk.save(agent(says(f"I am {n}.", latency_ms=150))) for n in range(4)]
    order = [slugs[n] for n in (2, 0, 3, 1, 2)]
    names = [calls((f"transfer_to_{slug}", {})) for slug in order]
    chat = {"members": slugs, "floor": "manager", "rounds": 9}
    group = await desk.save(agent(*names, says("Enough."), chat=chat, limits={"turns": 100}))
    run_id = await desk.start(person, group)
    async with Client(desk.address, person.key) as client:
        channel = await client.channels.get(run_id)
        assert [one["name"] for one in channel["participants"] if one["manages"]] == [group]
        seat = channel["participants"][0]["id"]
        for act in (client.channels.send(run_id, seat, "Me!"), client.channels.floor(run_id, seat, "pass")):
            with pytest.raises(ApiError, match="run of a group chat"):
                await act
        followed = asyncio.create_task(collect(client, str(run_id)))
        viewers = [
            watch(desk.address, one, str(run_id), breaks) for one, breaks in ((person, 1), (admin, 2), (admin, 9))
        ]
        seen = await asyncio.gather(*viewers)
        assert [name for _, name in seen[0]] == [*order, group]
        assert seen[0] == seen[1] == seen[2] == await followed
        over = await client.channels.get(run_id)
        assert (over["status"], over["close_reason"]) == ("closed", "manager")
    await settled(desk, await desk.run(run_id))


async def test_a_chat_whose_channel_its_owner_closed_goes_on(desk: Studio) -> None:
    person = await desk.shop.person()
    slugs = [await desk.save(agent(says("Slowly.", latency_ms=300))) for _ in range(2)]
    run_id = await desk.start(person, await desk.save(agent(chat={"members": slugs, "rounds": 1})))
    await desk.shop.ask(person, "channel_close", run_id, "enough")
    run = await desk.ended(run_id)
    assert run["output"]["ended_by"] == "rounds"
    closed = "select close_reason, last_seq from communication_channels where id = $1"
    assert tuple(await desk.shop.operator.fetchrow(closed, run_id)) == ("enough", 0)


async def test_a_chat_that_is_cancelled_closes_its_channel(desk: Studio) -> None:
    person = await desk.shop.person()
    slugs = [await desk.save(agent(says("Late.", latency_ms=60_000))) for _ in range(2)]
    run_id = await desk.start(person, await desk.save(agent(chat={"members": slugs})))
    holder = "select p.name from communication_channels c join channel_participants p on p.id = c.floor_holder"
    assert await desk.shop.operator.fetchval(f"{holder} where c.id = $1", run_id) == slugs[0]
    await desk.shop.ask(person, "cancel_execution", (await desk.run(run_id))["execution_id"])
    reason = "select close_reason from communication_channels where id = $1 and status = 'closed'"
    assert await desk.shop.operator.fetchval(reason, run_id) == "canceled"
