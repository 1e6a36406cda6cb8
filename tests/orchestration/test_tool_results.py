"""What the last call of a turn gave is written down by the statement that admits the next model call."""

import asyncio
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from tests.orchestration.hands import HELD
from tests.orchestration.studio import BOTH_LOOPS, Studio, agent, calls, says
from tests.orchestration.test_runs import settled, stopped
from tests.processes import eventually
from vanilla_saas.orchestration.journal import Journal, as_kept
from vanilla_saas.orchestration.loop import Turns
from vanilla_saas.providers.step_metering import MeteredStepCalls
from vanilla_saas.workflows.execution.failures import Failure

LOOPS = BOTH_LOOPS
LEAVES: tuple[Any, ...] = (None, True, False, 0, -1, 2**63 - 1, -(2**63), "", "x", '\u0001"\\', "\U0001f600")
KEYS = ("", "b", "a", "aa", "ab", "ä", "zz", "\U0001f600", "B", "a\n")


def value(dice: random.Random, depth: int = 0) -> Any:
    kind = dice.choice(["leaf", "list", "dict"]) if depth < 4 else "leaf"
    if kind == "list":
        return [value(dice, depth + 1) for _ in range(dice.randint(0, 4))]
    if kind == "dict":
        return {key: value(dice, depth + 1) for key in dice.sample(KEYS, dice.randint(0, len(KEYS)))}
    return dice.choice(LEAVES)


async def test_a_result_has_the_form_that_the_database_gives_it(desk: Studio) -> None:
    for seed in range(300):
        made = value(random.Random(seed))
        kept = await desk.shop.operator.fetchval("select $1::jsonb", made)
        assert orjson.dumps(as_kept(made)) == orjson.dumps(kept), made


@pytest.mark.parametrize("odd", [0.5, 1e300, 2**63, -(2**63) - 1, {"a": [1.0]}, {"\ud800": 1}, (1,)])
def test_what_the_database_may_write_in_another_form_is_left_to_it(odd: Any) -> None:
    with pytest.raises(ValueError):
        as_kept(odd)


@dataclass
class Told:
    """The statements that keep results or admit calls, and what models were asked last."""

    made: Counter[str] = field(default_factory=Counter)
    messages: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    found = Told()
    chat, record, ask = MeteredStepCalls.step_chat, Journal.record_call, MeteredStepCalls._ask_admission

    async def chatted(calls: Any, lease: Any, body: Any, *given: Any, **more: Any) -> Any:
        found.messages = body["messages"]
        return await chat(calls, lease, body, *given, **more)

    async def recorded(*given: Any) -> Any:
        found.made["result"] += 1
        return await record(*given)

    async def admitted(calls: Any, step: Any, asked: Any, before: Any) -> Any:
        found.made["call" if before is None or before.kept else "both"] += 1
        return await ask(calls, step, asked, before)

    monkeypatch.setattr(MeteredStepCalls, "step_chat", chatted)
    monkeypatch.setattr(Journal, "record_call", recorded)
    monkeypatch.setattr(MeteredStepCalls, "_ask_admission", admitted)
    return found


@pytest.mark.parametrize(("size", "made"), [(7, {"both": 1, "result": 1, "call": 1}), (0.5, {"result": 2, "call": 2})])
async def test_the_last_result_of_a_turn_is_kept_with_the_next_call(
    desk: Studio, told: Told, size: float, made: dict[str, int]
) -> None:
    turn = calls(("look_up", {"name": "Ada"}), ("measure", {"size": size}))
    run = await stopped(desk, agent(turn, says("Done."), tools=["look_up", "measure"]))
    assert told.made == made
    (kept,) = [step for step in await desk.steps(run["id"]) if step["name"] == "measure"]
    assert kept["status"] == "done"
    said = [message["content"] for message in told.messages if message["role"] == "tool"]
    assert said[1] == orjson.dumps(kept["result"]).decode(), "the model is asked as the journal will have it"


async def test_what_a_tool_gave_is_kept_when_no_call_comes_after_it(desk: Studio, told: Told) -> None:
    person, name = await desk.shop.person(), uuid.uuid4().hex
    HELD[name] = asyncio.Event()
    slug = await desk.save(agent(calls(("hold", {"name": name})), says("Done."), tools=["hold"]))
    run_id = await desk.start(person, slug)

    async def called() -> bool:
        return len(await desk.steps(run_id)) == 2

    await eventually(called)
    lock = "update user_token_wallets set status = 'locked' where user_id = $1"
    await desk.shop.operator.execute(lock, person.identity.user_id)
    HELD[name].set()
    run = await desk.ended(run_id)
    assert (run["state"], told.made) == ("failed", {"call": 1, "both": 1, "result": 1})
    held = (await desk.steps(run_id))[1]
    assert (held["status"], held["result"]) == ("done", "held")
    await settled(desk, run)


async def test_what_a_tool_gave_is_kept_when_the_next_request_cannot_be_made(
    desk: Studio, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Turns._chat

    async def fails(turns: Turns, state: Any, body: Any, **more: Any) -> Any:
        if state.turns:
            raise Failure("template_failed", "It cannot be said.", {})
        return await chat(turns, state, body, **more)

    monkeypatch.setattr(Turns, "_chat", fails)
    run = await stopped(desk, agent(calls(("look_up", {"name": "Ada"})), says("Done."), tools=["look_up"]))
    assert (run["state"], told.made) == ("failed", {"call": 1, "result": 1})
    assert (await desk.steps(run["id"]))[1]["status"] == "done"
