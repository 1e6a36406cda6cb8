"""A group chat of four, led by a manager, whose workers are killed and whose viewers lose their streams: one order."""

import asyncio
import random
import uuid
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import asyncpg
import orjson
import pytest

from tests.conftest import LONG, People, Person, serve, settings_for
from tests.orchestration.mortals import Ward
from tests.orchestration.studio import agent, calls, says
from vanilla_saas.app import create_app
from vanilla_saas.orchestration.definition import AgentDefinition

SEEDS = range(20 if LONG else 1)
ROUND, SPOKEN = 4, 7
"""Members, and how often one of them is named before the manager ends it."""
TURNS = 2 * SPOKEN + 1
WATCHED = """
    create table if not exists floor_log (n bigserial, channel_id uuid, was uuid, holder uuid, said bigint);
    create or replace function log_floor() returns trigger language plpgsql security definer as $f$ begin
        insert into public.floor_log (channel_id, was, holder, said)
            values (new.id, old.floor_holder, new.floor_holder, nullif(new.last_seq, old.last_seq));
        return new;
    end $f$;
    create or replace trigger log_floor after update on communication_channels for each row execute function log_floor();
"""
"""Every change of a channel: who had the floor before and has it after, and the message that was said by it."""
UNWATCHED = "drop trigger log_floor on communication_channels; drop table floor_log; drop function log_floor"


@dataclass
class Viewer:
    """Watches the channel and the run of a chat, and loses either stream again and again."""

    who: Person
    dice: random.Random
    messages: list[dict[str, Any]] = field(default_factory=list)
    said: list[tuple[int, str]] = field(default_factory=list)
    """Places in the run's journal and what was said there, as the run's events tell it."""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: int = 0

    async def watch(self, address: str, chat: uuid.UUID) -> None:
        async with (
            aiohttp.ClientSession(address, headers=self.who.headers, read_bufsize=2**20) as http,
            asyncio.timeout(180),
            asyncio.TaskGroup() as group,
        ):
            for path, took in (("channels", self._message), ("agent-runs", self._progress)):
                group.create_task(self._follow(http, f"/api/v1/{path}/{chat}/events", took))

    async def _follow(self, http: aiohttp.ClientSession, path: str, took: Any) -> None:
        last: dict[str, str] = {}
        while True:
            left = self.dice.randint(1, 3)
            async with http.get(path, headers=last) as answer:
                assert answer.status == 200, await answer.text()
                while left and (block := await answer.content.readuntil(b"\n\n")):
                    event = dict(line.split(": ", 1) for line in block.decode().strip().split("\n") if ": " in line)
                    if "event" not in event:
                        continue
                    if "id" in event:
                        last = {"Last-Event-ID": event["id"]}
                    took(event["event"], event.get("id"), orjson.loads(event["data"]))
                    if event["event"] == "end":
                        return
                    left -= 1
            self.lost += 1
            await asyncio.sleep(self.dice.random() * 0.2)

    def _message(self, kind: str, number: str | None, told: dict[str, Any]) -> None:
        if kind == "message":
            assert number == str(told["seq"])
            self.messages.append(told)
        elif kind == "end":
            self.ends["channel"] = told
        else:
            assert kind == "channel"

    def _progress(self, kind: str, number: str | None, told: dict[str, Any]) -> None:
        assert kind in ("progress", "end")
        self.runs |= {run["id"]: run for run in told["runs"]}
        steps = self.runs[told["run_id"]]["steps"]
        said = [(s["n"], s["result"]["text"]) for s in steps if s["kind"] == "model" and s["result"]["text"]]
        assert said[: len(self.said)] == self.said, "what was told is told otherwise"
        self.said = said
        if kind == "end":
            self.ends["run"] = told


async def chat_of_four(ward: Ward, dice: random.Random) -> tuple[list[str], str]:
    """Whom the manager names, in order, and the manager."""
    mark = f"{dice.getrandbits(32):08x}"
    members = [f"m{n}-{mark}" for n in range(ROUND)]
    order = dice.sample(members, ROUND) + dice.choices(members, k=SPOKEN - ROUND)
    names = [calls((f"transfer_to_{name}", {})) for name in order]
    chat = {"members": members, "floor": "manager", "rounds": 9}
    written = {name: agent(says(f"I am {name}.", latency_ms=80)) for name in members}
    written[f"lead-{mark}"] = agent(*names, says("Enough."), chat=chat, limits={"turns": 100})
    for slug, definition in written.items():
        document = AgentDefinition.model_validate(definition).document()
        await ward.ask(ward.people[1], "select save_agent($1, $2, p_shared => true)", slug, document)
    return order, f"lead-{mark}"


