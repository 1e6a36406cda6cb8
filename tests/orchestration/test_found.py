"""What the oracle and the sweeps found, each as small as it gets."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cluster
from tests.orchestration.recorder import Recorder, recorder
from tests.orchestration.studio import Studio, agent, calls, says, studio
from tests.processes import eventually


@pytest.fixture(scope="module")
async def counted(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Studio, Recorder]]:
    async with (
        recorder() as sandbox,
        studio(cluster, tmp_path_factory.mktemp("home"), sandbox_url=sandbox.url) as desk,
    ):
        yield desk, sandbox


async def test_the_first_thing_that_a_worker_records_may_be_that_a_run_stops(counted: tuple[Studio, Recorder]) -> None:
    desk, _ = counted
    slug = await desk.save(agent(calls(("tick", {})), tools=["tick"], limits={"turns": 1}))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug))
    assert (run["state"], run["stop_reason"]) == ("failed", "max_turns")


async def test_an_answer_that_could_not_be_recorded_is_not_charged(
    counted: tuple[Studio, Recorder], cluster: Cluster
) -> None:
    desk, sandbox = counted
    person = await desk.shop.person()
    slug = await desk.save(agent(calls(("tick", {})), says("Done."), tools=["tick"]))
    sandbox.asked.clear()
    other = await asyncpg.connect(cluster.url(database=desk.shop.room.name))
    stuck = (  # the server has the databases of other tests
        "select pid from pg_stat_activity where datname = current_database()"
        " and query like '%record_turn%' and wait_event_type = 'Lock'"
    )
    cutting: list[asyncio.Task[None]] = []

    async def cut(run_id: Any) -> None:
        """Whoever records the answer is cut off before it is written."""
        async with other.transaction():
            execution = "select execution_id from agent_runs where id = $1"
            await other.fetch(f"select from workflow_executions where id = ({execution}) for update", run_id)
            held.set()
            pid = await eventually(lambda: desk.shop.operator.fetchval(stuck))
            await other.execute("select pg_terminate_backend($1)", pid)

    held = asyncio.Event()

    async def at_call(n: int) -> None:
        if n == 1:
            run_id = await desk.shop.operator.fetchval("select id from agent_runs order by id desc limit 1")
            cutting.append(asyncio.create_task(cut(run_id)))
            await held.wait()

    sandbox.at_call = at_call
    try:
        started = await desk.start(person, slug)
        await eventually(lambda: _done(cutting))
        await cutting[0]
    finally:
        sandbox.at_call = None
    run = await desk.ended(started)
    await other.close()
    assert (run["state"], run["turns"], sandbox.asked.total()) == ("completed", 2, 3)
    rows = "select count(*) from user_token_ledger where reference_id = $1 and direction = 'settle'"
    assert await desk.shop.operator.fetchval(rows, run["execution_id"]) == 2
    assert run["charged_tokens"] == await desk.charged(run["id"])


async def _done(tasks: list[asyncio.Task[None]]) -> bool:
    return bool(tasks) and tasks[0].done()


async def test_a_call_beside_a_handover_is_still_the_ones_who_asked(counted: tuple[Studio, Recorder]) -> None:
    desk, _ = counted
    other = await desk.save(agent(says("no"), says("I have it now."), tools=["refund"]))
    asked = {"tool": "refund", "approval": {"approvers": ["role:admin"], "deadline_s": 1}}
    turn = calls((f"transfer_to_{other}", {}), ("refund", {"amount": 9}))
    slug = await desk.save(agent(turn, tools=[asked], handoffs=[other]))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug))
    steps = await desk.steps(run["id"])
    # it is not paid by the other's leave to do so without asking
    assert [(step["kind"], step["status"]) for step in steps] == [
        ("model", "done"), ("handoff", "done"), ("tool", "failed"), ("model", "done")]  # fmt: skip
    assert steps[2]["approval"]["decision"] == "expired"
    assert (run["output"]["text"], run["output"]["agent"]) == ("I have it now.", other)


async def test_who_may_call_no_tool_has_no_child_that_may(counted: tuple[Studio, Recorder]) -> None:
    desk, _ = counted
    child = await desk.save(agent(calls(("tick", {})), says("Ticked."), tools=["tick"]))
    turns = (calls((f"delegate_to_{child}", {"message": "Tick"})), says("Well."))
    slug = await desk.save(agent(*turns, delegates=[child], limits={"tool_calls": 0}))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug))
    below = await desk.shop.operator.fetchrow(
        "select state, stop_reason, tool_calls from agent_runs where parent_run_id = $1", run["id"]
    )
    assert tuple(below) == ("failed", "max_tool_calls", 0)


async def test_the_same_answer_of_an_agent_again_is_a_loop(counted: tuple[Studio, Recorder]) -> None:
    desk, _ = counted
    child = await desk.save(agent(says("Yes.")))
    slug = await desk.save(agent(calls((f"delegate_to_{child}", {"message": "Is it?"})), delegates=[child]))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug))
    assert (run["state"], run["stop_reason"], run["turns"]) == ("failed", "loop_detected", 3)


async def test_an_agent_that_is_not_there_is_no_child(counted: tuple[Studio, Recorder]) -> None:
    desk, _ = counted
    child = await desk.save(agent(says("Yes.")))
    turns = (calls(("delegate_to_nobody", {})), calls((f"delegate_to_{child}", {"message": "?"})), says("Good."))
    slug = await desk.save(agent(*turns, delegates=[child], limits={"children": 1}))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug))
    assert (run["stop_reason"], run["children"]) == ("done", 1)


async def test_a_run_that_comes_on_has_its_attempts_again(counted: tuple[Studio, Recorder]) -> None:
    desk, _ = counted
    turns = [calls(("stumble", {}))] * 4
    slug = await desk.save(agent(*turns, says("On my feet."), tools=["stumble"], limits={"repeats": 9}))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug), 30)
    assert (run["stop_reason"], run["tool_calls"]) == ("done", 4)