def deaths(dice: random.Random) -> list[str]:
    """How three workers end: before or after an answer is written, or while the model is asked."""
    ways = [
        f"record_turn:before:{dice.randint(1, 3)}",
        f"record_turn:after:{dice.randint(1, 3)}",
        f"call:{dice.randint(2, 4)}",
    ]
    return dice.sample(ways, 3)


async def require_one_floor(operator: asyncpg.Connection, chat: uuid.UUID, order: list[str], lead: str) -> None:
    """Each message was said by who had the floor then; the floor went from one to the next, who is the one named."""
    log = await operator.fetch(
        "select l.*, m.sender_id, w.name as had, h.name as has from floor_log l"
        " left join channel_messages m on m.channel_id = l.channel_id and m.seq = l.said"
        " left join channel_participants w on w.id = l.was left join channel_participants h on h.id = l.holder"
        " where l.channel_id = $1 order by l.n",
        chat,
    )
    assert [row["was"] for row in log[1:]] == [row["holder"] for row in log[:-1]]
    assert all(row["said"] is None or row["sender_id"] == row["was"] for row in log)
    had = [lead, *(row["has"] for row in log if row["has"] is not None and row["has"] != row["had"])]
    assert had[-2 * SPOKEN - 1 :] == [name for member in order for name in (lead, member)] + [lead]
    assert log[-1]["holder"] is None


@pytest.mark.parametrize("seed", SEEDS)
async def test_three_viewers_see_one_order_however_often_workers_and_streams_end(ward: Ward, seed: int) -> None:
    dice = random.Random(seed)
    order, lead = await chat_of_four(ward, dice)
    async with ward.operator() as operator:
        await operator.execute(WATCHED)
        admin = await People(operator).user("admin", scopes=["read", "admin"])
    ward.sandbox.asked.clear()
    start = "select (start_agent($1, '{\"message\": \"Talk.\"}') ->> 'run_id')::uuid"
    chat: uuid.UUID = await ward.ask(ward.people[0], start, lead)
    viewers = [
        Viewer(who, random.Random(f"{seed}.{n}")) for n, who in enumerate([ward.people[0], ward.people[0], admin])
    ]
    settings = settings_for(ward.cluster, ward.database, ward.home)
    async with serve(create_app(settings)) as address, asyncio.TaskGroup() as group:
        for viewer in viewers:
            group.create_task(viewer.watch(address, chat))
        for death in deaths(dice):
            assert await ward.killed(chat, death), "it ended before"
        async with ward.another():
            await ward.ended(chat, 60)
    texts = [*(f"I am {name}." for name in order), "Enough."]
    expected = [(n, name, text) for n, (name, text) in enumerate(zip([*order, lead], texts, strict=True), 1)]
    for viewer in viewers:
        assert [(m["seq"], m["sender"], m["body"]["text"]) for m in viewer.messages] == expected
        # the run's events have no number for each word: whoever comes back is told what is, and it is the same
        assert [f"{chat}:{n}" for n, _ in viewer.said] == [m["message_id"] for m in viewer.messages]
        assert [text for _, text in viewer.said] == texts
        over = viewer.ends["channel"]
        assert (over["status"], over["close_reason"], over["floor_holder"]) == ("closed", "manager", None)
        told = viewer.ends["run"]
        assert (told["state"], told["stop_reason"], told["output"]["ended_by"]) == ("completed", "done", "manager")
        assert viewer.lost >= SPOKEN // 3, "it never lost a stream"
    async with ward.operator() as operator:
        await require_one_floor(operator, chat, order, lead)
        await operator.execute(UNWATCHED)
        turns = "select count(*) from agent_run_steps where run_id = $1 and kind = 'model'"
        assert await operator.fetchval(turns, chat) == TURNS
        paid = (
            "select count(*), count(distinct l.metadata ->> 'allocation_hold') from agent_runs r"
            " join user_token_ledger l on l.reference_id = r.execution_id and l.direction = 'settle' where r.id = $1"
        )
        assert tuple(await operator.fetchrow(paid, chat)) == (TURNS, TURNS)
        await ward.require_nothing_held(operator)
    assert TURNS <= ward.sandbox.asked.total() <= TURNS + 3
